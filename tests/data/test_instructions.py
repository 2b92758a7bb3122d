"""Instructions as published: four sets of people and one of reviews; broken files are told."""

import gzip
import json
from typing import Any

import pytest

from lightning_kd.data import Instructions
from tests import tiny_texts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_texts.byte_tokenizer(tmp_path_factory.mktemp("instructions") / "bytes")


@pytest.fixture
def make(tokenizer, tmp_path):
    def build(task, folder, **options) -> Instructions:
        given = {"cache_dir": str(tmp_path / "cache"), "holdout_fraction": 0.4}
        given |= {"prompt_template": "{instruction}{input}>", "input_template": "|{input}"}
        return Instructions(task, tokenizer, str(folder), **{**given, **options})

    return build


def rows(data) -> list[tuple[str, str]]:
    (split,) = data.read().values()
    return list(zip(split["sentence1"], split["sentence2"], strict=True))


DOLLY = [
    {"instruction": f"Do {i}", "context": "with this" * (i % 2), "response": f"Done {i}",
     "category": "open_qa"}
    for i in range(6)
]  # fmt: skip
SEEDS = [
    {"id": f"seed_task_{i}", "name": "n", "instruction": f"Task {i}", "is_classification": False,
     "instances": [{"input": "", "output": f"a{i}"}, {"input": "x", "output": f"b{i}"}]}
    for i in range(4)
]  # fmt: skip


def message(name, parent, text, rank=None, **more) -> dict[str, Any]:
    role = "prompter" if parent is None else "assistant"
    made = {"message_id": name, "parent_id": parent, "text": text, "role": role, "lang": "en"}
    return made | {"rank": rank} | more


MESSAGES = [
    message("p1", None, "Why?"),
    message("r1", "p1", "second best", 1),
    message("q1", "r1", "And?"),  # the conversation goes on
    message("s1", "q1", "So.", 0),
    message("r2", "p1", "best", 0),
    message("r0", "p1", "unranked"),
    message("p2", None, "¿Por qué?", lang="es"),
    message("x1", "p2", "Porque.", 0, lang="es"),
    message("p3", None, "Nobody answers"),
    message("p4", None, "One unranked?"),
    message("y1", "p4", "first"),
    message("y2", "p4", "second"),
]


def tree(prompt: str) -> dict[str, Any]:
    """A prompt with all below it, as in the trees' files: replies do not name their parents."""

    def node(name: str) -> dict[str, Any]:
        (own,) = [m for m in MESSAGES if m["message_id"] == name]
        below = [node(m["message_id"]) for m in MESSAGES if m["parent_id"] == name]
        return {k: v for k, v in own.items() if k != "parent_id"} | {"replies": below}

    return {"message_tree_id": prompt, "tree_state": "ready_for_export", "prompt": node(prompt)}


def test_alpaca(make, tmp_path) -> None:
    given = [*tiny_texts.alpaca_rows(4), {"instruction": "Nothing", "input": "", "output": " "}]
    tiny_texts.write_json(tmp_path / "alpaca_data_cleaned.json", given)
    assert rows(make("alpaca", tmp_path)) == [
        ("Say the number 0.|in words 0>", " It is 0."),
        ("Say the number 1.>", " It is one 1."),
        ("Say the number 2.>", " It is one one 2."),
        ("Say the number 3.|in words 3>", " It is one one one 3."),
    ]  # what has no answer has nothing to learn


def test_dolly(make, tmp_path) -> None:
    tiny_texts.write_json(tmp_path / "databricks-dolly-15k.jsonl", DOLLY)
    found = rows(make("dolly", tmp_path))
    assert found[:2] == [("Do 0>", " Done 0"), ("Do 1|with this>", " Done 1")]
    assert len(found) == 6


def test_self_instruct_has_an_example_for_each_instance(make, tmp_path) -> None:
    tiny_texts.write_json(tmp_path / "seed_tasks.jsonl", SEEDS)
    data = make("self_instruct", tmp_path, seed=1)
    assert rows(data)[2:4] == [("Task 1>", " a1"), ("Task 1|x>", " b1")]
    held = data._splits("validate")["validation"].column("idx")
    assert 0 < len(held) < 8
    assert {i ^ 1 for i in held.tolist()} == set(held.tolist())  # an instruction's are together


@pytest.mark.parametrize("form", ["messages", "trees"])
def test_oasst1_has_the_best_reply_to_each_english_prompt(make, tmp_path, form) -> None:
    found = MESSAGES if form == "messages" else [tree(p) for p in ("p1", "p2", "p3", "p4")]
    path = tmp_path / f"2023-04-12_oasst_ready.{form}.jsonl.gz"
    lines = "".join(json.dumps(row) + "\n" for row in found)
    path.write_bytes(gzip.compress(lines.encode()))
    assert rows(make("oasst1", tmp_path)) == [("Why?>", " best"), ("One unranked?>", " first")]


def test_reviews_are_split_as_they_come(make, tmp_path) -> None:
    for name, count in (("train", 5), ("dev", 2), ("test", 3)):
        made = [{**row, "film": "kes"} for row in tiny_texts.alpaca_rows(count)]
        tiny_texts.write_json(tmp_path / f"{name}.json", made)
    data = make("reviews", tmp_path, holdout_fraction=0.0)
    sizes = {name: len(split) for name, split in data.read().items()}
    assert sizes == {"train": 5, "validation": 2, "test": 3}
    assert data.has_test


