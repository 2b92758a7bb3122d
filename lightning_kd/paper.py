"""The paper behind a method, and the README's table of methods made from it."""

import sys
from dataclasses import dataclass
from pathlib import Path

START, END = "<!-- methods -->", "<!-- /methods -->"


@dataclass(frozen=True)
class Paper:
    """What a reader needs to find and judge a method's source.

    Attributes:
        title: Full title.
        venue: Where and when it appeared.
        arxiv: Its number there.
        tasks: Benchmarks the method has a recipe for here.
        recipe: Stem of its main recipe.
        result: A figure of the paper, with what it is; empty when none was confirmed.
        ours: Our figure beside it, with where its evidence is; empty until measured.
    """

    title: str
    venue: str
    arxiv: str
    tasks: str
    recipe: str
    result: str = ""
    ours: str = ""


def methods_table() -> str:
    """The table of methods in Markdown, one row per class of `lightning_kd.methods`."""
    from lightning_kd import methods

    lines = [
        "| Method | Paper | Tasks | Recipe | Paper's number | Ours |",
        "|---|---|---|---|---|---|",
    ]
    for name in methods.METHODS:
        paper = getattr(methods, name).paper
        link = f"[{paper.title}](https://arxiv.org/abs/{paper.arxiv}), {paper.venue}"
        recipe = f"[`{paper.recipe}`](recipes/{paper.recipe}.py)"
        lines.append(
            f"| `{name}` | {link} | {paper.tasks} | {recipe} | {paper.result or '-'} "
            f"| {paper.ours or '-'} |"
        )
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """``readme`` with the part between the markers made anew.

    Raises:
        ValueError: A marker is missing.
    """
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"the text has no {START} ... {END} to put the table of methods into")
    return f"{before}{START}\n{methods_table()}\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text()))
