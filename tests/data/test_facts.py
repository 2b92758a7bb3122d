"""E2E, DART and WebNLG as published: all texts are trained on, each meaning is scored once."""

import json
from typing import Any

import pytest

from lightning_kd.data import DART, E2E, WebNLG
from lightning_kd.data.facts_files import read_e2e
from tests import tiny_texts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_texts.byte_tokenizer(tmp_path_factory.mktemp("facts") / "bytes")


@pytest.fixture
def make(tokenizer, tmp_path):
    def build(benchmark, **options) -> Any:
        options = {"cache_dir": str(tmp_path / "cache"), "data_dir": str(tmp_path), **options}
        return benchmark(benchmark.benchmark, tokenizer, **options)

    return build


LINES = [
    "name : Aromi | area : riverside||Aromi is by the river . \n",
    "name : Aromi | area : riverside||By the river : Aromi . \n",
    "name : Loch Fyne||Loch Fyne . \n",
    "name : Aromi | area : riverside||There is Aromi||really . \n",
]
MR = [
    ('"name[Aromi], area[riverside]"', '"Aromi, by the\nriver."'),
    ('"name[Loch Fyne], eatType[pub], customer rating[5 out of 5]"', "Loch Fyne."),
    ('"name[A], familyFriendly[no], priceRange[£20-25]"', '"A is ""good""."'),
]


def e2e(folder, names=("train", "valid", "test"), extra="") -> None:
    for name in names:
        (folder / f"{name}.txt").write_text("".join(LINES) + extra, encoding="utf-8")


