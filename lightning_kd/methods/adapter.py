"""Methods that train a few weights of a large model: the rest stays frozen, and out of files."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from lightning_kd.base_record import record_of
from lightning_kd.methods.base import TaskModule
from lightning_kd.models import head_modules


class AdapterModule(TaskModule):
    """A method that trains few weights of a large model and saves only those.

    A checkpoint holds the trainable weights and a fingerprint of the frozen ones; loading it onto
    another base is an error.
    """

    _fingerprint_at_start: str | None = None

    def freeze_base(self, trainable: Sequence[str]) -> None:
        """Train nothing of the student but the sub-modules named in ``trainable``.

        Raises:
            ValueError: A name is not there.
        """
        self.student.requires_grad_(requires_grad=False)
        names = dict(self.student.named_modules())
        for wanted in trainable:
            found = [m for n, m in names.items() if n == wanted or n.endswith("." + wanted)]
            if not found:
                raise ValueError(
                    f"modules_to_save has {wanted!r}, which the model does not; "
                    f"its top modules are {[n for n, _ in self.student.named_children()]}"
                )
            for module in found:
                module.requires_grad_(requires_grad=True)

    def prepare_base(self, heads: Sequence[str]) -> Sequence[str]:
        """What happens to the student before adapters are put in; nothing here.

        Args:
            heads: Names of the sub-modules that train whole.

        Returns:
            Names of the sub-modules that get no adapters: those, and a head that never trains.
        """
        return [*heads, *([] if self.task.trains_head else head_modules(self.student))]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Trainable weights and buffers."""
        prefix = kwargs.get("prefix", "")
        kept = {prefix + n for n, p in self._all_parameters() if p.requires_grad}
        kept |= {prefix + n for n, _ in self.named_buffers()}
        full: dict[str, Any] = super().state_dict(*args, **kwargs)
        for name in [n for n in full if n.startswith(prefix) and n not in kept]:
            del full[name]  # in place: a module around this one passes the dict to be filled
        return full

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what `state_dict` gave; a missing or foreign weight is an error."""
        ours, theirs = set(self.state_dict()), set(state_dict)
        if strict and ours != theirs:
            raise ValueError(
                f"the checkpoint does not fit the model: it lacks {sorted(ours - theirs)[:4]} and "
                f"has {sorted(theirs - ours)[:4]} besides; build the module with its settings"
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        # While a training may have cut the frozen weights into pieces, or rounded them.
        self._fingerprint_at_start = self._frozen_fingerprint() if stage == "fit" else None

    @override
    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        self._fingerprint_at_start = None

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        known = self._fingerprint_at_start
        checkpoint["frozen_fingerprint"] = known or self._frozen_fingerprint()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if checkpoint.get("frozen_fingerprint") != self._frozen_fingerprint():
            raise ValueError(
                "the checkpoint's adapter was trained on other base weights than this model's; "
                f"load the base it was trained on (student={self.hparams.get('student')!r} here)"
            )

    def _all_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.named_parameters(remove_duplicate=False)  # tied weights have two names

    def _frozen_fingerprint(self) -> str:
        """Hash of names, shapes and a few entries (in bfloat16: a cast base is the same base)."""
        digest = hashlib.sha256()
        for name, parameter in self._all_parameters():
            if not parameter.requires_grad and parameter.is_floating_point():
                flat = parameter.detach().reshape(-1)
                picked = flat[:: max(1, flat.numel() // 16)].to("cpu", torch.bfloat16)
                digest.update(f"{name} {tuple(parameter.shape)} {picked.tolist()}".encode())
        base = record_of(self.student.named_modules())  # codes are no floating-point numbers
        digest.update(base.identity.encode() if base is not None else b"")
        return digest.hexdigest()


__all__ = ["AdapterModule"]
