"""The DyLoRA layer and its surgery: any base linear, one adapter, every rank.

Valipour et al. (EACL 2023), arXiv 2210.07558, section 3. Factors are kept whole; a rank is plain
Python state that picks how many leading components a forward uses.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_kd.functional import dynamic_lora, dynamic_lora_sweep, lora_scale
from lightning_kd.functional.dynamic_lora import LORA_SCALINGS


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """``(in_features, out_features)`` of a linear layer, or None for anything else.

    Knows `torch.nn.Linear`, its quantized subclasses, and GPT-2's transposed ``Conv1D``.
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and isinstance(module.weight, Tensor):
        return module.weight.shape[0], module.weight.shape[1]
    return None


def check_lora(alpha: float, dropout: float) -> None:
    """Raise `ValueError` for constants that no LoRA layer can use."""
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha must be a positive number, got {alpha}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")


class DynamicLoRALinear(nn.Module):
    r"""A frozen linear layer plus a low-rank update usable at every rank.

    .. math:: h = W_0 x + s(b) \, W_{up|b} W_{dw|b} x

    ``lora_A`` ``[R, d]`` starts Kaiming-uniform and ``lora_B`` ``[m, R]`` at zero, so every rank
    starts as the base layer. ``lora_B`` lies column-major in memory: its first ``b`` columns are
    one block, as the first ``b`` rows of ``lora_A`` are.

    Args:
        base_layer: `torch.nn.Linear`, GPT-2's ``Conv1D`` or bitsandbytes' ``Linear4bit``; frozen.
        max_rank: ``R``, the number of components.
        alpha: The constant of the scale.
        scaling: ``alpha/b``, ``alpha/R`` or ``alpha/sqrt(b)``
            (`lightning_kd.functional.lora_scale`).
        dropout: Probability of dropping an input of the adapter, in [0, 1).

    Raises:
        TypeError: ``base_layer`` is not linear.
        ValueError: A number is out of its range.
        RuntimeError: Forward before a rank was set, or a rank change while merged.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        max_rank: int,
        alpha: float = 16.0,
        scaling: str = "alpha/b",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        shape = linear_shape(base_layer)
        if shape is None:
            raise TypeError(
                f"DynamicLoRALinear wraps a linear layer, got {type(base_layer).__name__}"
            )
        if type(max_rank) is not int or max_rank < 1:
            raise ValueError(f"max_rank must be a whole number of at least 1, got {max_rank}")
        if scaling not in LORA_SCALINGS:
            raise ValueError(f"scaling must be one of {', '.join(LORA_SCALINGS)}, got {scaling!r}")
        check_lora(alpha, dropout)
        self.in_features, self.out_features = shape
        self.max_rank, self.alpha, self.scaling = max_rank, float(alpha), scaling
        self.base_layer = base_layer.requires_grad_(requires_grad=False)
        self.dropout = nn.Dropout(dropout)
        weight: Tensor = base_layer.weight  # type: ignore[assignment]
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        lora_a = torch.empty(max_rank, self.in_features, device=weight.device, dtype=dtype)
        lora_b = torch.zeros(max_rank, self.out_features, device=weight.device, dtype=dtype)
        self.lora_A, self.lora_B = nn.Parameter(lora_a), nn.Parameter(lora_b.t())
        self.rank: int | None = None
        self.num_frozen = 0
        self.merged_rank: int | None = None
        self._sample_ranks: tuple[Tensor, Tensor] | None = None
        self._base_weight: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self, first: int = 0) -> None:
        """Start components ``first``.. again: A Kaiming-uniform, bound ``1/sqrt(d)``; B zero."""
        if first == self.max_rank:  # torch warns about initializing nothing
            return
        with torch.no_grad():
            nn.init.kaiming_uniform_(self.lora_A[first:], a=math.sqrt(5))
            self.lora_B[:, first:].zero_()

    def scale(self, rank: int) -> float:
        """``s(rank)``, the factor of the update."""
        return lora_scale(self.scaling, self.alpha, rank, self.max_rank)

    def check_rank(self, rank: int) -> int:
        """``rank`` itself, or an error that says which ranks there are."""
        if type(rank) is not int or not 1 <= rank <= self.max_rank:
            raise ValueError(
                f"rank must be a whole number between 1 and max_rank={self.max_rank}, got {rank}"
            )
        return rank

    def set_rank(self, rank: int, num_frozen: int = 0) -> None:
        """Use components ``1..rank``, of which the first ``num_frozen`` do not learn."""
        if self.merged_rank is not None:
            raise RuntimeError(
                f"the adapter is merged at rank {self.merged_rank}; unmerge() before set_rank()"
            )
        # Past nn.Module's slow __setattr__: a step does this for every layer of the model.
        vars(self).update(rank=self.check_rank(rank), num_frozen=num_frozen)

    def set_sample_ranks(self, ranks: Int[Tensor, " n"] | None) -> None:
        """Give each example of the next batches a rank of its own; None goes back to one rank."""
        if ranks is None:
            self._sample_ranks = None
        elif self.merged_rank is not None:
            raise RuntimeError(
                f"the adapter is merged at rank {self.merged_rank}; call unmerge() before a sweep"
            )
        else:
            scales = [self.scale(self.check_rank(rank)) for rank in ranks.tolist()]
            self._sample_ranks = ranks, torch.tensor(scales, device=ranks.device)

    def components(self, rank: int) -> tuple[Float[Tensor, "b d"], Float[Tensor, "m b"]]:
        """Contiguous copies of the factors cut at ``rank``."""
        self.check_rank(rank)
        lora_b = self.lora_B.detach()[:, :rank].clone(memory_format=torch.contiguous_format)
        return self.lora_A.detach()[:rank].clone(), lora_b

    def forward(self, x: Tensor) -> Tensor:
        """``[*, d] -> [*, m]`` at the rank that was set."""
        base = self.base_layer(x)
        if self.merged_rank is not None:
            return base
        if self._sample_ranks is not None:
            return dynamic_lora_sweep(base, x, self.lora_A, self.lora_B, *self._sample_ranks)
        if self.rank is None:
            raise RuntimeError(
                "DynamicLoRALinear was called before its rank was set; "
                "add SizeSampler to the trainer or call resize()"
            )
        return dynamic_lora(
            base,
            self.dropout(x),
            self.lora_A,
            self.lora_B,
            rank=self.rank,
            scale=self.scale(self.rank),
            num_frozen=self.num_frozen,
        )

    def merge(self, rank: int) -> None:
        """Add the update of ``rank`` to the base weight; forward then costs the base alone."""
        if self.merged_rank is not None:
            raise RuntimeError(
                f"the adapter is already merged at rank {self.merged_rank}; call unmerge() first"
            )
        weight: nn.Parameter = self.base_layer.weight  # type: ignore[assignment]
        if not weight.is_floating_point():
            raise RuntimeError(
                f"a quantized {type(self.base_layer).__name__} cannot be merged into; "
                "export the adapter instead"
            )
        lora_a, lora_b = self.components(rank)
        delta = (lora_b @ lora_a) * self.scale(rank)
        if not isinstance(self.base_layer, nn.Linear):
            delta = delta.t()  # Conv1D keeps [in, out]
        self._base_weight = weight.data
        weight.data = weight.data + delta.to(weight.dtype)
        self.merged_rank = rank

    def unmerge(self) -> None:
        """Give the base layer back the very weight it had."""
        if self.merged_rank is None or self._base_weight is None:
            raise RuntimeError("the adapter is not merged; there is nothing to unmerge")
        weight: nn.Parameter = self.base_layer.weight  # type: ignore[assignment]
        weight.data = self._base_weight.to(weight.device)
        self._base_weight = self.merged_rank = None

    def extra_repr(self) -> str:
        """What `print` shows beside the sub-modules."""
        return f"max_rank={self.max_rank}, rank={self.rank}, scaling={self.scaling!r}"


def dynamic_lora_layers(model: nn.Module) -> dict[str, DynamicLoRALinear]:
    """All dynamic adapters of ``model`` by the name of the layer they wrap."""
    return {n: m for n, m in model.named_modules() if isinstance(m, DynamicLoRALinear)}


@contextmanager
def sample_ranks(layers: Sequence[DynamicLoRALinear], ranks: Int[Tensor, " n"]) -> Iterator[None]:
    """Within the block every example of a batch of ``n`` has its own rank."""
    for layer in layers:
        layer.set_sample_ranks(ranks)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_sample_ranks(None)


__all__ = ["DynamicLoRALinear", "dynamic_lora_layers", "linear_shape", "sample_ranks"]
