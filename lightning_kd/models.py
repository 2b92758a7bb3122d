"""The one place that knows transformers: from a name to a model with the task's head."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lightning_kd.nn.surgery import keep_layers
from lightning_kd.tasks import Classification, Task


def load_model(name_or_path: str | Any, task: Task, *, pretrained: bool = True) -> nn.Module:
    """A model with the head that ``task`` needs.

    Args:
        name_or_path: A Hub name (``roberta-base``), a local Hugging Face folder, or a transformers
            ``PretrainedConfig`` for a randomly initialized model (tests).
        task: Decides the head, its width and the names of its labels. A saved head is used where it
            has that width (MRPC after RTE), and a new one else (MRPC after MNLI).
        pretrained: False takes the architecture of a name and random weights.

    Raises:
        FileNotFoundError: It looks like a path, but there is no such folder.
        ConnectionError: The Hub cannot be reached and the model is not in its cache.
        ValueError: Weights of the encoder are missing.
    """
    import transformers

    head = getattr(transformers, task.auto_class)
    if isinstance(name_or_path, transformers.PretrainedConfig):
        for key, value in _head_settings(task).items():
            setattr(name_or_path, key, value)
        return _with_padding(head.from_config(name_or_path))
    check_local(name_or_path)
    settings = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        if not pretrained:
            return load_model(transformers.AutoConfig.from_pretrained(name_or_path), task)
        with quiet():
            model, report = head.from_pretrained(
                str(Path(name_or_path).expanduser()) if name_or_path[:1] == "~" else name_or_path,
                **settings,
                **_head_settings(task),
            )
    except OSError as error:
        raise unreachable(name_or_path, error) from error
    heads = tuple(f"{name}." for name in head_modules(model))
    unfit = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    lost = sorted(key for key in unfit if not key.startswith(heads))
    if lost:
        raise ValueError(
            f"{name_or_path} has no weights for {lost[:4]}, which would start at random; "
            "give a complete model"
        )
    return _with_padding(model, name_or_path)


def make_student(
    given: str | Any,
    task: Task,
    layers: int | Sequence[int] | None = None,
    init: Literal["pretrained", "random"] = "pretrained",
) -> nn.Module:
    """The student of `lightning_kd.methods.TaskModule`; a module that is given is cut in place.

    Raises:
        ValueError: An unknown ``init``, or ``random`` for a module; see `keep_layers`.
    """
    if init not in ("pretrained", "random"):
        raise ValueError(f"student_init must be pretrained or random, got {init!r}")
    if isinstance(given, nn.Module) and init == "random":
        raise ValueError("student_init=random needs a model's name, got a module; give it as it is")
    student: nn.Module
    if isinstance(given, nn.Module):
        student = given
    else:
        student = load_model(given, task, pretrained=init == "pretrained")
    if layers is not None:
        keep_layers(student, layers)
    return student


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
    return _with_padding(model, name_or_path)


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


def check_local(name_or_path: str) -> None:
    """Raise `FileNotFoundError` for what can only be a path, and is not there."""
    looks_local = name_or_path.count("/") != 1 or name_or_path.startswith((".", "~", "assets/"))
    if "/" in name_or_path and looks_local and not Path(name_or_path).expanduser().is_dir():
        raise FileNotFoundError(
            f"there is no model folder {name_or_path}; "
            "`lightning-kd assets` fetches the offline ones, or give a Hub name"
        )


def unreachable(name_or_path: str, error: Exception) -> Exception:
    """The error to raise when transformers could not load ``name_or_path``."""
    if Path(name_or_path).is_dir():
        return ValueError(f"{name_or_path} is not a loadable Hugging Face folder: {error}")
    return ConnectionError(
        f"{name_or_path} is neither on the reachable Hugging Face Hub nor in its cache; "
        "give a local folder, or run `lightning-kd assets` and add "
        "--config configs/overlays/offline.yaml"
    )


def head_modules(model: nn.Module) -> list[str]:
    """Names of the modules that belong to the task: all outside the encoder, and its pooler.

    These train beside an adapter, as in the DyLoRA release. BERT's pooler does there what the first
    layer of RoBERTa's head does, though it lives inside the encoder.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
    >>> head_modules(BertForSequenceClassification(config))
    ['classifier', 'bert.pooler']
    """
    prefix = str(getattr(model, "base_model_prefix", ""))
    heads = [
        name
        for name, child in model.named_children()
        if name != prefix and next(child.parameters(), None) is not None
    ]
    pooler = getattr(getattr(model, prefix, None), "pooler", None)
    return [*heads, f"{prefix}.pooler"] if isinstance(pooler, nn.Module) else heads


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and its table of missing weights: a new head is expected."""
    import logging as levels

    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity(levels.ERROR)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _head_settings(task: Task) -> dict[str, Any]:
    settings: dict[str, Any] = {"num_labels": task.num_labels}
    if isinstance(task, Classification):
        settings["id2label"] = dict(enumerate(task.labels))
        settings["label2id"] = {label: i for i, label in enumerate(task.labels)}
    return settings


def _with_padding(model: nn.Module, name_or_path: str | None = None) -> nn.Module:
    config: Any = model.config
    if getattr(config, "pad_token_id", None) is None:
        # Decoder models find the last real token by it: it has to be what the data are padded with.
        config.pad_token_id = _padding_of(name_or_path) if name_or_path else None
        if config.pad_token_id is None:
            config.pad_token_id = config.eos_token_id
    return model


def _padding_of(name_or_path: str) -> int | None:
    """What the data modules pad with; None where there is no tokenizer."""
    from lightning_kd.data.encoding import load_tokenizer  # its package imports the tasks

    try:
        padding: int = load_tokenizer(name_or_path, max_length=1).pad_token_id
    except (OSError, ValueError):
        return None
    return padding


__all__ = [
    "check_local",
    "head_modules",
    "load_model",
    "load_teacher",
    "make_student",
    "unreachable",
]
