"""A step as a GPU takes it, traced without one: kernels that exist there and not on a CPU."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import override

# What CUDA's autocast computes in fp32 and a CPU's leaves in half precision, out of what
# transformer layers use.
_IN_FP32 = (
    F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.cross_entropy, F.nll_loss, F.mse_loss,
    F.kl_div, torch.softmax, torch.log_softmax, torch.pow, torch.exp, torch.log, torch.rsqrt,
    torch.cumsum, Tensor.softmax, Tensor.log_softmax, Tensor.pow, Tensor.exp, Tensor.log,
    Tensor.rsqrt, Tensor.cumsum,
)  # fmt: skip


class _FusedAttention(torch.autograd.Function):
    """What memory-efficient and flash attention keep: inputs, output, one number per query."""

    @staticmethod
    @override
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        out = q.new_empty(*q.shape[:-2], q.shape[-2], v.shape[-1])
        log_sum_exp = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, bias, out, log_sum_exp)
        return out

    @staticmethod
    @override
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *_ = ctx.saved_tensors
        del grads
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


class AsOnGPU(TorchFunctionMode):
    """Within the block, attention, dropout and autocast make the tensors that they make on CUDA.

    Attention is fused (memory-efficient attention runs from SM50 on): no matrix of scores. Dropout
    keeps one byte per value, and autocast computes norms and softmax in fp32.
    """

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func in _IN_FP32 and torch.is_autocast_enabled("cpu"):
            args = tuple(_in_fp32(value) for value in args)
        return func(*args, **kwargs)

    @staticmethod
    def _attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            half = torch.get_autocast_dtype("cpu")
            q, k, v = q.to(half), k.to(half), v.to(half)
        bias = attn_mask
        if bias is not None and bias.dtype == torch.bool:
            bias = torch.empty_like(bias, dtype=q.dtype)  # kernels take it as something to add
        return _FusedAttention.apply(q, k, v, bias)  # type: ignore[no-untyped-call]

    @staticmethod
    def _dropout(*args: Any, **kwargs: Any) -> Tensor:
        given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
        x: Tensor = given["input"]
        p, training = given.get("p", 0.5), given.get("training", True)
        return torch.native_dropout(x, p, training)[0] if training and p > 0 else x


def _in_fp32(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


__all__ = ["AsOnGPU"]
