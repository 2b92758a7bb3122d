"""TriviaQA and GSM8K as published: names of answers, final numbers, and broken files."""

import json
from typing import Any

import pytest
import torch

from lightning_kd.data import GSM8K, TriviaQA
from lightning_kd.tasks import Prediction
from tests import tiny_texts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_texts.byte_tokenizer(tmp_path_factory.mktemp("trivia") / "bytes")


@pytest.fixture
def trivia(tokenizer, tmp_path):
    def build(folder=tmp_path, **options) -> TriviaQA:
        cache = str(tmp_path / "cache")
        return TriviaQA("triviaqa", tokenizer, str(folder), cache_dir=cache, **options)

    return build


@pytest.fixture
def gsm8k(tokenizer, tmp_path):
    def build(**options) -> GSM8K:
        return GSM8K("gsm8k", tokenizer, str(tmp_path), cache_dir=str(tmp_path / "c"), **options)

    return build


def question(number: int, **answer: Any) -> dict[str, Any]:
    """A question in the authors' layout."""
    names = [f"Name {number}", f"Alias {number}"]
    return {
        "Question": f"Who is {number}?",
        "QuestionId": f"tc_{number}",
        "Answer": {
            "Aliases": names,
            "NormalizedAliases": [name.lower() for name in names],
            "Value": names[0],
            "Type": "WikipediaEntity",
            **answer,
        },
    }


def published(folder, train=6, dev=3, names=("unfiltered-web-{}.json",)) -> None:
    for name in names:
        for part, count, first in (("train", train, 0), ("dev", dev, 100)):
            content = {"Data": [question(first + i) for i in range(count)], "Version": 1.0}
            tiny_texts.write_json(folder / name.format(part), content)


def test_questions_answers_and_all_their_names(trivia, tmp_path) -> None:
    published(tmp_path)
    splits = trivia().read()
    assert {name: len(split) for name, split in splits.items()} == {"train": 6, "validation": 3}
    row = splits["validation"][1]
    assert row["sentence1"] == "Question: Who is 101?\nAnswer:"
    assert row["sentence2"] == " Name 101"
    assert row["label"] == {"references": ["Name 101", "Alias 101"]}
    assert trivia(prompt_template="Q {question} A\n").read()["train"][0]["sentence2"] == "Name 0"


def test_the_evidence_part_has_two_domains_and_a_question_once(trivia, tmp_path) -> None:
    published(tmp_path, names=("web-{}.json", "wikipedia-{}.json"))
    assert len(trivia(source="rc").read()["train"]) == 6
    with pytest.raises(FileNotFoundError, match=r"no unfiltered-web-train\.json"):
        trivia().setup()
    with pytest.raises(ValueError, match="source must be unfiltered or rc, got 'all'"):
        trivia(source="all")


def test_lines_with_prompts_in_them(trivia, tmp_path) -> None:
    rows = [
        {"context": f"Question: Who\nis {i}?\nAnswer:", "answer": f"N{i}", "aliases": [f"n{i}"]}
        for i in range(10)
    ]
    tiny_texts.write_json(tmp_path / "triviaqa_sm_sub.jsonl", [*rows, {**rows[0], "context": "?"}])
    with pytest.raises(FileNotFoundError, match=r"no unfiltered-web-train.json;.*holdout_fraction"):
        trivia().setup()
    data = trivia(holdout_fraction=0.4, prompt_template="{question}=")
    with pytest.warns(UserWarning, match=r"a part of triviaqa_sm_sub\.jsonl.*nothing published"):
        found = data.read()["train"]
    assert found[3]["sentence1"] == "Who\nis 3?="
    assert found[3]["label"]["references"] == ["N3", "n3"]
    assert found[10]["sentence1"] == "?="


def test_scores_of_written_names(trivia, tmp_path) -> None:
    """Check 10 of the specification of Sorted LLaMA: letters count for one score, not the other."""
    content = {"Data": [question(k, Value="Brunei", Aliases=["Borneo Town"], HumanAnswers=["X"])
                        for k in range(3)]}  # fmt: skip
    for part in ("train", "dev"):
        tiny_texts.write_json(tmp_path / f"unfiltered-web-{part}.json", content)
    data = trivia()
    (batch,) = list(data.val_dataloader()[0])
    written = torch.full((3, 50), -1)
    for k, text in enumerate(["brunei", "the Borneo", "X"]):
        tokens = data.tokenizer(text).input_ids
        written[(batch["idx"] == k).nonzero()[0, 0], : len(tokens)] = torch.tensor(tokens)
    logits = torch.zeros(3, 7, tiny_texts.BYTES)  # "_Brunei" and the end are 8 targets
    key = data.answer_key("validate", 0)
    records = key.record(
        Prediction(torch.cat([logits, logits[:, :1]], 1), generated=written), batch
    )
    scores = key.score(batch["idx"], records)
    assert scores["case_sensitive_match"].tolist() == [0, 0, 1]
    assert scores["exact_match"].tolist() == [1, 0, 1]
    torch.testing.assert_close(scores["f1"].float(), torch.tensor([1, 2 / 3, 1]))
    assert next(iter(scores)) == data.spec.monitor == "perplexity"


