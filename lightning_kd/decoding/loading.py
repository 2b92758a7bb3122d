"""A language model and its tokenizer, from whatever a user has: a folder, a name, a checkpoint."""

import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from lightning_kd.decoding.session import Session
from lightning_kd.models import check_local, quiet, unreachable

_UNREADABLE = (OSError, ValueError, LookupError, struct.error, SafetensorError)


def load_decoder(
    source: str, tokenizer: str | None = None, *, shallow: bool = False
) -> tuple[nn.Module, Any]:
    """A causal language model in float32 and evaluation mode, and its tokenizer.

    Float32 because several tokens at once then give the tokens that one at a time does; a padding
    token is not needed.

    Args:
        source: A Hugging Face folder or Hub name, a ``.gguf`` file, or a ``.ckpt`` of a method,
            whose student is taken.
        tokenizer: Where the tokenizer is; None: with the model, for a checkpoint with the student
            that its training began from.
        shallow: Whether exits before the last will be asked, with the model's one head.

    Raises:
        FileNotFoundError: It looks like a path, and there is nothing.
        ConnectionError: The Hub cannot be reached and the model is not in its cache.
        ImportError: A ``.gguf`` file without the package that reads it.
        TypeError: A model whose blocks are not known, see `Session`.
        ValueError: A checkpoint that no method wrote, or that does not name its student; exits are
            to be asked and have heads of their own; a damaged file.
    """
    if source.endswith(".ckpt"):
        model, home = _of_checkpoint(Path(source), shallow=shallow)
    else:
        model, home = _of_name(source)
    Session(model.eval(), 1)  # refuses what cannot be decoded before a tokenizer is looked for
    home = {"name": tokenizer} if tokenizer else home
    if home["name"] is None:
        raise ValueError(
            f"{source} does not name the student it began from, and so no tokenizer; give "
            "--tokenizer"
        )
    return model, tokenizer_of(**home)


def _of_checkpoint(path: Path, *, shallow: bool) -> tuple[nn.Module, dict[str, Any]]:
    from lightning_kd.methods.loading import load_method

    module: Any = load_method(path)
    if shallow and (own := [*getattr(module, "heads", ())]):
        raise ValueError(
            f"{path} has heads of its own for the exits {', '.join(own)}, which decode alone; "
            f"write one with `lightning-kd export {path} --layer {own[0]}` and give that folder"
        )
    return module.student.float(), {"name": module.hparams.get("student")}


def _of_name(source: str) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    home: dict[str, Any] = {"name": source}
    if source.endswith(".gguf"):
        file = Path(source).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {source}; give the path of a .gguf")
        if find_spec("gguf") is None:
            raise ImportError(f"{source} needs the package gguf to be read; pip install gguf")
        home = {"name": str(file.parent), "gguf_file": file.name}
    else:
        check_local(source)
    name, options = home["name"], {k: v for k, v in home.items() if k != "name"}
    try:
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(Path(name).expanduser()) if name[:1] == "~" else name,
                dtype=torch.float32,
                **options,
            )
    except _UNREADABLE as error:
        if "gguf_file" in home:
            raise ValueError(
                f"{source} is cut off or no GGUF file ({error}); give another one"
            ) from error
        raise unreachable(source, error) from error
    return model, home


def tokenizer_of(name: str, **options: Any) -> Any:
    """The tokenizer of a folder or Hub name; a padding token is not needed.

    Raises:
        ValueError: There is none.
    """
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(
                str(Path(name).expanduser()) if name[:1] == "~" else name, **options
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"there is no tokenizer in {name}; give --tokenizer, a folder or a name"
        ) from error


__all__ = ["load_decoder", "tokenizer_of"]