def table(path, header="mr,ref") -> None:
    rows = [header, *(",".join(row) for row in MR)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8-sig")


def test_training_has_every_text_and_evaluation_every_meaning(make, tmp_path) -> None:
    e2e(tmp_path)
    splits = make(E2E).read()
    train = splits["train"]
    assert train["sentence1"][0] == "name : Aromi | area : riverside</s>"
    # of the same facts together, in their order
    expected = ["Aromi is by the river .", "By the river : Aromi .", "There is Aromi||really ."]
    assert train["sentence2"][:] == [f" {text}" for text in [*expected, "Loch Fyne ."]]
    for name in ("validation", "test"):
        assert splits[name]["sentence2"][:] == [" Aromi is by the river .", " Loch Fyne ."]
        assert splits[name][0]["label"] == {"references": expected}
        assert splits[name]["idx"][:] == [0, 1]


def test_the_challenge_s_table_is_written_as_lora_s_lines(tmp_path) -> None:
    table(tmp_path / "devset.csv")
    found = read_e2e(tmp_path / "devset.csv")
    assert [m.facts for m in found] == [
        "name : Aromi | area : riverside",
        "name : Loch Fyne | Type : pub | customer rating : 5 out of 5",
        "name : A | family friendly : no | price : £20-25",
    ]
    assert [m.texts for m in found] == [["Aromi, by the\nriver."], ["Loch Fyne."], ['A is "good".']]


def test_tables_are_found_where_there_are_no_lines(make, tmp_path) -> None:
    for name in ("trainset", "devset", "testset_w_refs"):
        table(tmp_path / f"{name}.csv")
    assert {n: len(s) for n, s in make(E2E).read().items()} == {
        "train": 3, "validation": 3, "test": 3,
    }  # fmt: skip


def test_a_holdout_keeps_a_meaning_together_and_scores_it_once(make, tmp_path) -> None:
    extra = "".join(f"name : N{i}||text {i} {k}\n" for i in range(12) for k in range(3))
    e2e(tmp_path, extra=extra)
    data = make(E2E, holdout_fraction=0.4)
    train = data.read()["train"]
    kept = data._splits("train")["train"].column("idx").tolist()
    held = data._splits("validate")["validation"].column("idx").tolist()
    groups = train["group"][:]
    assert {groups[i] for i in kept} | {groups[i] for i in held} == set(groups)
    assert not {groups[i] for i in kept} & {groups[i] for i in held}
    assert len({groups[i] for i in held}) == len(held)
    assert len(kept) > len({groups[i] for i in kept})
    key = data.answer_key("validate", 0)
    for i in held:
        truths = key.examples[key.rows[i]]["label"]["references"]
        assert len(truths) == groups.count(groups[i])


def test_a_dev_file_alone_can_be_split(make, tmp_path) -> None:
    extra = "".join(f"name : N{i}||text {i}\n" for i in range(12))
    e2e(tmp_path, names=("valid", "test"), extra=extra)
    with pytest.raises(FileNotFoundError, match=r"has no train\.txt or trainset\.csv;.*holdout_fr"):
        make(E2E).setup()
    data = make(E2E, holdout_fraction=0.4)
    with pytest.warns(UserWarning, match=r"a part of valid\.txt.*nothing published"):
        data.setup()
    assert len(data._splits("test")["test"]) == 14
    e2e(tmp_path, names=("train",))
    (tmp_path / "valid.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no valid\.txt or devset\.csv"):
        make(E2E).setup()


def test_dart_has_relations_in_lower_case_and_equal_sets_once(make, tmp_path) -> None:
    triples = [["Mars Hill", "JOINED", "1973"], ["Mars Hill", "[TITLE]", "x, y"]]
    rows = [
        {"tripleset": triples, "subtree_was_extended": True,
         "annotations": [{"source": "a", "text": f"One {k}."}, {"source": "b", "text": "Two."}]}
        for k in range(2)
    ]  # fmt: skip
    rows.append({"tripleset": triples[:1], "annotations": [{"text": "Three."}]})
    for part in ("train", "dev", "test"):
        tiny_texts.write_json(tmp_path / f"dart-v1.1.1-full-{part}.json", rows)
    splits = make(DART).read()
    facts = "Mars Hill : joined : 1973 | Mars Hill : [title] : x, y"
    assert splits["validation"]["sentence1"][:] == [f"{facts}</s>", "Mars Hill : joined : 1973</s>"]
    assert splits["validation"][0]["label"]["references"] == ["One 0.", "Two.", "One 1."]
    assert splits["train"]["sentence2"][:] == [" One 0.", " Two.", " One 1.", " Two.", " Three."]


def entry(number: int, category: str, comments=("good", "toFix", "good")) -> dict[str, Any]:
    triple = {"subject": f"S_{number}", "property": "partOf", "object": "O"}
    texts = [{"comment": c, "lex": f"Text {number} {k}."} for k, c in enumerate(comments)]
    inner = {"category": category, "modifiedtripleset": [triple, triple], "lexicalisations": texts}
    return {str(number): inner}


def test_webnlg_says_what_is_seen_and_leaves_out_what_is_not_good(make, tmp_path) -> None:
    seen, unseen = entry(1, "Airport"), entry(2, "Artist")
    for name, rows in (("train", [seen]), ("dev", [seen]),
                       ("test", [seen, unseen, entry(3, "City", ("toFix",))])):  # fmt: skip
        tiny_texts.write_json(tmp_path / f"{name}.json", {"entries": rows})
    splits = make(WebNLG).read()
    assert splits["test"]["part"][:] == ["seen", "unseen"]  # and nothing is scored without truths
    assert splits["test"]["sentence1"][1] == "S_2 : partOf : O | S_2 : partOf : O</s>"
    assert splits["train"]["sentence2"][:] == [" Text 1 0.", " Text 1 2."]
    assert make(WebNLG).spec.metric_names[2:5] == ("bleu", "bleu_seen", "bleu_unseen")


HUB: list[tuple[Any, str, dict[str, Any]]] = [
    (E2E, "tuetschek/e2e_nlg", {
        "meaning_representation": "name[Aromi], eatType[pub]", "human_reference": "A pub.",
    }),
    (DART, "Yale-LILY/dart", {
        "tripleset": [["S", "REL", "O"]], "annotations": {"source": ["a"], "text": ["A pub."]},
    }),
    (WebNLG, "webnlg-challenge/web_nlg", {
        "category": "Food", "modified_triple_sets": {"mtriple_set": [["S | rel | O"]]},
        "lex": {"comment": ["good", "bad"], "text": ["A pub.", "x"]},
    }),
]  # fmt: skip


@pytest.mark.parametrize(("benchmark", "name", "row"), HUB)
def test_rows_of_the_hub(make, monkeypatch, benchmark, name, row) -> None:
    asked = []

    def load(*args):
        asked.append(args)
        return {s: [row] for s in benchmark.hub_splits.values()}

    monkeypatch.setattr("datasets.load_dataset", load)
    splits = make(benchmark, data_dir=None).read()
    assert asked[0][0] == name
    facts = "name : Aromi | Type : pub" if benchmark is E2E else "S : rel : O"
    for split in ("train", "validation", "test"):
        assert splits[split]["sentence1"][:] == [f"{facts}</s>"]
        assert splits[split]["sentence2"][:] == [" A pub."]
    monkeypatch.undo()
    with pytest.raises(ConnectionError, match=rf"'{name}'.*--data\.data_dir"):
        make(benchmark, data_dir=None).setup()


def test_a_template_of_one_s_own(make, tmp_path) -> None:
    e2e(tmp_path)
    data = make(E2E, prompt_template="Say: {facts}\n")
    row = data.read()["train"][3]
    assert (row["sentence1"], row["sentence2"]) == ("Say: name : Loch Fyne\n", "Loch Fyne .")
    with pytest.raises(ValueError, match=r"prompt_template has no \{facts\}"):
        make(E2E, prompt_template="Say")


WRONG = json.dumps({"entries": [{"1": {"category": "Food", "modifiedtripleset": []}}]})
BROKEN = [
    (E2E, "valid.txt", "a : b||c\n\na : b\n", r"valid\.txt, line 3: expected facts\|\|text"),
    (E2E, "valid.txt", "\n", "e2e/e2e has no example"),
    (DART, "dart-v1.1.1-full-dev.json", '[{"tripleset": [["a"]]}]', "object 1: a triple must be"),
    (DART, "dart-v1.1.1-full-dev.json", '[{"tripleset": [["a", "b", "c"]]}]', "no 'annotations'"),
    (WebNLG, "dev.json", "[]", "there is no 'entries'"),
    (WebNLG, "dev.json", '{"entries": [3]}', "entry 1: expected an object of one number, got 3"),
    (WebNLG, "dev.json", WRONG, "entry 1: there is no 'lexicalisations'"),
]


@pytest.mark.parametrize(("benchmark", "name", "content", "message"), BROKEN)
@pytest.mark.filterwarnings("ignore:there is no")
def test_a_defect_is_told_with_file_and_place(
    make, tmp_path, benchmark, name, content, message
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        make(benchmark, holdout_fraction=0.5).setup()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("mr;ref\n", r"line 1: expected the columns mr,ref, got \['mr;ref'\]"),
        ("", "line 1: expected the columns"),
        ('mr,ref\nname[a],b\n"name[a], x",c\n', r"line 3: expected name\[value\], ..., got"),
        ("mr,ref\nname[a]\n", "line 2: expected mr,ref, got"),
        ('mr,ref\nname[a],"b\n', "line 2: unexpected end of data"),
    ],
)
def test_a_broken_table_is_told_with_line(tmp_path, content, message) -> None:
    (tmp_path / "devset.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_e2e(tmp_path / "devset.csv")
