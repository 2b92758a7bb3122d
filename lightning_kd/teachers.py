"""Teachers by name: models that were fine-tuned already, taken as they are or not at all."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lightning_kd.models import check_local, quiet, unreachable, with_padding
from lightning_kd.tasks import Classification, Task

__all__ = ["check_vocabulary", "load_teacher", "make_network"]


def load_teacher(name_or_path: str, task: Task, bits: Literal[4, 8] | None = None) -> nn.Module:
    """A model that was fine-tuned on ``task``: its head is taken as it is.

    Args:
        name_or_path: A Hub name, a local Hugging Face folder, or a checkpoint of this library.
        task: The student's; the teacher has to answer in its labels and their order.
        bits: Load the matrices quantized (NF4 for 4 bits).

    Raises:
        FileNotFoundError: There is no such folder or checkpoint.
        ConnectionError: The Hub cannot be reached and the model is not in its cache.
        ImportError: ``bits`` without the ``quant`` extra.
        ValueError: The model has other labels, or no trained head.
    """
    import transformers

    if name_or_path.endswith(".ckpt"):
        return _student_of(name_or_path, task)
    check_local(name_or_path)
    name = str(Path(name_or_path).expanduser()) if name_or_path[:1] == "~" else name_or_path
    settings: dict[str, Any] = {}
    if bits is not None:
        settings["quantization_config"] = _quantization(bits)
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        _check_labels(name_or_path, config, task)
        with quiet():
            model, report = getattr(transformers, task.auto_class).from_pretrained(
                name, output_loading_info=True, ignore_mismatched_sizes=True, **settings
            )
    except OSError as error:
        raise unreachable(name_or_path, error) from error
    lost = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if lost:
        raise ValueError(
            f"the teacher {name_or_path} has no trained weights for {lost[:4]}; give one that was "
            f"fine-tuned on {task.name}, or fine-tune it first (--teacher.epochs 3)"
        )
    return with_padding(model, name_or_path)


def make_network(folder: Path, task: Task) -> nn.Module:
    """The network of a folder with a ``config.json``, without its weights: they are to be loaded.

    Raises:
        ValueError: There is none that transformers knows, or it is of other labels.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(str(folder))
    except OSError as error:
        raise ValueError(
            f"{folder} has no config.json to build the teacher from; give the teacher as a module"
        ) from error
    _check_labels(str(folder), config, task)
    with quiet(), torch.random.fork_rng():
        network: nn.Module = getattr(transformers, task.auto_class).from_config(config)
    return with_padding(network, str(folder))


def _student_of(checkpoint: str, task: Task) -> nn.Module:
    """The network that a checkpoint of this library trained."""
    from lightning_kd import methods  # they import this module

    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}; give the path of a .ckpt")
    written = torch.load(checkpoint, map_location="cpu", weights_only=True).get("lightning_kd", {})
    if written.get("task") != task.name:
        raise ValueError(
            f"the teacher {checkpoint} was trained on {written.get('task')}, the student learns "
            f"{task.name}; give a teacher of the same task"
        )
    module = getattr(methods, written["method"]).load_from_checkpoint(
        checkpoint, map_location="cpu", weights_only=True
    )
    student: nn.Module = module.student
    return student


def _check_labels(name: str, config: Any, task: Task) -> None:
    """Raise where the teacher's classes are named, and are not the task's in the same order."""
    if config.num_labels != task.num_labels and isinstance(task, Classification):
        theirs = [config.id2label[i] for i in range(config.num_labels)]
        raise ValueError(
            f"the teacher {name} answers with {config.num_labels} labels ({', '.join(theirs)}), "
            f"{task.name} has {task.num_labels} ({', '.join(task.labels)}); give a teacher of "
            "this task"
        )
    if not isinstance(task, Classification):
        return
    theirs = [str(config.id2label[i]) for i in range(task.num_labels)]
    unnamed = [f"LABEL_{i}" for i in range(task.num_labels)]
    if theirs != unnamed and [x.lower() for x in theirs] != [x.lower() for x in task.labels]:
        raise ValueError(
            f"the teacher {name} has the labels {', '.join(theirs)}, the student's are "
            f"{', '.join(task.labels)}, in this order; give a teacher with the same"
        )


def _quantization(bits: int) -> Any:
    import importlib.util

    import transformers

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            f"a teacher in {bits} bits needs bitsandbytes; `pip install -e .[quant]`, or leave "
            "teacher_bits out"
        )
    made: Any = transformers.BitsAndBytesConfig
    if bits == 8:
        return made(load_in_8bit=True)
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return made(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **nf4)


def check_vocabulary(teacher: str, tokenizer: Any) -> None:
    """Raise where a teacher reads other tokens than the student's ``tokenizer`` gives it.

    A folder without a tokenizer, and a checkpoint, cannot be checked.

    Raises:
        ValueError: The vocabularies differ.
    """
    from transformers import AutoTokenizer

    folder = Path(teacher).expanduser()
    kinds = ("tokenizer*", "vocab*", "*.model")
    # transformers makes an empty tokenizer for a folder that has none
    without = folder.is_dir() and not any(file for kind in kinds for file in folder.glob(kind))
    if teacher.endswith(".ckpt") or without:
        return
    try:
        theirs = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError):
        return
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"the teacher {teacher} reads {len(theirs)} tokens of its own tokenizer, the student "
            f"{len(tokenizer)} of {tokenizer.name_or_path}; give a teacher with the student's "
            "tokenizer"
        )
