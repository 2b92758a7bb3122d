"""The next token: language models that read a prompt and write a text."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_kd.functional import kd_loss
from lightning_kd.tasks.base import NOT_INPUTS, Prediction, Task

IGNORED = -100
"""Label of a token that is not to be predicted: the prompt's, and padding."""
METRICS = ("perplexity", "token_accuracy")


class CausalLM(Task):
    r"""Predict the tokens of a text, one after the other: logits ``[b, s, V]``.

    Batches have ``labels`` ``[b, l]``: the inputs themselves where a token is a *target*, -100
    elsewhere. A site is a place before a target; only there are logits computed, so that a prompt
    costs no head. ``s`` is the largest number of targets in a row of the batch; rows with fewer
    have their sites first.

    Losses of an example are means over its targets, but an average over examples weighs them by
    their number of targets: it is a mean over tokens, over all of an optimizer step
    (``num_targets`` in the batch, the mean number of targets of its micro-batches on all
    processes), however the step is cut into micro-batches and processes.

    Where a batch has ``generate`` ``[b]``, as those of an evaluation do, the rows it is true for
    are continued after their prompt (``prompt_lengths`` ``[b]``) as well.

    Args:
        name: The benchmark's name for it.
        metrics: ``perplexity`` (of the targets) and ``token_accuracy`` (with the true text before
            it) come from the logits; all others from generated texts, by the data module.
        max_new_tokens: Of a generated text.
        num_beams: 1 is greedy.

    >>> CausalLM("alpaca", max_new_tokens=64).monitor
    'perplexity'
    """

    auto_class = "AutoModelForCausalLM"
    peft_type = "CAUSAL_LM"
    weighs_examples: ClassVar[bool] = True
    trains_head: ClassVar[bool] = False
    num_labels = 0  # a vocabulary is the model's, not the task's

    def __init__(
        self,
        name: str,
        metrics: Sequence[str] = METRICS,
        max_new_tokens: int = 64,
        num_beams: int = 1,
    ) -> None:
        super().__init__(name, metrics)
        for key, value in (("max_new_tokens", max_new_tokens), ("num_beams", num_beams)):
            if value < 1:
                raise ValueError(f"{key} must be at least 1, got {value}")
        self.max_new_tokens, self.num_beams = max_new_tokens, num_beams

    def predict(
        self, model: nn.Module, batch: dict[str, Tensor], hidden_states: bool = False
    ) -> Prediction:
        """One forward pass; logits at the sites only."""
        inputs: dict[str, Any] = {k: v for k, v in batch.items() if k not in NOT_INPUTS}
        places, _ = sites(batch["labels"])
        # The model's own head, at all places where any row of the batch has a site: scaled or
        # capped logits stay what they are.
        kept, where = torch.unique(places, return_inverse=True)
        output = model(
            **inputs,
            logits_to_keep=kept,
            use_cache=False,
            output_hidden_states=hidden_states or None,
        )
        logits = output.logits.gather(1, where[..., None].expand(-1, -1, output.logits.shape[-1]))
        found = Prediction(logits, output.hidden_states if hidden_states else None)
        if "generate" in batch and not torch.is_grad_enabled():
            found = replace(found, generated=self.generate(model, batch))
        return found

    @torch.no_grad()
    def generate(self, model: Any, batch: dict[str, Tensor]) -> Int[Tensor, "g n"]:
        """What the model writes after the prompts of the rows with ``generate``, padded with -1."""
        rows = batch["generate"].nonzero().flatten().tolist()
        if not rows:
            return batch["input_ids"].new_zeros(0, self.max_new_tokens)
        context = getattr(model.config, "max_position_embeddings", None)
        longest = None if context is None else context - self.max_new_tokens
        if longest is not None and longest < 1:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} of {self.name} leave no place for a prompt "
                f"among the {context} that the model has; take a model with more, or write no "
                "texts with --data.generate_examples 0"
            )
        prompts, mask = left_padded(batch, rows, longest)
        settings = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}
        ended = model.generation_config.eos_token_id
        ends = [ended] if isinstance(ended, int) else list(ended or ())
        written = model.generate(
            input_ids=prompts,
            attention_mask=mask,
            do_sample=False,
            pad_token_id=ends[0] if ends else 0,
            **settings,
        )[:, prompts.shape[1] :]
        ending = torch.isin(written, written.new_tensor(ends)).long()
        after = ending.cumsum(1) - ending > 0  # all that follows the first end
        full = written.new_full((len(rows), self.max_new_tokens), -1)
        full[:, : written.shape[1]] = written.masked_fill(after | ending.bool(), -1)
        return full

    def per_example(
        self, values: Float[Tensor, " b *s"], batch: dict[str, Tensor]
    ) -> Float[Tensor, " b"]:
        """Mean over an example's targets; 0 where it has none."""
        if values.dim() == 1:
            return values
        if values.dim() > 2:  # a value per class: their mean, as elsewhere
            values = values.flatten(2).mean(2)
        _, labels = sites(batch["labels"])
        there = labels != IGNORED
        return values.masked_fill(~there, 0.0).sum(1) / there.sum(1).clamp(min=1)

    def reduce(self, values: Float[Tensor, " b"], batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        r"""Mean over the targets of the whole optimizer step; of the batch where that is not said.

        .. math:: \frac{\sum_i n_i v_i}{\mathrm{num\_targets}}
        """
        counts = self.truths(batch).to(values.dtype)
        total: Tensor = batch.get("num_targets", counts.sum().clamp(min=1))
        return (values * counts).sum() / total

    def truths(self, batch: dict[str, Tensor]) -> Int[Tensor, " b"]:
        """Number of targets of each example."""
        return (batch["labels"][:, 1:] != IGNORED).sum(1)

    def hard_loss(self, prediction: Prediction, batch: dict[str, Tensor]) -> Float[Tensor, " b"]:
        """Mean cross-entropy of an example's targets."""
        return self.per_example(self.token_losses(prediction, batch), batch)

    def token_losses(
        self, prediction: Prediction, batch: dict[str, Tensor]
    ) -> Float[Tensor, "b s"]:
        """Cross-entropy of each target; 0 at sites that a row has not."""
        _, labels = sites(batch["labels"])
        flat = prediction.logits.flatten(0, 1).float()
        losses = nn.functional.cross_entropy(
            flat, labels.flatten(), reduction="none", ignore_index=IGNORED
        )
        return losses.view(labels.shape)

    def soft_loss(
        self,
        student: Prediction,
        teacher: Prediction,
        batch: dict[str, Tensor],
        temperature: float = 1.0,
    ) -> Float[Tensor, " b"]:
        """Mean of the tempered KL divergences of an example's targets."""
        return self.per_example(kd_loss(student.logits, teacher.logits, temperature), batch)

    def decode(self, prediction: Prediction) -> Int[Tensor, "b s"]:
        """The likeliest token at every site."""
        return prediction.logits.argmax(-1)

    def answers(self, prediction: Prediction, batch: dict[str, Tensor]) -> Float[Tensor, "b 3"]:
        """For each example the sum of its losses, how many targets were foreseen, and how many."""
        _, labels = sites(batch["labels"])
        right = (self.decode(prediction) == labels).sum(1)
        losses = self.token_losses(prediction, batch).sum(1)
        return torch.stack([losses, right.float(), self.truths(batch).float()], 1)

    def _metric(self, name: str) -> Metric:
        # Those of generated texts are the data module's: without it there are none.
        return _TokenMean(name) if name in METRICS else _Unknown()


def sites(labels: Int[Tensor, "b l"]) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b s"]]:
    """Places whose logits predict a target, and those targets (-100 where a row has fewer).

    At least one site, also where no row has a target.

    >>> sites(torch.tensor([[-100, -100, 7, 8], [-100, 5, -100, -100]]))
    (tensor([[1, 2],
            [0, 1]]), tensor([[   7,    8],
            [   5, -100]]))
    """
    following = labels[:, 1:]
    there = following != IGNORED
    width = max(int(there.sum(1).max()), 1)
    places = (~there).int().argsort(dim=1, stable=True)[:, :width]
    return places, following.gather(1, places)


def left_padded(
    batch: dict[str, Tensor], rows: Sequence[int], longest: int | None = None
) -> tuple[Int[Tensor, "g l"], Int[Tensor, "g l"]]:
    """The prompts of some rows of a batch that is padded on either side, padded on the left.

    Args:
        batch: With ``prompt_lengths``.
        rows: At least one.
        longest: Of a longer prompt the last tokens are kept; None: all.
    """
    lengths = batch["prompt_lengths"][list(rows)].tolist()
    width = min(max(lengths), longest or max(lengths))
    prompts = batch["input_ids"].new_zeros(len(rows), width)
    mask = torch.zeros_like(prompts)
    for k, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        real = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        kept = real[:length][-width:]
        prompts[k, width - len(kept) :] = kept
        mask[k, width - len(kept) :] = 1
    return prompts, mask


class _TokenMean(Metric):
    """Perplexity or token accuracy: a ratio of sums over all targets."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, answers: Float[Tensor, "b 3"], labels: Tensor) -> None:
        """Count the examples of a batch."""
        del labels
        self.total += answers[:, METRICS.index(self.name)].double().sum()
        self.count += answers[:, 2].double().sum()

    def compute(self) -> Tensor:
        """NaN where there was no target."""
        ratio = self.total / self.count
        return ratio.exp() if self.name == "perplexity" else ratio


class _Unknown(Metric):
    """Of generated texts, where no data module has the true ones: NaN."""

    full_state_update = False

    def update(self, answers: Tensor, labels: Tensor) -> None:
        """Nothing to be had from the logits."""

    def compute(self) -> Tensor:
        """Not known."""
        return torch.tensor(float("nan"))


__all__ = ["IGNORED", "METRICS", "CausalLM", "left_padded", "sites"]
