"""Objects out of published files and the Hub, each with the place it came from."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Record", "field", "files_of", "from_hub", "json_records", "text_of"]

Record = tuple[str, Mapping[str, Any]]
"""Where an object was found, for messages, and the object."""

_KINDS: Mapping[type, str] = {str: "text", list: "list", dict: "object"}


def files_of(folder: Path, patterns: Mapping[str, Sequence[str]]) -> dict[str, list[Path]]:
    """For each split the files of the first of its patterns that fits any; splits without: none."""
    found = {}
    for split, several in patterns.items():
        fitting = [sorted(folder.glob(pattern)) for pattern in several]
        if any(fitting):
            found[split] = next(paths for paths in fitting if paths)
    return found


def json_records(path: Path) -> list[Record]:
    """The objects of a JSON list (`.json`) or of JSON lines (`.jsonl`), gzipped or not.

    Raises:
        ValueError: Something else is in the file; file and line are named.
    """
    packed = path.read_bytes()
    content = gzip.decompress(packed) if path.suffix == ".gz" else packed
    whole = path.name.removesuffix(".gz").endswith(".json")
    parts = [content] if whole else content.split(b"\n")  # texts may have other kinds of line ends
    found: list[Record] = []
    for number, part in enumerate(parts, 1):
        if not part.strip():
            continue
        try:
            value = json.loads(part.decode("utf-8-sig"))
        except ValueError as error:
            where = str(path) if whole else f"{path}, line {number}"
            raise ValueError(f"{where}: not JSON ({error}); download the file again") from None
        if not whole:
            found.append((f"{path}, line {number}", _object(f"{path}, line {number}", value)))
            continue
        if not isinstance(value, list):
            raise ValueError(  # noqa: TRY004 (a file's)
                f"{path}: expected a list of objects, got {value!r:.40}; give the published file"
            )
        places = [f"{path}, object {k}" for k in range(1, len(value) + 1)]
        found += [(where, _object(where, row)) for where, row in zip(places, value, strict=True)]
    if not found:
        raise ValueError(f"{path} is empty; give the published file")
    return found


def from_hub(name: str, config: str | None = None) -> dict[str, list[Record]]:
    """The splits of a set of the Hugging Face Hub.

    Raises:
        ConnectionError: It is not to be had, with the way out.
    """
    from datasets import load_dataset

    try:
        found = load_dataset(name, config) if config else load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:  # the last: a set that needs its code
        raise ConnectionError(
            f"could not load {name!r} from the Hugging Face Hub ({str(error).splitlines()[0]}); "
            "without it, point --data.data_dir at the published files"
        ) from error
    return {
        split: [(f"{name}, {split} example {k}", row) for k, row in enumerate(rows)]
        for split, rows in found.items()
    }


def field(where: str, row: Any, name: str, kind: type = str) -> Any:
    """What an object has under a name, when it is of a kind: `str` (default), `list` or `dict`.

    Raises:
        ValueError: It has not; the place is named.
    """
    if not isinstance(row, Mapping) or name not in row:
        raise ValueError(f"{where}: there is no {name!r}; give the published file")
    if not isinstance(row[name], kind):
        wanted = _KINDS[kind]
        raise ValueError(f"{where}: {name!r} is no {wanted} but {row[name]!r:.40}")  # noqa: TRY004
    return row[name]


def text_of(where: str, row: Any, name: str) -> str:
    """A `field` that is a text of more than white space.

    Raises:
        ValueError: It is not; the place is named.
    """
    text = str(field(where, row, name))
    if not text.strip():
        raise ValueError(f"{where}: {name!r} is empty; give the published file")
    return text


def _object(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected an object, got {value!r:.40}")  # noqa: TRY004 (a file's)
    return value
