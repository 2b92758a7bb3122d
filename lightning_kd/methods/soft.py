"""SoFT: one fine-tuning after which a language model may end after any of several blocks.

Kavehzadeh et al., "Sorted LLaMA: Unlocking the Potential of Intermediate Layers of Large Language
Models for Dynamic Inference", Findings of EACL 2024, arXiv 2309.08968. The loss is the mean over
exits of the next-token loss of the model cut there (Eq. 1); all exits come out of one pass and
share the final norm and the head. Its parent, SortedNet (arXiv 2309.00255), draws one exit per
optimizer step instead: ``loss="random"``.

The paper's baselines, from this class: SFT, ``exits=[40]`` with ``evaluation_exits``; SFT+ICT,
``head="per_exit", train="heads"`` on the model that SFT gave; extracted fine-tuning,
``student_layers=n`` with ``exits=[n]``.

What differs: there is no released code; the losses' average is one over all target tokens of an
optimizer step (a mean over micro-batches in common trainers); logits are never kept for more than
``chunk_size`` tokens of one exit. Unconfirmed: whether ICT's heads have own norms (here: no).
"""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from typing_extensions import override

from lightning_kd.callbacks import SizeSampler
from lightning_kd.checks import check_at_least, check_choice
from lightning_kd.export import atomic_directory
from lightning_kd.functional.linear_cross_entropy import CHUNK_SIZE
from lightning_kd.methods.base import Batch, TaskModule
from lightning_kd.models import quiet
from lightning_kd.nested import Nested
from lightning_kd.nn import DecoderStack, ending_at, exit_states, truncated
from lightning_kd.nn.sorted_exits import check_exits, exit_shares, head_loss
from lightning_kd.paper import Paper
from lightning_kd.progress import logs_now
from lightning_kd.tasks import CausalLM, Prediction, Task
from lightning_kd.tasks.base import NOT_INPUTS
from lightning_kd.tasks.language import IGNORED, sites