def test_the_hub_gives_what_the_files_give(trivia, tmp_path, monkeypatch) -> None:
    from datasets import Dataset

    published(tmp_path)
    asked = []

    def load(name, config):
        asked.append((name, config))
        found = {}
        for split, part in (("train", "train"), ("validation", "dev")):
            data = json.loads((tmp_path / f"unfiltered-web-{part}.json").read_text())["Data"]
            found[split] = Dataset.from_list([
                {"question": q["Question"], "question_id": q["QuestionId"],
                 "answer": {"value": q["Answer"]["Value"], "aliases": q["Answer"]["Aliases"]}}
                for q in data
            ])  # fmt: skip
        return found

    monkeypatch.setattr("datasets.load_dataset", load)
    local, remote = trivia(), trivia()
    remote.data_dir = None
    assert {k: v.to_list() for k, v in local.read().items()} == {
        k: v.to_list() for k, v in remote.read().items()
    }
    assert asked == [("mandarjoshi/trivia_qa", "unfiltered.nocontext")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"dev\.json: not JSON"),
        ("[]", r"dev\.json: there is no 'Data'"),
        (json.dumps({"Data": {}}), "'Data' is no list but"),
        (json.dumps({"Data": [{"Question": "a"}]}), "dev.json, question 1: there is no 'Answer'"),
        (json.dumps({"Data": [question(0), question(1, Aliases=[1])]}), "question 2: an alias is "),
        (json.dumps({"Data": [question(1, Value=" ")]}), "question 1: 'Value' is empty"),
        (json.dumps({"Data": []}), "triviaqa/triviaqa has no example"),
    ],
)
def test_a_defect_is_told_with_file_and_place(trivia, tmp_path, content, message) -> None:
    published(tmp_path)
    (tmp_path / "unfiltered-web-dev.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        trivia().setup()


SOLVED = "She has 48/2 = <<48/2=24>>24 clips.\nThat is 48+24 = <<48+24=72>>72.\n#### 72"


def problems(folder, **change) -> None:
    for name, count in (("train", 8), ("test", 4)):
        rows = [{"question": f"{name} {i}?", "answer": SOLVED} for i in range(count)]
        rows[2] |= change if name == "test" else {}
        tiny_texts.write_json(folder / f"{name}.jsonl", rows)


def test_solutions_and_what_is_validated_on(gsm8k, tmp_path) -> None:
    problems(tmp_path)
    data = gsm8k()
    row = data.read()["train"][1]
    assert row["sentence1"] == "Question: train 1?\nAnswer:"
    assert row["sentence2"] == f" {SOLVED}"
    plain = gsm8k(keep_calculations=False).read()["train"][1]["sentence2"]
    assert plain == " She has 48/2 = 24 clips.\nThat is 48+24 = 72.\n#### 72"
    assert not data.has_test
    assert len(data._splits("validate")["validation"]) == 4
    held = gsm8k(holdout_fraction=0.3)
    assert len(held._splits("test")["test"]) == 4
    sizes = [len(held._splits(r)[n]) for r, n in (("train", "train"), ("validate", "validation"))]
    assert sum(sizes) == 8


def test_a_holdout_does_not_depend_on_the_prompt(gsm8k, trivia, tmp_path) -> None:
    problems(tmp_path)
    published(tmp_path, train=12)
    for make in (gsm8k, trivia):
        held = [
            make(holdout_fraction=0.3, **options)._splits("validate")["validation"].column("idx")
            for options in ({}, {"prompt_template": "{question}\n"})
        ]
        assert held[0].tolist() == held[1].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "72"}, r"test\.jsonl, line 3: 'answer' has no number behind ####, '72'"),
        ({"question": ""}, r"test\.jsonl, line 3: 'question' is empty"),
        ({"answer": 72}, r"test\.jsonl, line 3: 'answer' is no text but 72"),
    ],
)
def test_a_broken_problem_is_told_with_file_and_line(gsm8k, tmp_path, change, message) -> None:
    problems(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        gsm8k().setup()


def test_an_unreachable_hub_names_the_way_out(tokenizer) -> None:
    for made, name in ((TriviaQA("triviaqa", tokenizer), "mandarjoshi/trivia_qa"),
                       (GSM8K("gsm8k", tokenizer), "openai/gsm8k")):  # fmt: skip
        with pytest.raises(ConnectionError, match=rf"'{name}'.*--data\.data_dir"):
            made.setup()
