"""What averaging is for, in small: noisy labels, an MLP, ten seeds (the spec's check C15).

Clusters instead of scikit-learn's digits, which are no dependency of ours; the ten networks are
trained side by side in one stack. Only the mean against the last iterate of the same constant rate
is asserted: a rate that decays to 0 is in the message, and may be better still.
"""

import pytest
import torch
from torch import Tensor, nn

from lightning_kd.averaging import WeightMean

SEEDS, CLASSES, WIDTH, UPDATES, BATCH, EXAMPLES = 10, 10, 32, 600, 32, 600


class Stack(nn.Module):
    """An MLP 32-64-10 for each seed; ``[seeds, n, 32]`` to ``[seeds, n, 10]``."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((WIDTH, 64), (64, CLASSES))
        self.weights = nn.ParameterList(
            (2 * torch.rand(SEEDS, i, o) - 1) / i**0.5 for i, o in sizes
        )
        self.biases = nn.ParameterList(torch.zeros(SEEDS, 1, o) for _, o in sizes)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = (inputs @ self.weights[0] + self.biases[0]).relu()
        return hidden @ self.weights[1] + self.biases[1]


def draw(count: int, centres: Tensor) -> tuple[Tensor, Tensor]:
    labels = torch.randint(CLASSES, (SEEDS, count))
    own = centres.gather(1, labels[..., None].expand(-1, -1, WIDTH))
    return own + torch.randn(SEEDS, count, WIDTH), labels


def accuracies(decays: bool) -> tuple[Tensor, Tensor]:
    """Of the last iterate and of the mean over the second half, per seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        centres = 0.55 * torch.randn(SEEDS, CLASSES, WIDTH)
        inputs, clean = draw(EXAMPLES, centres)
        test_inputs, test_labels = draw(4000, centres)
        flipped = torch.rand(clean.shape) < 0.1
        labels = torch.where(flipped, torch.randint(CLASSES, clean.shape), clean)
        model = Stack()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        mean = WeightMean(model)
        for update in range(1, UPDATES + 1):
            if decays:
                optimizer.param_groups[0]["lr"] = 3e-3 * (1 - (update - 1) / UPDATES)
            picked = torch.randint(EXAMPLES, (BATCH,))
            logits = model(inputs[:, picked])
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, picked].flatten(), reduction="sum"
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss / BATCH)  # of each network its own mean
            optimizer.step()
            if update > UPDATES // 2:
                mean.add()

        def accuracy() -> Tensor:
            with torch.no_grad():
                return (model(test_inputs).argmax(-1) == test_labels).double().mean(-1)

        last = accuracy()
        mean.swap()
        return last, accuracy()


@pytest.mark.slow
def test_the_mean_is_better_than_the_last_iterate_at_a_constant_rate() -> None:
    last, averaged = accuracies(decays=False)
    found = f"last {last.mean():.4f}, mean {averaged.mean():.4f}"
    found += f", linear decay {accuracies(decays=True)[0].mean():.4f}"
    assert averaged.mean() > last.mean(), found
    assert int((averaged >= last).sum()) >= 8, found