class SoFT(TaskModule, Nested):
    """A decoder whose first n blocks, final norm and head are a model of n layers.

    Args:
        student: See `TaskModule`; a causal language model of the Llama, Mistral, Qwen2 or GPT-2
            family.
        task: See `TaskModule`; one that predicts tokens.
        exits: Numbers of blocks after which the model is trained to answer, ascending, from 1 to
            its depth L. The deepest is added where it is missing; ``[L]`` is plain fine-tuning.
            None: every ``exit_every``-th from ``exit_start``, and L.
        exit_start: Of None; the paper's 12 of 40.
        exit_every: Of None.
        loss: ``mean`` over the exits (the paper's), ``sum``, ``weighted`` (in proportion to their
            depth), or ``random``: one exit per optimizer step.
        head: ``shared`` by all exits, or ``per_exit``: each but the deepest has one of its own,
            (number of exits - 1) x d x V new weights that start as the model's.
        train: ``all`` weights, or the ``heads`` alone.
        evaluation_exits: Those that validation reports; None: ``exits``. The trained ones among
            them (all, where there are none) choose the best checkpoint.
        predict_exit: At which the predict stage answers; None: the deepest.
        chunk_size: Tokens of one exit whose logits are in memory at once.
        seed: Of the drawn exits.
        kwargs: See `TaskModule`.

    Raises:
        ValueError: An unknown setting, a number of blocks that the model has not, heads that would
            not train, or another kind of task.
        TypeError: Not a decoder that is known.
    """

    size_name: ClassVar[str] = "layer"
    paper = Paper(
        title="Sorted LLaMA: Unlocking the Potential of Intermediate Layers of Large Language "
        "Models for Dynamic Inference",
        venue="Findings of EACL 2024",
        arxiv="2309.08968",
        tasks="Alpaca, TriviaQA",
        recipe="soft_alpaca",
        ours="E2E, SmolLM2, BLEU at 10/20/30 layers: 21/33/46, SFT 0/0/61 (docs/evidence/soft.md)",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - what a user sets on the command line
        self,
        student: str | nn.Module,
        task: str | Task,
        exits: list[int] | None = None,
        exit_start: int = 12,
        exit_every: int = 4,
        loss: Literal["mean", "sum", "weighted", "random"] = "mean",
        head: Literal["shared", "per_exit"] = "shared",
        train: Literal["all", "heads"] = "all",
        evaluation_exits: list[int] | None = None,
        predict_exit: int | None = None,
        chunk_size: int = CHUNK_SIZE,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(student, task, **kwargs)
        check_choice("loss", loss, ("mean", "sum", "weighted", "random"))
        check_choice("head", head, ("shared", "per_exit"))
        check_choice("train", train, ("all", "heads"))
        check_at_least(1, exit_start=exit_start, exit_every=exit_every, chunk_size=chunk_size)
        if not isinstance(self.task, CausalLM):
            raise ValueError(f"SoFT predicts tokens, which {self.task.name} does not ask for")  # noqa: TRY004
        self.loss, self.train_part, self.chunk_size = loss, train, chunk_size
        depth = len(self.stack.layers)
        if exits is None:
            exits = list(range(exit_start, depth, exit_every)) or [depth]
        self.exits = sorted({*check_exits(exits, depth), depth})
        evaluated = self.exits if evaluation_exits is None else evaluation_exits
        self._evaluation_exits = check_exits(evaluated, depth)
        self.predict_exit = depth if predict_exit is None else check_exits([predict_exit], depth)[0]
        everything = {*self.exits, *self._evaluation_exits, self.predict_exit}
        self._sizes, self._size = sorted(everything), depth
        own = self.exits[:-1] if head == "per_exit" else []
        self.heads = nn.ModuleDict({str(n): copy.deepcopy(self.stack.head).train() for n in own})
        if head == "per_exit" and not own:
            raise ValueError(f"head=per_exit needs an exit before the deepest, got {self.exits}")
        if train == "heads":
            self._freeze_all_but_heads()
        self.trained_exits = own if train == "heads" and own else self.exits
        self.sampler = SizeSampler(self.trained_exits, seed=seed) if loss == "random" else None
        self._exit_losses: dict[int, Tensor] = {}

    # The method

    @override
    def objective(self, batch: Batch) -> dict[str, Tensor]:
        exits = [self.size] if self.sampler is not None else self.trained_exits
        targets = batch["labels"][:, 1:]
        there = targets != IGNORED
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_part == "all"):
            states = exit_states(self.stack, exits, **_inputs(batch))
            rows = {n: self.stack.norm(states[n][:, :-1][there]) for n in exits}
        labels = targets[there]
        count = batch.get("num_targets", there.sum().clamp(min=1))
        shares = torch.tensor(exit_shares(exits, self.loss), device=labels.device)[:, None] / count
        weights = shares.expand(-1, len(labels))
        shared = [exits] if not self.heads else [[n] for n in exits]
        parts = [
            head_loss(self._head(g[0]), [rows[n] for n in g], labels, w, self.chunk_size)
            for g, w in zip(shared, torch.split(weights, [len(g) for g in shared]), strict=True)
        ]
        losses = torch.cat([losses for _, losses in parts]).sum(1) / count
        self._exit_losses = dict(zip(exits, losses, strict=True))
        return {"sorted": torch.stack([loss for loss, _ in parts]).sum()}

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if logs_now(self.trainer):
            size = batch["labels"].shape[0]
            values = {f"train/exit_{n}": value for n, value in self._exit_losses.items()}
            self.log_dict(values, batch_size=size)
        return loss

    @override
    def configure_callbacks(self) -> list[L.Callback]:
        here = self.sampler is None or self.sampler in vars(self.trainer)["callbacks"]
        return [] if here or self.sampler is None else [self.sampler]

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        strategy = self.trainer.strategy
        if stage != "fit" or self.sampler is None or not isinstance(strategy, DDPStrategy):
            return
        if not vars(strategy)["_ddp_kwargs"].get("find_unused_parameters"):
            raise ValueError(
                "loss=random leaves the blocks above the drawn exit without gradients; set "
                "trainer.strategy to ddp_find_unused_parameters_true"
            )

    # Sizes

    @property
    @override
    def sizes(self) -> Sequence[int]:
        return self._sizes

    @property
    @override
    def size(self) -> int:
        return self._size

    @override
    def resize(self, size: int) -> None:
        self._size = self._check_size(size)

    @property
    @override
    def evaluation_sizes(self) -> Sequence[int]:
        return self._evaluation_exits

    @property
    @override
    def selection_sizes(self) -> Sequence[int]:
        evaluated = self._evaluation_exits
        return [n for n in evaluated if n in self.trained_exits] or evaluated

    @override
    def num_trainable_parameters(self, size: int | None = None) -> int:
        if size is None:
            return super().num_trainable_parameters()
        above = [*self.stack.layers[self._check_size(size) :]]
        other = [head for number, head in self.heads.items() if number != str(size)]
        if str(size) in self.heads:
            other.append(self.stack.head)
        unused = {id(p) for module in (*above, *other) for p in module.parameters()}
        kept = {id(self.stack.embedding.weight)}  # an input too, where it is tied to the head
        trained = [p for p in self.parameters() if p.requires_grad]
        return sum(p.numel() for p in trained if id(p) not in unused - kept)

    # Answers

    @override
    def predict(self, batch: Batch, hidden_states: bool = False) -> Prediction:
        with ending_at(self.stack, self.size, self._own_head(self.size)):
            return super().predict(batch, hidden_states)

    @override
    def predictions(self, batch: Batch) -> Iterator[tuple[int | None, Prediction, float]]:
        """All exits out of one pass; each is charged the blocks below it and its head."""
        start = time.perf_counter()
        states = exit_states(self.stack, self.evaluation_sizes, **_inputs(batch))
        per_block = (time.perf_counter() - start) / self.evaluation_sizes[-1]
        places, _ = sites(batch["labels"])
        for size in self.evaluation_sizes:
            start = time.perf_counter()
            state = states.pop(size)
            at_sites = state.gather(1, places[..., None].expand(-1, -1, state.shape[-1]))
            found = Prediction(self._head(size)(self.stack.norm(at_sites)))
            if "generate" in batch and not torch.is_grad_enabled():
                with self.at_size(size), ending_at(self.stack, size, self._own_head(size)):
                    written = self._task.generate(self.student, batch)
                found = replace(found, generated=written)
            yield size, found, per_block * size + time.perf_counter() - start

    @override
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Batch:
        with self.at_size(self.predict_exit):
            return super().predict_step(batch, batch_idx, dataloader_idx)

    @override
    def export(self, directory: Path, size: int | None = None) -> None:
        """Write the model that ends at exit ``size`` (None: the deepest) as a plain folder."""
        depth = len(self.stack.layers) if size is None else self._check_size(size)
        model: Any = truncated(self.student, depth, share=True, exits=self.exits)
        own = self._own_head(depth)
        if own is not None:  # its answers are its own head's, under the usual name
            model.set_output_embeddings(own)
            model.config.tie_word_embeddings = False
        with atomic_directory(directory) as folder, quiet():
            model.save_pretrained(folder)

    # Inside

    @property
    def stack(self) -> DecoderStack:
        """The parts of the student."""
        return DecoderStack.of(self.student)

    @property
    def _task(self) -> CausalLM:
        assert isinstance(self.task, CausalLM)  # noqa: S101 - checked at the start
        return self.task

    def _head(self, size: int) -> Any:  # a linear layer
        return self._own_head(size) or self.stack.head

    def _own_head(self, size: int) -> nn.Module | None:
        return next((head for n, head in self.heads.items() if n == str(size)), None)

    def _freeze_all_but_heads(self) -> None:
        stack = self.stack
        if not self.heads and stack.head.weight is stack.embedding.weight:
            raise ValueError(
                "train=heads would train the embedding too, which is the head's weight here; "
                "give head=per_exit"
            )
        self.student.requires_grad_(requires_grad=False)
        (self.heads if self.heads else stack.head).requires_grad_(requires_grad=True)

    def _check_size(self, size: int) -> int:
        if size not in self._sizes:
            raise ValueError(f"there are exits after {self._sizes} blocks, got {size}")
        return size


def _inputs(batch: Batch) -> Batch:
    return {key: value for key, value in batch.items() if key not in NOT_INPUTS}


__all__ = ["SoFT"]