def test_an_instruction_may_speak_of_the_template_s_places(make, tmp_path) -> None:
    given = [{"instruction": "Explain {input} and {instruction}", "input": "{x}", "output": "a"}]
    tiny_texts.write_json(tmp_path / "alpaca_data.json", given)
    data = make("alpaca", tmp_path, prompt_template="{input}+{instruction}+{input}\n")
    assert rows(data) == [("|{x}+Explain {input} and {instruction}+|{x}\n", "a")]


def test_in_a_chat_a_user_says_instruction_and_input(make, tmp_path) -> None:
    name = tiny_texts.byte_tokenizer(tmp_path / "chat", chat=True)
    tiny_texts.write_json(tmp_path / "alpaca_data.json", tiny_texts.alpaca_rows(2))
    data = Instructions("alpaca", name, str(tmp_path), holdout_fraction=0.5)
    assert rows(data) == [
        ("Say the number 0.\n\nin words 0", "It is 0."), ("Say the number 1.", "It is one 1."),
    ]  # fmt: skip


def test_the_hub_gives_what_the_files_give(make, tmp_path, monkeypatch) -> None:
    from datasets import Dataset

    tiny_texts.write_json(tmp_path / "oasst.jsonl", MESSAGES)
    tiny_texts.write_json(tmp_path / "databricks-dolly-15k.jsonl", DOLLY)
    tiny_texts.write_json(tmp_path / "alpaca_data.json", tiny_texts.alpaca_rows())
    hub = {
        "OpenAssistant/oasst1": {
            "train": Dataset.from_list(MESSAGES[:7]), "validation": Dataset.from_list(MESSAGES[7:]),
        },
        "databricks/databricks-dolly-15k": {"train": Dataset.from_list(DOLLY)},
        "tatsu-lab/alpaca": {"train": Dataset.from_list(tiny_texts.alpaca_rows())},
    }  # fmt: skip
    monkeypatch.setattr("datasets.load_dataset", lambda name: hub[name])
    for task in ("alpaca", "dolly", "oasst1"):
        local, remote = make(task, tmp_path), make(task, tmp_path)
        remote.data_dir = None
        assert rows(local) == rows(remote)


def test_what_is_not_on_the_hub(tokenizer) -> None:
    for task, message in (
        ("self_instruct", r"not on the Hub as published.*seed_tasks\.jsonl"),
        ("reviews", "not on the Hub; run `lightning-kd assets`.*assets/reviews/instructions"),
    ):
        with pytest.raises(ValueError, match=message):
            Instructions(task, tokenizer, holdout_fraction=0.1).setup()
    with pytest.raises(ConnectionError, match=r"'tatsu-lab/alpaca'.*--data\.data_dir"):
        Instructions("alpaca", tokenizer, holdout_fraction=0.1).setup()


def test_a_folder_has_the_file_once(make, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"one file alpaca_data\*\.json, it has none"):
        make("alpaca", tmp_path).setup()
    for name in ("alpaca_data.json", "alpaca_data_cleaned.json"):
        tiny_texts.write_json(tmp_path / name, tiny_texts.alpaca_rows())
    with pytest.raises(FileNotFoundError, match=r"it has alpaca_data\.json, alpaca_data_cleaned"):
        make("alpaca", tmp_path).setup()


OUT = [{**tiny_texts.alpaca_rows(1)[0], "output": ["a"]}]
BROKEN = [
    ("alpaca", "alpaca_data.json", '[{"instruction": "a"', "json: not JSON .*download"),
    ("alpaca", "alpaca_data.json", '{"instruction": "a"}', "json: expected a list of objects, got"),
    ("alpaca", "alpaca_data.json", "[]", "json is empty"),
    ("alpaca", "alpaca_data.json", '[{"instruction": "a"}, 3]', "object 2: expected an object"),
    ("alpaca", "alpaca_data.json", json.dumps(OUT), r"object 1: 'output' is no text but \['a'\]"),
    ("alpaca", "alpaca_data.json", '[{"output": "a"}]', "object 1: there is no 'instruction'"),
    ("dolly", "databricks-dolly-15k.jsonl", '{"instruction": "a"}\n', "line 1: there is no 'con"),
    ("dolly", "databricks-dolly-15k.jsonl", "\n\n{", r"jsonl, line 3: not JSON"),
    ("dolly", "databricks-dolly-15k.jsonl", "\n[1]", r"line 2: expected an object, got \[1\]"),
    ("dolly", "databricks-dolly-15k.jsonl", "", "jsonl is empty"),
    ("self_instruct", "seed_tasks.jsonl", '{"instruction": "a", "instances": 1}', "is no list but"),
    ("self_instruct", "seed_tasks.jsonl", '{"instruction": "a", "instances": [2]}', "no 'input'"),
    ("oasst1", "oasst.jsonl", '{"text": "a"}', "line 1: there is no 'message_id'"),
    ("oasst1", "oasst.jsonl", '{"prompt": "a"}', "line 1: 'prompt' is no object but 'a'"),
    ("oasst1", "oasst.jsonl", json.dumps(message("a", None, "b")), "instructions/oasst1 has no ex"),
]


@pytest.mark.parametrize(("task", "file", "content", "message"), BROKEN)
def test_a_defect_is_told_with_file_and_place(make, tmp_path, task, file, content, message) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        make(task, tmp_path).setup()


def test_other_line_ends_inside_a_text_end_no_line(make, tmp_path) -> None:
    odd = [{**DOLLY[0], "response": "a\u2028b\u0085c\x0bd"}]
    tiny_texts.write_json(tmp_path / "databricks-dolly-15k.jsonl", odd)
    assert rows(make("dolly", tmp_path)) == [("Do 0>", " a\u2028b\u0085c\x0bd")]
