"""Which exit should draft, and how many tokens: from measured agreement and measured times."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from lightning_kd.decoding.generation import EndOfText, Prompt, read_prompt
from lightning_kd.decoding.probe import Probe, probe_exits
from lightning_kd.decoding.session import Session, inference
from lightning_kd.functional.speculation import replayed_rounds
from lightning_kd.nn import DecoderStack


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of decoding one text, by rows (tokens in one pass).

    Attributes:
        block: Of one block; ``block[k - 1]`` for k rows.
        head: Of norm, head and the largest logit, likewise.
        depth: Blocks of the model.
    """

    block: tuple[float, ...]
    head: tuple[float, ...]
    depth: int

    @property
    def step(self) -> float:
        """A token of plain greedy decoding.

        >>> Costs(block=(1.0, 1.5), head=(2.0, 2.5), depth=4).step
        6.0
        """
        return self.depth * self.block[0] + self.head[0]

    def round(self, exit_: int, window: int) -> float:
        """A round that drafts ``window`` tokens at ``exit_`` and verifies them.

        One drafted token at exit 1: two shallow passes and a head, then three blocks
        and a head on two rows.

        >>> Costs(block=(1.0, 1.5), head=(2.0, 2.5), depth=4).round(exit_=1, window=1)
        11.0
        """
        drafting = (window + 1) * exit_ * self.block[0] + window * self.head[0]
        return drafting + (self.depth - exit_) * self.block[window] + self.head[window]


@dataclass(frozen=True)
class Speculation:
    """An exit and a window for `self_speculative`, and what was expected of them.

    Attributes:
        draft: The exit.
        window: Drafted tokens per round.
        speedup: Predicted tokens/s beside plain greedy decoding; below 1 it does not pay.
        acceptance: Of the exit's next tokens, the share that is the full model's.
        table: Predicted speed-up by ``(exit, window)``, all that were compared.
        costs: The times behind it.
    """

    draft: int
    window: int
    speedup: float
    acceptance: float
    table: dict[tuple[int, int], float]
    costs: Costs


def tune_speculation(
    model: nn.Module,
    prompts: Sequence[Prompt],
    exits: Sequence[int] | None = None,
    *,
    max_window: int = 8,
    max_new_tokens: int = 50,
    eos: EndOfText = None,
    costs: Costs | None = None,
) -> Speculation:
    """The exit and window with the largest predicted speed-up.

    One greedy pass over the sample tells, for every exit and window, how many rounds decoding would
    take (`replayed_rounds`), without a model of acceptance; a round's time is put together from the
    measured times of a block and a head at 1 to ``max_window + 1`` rows.

    Args:
        model: See `Session`.
        prompts: A sample of what will be decoded.
        exits: That may draft; None: all below the full depth.
        max_window: Largest number of drafted tokens, at least 1.
        max_new_tokens: Per prompt.
        eos: See `greedy`.
        costs: Measured before; None: measured here.

    Raises:
        ValueError: Exits outside the model, none below its depth, or no window.
    """
    if max_window < 1:
        raise ValueError(f"max_window must be at least 1, got {max_window}")
    session = Session(model, 1)
    depth = session.depth
    if depth == 1:
        raise ValueError("the model has 1 block and so no exit that could draft; decode it plainly")
    asked = range(1, depth) if exits is None else exits
    probes = probe_exits(model, prompts, asked, max_new_tokens, eos=eos)
    if costs is None:
        length = max(len(read_prompt(prompt)) for prompt in prompts)
        if session.context is not None:  # a long prompt leaves no room for all the rows
            length = max(min(length, session.context - max_window - 1), 1)
        costs = measure_costs(model, length, max_window + 1)
    table = predicted_speedups(probes, costs, max_window)
    draft, window = max(table, key=lambda pair: table[pair])
    agrees = torch.cat([probe.agrees[probe.exits.index(draft)] for probe in probes])
    acceptance = float(agrees.double().mean())
    return Speculation(draft, window, table[draft, window], acceptance, table, costs)


def predicted_speedups(
    probes: Sequence[Probe], costs: Costs, max_window: int
) -> dict[tuple[int, int], float]:
    """Plain steps' time by rounds' time for every exit and window, over all texts."""
    windows = range(1, max_window + 1)
    num_tokens = sum(probe.agrees.shape[1] for probe in probes)
    table = {}
    for row, exit_ in enumerate(probes[0].exits):
        for window in windows:
            rounds = sum(replayed_rounds(p.agrees[row].tolist(), window) for p in probes)
            table[exit_, window] = num_tokens * costs.step / (rounds * costs.round(exit_, window))
    return table


def measure_costs(model: nn.Module, length: int, max_rows: int, repeats: int = 5) -> Costs:
    """Time a block and a head after ``length`` positions, with 1 to ``max_rows`` rows.

    Medians over ``repeats`` turns, the numbers of rows interleaved: the machine's speed drifts.
    What is left of its noise would choose the window, so fewer rows count as no dearer than more.
    """
    with inference(model):
        session = Session(model, length + max_rows)
        stack = session.stack
        context = session.embed(session.tokens([0] * length), 0)
        session.run(context, 0, session.depth)
        blocks: list[list[float]] = [[] for _ in range(max_rows)]
        heads: list[list[float]] = [[] for _ in range(max_rows)]
        for turn in range(repeats + 1):
            for rows in range(1, max_rows + 1):
                hidden = context[:, :1].repeat(1, rows, 1)
                passed, block = _timed(partial(session.run, hidden, 0, session.depth))
                _, head = _timed(partial(_read, stack, passed))
                session.crop(length)
                if turn:  # the first warms up
                    blocks[rows - 1].append(block / session.depth)
                    heads[rows - 1].append(head)
    return Costs(rising(map(median, blocks)), rising(map(median, heads)), session.depth)


def rising(times: Iterable[float]) -> tuple[float, ...]:
    """Each the smallest of itself and those after it.

    >>> rising([3.0, 2.0, 2.5])
    (2.0, 2.0, 2.5)
    """
    return tuple(accumulate(reversed(list(times)), min))[::-1]


def _read(stack: DecoderStack, hidden: Tensor) -> Tensor:
    tokens = stack.logits(hidden).argmax(-1)
    tokens.tolist()  # waits for a GPU, as decoding does
    return tokens


def _timed(act: Callable[[], Tensor]) -> tuple[Tensor, float]:
    begin = perf_counter()
    result = act()
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
    return result, perf_counter() - begin


__all__ = [
    "Costs",
    "Speculation",
    "measure_costs",
    "predicted_speedups",
    "rising",
    "tune_speculation",
]
