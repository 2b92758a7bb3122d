"""Two students that learn from each other: the second one, and a mean over what the other chose."""

import copy

import torch
from torch import Tensor, nn

from lightning_kd.models import head_modules


def twin(student: nn.Module, seed: int) -> nn.Module:
    """A copy that begins elsewhere: with another head, as two equal students teach nothing.

    A transformers model keeps its encoder; all layers of other modules are drawn anew.

    Args:
        student: Stays as it is.
        seed: Of the new weights.

    >>> student = nn.Linear(2, 2)
    >>> torch.equal(twin(student, 0).weight, twin(student, 0).weight)
    True
    >>> torch.equal(twin(student, 0).weight, student.weight)
    False
    """
    peer = copy.deepcopy(student)
    encoder = f"{getattr(peer, 'base_model_prefix', '')}."
    heads = [name for name in head_modules(peer) if not name.startswith(encoder)]  # not the pooler
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in [peer.get_submodule(name) for name in heads] or [peer]:
            for module in part.modules():
                reset = getattr(module, "reset_parameters", None)  # of layers with weights
                if reset is not None:
                    reset()
    return peer


def mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values, of which there is at least one.

    >>> mean_of(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([True, False, True]))
    tensor(2.5000)
    """
    # not values[chosen].mean(): its shape would make a GPU wait
    return torch.where(chosen, values, 0.0).sum() / chosen.sum()


__all__ = ["mean_of", "twin"]
