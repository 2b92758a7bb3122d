"""Published TSV files as they are: byte-order marks, quotes, missing headers, broken rows."""

import pytest

from lightning_kd.data.tsv import TsvLayout, read_tsv
from tests.data.conftest import write

PAIR = TsvLayout(("question", "sentence"), "label")
NAMES = ("yes", "no")
HEADER = ["index", "question", "sentence", "label"]


def parse(text: str) -> int:
    if text not in NAMES:
        raise ValueError(f"label {text!r} is not one of yes, no")
    return NAMES.index(text)


def test_columns_are_found_by_name(tmp_path) -> None:
    path = write(tmp_path / "f.tsv", [HEADER, ["7", "who", "me", "no"], ["9", "what", "it", "yes"]])
    assert read_tsv(path, PAIR, parse) == {
        "idx": [0, 1],
        "sentence1": ["who", "what"],
        "sentence2": ["me", "it"],
        "label": [1, 0],
    }


def test_a_file_without_label_column_is_unlabelled(tmp_path) -> None:
    path = write(tmp_path / "f.tsv", [HEADER[:3], ["0", "who", "me"]])
    assert "label" not in read_tsv(path, PAIR, parse)


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path) -> None:
    path = write(
        tmp_path / "f.tsv", [["label", "question", "sentence"], ["no", "a", "b"]], "\ufeff"
    )
    assert read_tsv(path, PAIR, parse)["label"] == [1]


@pytest.mark.parametrize(
    "text",
    ['" unbalanced', '"all of it"', 'in "the" middle', "it''s", "back\\slash", " spaces ", ""],
)
def test_quotes_and_spaces_belong_to_the_text(tmp_path, text) -> None:
    path = write(tmp_path / "f.tsv", [HEADER, ["0", text, "b", "no"], ["1", "c", text, "no"]])
    columns = read_tsv(path, PAIR, parse)
    assert columns["sentence1"] == [text, "c"]
    assert columns["sentence2"] == ["b", text]


def test_only_a_line_feed_ends_a_row(tmp_path) -> None:
    text = "a\u2028b\x85c\x0cd\re"  # all of them end a line for str.splitlines
    path = write(tmp_path / "f.tsv", [HEADER, ["0", text, "b", "no"]])
    assert read_tsv(path, PAIR, parse)["sentence1"] == [text]


def test_windows_line_ends_are_not_part_of_the_label(tmp_path) -> None:
    path = tmp_path / "f.tsv"
    path.write_bytes(b"index\tquestion\tsentence\tlabel\r\n0\ta\tb\tyes\r\n")
    assert read_tsv(path, PAIR, parse)["label"] == [0]


def test_a_very_long_field_is_read(tmp_path) -> None:
    path = write(tmp_path / "f.tsv", [HEADER, ["0", "x" * 300_000, "b", "no"]])
    assert len(read_tsv(path, PAIR, parse)["sentence1"][0]) == 300_000


def test_a_file_without_header(tmp_path) -> None:
    layout = TsvLayout(("text",), "label", ("label", "text"), header_anyway=("index", "text"))
    labelled = write(tmp_path / "a.tsv", [["no", "first"], ["yes", "second"]])
    secret = write(tmp_path / "b.tsv", [["index", "text"], ["0", "first"]])
    assert read_tsv(labelled, layout, parse)["sentence1"] == ["first", "second"]
    assert read_tsv(secret, layout, parse) == {"idx": [0], "sentence1": ["first"]}
    bad = write(tmp_path / "c.tsv", [["no", "first"], ["maybe", "second"]])
    with pytest.raises(ValueError, match=r"c\.tsv, line 2: label 'maybe'"):
        read_tsv(bad, layout, parse)


@pytest.mark.parametrize("row", [["1", "a", "b"], ["1", "a", "b", "no", "more"], [""]], ids=len)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path, row) -> None:
    path = write(tmp_path / "f.tsv", [HEADER, ["0", "a", "b", "no"], row, ["2", "a", "b", "no"]])
    with pytest.raises(ValueError, match=rf"f\.tsv, line 3: expected 4 .*got {len(row)}"):
        read_tsv(path, PAIR, parse)


def test_ragged_rows_are_counted_in_a_warning_and_keep_their_position(tmp_path) -> None:
    layout = TsvLayout(("question", "sentence"), "label", ragged=True)
    good = ["0", "a", "b", "no"]
    path = write(tmp_path / "f.tsv", [HEADER, good, ["cut", "here"], ["b", "no"], good])
    with pytest.warns(UserWarning, match=r"left out 2 row.* wrong number .* line 3"):
        assert read_tsv(path, layout, parse)["idx"] == [0, 3]


def test_undecided_rows_are_counted_in_a_warning_and_keep_their_position(tmp_path) -> None:
    layout = TsvLayout(("question", "sentence"), "label", no_answer="-")
    rows = [["0", "-", "b", "no"], ["1", "a", "b", "-"], ["2", "a", "b", "yes"]]
    path = write(tmp_path / "f.tsv", [HEADER, *rows])
    with pytest.warns(UserWarning, match=r"left out 1 row.* labelled '-', .* line 3"):
        assert read_tsv(path, layout, parse)["idx"] == [0, 2]


def test_a_label_outside_the_set_is_named_with_the_valid_ones(tmp_path) -> None:
    path = write(tmp_path / "f.tsv", [HEADER, ["0", "a", "b", "no"], ["1", "a", "b", "No"]])
    with pytest.raises(ValueError, match=r"f\.tsv, line 3: label 'No' is not one of yes, no"):
        read_tsv(path, PAIR, parse)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_an_error(tmp_path, content) -> None:
    path = write(tmp_path / "f.tsv", [], content)
    with pytest.raises(ValueError, match=r"f\.tsv is empty; expected .*question, sentence, label"):
        read_tsv(path, PAIR, parse)


def test_a_header_alone_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"f\.tsv has no examples"):
        read_tsv(write(tmp_path / "f.tsv", [HEADER]), PAIR, parse)


def test_a_missing_column_is_named(tmp_path) -> None:
    path = write(tmp_path / "f.tsv", [["index", "sentence"], ["0", "a"]])
    with pytest.raises(ValueError, match=r"f\.tsv, line 1: there is no column 'question'"):
        read_tsv(path, PAIR, parse)


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path) -> None:
    path = tmp_path / "f.tsv"
    path.write_bytes(b"index\tquestion\tsentence\tlabel\n0\tcaf\xe9\tb\tno\n")
    with pytest.raises(ValueError, match=r"f\.tsv, line 2: not UTF-8"):
        read_tsv(path, PAIR, parse)
