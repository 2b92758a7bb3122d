"""The README's table of methods, made from the classes."""

import pytest

from lightning_kd import methods
from lightning_kd.paper import END, START, methods_table, with_table


def test_every_method_has_one_row_with_its_paper_and_recipe() -> None:
    header, line, *rows = methods_table().splitlines()
    assert header.startswith("| Method | Paper |")
    assert set(line) == {"|", "-"}
    assert len(rows) == len(methods.METHODS)
    for name, row in zip(methods.METHODS, rows, strict=True):
        paper = getattr(methods, name).paper
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == header.count("|") - 1
        assert cells[0] == f"`{name}`"
        assert f"https://arxiv.org/abs/{paper.arxiv}" in cells[1]
        assert paper.venue in cells[1]
        assert f"recipes/{paper.recipe}.py" in cells[3]
        assert cells[4:] == [paper.result or "-", paper.ours or "-"]


def test_the_table_replaces_what_is_between_the_markers_and_nothing_else() -> None:
    readme = f"# Title\n{START}\nold\n{END}\nmore\n"
    made = with_table(readme)
    assert made == f"# Title\n{START}\n{methods_table()}\n{END}\nmore\n"
    assert with_table(made) == made


@pytest.mark.parametrize("readme", ["", START, END, f"{END}{START}"])
def test_a_text_without_both_markers_is_refused(readme) -> None:
    with pytest.raises(ValueError, match=r"no <!-- methods --> \.\.\. <!-- /methods -->"):
        with_table(readme)
