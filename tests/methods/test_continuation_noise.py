"""Check C10: a student that learns a wave with a fast ripple on it, with and without the margin.

The teacher is ``sin(2 pi x) + 0.3 sin(12 pi x)``; what is wanted is the slow wave alone. As in
Continuation-KD's study of noise the student is a network 1-128-128-1, and psi is 0. The first
layer's weights are large enough for it to learn the ripple: one that cannot (a standard deviation
of 6 and a ripple of 8 waves) is smooth without a margin too.
"""

from math import pi

import pytest
import torch
from torch import Tensor, nn

from lightning_kd.functional import annealed_logit_mse, hinge, smoothing_factor
from lightning_kd.progress import Progress
from lightning_kd.schedules import StepDown

EPOCHS, BATCHES, SIZE, WARMEST = 60, 24, 128, 10
STEEP = 14.0


def student() -> nn.Sequential:
    first, second = nn.Linear(1, 128), nn.Linear(128, 128)
    nn.init.normal_(first.weight, std=STEEP)
    nn.init.uniform_(first.bias, -STEEP, STEEP)  # its steps are all over the interval
    nn.init.normal_(second.weight, std=128**-0.5)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(128, 1))


def error(margin: float | None, seed: int) -> float:
    """Root mean squared error to the slow wave; ``margin=None`` is plain regression."""
    torch.manual_seed(seed)
    x = 2 * torch.rand(BATCHES * SIZE, 1) - 1
    teacher = torch.sin(2 * pi * x) + 0.3 * torch.sin(12 * pi * x)
    network = student()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    down = StepDown(WARMEST, 1, every_epochs=None)
    for epoch in range(EPOCHS):
        phi = smoothing_factor(down(Progress(0, None, epoch, EPOCHS)), WARMEST)
        if epoch == EPOCHS * 4 // 5:
            optimizer.param_groups[0]["lr"] *= 0.1
        for rows in torch.randperm(len(x)).split(SIZE):
            loss = objective(network(x[rows]), teacher[rows], phi, margin)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    grid = torch.linspace(-1, 1, 1000)[:, None]
    with torch.no_grad():
        return (network(grid) - torch.sin(2 * pi * grid)).square().mean().sqrt().item()


def objective(answer: Tensor, teacher: Tensor, phi: float, margin: float | None) -> Tensor:
    if margin is None:
        return annealed_logit_mse(answer, teacher, reduction="sum").mean()
    distance = annealed_logit_mse(answer, teacher, phi, reduction="sum")
    return hinge(distance, margin * phi).mean()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [0, 1])
def test_c10_inside_its_margin_the_student_does_not_learn_the_ripple(seed) -> None:
    plain = error(margin=None, seed=seed)
    assert plain > 0.1  # it learned a good part of the ripple, whose own size is 0.21
    assert error(margin=0.09, seed=seed) <= 0.75 * plain  # the square of the ripple's height
