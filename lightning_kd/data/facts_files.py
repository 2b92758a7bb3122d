"""Published files of facts and their texts: E2E's lines and tables, DART's and WebNLG's JSON.

Facts are written in one line as LoRA's examples have them: `name : Alimentum | area : riverside`,
and triples as `subject : property : object`.
"""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_kd.data.records import Record, field, json_records, text_of

__all__ = ["Meaning", "dart_record", "e2e_record", "read_dart", "read_e2e", "read_webnlg",
           "webnlg_hub_record"]  # fmt: skip

_E2E_NAMES = {"eatType": "Type", "familyFriendly": "family friendly", "priceRange": "price"}
_SLOT = re.compile(r"\s*([^\[\],]+)\[([^\]]*)\]\s*(?:,|$)")
_SEEN_HALVES = (
    ("Airport", "Astronaut", "Building", "City", "ComicsCharacter"),
    ("Food", "Monument", "SportsTeam", "University", "WrittenWork"),
)
SEEN = frozenset(category for half in _SEEN_HALVES for category in half)
"""Categories that WebNLG 2017's training set has; those of the others are unseen."""


class Meaning(NamedTuple):
    """Facts in one line, the texts that say them, and the part of the test that they are in."""

    facts: str
    texts: Sequence[str]
    part: str = ""


def read_e2e(path: Path) -> list[Meaning]:
    """LoRA's `facts||text` lines, or the challenge's CSV file with columns `mr` and `ref`.

    Raises:
        ValueError: A line that cannot be used, by file and number.
    """
    content = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        return _table(path, content)
    found = []
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            facts, bars, text = line.partition("||")
            if not bars or not facts.strip() or not text.strip():
                raise ValueError(
                    f"{path}, line {number}: expected facts||text, got {line!r:.60}; give the "
                    "file of LoRA's examples or the challenge's CSV"
                )
            found.append(Meaning(facts.strip(), [text.strip()]))
    return found


def e2e_record(record: Record) -> Meaning:
    """A row of the Hub: `meaning_representation` and `human_reference`."""
    where, row = record
    facts = _slots(where, text_of(where, row, "meaning_representation"))
    return Meaning(facts, [text_of(where, row, "human_reference").strip()])


def read_dart(path: Path) -> list[Meaning]:
    """DART's JSON list of `tripleset` and `annotations`."""
    return [dart_record(record) for record in json_records(path)]


def dart_record(record: Record) -> Meaning:
    """A set of triples with its annotations, as published or as the Hub has them."""
    where, row = record
    triples = [_triple(where, triple) for triple in field(where, row, "tripleset", list)]
    given = row.get("annotations")
    if isinstance(given, Mapping):  # the Hub turns lists of objects round
        texts = field(where, given, "text", list)
    else:
        texts = [text_of(where, x, "text") for x in field(where, row, "annotations", list)]
    return Meaning(
        _line(where, [(s, p.lower(), o) for s, p, o in triples]), [t.strip() for t in texts]
    )


def read_webnlg(path: Path) -> list[Meaning]:
    """WebNLG 2017's JSON; texts that are not marked as good are left out, as LoRA's examples do."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); download the file again") from None
    found = []
    for number, entry in enumerate(field(str(path), content, "entries", list), 1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise ValueError(f"{where}: expected an object of one number, got {entry!r:.40}")
        (inner,) = entry.values()
        triples = [
            tuple(text_of(where, t, name) for name in ("subject", "property", "object"))
            for t in field(where, inner, "modifiedtripleset", list)
        ]
        told = field(where, inner, "lexicalisations", list)
        pairs = [(text_of(where, x, "comment"), text_of(where, x, "lex")) for x in told]
        found.append(_webnlg(where, triples, pairs, field(where, inner, "category")))
    return found


def webnlg_hub_record(record: Record) -> Meaning:
    """A row of the Hub, where triples are texts with bars."""
    where, row = record
    sets = field(where, field(where, row, "modified_triple_sets", dict), "mtriple_set", list)
    triples = [tuple(part.strip() for part in text.split(" | ")) for text in sets[0]]
    told = field(where, row, "lex", dict)
    pairs = list(zip(told["comment"], told["text"], strict=True))
    return _webnlg(where, triples, pairs, field(where, row, "category"))


def _webnlg(
    where: str, triples: Sequence[Any], pairs: Iterable[tuple[str, str]], category: str
) -> Meaning:
    texts = [text.strip() for comment, text in pairs if comment == "good"]
    return Meaning(_line(where, triples), texts, "seen" if category in SEEN else "unseen")


def _triple(where: str, triple: Any) -> tuple[str, str, str]:
    whole = isinstance(triple, Sequence) and len(triple) == 3
    if not whole or not all(isinstance(part, str) for part in triple):
        raise ValueError(f"{where}: a triple must be three texts, got {triple!r:.60}")
    subject, relation, thing = triple
    return subject, relation, thing


def _line(where: str, triples: Sequence[Any]) -> str:
    if not triples:
        raise ValueError(f"{where}: there are no triples")
    return " | ".join(" : ".join(_triple(where, triple)) for triple in triples)


def _table(path: Path, content: str) -> list[Meaning]:
    rows = csv.reader(content.splitlines(keepends=True), strict=True)
    found = []
    try:
        header = next(rows, [])
        if header != ["mr", "ref"]:
            raise ValueError(f"{path}, line 1: expected the columns mr,ref, got {header!r:.60}")
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if len(row) != 2 or not row[1].strip():
                raise ValueError(f"{where}: expected mr,ref, got {row!r:.60}")
            found.append(Meaning(_slots(where, row[0]), [row[1].strip()]))
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}; download it again") from None
    return found


def _slots(where: str, representation: str) -> str:
    """`name[Alimentum], area[riverside]` as LoRA's examples write it."""
    parts = _SLOT.findall(representation)
    if not parts or _SLOT.sub("", representation).strip():
        raise ValueError(f"{where}: expected name[value], ..., got {representation!r:.60}")
    return " | ".join(f"{_E2E_NAMES.get(name, name)} : {value}" for name, value in parts)
