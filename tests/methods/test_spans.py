"""Methods with a teacher on spans: the question and padding have no part, [CLS] has.

Check 11 of Annealing-KD's specification, check 10 of Pro-KD's.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_kd.methods import AnnealingKD, ContinuationKD, DistillationModule, VanillaKD
from lightning_kd.tasks import SpanQA

TASK = SpanQA("squad")
# [CLS] question passage passage [PAD]
MASK = torch.tensor([[True, False, True, True, False], [True, False, True, False, False]])
BATCH = {
    "input_ids": torch.zeros(2, 5, dtype=torch.long),
    "labels": torch.tensor([[2, 3], [0, 0]]),
    "answer_mask": MASK,
    "idx": torch.arange(2),
}
STUDENT, TEACHER = torch.randn(2, 2, 2, 5, generator=torch.Generator().manual_seed(0))

METHODS: dict[str, Callable[..., DistillationModule]] = {
    "kl": lambda s, t: VanillaKD(s, TASK, t),
    "mse": lambda s, t: VanillaKD(s, TASK, t, loss="mse"),
    "annealing mean": lambda s, t: AnnealingKD(s, TASK, t),
    "annealing centered": lambda s, t: AnnealingKD(s, TASK, t, center_logits=True, reduction="sum"),
    "continuation": lambda s, t: ContinuationKD(s, TASK, t, margin=0.1),
    "continuation mean": lambda s, t: ContinuationKD(s, TASK, t, margin=0.1, reduction="mean"),
}
every_objective = pytest.mark.parametrize("name", METHODS)


class Answers(nn.Module):
    """Gives the same start and end logits ``[b, 2, l]`` to every batch."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, **_: Any) -> SimpleNamespace:
        start, end = self.logits.unbind(1)
        return SimpleNamespace(start_logits=start, end_logits=end)


def loss(name: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Answers]:
    learner = Answers(student)
    module = METHODS[name](learner, Answers(teacher))
    return sum(module.objective(BATCH).values(), torch.zeros(())), learner


@every_objective
@pytest.mark.parametrize("beyond", [1e6, -1e6])
def test_places_that_cannot_be_answers_change_nothing(name, beyond) -> None:
    before, _ = loss(name, STUDENT, TEACHER)
    masked = [logits.masked_fill(~MASK[:, None], beyond) for logits in (STUDENT, TEACHER)]
    assert torch.equal(loss(name, masked[0], TEACHER)[0], before)
    assert torch.equal(loss(name, STUDENT, masked[1])[0], before)


@every_objective
def test_the_place_of_no_answer_counts_for_both(name) -> None:
    before, _ = loss(name, STUDENT, TEACHER)
    for k, logits in enumerate((STUDENT, TEACHER)):
        changed = logits.clone()
        changed[:, 0, 0] += 1
        pair = (changed, TEACHER) if k == 0 else (STUDENT, changed)
        assert not torch.isclose(loss(name, *pair)[0], before)


@every_objective
def test_gradients_reach_the_possible_answers_alone(name) -> None:
    total, learner = loss(name, STUDENT, TEACHER)
    total.backward()
    assert learner.logits.grad is not None
    assert torch.equal(learner.logits.grad.abs().sum(1) > 0, MASK)


def test_annealing_is_the_mean_of_both_halves_over_possible_answers() -> None:
    """By hand: an example's squared errors of starts and ends, over its 3 or 2 places."""
    module = AnnealingKD(Answers(STUDENT), TASK, Answers(TEACHER), max_temperature=4)
    module.temperature = 3.0
    found = module.objective(BATCH)["annealed"].item()
    errors = (STUDENT - 0.5 * TEACHER).square()
    means = [errors[i][:, MASK[i]].mean(1).mean() for i in range(2)]
    assert found == pytest.approx(float(sum(means)) / 2, rel=1e-6)
