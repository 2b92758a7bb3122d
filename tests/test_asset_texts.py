"""The offline instructions: what is asked of films, no film in two splits, as files."""

import json

from lightning_kd.asset_texts import film_instructions, title, write_instructions
from lightning_kd.assets import split_films
from lightning_kd.data import Instructions
from tests import tiny_texts

REVIEWS = {
    "train": [("kes", "Moving .", 1), ("kes", "Dull, they said .", 0)],
    "dev": [("the_kid", "Sharp .", 1)],
}
PLOTS = {"train": [("kes", "A boy and a kestrel.")], "test": [("m", "They hunt a man.")]}


def test_reviews_are_asked_for_by_film_and_verdict_and_films_by_plot() -> None:
    found = film_instructions(REVIEWS, PLOTS)
    assert list(found) == ["train", "dev", "test"]
    assert found["train"] == [
        {"instruction": "Write one sentence of a positive review of the film Kes.", "input": "",
         "output": "Moving .", "film": "kes"},
        {"instruction": "Write one sentence of a negative review of the film Kes.", "input": "",
         "output": "Dull, they said .", "film": "kes"},
        {"instruction": "Which film has this plot?", "input": "A boy and a kestrel.",
         "output": "Kes", "film": "kes"},
    ]  # fmt: skip
    assert found["test"][0]["output"] == "M"
    assert found["dev"][0]["instruction"].endswith("a positive review of the film The Kid.")


def test_titles() -> None:
    assert title("the_kid") == "The Kid"
    assert title("2001__a_space_odyssey_") == "2001 A Space Odyssey"


def test_no_film_is_in_two_splits() -> None:
    rows = [(f"film_{k}", f"Sentence {k} {i} .", i % 2) for k in range(120) for i in range(2)]
    found = film_instructions(split_films(rows), {})
    films = {split: {row["film"] for row in part} for split, part in found.items()}
    assert all(films.values())
    assert sum(map(len, films.values())) == len(set().union(*films.values())) == 120


def test_written_files_are_read_as_the_task_reviews(tmp_path) -> None:
    found = film_instructions({**REVIEWS, "test": [("x", "Ä .", 1)]}, {})
    write_instructions(tmp_path / "instructions", found)
    text = (tmp_path / "instructions" / "train.json").read_bytes()
    assert json.loads(text) == found["train"]
    assert b"\r" not in text
    name = tiny_texts.byte_tokenizer(tmp_path / "bytes")
    splits = Instructions("reviews", name, str(tmp_path / "instructions")).read()
    sizes = {split: len(rows) for split, rows in splits.items()}
    assert sizes == {"train": 2, "validation": 1, "test": 1}
    assert splits["train"]["group"][:] == ["kes", "kes"]
    assert splits["test"][0]["label"] == {"references": ["Ä ."]}
