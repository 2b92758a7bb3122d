"""Teachers by name: models that were fine-tuned already, taken as they are or not at all."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lightning_kd.checkpoint_io import AtomicCheckpointIO
from lightning_kd.models import (
    check_local,
    head_modules,
    quiet,
    read_resnet,
    unreachable,
    with_padding,
)
from lightning_kd.nn.resnet import CifarResNet, CifarResNetConfig, depth_of, is_resnet_folder
from lightning_kd.tasks import CausalLM, Classification, Image, MultipleChoice, SpanQA, Task

__all__ = [
    "check_embeddings",
    "check_labels",
    "check_vocabulary",
    "load_teacher",
    "make_network",
]


def load_teacher(name_or_path: str, task: Task, bits: Literal[4, 8] | None = None) -> nn.Module:
    """A model that was fine-tuned on ``task``: its head is taken as it is.

    Args:
        name_or_path: A Hub name, a local Hugging Face folder, an exported folder of a
            `lightning_kd.nn.CifarResNet`, or a checkpoint of this library.
        task: The student's; the teacher has to answer in its labels and their order.
        bits: Load the matrices quantized (NF4 for 4 bits).

    Raises:
        FileNotFoundError: There is no such folder or checkpoint.
        ConnectionError: The Hub cannot be reached and the model is not in its cache.
        ImportError: ``bits`` without the ``quant`` extra.
        ValueError: The model has other labels, or no trained head; ``bits`` for a checkpoint.
    """
    import transformers

    if name_or_path.endswith(".ckpt"):
        if bits is not None:
            raise ValueError(
                f"teacher_bits={bits} quantizes a Hugging Face model while it is read, and "
                f"{name_or_path} is a checkpoint; give the folder that `lightning-kd export` makes "
                "of it"
            )
        return _student_of(name_or_path, task)
    if isinstance(task, Image) and (network := _resnet(name_or_path, task, bits)) is not None:
        return network
    check_local(name_or_path)
    name = str(Path(name_or_path).expanduser()) if name_or_path[:1] == "~" else name_or_path
    settings: dict[str, Any] = {}
    head = getattr(transformers, task.auto_class)
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        check_labels(name_or_path, config, task)
        if bits is not None:
            with torch.device("meta"):
                heads = head_modules(head.from_config(config))
            settings["quantization_config"] = _quantization(bits, heads)
        with quiet():
            model, report = head.from_pretrained(
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
    _check_head(name_or_path, config, task)
    return with_padding(model, name_or_path)


def _resnet(name_or_path: str, task: Image, bits: int | None) -> nn.Module | None:
    """The trained network in a folder; None for what is of transformers."""
    if depth_of(name_or_path) is not None:
        raise ValueError(
            f"the teacher {name_or_path} is an architecture without trained weights; give an "
            "exported folder or a .ckpt, or train it first (--teacher.epochs 100)"
        )
    folder = Path(name_or_path).expanduser()
    if not is_resnet_folder(folder):
        return None
    if bits is not None:
        raise ValueError(f"a ResNet has no {bits}-bit form; leave teacher_bits out")
    network = read_resnet(folder, task)
    check_labels(name_or_path, network.config, task)
    return network


def make_network(folder: Path, task: Task) -> nn.Module:
    """The network of a folder with a ``config.json``, without its weights: they are to be loaded.

    Raises:
        ValueError: There is none that transformers knows, or it is of other labels.
    """
    import transformers

    if is_resnet_folder(folder):
        resnet = CifarResNet.from_config(CifarResNetConfig.from_pretrained(folder))
        check_labels(str(folder), resnet.config, task)
        return resnet
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder))
    except OSError as error:
        raise ValueError(
            f"{folder} has no config.json to build the teacher from; give the teacher as a module"
        ) from error
    check_labels(str(folder), config, task)
    with quiet(), torch.random.fork_rng():
        network: nn.Module = getattr(transformers, task.auto_class).from_config(config)
    return with_padding(network, str(folder))


def _student_of(checkpoint: str, task: Task) -> nn.Module:
    """The network that a checkpoint of this library trained."""
    from lightning_kd import methods  # they import this module

    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}; give the path of a .ckpt")
    written = AtomicCheckpointIO().load_checkpoint(checkpoint).get("lightning_kd", {})
    if written.get("method") not in methods.METHODS:
        raise ValueError(
            f"the teacher {checkpoint} was not written by a method of lightning-kd; give a "
            "checkpoint of a run, or a Hugging Face folder"
        )
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


def check_labels(name: str, config: Any, task: Task) -> None:
    """Raise where a teacher's answers are not the task's: in number, names or order.

    Classes without names (``LABEL_0``) are taken in their order; choices have none at all.

    Args:
        name: The teacher's.
        config: Its transformers configuration.
        task: The student's.

    Raises:
        ValueError: The labels differ; the message has both.
    """
    if isinstance(task, (CausalLM, MultipleChoice)):  # a vocabulary is checked for itself
        return
    theirs = [str(config.id2label[i]) for i in range(config.num_labels)]
    ours = ["start", "end"] if isinstance(task, SpanQA) else ["a number"] * task.num_labels
    if isinstance(task, Classification):
        ours = list(task.labels)
    if len(theirs) != task.num_labels:
        raise ValueError(
            f"the teacher {name} answers with {len(theirs)} labels ({', '.join(theirs)}), "
            f"{task.name} has {task.num_labels} ({', '.join(ours)}); give a teacher of this task"
        )
    unnamed = [f"LABEL_{i}" for i in range(task.num_labels)]
    if not isinstance(task, Classification) or theirs == unnamed:
        return
    if [x.lower() for x in theirs] != [x.lower() for x in ours]:
        raise ValueError(
            f"the teacher {name} has the labels {', '.join(theirs)}, the student's are "
            f"{', '.join(ours)}, in this order; give a teacher with the same"
        )


def _check_head(name: str, config: Any, task: Task) -> None:
    """Raise where a head of another kind has the same shape: one number is also one choice's."""
    wanted = task.auto_class.removeprefix("AutoModel")
    others = [a for a in config.architectures or [] if "For" in a and not a.endswith(wanted)]
    if others:
        raise ValueError(
            f"the teacher {name} is a {others[0]}, {task.name} needs one {wanted}; give a teacher "
            "of this task"
        )


def _quantization(bits: int, heads: list[str]) -> Any:
    """Settings of bitsandbytes; heads stay as they are: small, and too narrow for its blocks."""
    import importlib.util
    import logging

    import transformers

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            f"a teacher in {bits} bits needs bitsandbytes; `pip install -e .[quant]`, or leave "
            "teacher_bits out"
        )
    made: Any = transformers.BitsAndBytesConfig
    if bits == 8:
        # It says of every product that fp32 is cast to fp16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return made(load_in_8bit=True, llm_int8_skip_modules=heads)
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return made(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=heads,
        **nf4,
    )


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


def check_embeddings(teacher: nn.Module, name: str, tokenizer: Any) -> None:
    """Raise where ``tokenizer`` gives tokens that a teacher has no embeddings for.

    What can be said of a teacher without a tokenizer of its own.

    Raises:
        ValueError: It has too few.
    """
    made: Any = teacher
    embeddings = made.get_input_embeddings() if hasattr(made, "get_input_embeddings") else None
    known = getattr(embeddings, "num_embeddings", None)
    if known is not None and known < len(tokenizer):
        raise ValueError(
            f"the teacher {name} knows {known} tokens, the student {len(tokenizer)} of "
            f"{tokenizer.name_or_path}; give a teacher with the student's tokenizer"
        )
