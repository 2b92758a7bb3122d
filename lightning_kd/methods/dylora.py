"""DyLoRA: one adapter, trained once, usable at every rank.

Valipour, Rezagholizadeh, Kobyzev, Ghodsi, "DyLoRA: Parameter-Efficient Tuning of Pre-trained Models
using Dynamic Search-Free Low-Rank Adaptation", EACL 2023, arXiv 2210.07558. Each optimizer step
draws a rank b, cuts all adapters to their first b components and trains that cut (Eq. 7); with the
frozen rule only component b moves.

What differs from the released code: ranks count from 1; validation reports every rank instead of
the one drawn last; components outside the active set keep their value and their optimizer state
(``optimizer_semantics="strict"``; ``"dense"`` is the release, where decay and momentum still move
them); the scale is alpha/b in one factor, not a square root in each. Left out: per-layer draws,
which are not DyLoRA. On GPT-2 the fused projection is adapted whole, as PEFT does.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_kd.callbacks import SizeSampler
from lightning_kd.checks import check_choice
from lightning_kd.export import (
    Adapter,
    common_targets,
    cut_adapter,
    paste_adapter,
    read_peft,
    write_peft,
)
from lightning_kd.functional.dynamic_lora import LoRAScaling
from lightning_kd.methods.adapter import AdapterModule
from lightning_kd.methods.base import Batch
from lightning_kd.models import task_heads
from lightning_kd.nested import Nested
from lightning_kd.nn import (
    DynamicLoRALinear,
    dynamic_lora_layers,
    match_linear_layers,
    replace_modules,
    sample_ranks,
)
from lightning_kd.optim import NestedAdamW, nested_groups, require_whole_parameters
from lightning_kd.paper import Paper
from lightning_kd.tasks import Prediction, Task


class DyLoRA(AdapterModule, Nested):
    """A low-rank adapter whose first b components are an adapter of rank b.

    Args:
        student: See `TaskModule`.
        task: See `TaskModule`.
        max_rank: R, the largest rank and the number of components.
        min_rank: The smallest rank drawn, in [1, R]; ``min_rank == max_rank`` is plain LoRA.
        alpha: Constant of the scale.
        scaling: ``alpha/b`` (paper), ``alpha/R`` (one factor for all ranks: nested sums) or
            ``alpha/sqrt(b)``.
        update: ``frozen`` trains only the components that the drawn rank adds to the next smaller
            candidate (the released script's rule), ``full`` all of the drawn rank's.
        sampler: ``uniform`` or ``geometric`` over ``min_rank..max_rank``, or a list of ranks.
        geometric_p: Of the geometric law, in (0, 1].
        rank_sync: ``global`` draws one rank for all processes, ``per_process`` one on each.
        optimizer_semantics: ``strict`` leaves inactive components and their state bit-unchanged;
            ``dense`` is plain AdamW. A given ``optimizer`` replaces either.
        target_modules: PEFT's vocabulary; None is PEFT's choice for the architecture (query and
            value for BERT and RoBERTa).
        modules_to_save: Modules trained whole; None is the task head (and BERT's pooler), none of a
                language model.
        dropout: Of the adapter's input, in [0, 1).
        evaluation: ``loop`` evaluates rank after rank, ``sweep`` all ranks of a batch in one pass.
        evaluation_ranks: Ranks that validation reports; None is every rank that is drawn.
        predict_rank: Rank of the predict stage; None is the largest that is drawn.
        adapter: Folder of a PEFT adapter to start from (see `load_adapter`).
        seed: Of the sequence of ranks.
        kwargs: See `TaskModule`.

    Raises:
        ValueError: A rank outside its range, an unknown option, or a sharding strategy.
    """

    size_name: ClassVar[str] = "rank"
    paper = Paper(
        title="DyLoRA: Dynamic Search-Free Low-Rank Adaptation",
        venue="EACL 2023",
        arxiv="2210.07558",
        tasks="GLUE, E2E, DART, WebNLG",
        recipe="dylora_glue",
        result="SST-2 94.3, MRPC 89.5 at rank 8 (RoBERTa-base, as reported by FourierFT)",
        ours="reviews, MiniLM's top: 73.1-75.5 over ranks (docs/evidence/dylora.md)",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - what a user sets on the command line
        self,
        student: str | nn.Module,
        task: str | Task,
        max_rank: int = 8,
        min_rank: int = 1,
        alpha: float = 16.0,
        scaling: LoRAScaling = "alpha/b",
        update: Literal["frozen", "full"] = "frozen",
        sampler: Literal["uniform", "geometric"] | list[int] = "uniform",
        geometric_p: float = 0.5,
        rank_sync: Literal["global", "per_process"] = "global",
        optimizer_semantics: Literal["strict", "dense"] = "strict",
        target_modules: str | list[str] | None = None,
        modules_to_save: list[str] | None = None,
        dropout: float = 0.0,
        evaluation: Literal["loop", "sweep"] = "loop",
        evaluation_ranks: list[int] | None = None,
        predict_rank: int | None = None,
        adapter: str | None = None,
        seed: int = 0,
        learning_rate: float = 4e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(student, task, learning_rate=learning_rate, **kwargs)
        check_choice("update", update, ("frozen", "full"))
        check_choice("optimizer_semantics", optimizer_semantics, ("strict", "dense"))
        check_choice("evaluation", evaluation, ("loop", "sweep"))
        if rank_sync == "per_process" and optimizer_semantics == "strict":
            raise ValueError(
                "rank_sync=per_process needs optimizer_semantics=dense: the strict optimizer must "
                "treat the same components as active on every process"
            )
        self.update, self.evaluation, self.semantics = update, evaluation, optimizer_semantics
        heads = task_heads(self.student, self.task) if modules_to_save is None else modules_to_save
        self.modules_to_save = list(heads)
        bare = self.prepare_base(heads)
        # The head is no target, and neither is the pooler when it trains whole.
        self.linear_names = match_linear_layers(self.student, "all-linear", exclude=bare)
        matched = match_linear_layers(self.student, target_modules, exclude=bare)
        replace_modules(
            self.student,
            matched,
            lambda base: DynamicLoRALinear(base, max_rank, alpha, scaling, dropout),
        )
        self.freeze_base(heads)
        self.adapters = dynamic_lora_layers(self.student)
        for layer in self.adapters.values():
            layer.lora_A.requires_grad = layer.lora_B.requires_grad = True
        self._candidates = self._check_candidates(sampler, min_rank, max_rank)
        if evaluation_ranks == []:
            raise ValueError("evaluation_ranks is empty; give at least one rank, or None for all")
        self._evaluation_ranks = self._candidates if evaluation_ranks is None else evaluation_ranks
        self.predict_rank = self._candidates[-1] if predict_rank is None else predict_rank
        for rank in (*self._evaluation_ranks, self.predict_rank):
            self._any_adapter.check_rank(rank)
        distribution = "uniform" if isinstance(sampler, list) else sampler
        self.sampler = SizeSampler(self._candidates, distribution, geometric_p, seed, rank_sync)
        self.resize(self._candidates[-1])
        if adapter is not None:
            self.load_adapter(adapter)

    # The method

    @override
    def objective(self, batch: Batch) -> dict[str, Tensor]:
        return {"hard": self.hard_term(batch)}

    @override
    def configure_callbacks(self) -> list[L.Callback]:
        return [] if self.sampler in vars(self.trainer)["callbacks"] else [self.sampler]

    @override
    def resize(self, size: int) -> None:
        below = [rank for rank in self._candidates if rank < size]
        num_frozen = below[-1] if self.update == "frozen" and below else 0
        for layer in self.adapters.values():
            layer.set_rank(size, num_frozen)

    @property
    @override
    def sizes(self) -> Sequence[int]:
        return self._candidates

    @property
    @override
    def size(self) -> int:
        return self._any_adapter.rank or self._any_adapter.max_rank

    @property
    @override
    def evaluation_sizes(self) -> Sequence[int]:
        return self._evaluation_ranks

    @override
    def num_trainable_parameters(self, size: int | None = None) -> int:
        rank = self._any_adapter.max_rank if size is None else size
        whole = super().num_trainable_parameters()
        widths = sum(a.in_features + a.out_features for a in self.adapters.values())
        return whole - widths * (self._any_adapter.max_rank - rank)

    @override
    def make_optimizer(self) -> Optimizer:
        if self.semantics == "dense":
            return super().make_optimizer()
        factors = [(a.lora_A, a.lora_B) for a in self.adapters.values()]
        groups = nested_groups(factors, self.named_parameters(), self.weight_decay)
        return NestedAdamW(groups, self._active_components, lr=self.learning_rate)

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.semantics == "strict":
            require_whole_parameters(self.trainer.strategy)

    # Every rank at once, one rank for good

    @override
    def predictions(self, batch: Batch) -> Iterator[tuple[int | None, Prediction, float]]:
        if self.evaluation == "loop":
            yield from super().predictions(batch)
            return
        start, sizes = time.perf_counter(), list(self.evaluation_sizes)
        tiled = {k: v.repeat(len(sizes), *[1] * (v.dim() - 1)) for k, v in batch.items()}
        count = batch["input_ids"].shape[0]
        ranks = torch.tensor(sizes, device=self.device).repeat_interleave(count)
        with sample_ranks(list(self.adapters.values()), ranks):
            logits = self.predict(tiled).logits
        seconds = (time.perf_counter() - start) / len(sizes)
        for i, size in enumerate(sizes):
            yield size, Prediction(logits[i * count : (i + 1) * count]), seconds

    @override
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Batch:
        with self.at_size(self.predict_rank):
            return super().predict_step(batch, batch_idx, dataloader_idx)

    def merge(self, rank: int) -> None:
        """Fold the adapters, cut at ``rank``, into the base weights; until `unmerge`."""
        for layer in self.adapters.values():
            layer.merge(rank)

    def unmerge(self) -> None:
        """Take the merged adapters out again; the base weights are bit for bit as before."""
        for layer in self.adapters.values():
            layer.unmerge()

    def adapter_at(self, rank: int) -> Adapter:
        """The adapter of one rank, as PEFT would hold it."""
        factors = {id(p) for a in self.adapters.values() for p in (a.lora_A, a.lora_B)}
        named = self.student.named_parameters()
        saved = {n: p.detach() for n, p in named if p.requires_grad and id(p) not in factors}
        return cut_adapter(self.adapters, rank, saved)

    def export(self, directory: Path, size: int | None = None) -> None:
        """Write rank ``size`` (None: the largest that is drawn) as a PEFT folder."""
        rank = self._any_adapter.check_rank(self._candidates[-1] if size is None else size)
        write_peft(
            directory,
            self.adapter_at(rank),
            base_model=self.hparams.get("student"),  # there only when it is a name
            modules_to_save=self.modules_to_save,
            target_modules=common_targets(list(self.adapters), self.linear_names),
            fan_in_fan_out=not isinstance(self._any_adapter.base_layer, nn.Linear),
            task_type=self.task.peft_type,
        )

    def load_adapter(self, directory: str | Path) -> None:
        """Start from an exported adapter: its rank gives the same answers, further ones are new.

        Saved modules (the head) are taken where their shapes fit: another task has another head.

        Raises:
            ValueError: Its layers or its rank do not fit.
        """
        adapter = read_peft(directory)
        paste_adapter(self.adapters, adapter)
        own = dict(self.student.named_parameters())
        for name, value in adapter.saved.items():
            if name in own and own[name].shape == value.shape:
                own[name].data.copy_(value)

    # Inside

    @property
    def _any_adapter(self) -> DynamicLoRALinear:
        return next(iter(self.adapters.values()))

    def _active_components(self) -> slice:
        layer = self._any_adapter
        return slice(layer.num_frozen, layer.rank)

    def _check_candidates(
        self, sampler: str | list[int], min_rank: int, max_rank: int
    ) -> list[int]:
        check = self._any_adapter.check_rank
        if not isinstance(sampler, list):
            return list(range(check(min_rank), max_rank + 1))
        if sorted(set(sampler)) != sampler or not sampler:
            raise ValueError(f"a list of ranks must be ascending without repeats, got {sampler}")
        return [check(rank) for rank in sampler]
