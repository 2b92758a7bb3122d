"""Greedy decoding with the first blocks of a model, or all of them."""

from time import perf_counter

from torch import Tensor, nn

from lightning_kd.decoding.generation import (
    EndOfText,
    Generation,
    Prompt,
    end_tokens,
    read_length,
    read_prompt,
)
from lightning_kd.decoding.session import Session, inference
from lightning_kd.nn.sorted_exits import check_exits


def greedy(
    model: nn.Module,
    prompt: Prompt,
    max_new_tokens: int = 50,
    *,
    depth: int | None = None,
    eos: EndOfText = None,
) -> Generation:
    r"""The most probable token each time, :math:`\arg\max head(norm(h_n))`, of one sub-model.

    The same tokens as ``generate(do_sample=False)`` of a model that is cut to ``depth`` blocks,
    from a loop without its bookkeeping. One text at a time.

    Args:
        model: See `Session`.
        prompt: Tokens of one text, ``[l]``, ``[1, l]`` or a list.
        max_new_tokens: Where to stop at the latest.
        depth: Blocks to use; None: all.
        eos: Tokens after which to stop; None: the model's own; ``()``: none.

    Raises:
        ValueError: An exit outside the model, an empty prompt, or one that leaves no room.
        TypeError: A model whose blocks are not known.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> tiny = GPT2Config(vocab_size=5, n_embd=4, n_layer=2, n_head=1, n_positions=8)
    >>> answer = greedy(GPT2LMHeadModel(tiny), [3, 1], max_new_tokens=4, depth=1, eos=())
    >>> len(answer.tokens), answer.average_depth
    (4, 1.0)
    """
    tokens, length = read_prompt(prompt), read_length(max_new_tokens)
    with inference(model):
        session = Session(model, len(tokens) + length)
        (last,) = check_exits([session.depth if depth is None else depth], session.depth)
        ends = end_tokens(model, eos)
        token = prefill(session, tokens, last)
        made = Generation([token], [last], num_heads=1)
        begin = perf_counter()
        position = len(tokens)
        while len(made.tokens) < length and token not in ends:
            hidden = session.run(session.embed(session.tokens([token]), position), 0, last)
            token = best(session.logits(hidden))
            made.tokens.append(token)
            position += 1
        made.seconds = perf_counter() - begin
        made.depths = [last] * len(made.tokens)
        made.num_heads = len(made.tokens)
        return made


def prefill(session: Session, tokens: list[int], depth: int) -> int:
    """Read the prompt with ``depth`` blocks and answer with the token that follows."""
    hidden = session.run(session.embed(session.tokens(tokens), 0), 0, depth)
    return best(session.logits(hidden[:, -1:]))


def best(logits: Tensor) -> int:
    """The number of the largest of ``[1, V]``.

    >>> import torch
    >>> best(torch.tensor([[0.0, 2.0, 1.0]]))
    1
    """
    return int(logits.argmax())


__all__ = ["best", "greedy", "prefill"]
