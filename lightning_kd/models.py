"""From a name to a model with the task's head: the one place that knows transformers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from torch import nn

from lightning_kd.nn.resnet import CifarResNet, depth_of, is_resnet_folder
from lightning_kd.nn.surgery import keep_layers
from lightning_kd.tasks import CausalLM, Classification, Image, MultipleChoice, Task


def load_model(name_or_path: str | Any, task: Task, *, pretrained: bool = True) -> nn.Module:
    """A model with the head that ``task`` needs.

    Args:
        name_or_path: A Hub name (``roberta-base``), a local Hugging Face folder, or a transformers
            ``PretrainedConfig`` for a randomly initialized model (tests). For images also
            ``resnet8``, ``resnet20`` and so on (`lightning_kd.nn.CifarResNet`, random weights), or
            a folder that such a network was exported to.
        task: Decides the head, its width and the names of its labels. A saved head is used where it
            has that width (MRPC after RTE), and a new one else (MRPC after MNLI).
        pretrained: False takes the architecture of a name and random weights.

    Raises:
        FileNotFoundError: It looks like a path, but there is no such folder.
        ConnectionError: The Hub cannot be reached and the model is not in its cache.
        ValueError: Weights of the encoder are missing, or the model is not one for the task: an
            encoder sees the tokens that a language model is to predict.
    """
    import transformers

    if isinstance(name_or_path, str) and (found := _resnet(name_or_path, task, pretrained)):
        return found
    head = getattr(transformers, task.auto_class)
    if isinstance(name_or_path, transformers.PretrainedConfig):
        check_looks_back(name_or_path, task)
        for key, value in _head_settings(task).items():
            setattr(name_or_path, key, value)
        return with_padding(head.from_config(name_or_path))
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
    except (OSError, ValueError, SafetensorError) as error:
        raise _not_loaded(name_or_path, task, error) from error
    check_looks_back(model.config, task, name_or_path)
    heads = tuple(f"{name}." for name in task_heads(model, task))
    unfit = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    lost = sorted(key for key in unfit if not key.startswith(heads))
    if lost:
        raise ValueError(
            f"{name_or_path} has no weights for {lost[:4]}, which would start at random; "
            "give a complete model"
        )
    return with_padding(model, name_or_path)


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


def _resnet(name_or_path: str, task: Task, pretrained: bool) -> CifarResNet | None:
    """The network of a name or folder; None for what is neither."""
    depth = depth_of(name_or_path)
    folder = Path(name_or_path).expanduser()
    if depth is None and not is_resnet_folder(folder):
        return None
    if not isinstance(task, Image):
        raise ValueError(f"{name_or_path} reads images, {task.name} is not about any")  # noqa: TRY004
    if depth is not None:
        return CifarResNet(depth, task.labels, task.num_channels)
    network = read_resnet(folder, task)
    config = network.config
    if not pretrained:
        return CifarResNet(config.depth, task.labels, task.num_channels, config.width, config.norm)
    if config.num_labels != task.num_labels:
        network.classifier = nn.Linear(network.classifier.in_features, task.num_labels)
    network.config = replace(config, labels=task.labels)
    return network


def read_resnet(folder: Path, task: Image) -> CifarResNet:
    """The network in a folder that `CifarResNet.save_pretrained` wrote.

    Raises:
        ValueError: It reads images of other channels, or is damaged.
    """
    network = CifarResNet.from_pretrained(folder)
    if (found := network.config.num_channels) != task.num_channels:
        raise ValueError(
            f"{folder} reads images of {found} channel(s), those of {task.name} have "
            f"{task.num_channels}; give another model"
        )
    return network


def check_local(name_or_path: str) -> None:
    """Raise `FileNotFoundError` for what can only be a path, and is not there."""
    looks_local = name_or_path.count("/") != 1 or name_or_path.startswith((".", "~", "assets/"))
    if "/" in name_or_path and looks_local and not Path(name_or_path).expanduser().is_dir():
        raise FileNotFoundError(
            f"there is no model folder {name_or_path}; "
            "`lightning-kd assets` fetches the offline ones, or give a Hub name"
        )


def check_looks_back(config: Any, task: Task, name: str = "the model") -> None:
    """Raise `ValueError` for an encoder of which the next token is asked: it would see it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    decodes = any(getattr(config, key, False) for key in ("is_decoder", "is_encoder_decoder"))
    if isinstance(task, CausalLM) and config.model_type in ENCODERS and not decodes:
        raise ValueError(
            f"{name} ({config.model_type}) reads texts both ways and would see the token that "
            f"{task.name} asks for; give a causal model, offline --model.student assets/smollm2"
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


def _not_loaded(name_or_path: str, task: Task, error: Exception) -> Exception:
    if not isinstance(error, ValueError):
        return unreachable(name_or_path, error)
    if isinstance(task, Image):  # transformers would list all its image classifiers
        return ValueError(f"{name_or_path} is no image classifier, which {task.name} needs")
    return ValueError(str(error))


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


def task_heads(model: nn.Module, task: Task) -> list[str]:
    """What trains beside an adapter: `head_modules` where the head is the task's own, else none."""
    return head_modules(model) if task.trains_head else []


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
    # A choice has one score, however many there are; a language model has its vocabulary.
    if isinstance(task, (CausalLM, MultipleChoice)):
        return {}
    settings: dict[str, Any] = {"num_labels": task.num_labels}
    if isinstance(task, Classification):
        settings["id2label"] = dict(enumerate(task.labels))
        settings["label2id"] = {label: i for i, label in enumerate(task.labels)}
    return settings


def with_padding(model: nn.Module, name_or_path: str | None = None) -> nn.Module:
    """The same model, told which token is padding where its configuration does not say."""
    config: Any = model.config
    reads_text = hasattr(config, "vocab_size")
    if reads_text and getattr(config, "pad_token_id", None) is None:
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
    "check_looks_back",
    "head_modules",
    "load_model",
    "make_student",
    "quiet",
    "read_resnet",
    "task_heads",
    "unreachable",
    "with_padding",
]
