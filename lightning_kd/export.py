"""From a trained module to files that the Hugging Face ecosystem loads."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_kd.base_record import BaseRecord, record_of, warn_of_another_base
from lightning_kd.functional import lora_scale
from lightning_kd.nn import DynamicLoRALinear

PREFIX = "base_model.model."


EXPORTED = ("adapter_*", "README.md", "*config.json", "model*.safetensors", "model*.json")
"""Files of an earlier export, which a new one replaces."""


def check_replaceable(directory: Path) -> None:
    """Raise `FileExistsError` for a file, and for a folder with what no export wrote."""
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; give a folder of its own")
    others = [
        found.name
        for found in (directory.iterdir() if directory.exists() else ())
        if found.is_dir() or not any(found.match(pattern) for pattern in EXPORTED)
    ]
    if others:
        raise FileExistsError(
            f"{directory} holds {sorted(others)[0]}, which an export would delete with all the "
            "rest; give a folder of its own"
        )


@contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ended well, replacing an old one.

    Raises:
        FileExistsError: See `check_replaceable`.
    """
    directory = Path(directory)
    check_replaceable(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield work
        work.chmod(0o755)  # mkdtemp's are private
        if directory.exists():
            old = work.with_name(work.name + ".old")
            directory.replace(old)
            work.replace(directory)
            shutil.rmtree(old)
        else:
            work.replace(directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def export_whole(
    export: Callable[[Path], None], save_processing: Callable[[Path], None], directory: Path
) -> None:
    """A model with what makes its inputs (a tokenizer), without which it is of no use.

    Args:
        export: Writes the model as a folder.
        save_processing: Writes the other files into one that is there.
        directory: See `atomic_directory`; other files of these names in it are replaced too.
    """
    with tempfile.TemporaryDirectory() as written:
        save_processing(Path(written))
        files = list(Path(written).iterdir())
        # Of an earlier export, which replaces no files but its own.
        for file in files if directory.is_dir() else ():
            (directory / file.name).unlink(missing_ok=True)
        export(directory)
        for file in files:
            shutil.copyfile(file, directory / file.name)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter of one rank, in PEFT's terms.

    Attributes:
        rank: Number of components.
        alpha: PEFT's ``lora_alpha``; the factor is ``alpha / rank``, or ``alpha / sqrt(rank)``.
        rslora: Which of the two.
        factors: ``(lora_A [rank, d], lora_B [m, rank])`` by the name of the layer.
        saved: Whole modules' weights (the task head), by their name in the model.
        base: What is recorded of a quantized base; None of any other, or where nothing is.
    """

    rank: int
    alpha: float
    rslora: bool
    factors: Mapping[str, tuple[Tensor, Tensor]]
    saved: Mapping[str, Tensor]
    base: BaseRecord | None = None

    @property
    def scale(self) -> float:
        """The factor in front of the product of the two matrices."""
        return lora_scale("alpha/sqrt(b)" if self.rslora else "alpha/b", self.alpha, self.rank, 1)


def peft_alpha(scaling: str, alpha: float, rank: int, max_rank: int) -> tuple[float, float]:
    r"""``(lora_alpha, ratio)``: PEFT's constant that gives our factor, and what it cannot hold.

    PEFT computes ``lora_alpha / rank`` (or ``/ sqrt(rank)``). For ``alpha/R`` that asks for
    :math:`\alpha b / R`, whose quotient may differ from :math:`\alpha / R` in the last bit; the
    ratio of the two then goes into ``lora_B``.

    >>> peft_alpha("alpha/b", 16.0, rank=3, max_rank=8)
    (16.0, 1.0)
    >>> peft_alpha("alpha/R", 16.0, rank=3, max_rank=8)
    (6.0, 1.0)
    """
    if scaling != "alpha/R":
        return alpha, 1.0
    lora_alpha = alpha * rank / max_rank
    return lora_alpha, (alpha / max_rank) / (lora_alpha / rank)


def cut_adapter(
    layers: Mapping[str, DynamicLoRALinear], rank: int, saved: Mapping[str, Tensor]
) -> Adapter:
    """The first ``rank`` components of dynamic adapters, as PEFT would hold them."""
    layer = next(iter(layers.values()))
    lora_alpha, ratio = peft_alpha(layer.scaling, layer.alpha, rank, layer.max_rank)
    factors = {}
    for name, adapter in layers.items():
        lora_a, lora_b = adapter.components(rank)
        factors[name] = lora_a, lora_b if ratio == 1 else lora_b * ratio
    rslora = layer.scaling == "alpha/sqrt(b)"
    return Adapter(rank, lora_alpha, rslora, factors, saved, _base_of(layers))


def paste_adapter(layers: Mapping[str, DynamicLoRALinear], adapter: Adapter) -> None:
    """Make an adapter the first components of dynamic ones; at its rank they then agree.

    Components beyond its rank start again: A random, B zero. A base that is quantized otherwise
    than the one it was trained on is warned of.

    Raises:
        ValueError: It adapts other layers, or has more components than there is room for; nothing
            was changed then.
    """
    if set(adapter.factors) != set(layers):
        raise ValueError(
            f"the adapter is for {sorted(adapter.factors)[:3]}..., the model adapts "
            f"{sorted(layers)[:3]}...; use the same target_modules"
        )
    for name, layer in layers.items():
        layer.check_rank(adapter.rank)
        lora_a, lora_b = adapter.factors[name]
        if (lora_a.shape[1], lora_b.shape[0]) != (layer.in_features, layer.out_features):
            raise ValueError(
                f"{name} is {lora_a.shape[1]} -> {lora_b.shape[0]} in the adapter and "
                f"{layer.in_features} -> {layer.out_features} in the model; use its base model"
            )
    for name, layer in layers.items():
        rank = adapter.rank
        lora_a, lora_b = adapter.factors[name]
        ratio = adapter.scale / layer.scale(rank)  # a ratio of 1 leaves the bits alone
        layer.reset_parameters(rank)
        layer.lora_A.data[:rank] = lora_a
        layer.lora_B.data[:, :rank] = lora_b if ratio == 1 else lora_b * ratio
    warn_of_another_base(adapter.base, _base_of(layers))


def _base_of(layers: Mapping[str, DynamicLoRALinear]) -> BaseRecord | None:
    return record_of((name, layer.base_layer) for name, layer in layers.items())


def write_peft(
    directory: Path,
    adapter: Adapter,
    *,
    base_model: str | None,
    modules_to_save: Sequence[str],
    target_modules: Sequence[str],
    fan_in_fan_out: bool,
    task_type: str | None = "SEQ_CLS",
) -> None:
    """Write a folder for `peft.PeftModel.from_pretrained`, whole or not at all."""
    from peft import LoraConfig, TaskType
    from safetensors.torch import save_file

    tensors = {f"{PREFIX}{name}": value for name, value in adapter.saved.items()}
    for name, (lora_a, lora_b) in adapter.factors.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = lora_a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = lora_b
    config = LoraConfig(
        task_type=None if task_type is None else TaskType(task_type),
        r=adapter.rank,
        # PEFT declares a whole number; a fraction works and is kept only where one is needed.
        lora_alpha=int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,  # type: ignore[arg-type]
        use_rslora=adapter.rslora,
        target_modules=list(target_modules),
        modules_to_save=list(modules_to_save),
        fan_in_fan_out=fan_in_fan_out,
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
    with atomic_directory(directory) as folder:
        config.save_pretrained(str(folder))
        if adapter.base is not None:
            adapter.base.write(folder)
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )


def read_peft(directory: str | Path) -> Adapter:
    """Read an adapter folder that PEFT or `write_peft` wrote.

    Raises:
        FileNotFoundError: No adapter there.
        ValueError: Not a plain LoRA of one rank.
    """
    from peft import LoraConfig, PeftConfig
    from safetensors.torch import load_file

    directory = Path(directory)
    weights = directory / "adapter_model.safetensors"
    if not (directory / "adapter_config.json").is_file() or not weights.is_file():
        raise FileNotFoundError(
            f"{directory} has no adapter_config.json with adapter_model.safetensors beside it; "
            "give the folder that PEFT or `lightning-kd export` wrote"
        )
    config = PeftConfig.from_pretrained(str(directory))
    if not isinstance(config, LoraConfig) or not _is_plain(config):
        raise ValueError(f"{directory} is not a plain LoRA adapter of one rank; import one that is")
    factors: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, Tensor] = {}
    for key, value in load_file(weights).items():
        name = key.removeprefix(PREFIX)
        layer, _, factor = name.removesuffix(".weight").rpartition(".")
        if factor in ("lora_A", "lora_B"):
            factors.setdefault(layer, {})[factor] = value
        else:
            saved[name] = value
    for layer, pair in factors.items():
        if len(pair) != 2:
            raise ValueError(
                f"{layer} has only one of lora_A and lora_B in {weights}; give a complete adapter"
            )
    pairs = {layer: (pair["lora_A"], pair["lora_B"]) for layer, pair in factors.items()}
    alpha, rslora, base = (
        float(config.lora_alpha),
        bool(config.use_rslora),
        BaseRecord.read(directory),
    )
    return Adapter(config.r, alpha, rslora, pairs, saved, base)


def _is_plain(config: Any) -> bool:
    per_layer = config.rank_pattern or config.alpha_pattern
    return not (per_layer or config.use_dora or config.lora_bias or config.bias != "none")


def common_targets(matched: Sequence[str], linear: Sequence[str]) -> list[str]:
    """The shortest way to say ``matched`` in PEFT's vocabulary: last names, or else full names.

    >>> common_targets(["l.0.query", "l.1.query"], ["l.0.query", "l.1.query", "l.0.key"])
    ['query']
    >>> common_targets(["l.0.query"], ["l.0.query", "l.1.query"])
    ['l.0.query']
    """
    last = sorted({name.rpartition(".")[2] for name in matched})
    selected = [name for name in linear if name.rpartition(".")[2] in last]
    return last if sorted(selected) == sorted(matched) else sorted(matched)


__all__ = [
    "Adapter",
    "atomic_directory",
    "check_replaceable",
    "common_targets",
    "cut_adapter",
    "export_whole",
    "paste_adapter",
    "peft_alpha",
    "read_peft",
    "write_peft",
]
