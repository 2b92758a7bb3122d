"""``lightning-kd generate``: continue a prompt at some depth and say how fast that was."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lightning_kd.decoding.calibration import Calibration, calibrate_thresholds
from lightning_kd.decoding.dynamic import dynamic_exit
from lightning_kd.decoding.generation import Generation, read_length
from lightning_kd.decoding.greedy import greedy
from lightning_kd.decoding.loading import load_decoder
from lightning_kd.decoding.speculative import self_speculative
from lightning_kd.decoding.tuning import tune_speculation
from lightning_kd.functional.early_exit import Confidence
from lightning_kd.nn import DecoderStack, can_pack, pack_linear_layers


def generate(  # noqa: PLR0913 - the command's options
    checkpoint: str,
    prompt: str,
    max_new_tokens: int = 64,
    *,
    depth: int | None = None,
    exits: Sequence[int] | None = None,
    thresholds: Sequence[float] | None = None,
    calibrate: str | None = None,
    agreement: float | None = None,
    confidence: Confidence = "max_prob",
    draft: str | None = None,
    window: str | None = None,
    tokenizer: str | None = None,
    raw: bool = False,
    compare: bool = False,
) -> Iterator[str]:
    """The lines to print: the text, then what it took.

    Args:
        checkpoint: See `load_decoder`.
        prompt: As a person writes it; put into the tokenizer's chat template where it has one.
        max_new_tokens: Where to stop at the latest.
        depth: Of a fixed sub-model.
        exits: For dynamic exit; with ``thresholds`` or ``calibrate``.
        thresholds: One per exit, or one for all.
        calibrate: A file of prompts, one a line, on which `calibrate_thresholds` sets them.
        agreement: Of these, see there; None: 0.95.
        confidence: See `exit_confidence`.
        draft: The exit that drafts, or ``auto``: chosen with the window on this prompt.
        window: Drafted tokens per round, ``auto`` (where nothing is given) or ``heuristic``.
        tokenizer: Where the model has none.
        raw: Without the chat template.
        compare: Decode with the whole model, one token at a time, as well.

    Raises:
        ValueError: Options that do not go together; see the functions for their values.
    """
    given = {"depth": depth, "exits": exits, "draft": draft}
    _check_options(
        **given, thresholds=thresholds, calibrate=calibrate, agreement=agreement, window=window
    )
    sizes = {"draft": _number(draft, "draft"), "window": _number(window or "auto", "window")}
    read_length(max_new_tokens)
    sample = None if calibrate is None else read_prompts(Path(calibrate))
    shallow = any(way is not None for way in given.values())
    model, words = load_decoder(checkpoint, tokenizer, shallow=shallow)
    rows = DecoderStack.of(model).embedding.num_embeddings
    tokens = check_rows(encode(words, prompt, raw=raw), rows)
    if can_pack() and next(model.parameters()).device.type == "cpu":
        pack_linear_layers(model)
    if draft == "auto":
        tuned = tune_speculation(model, [tokens], max_new_tokens=max_new_tokens)
        sizes["draft"] = tuned.draft
        sizes["window"] = tuned.window if window is None else sizes["window"]
        yield (
            f"tuned on this prompt: exit {tuned.draft}, {tuned.window} drafted tokens, predicted "
            f"{tuned.speedup:.2f} x plain greedy\n"
        )
    if exits is not None and sample is not None:
        set_ = calibrate_thresholds(
            model,
            [check_rows(encode(words, line, raw=raw), rows) for line in sample],
            exits,
            agreement=0.95 if agreement is None else agreement,
            confidence=confidence,
            max_new_tokens=max_new_tokens,
        )
        thresholds = set_.thresholds
        yield f"{_calibrated(set_, len(sample))}\n"
    if exits is not None and thresholds is not None:
        tau = thresholds[0] if len(thresholds) == 1 else thresholds
        made = dynamic_exit(
            model, tokens, max_new_tokens, exits=exits, thresholds=tau, confidence=confidence
        )
    elif draft is not None:
        made = self_speculative(model, tokens, max_new_tokens, **sizes)
    else:
        made = greedy(model, tokens, max_new_tokens, depth=depth)
    yield words.decode(made.tokens, skip_special_tokens=True)
    yield ""
    yield described(made)
    if compare:
        yield from _compared(model, tokens, max_new_tokens, made, words)


def _check_options(**given: Any) -> None:
    ways = [f"--{name}" for name in ("depth", "exits", "draft") if given[name] is not None]
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(ways)} are different ways to decode; give one of them")
    if given["thresholds"] is not None and given["calibrate"] is not None:
        raise ValueError("--calibrate sets the thresholds; drop it, or --thresholds")
    sure = given["thresholds"] is not None or given["calibrate"] is not None
    if (given["exits"] is None) == sure:
        raise ValueError("--exits and --thresholds (or --calibrate) belong together; give both")
    if given["agreement"] is not None and given["calibrate"] is None:
        raise ValueError(f"--agreement {given['agreement']} is of --calibrate; give that too")
    if given["window"] is not None and given["draft"] is None:
        raise ValueError(f"--window {given['window']} is of drafts; give --draft too")


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that are not empty.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It has none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give one of prompts, one a line")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    if not any(lines):
        raise ValueError(f"{path} has no prompts; write one a line")
    return [line for line in lines if line]


def check_rows(tokens: list[int], rows: int) -> list[int]:
    """The tokens themselves, all of which have a row in the model's embedding.

    Raises:
        ValueError: One has not: the tokenizer is of another model.
    """
    if tokens and max(tokens) >= rows:
        raise ValueError(
            f"the tokenizer has a token {max(tokens)}, the model rows 0 to {rows - 1}; give the "
            "model's own with --tokenizer"
        )
    return tokens


def encode(words: Any, prompt: str, *, raw: bool) -> list[int]:
    """A prompt's tokens, in the chat template where there is one and ``raw`` is not asked for."""
    if raw or not getattr(words, "chat_template", None):
        tokens: list[int] = words(prompt)["input_ids"]
        return tokens
    turns = [{"role": "user", "content": prompt}]
    text = words.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    chat: list[int] = words(text, add_special_tokens=False)["input_ids"]
    return chat


def described(made: Generation) -> str:
    """One line: tokens, speed, depth and what drafts came to.

    >>> described(Generation(tokens=[1, 2, 3], depths=[6, 2, 4], num_heads=4, seconds=0.5))
    '3 tokens, 4.0 tokens/s, average depth 4.0, 4 heads'
    """
    line = f"{len(made.tokens)} tokens, {made.tokens_per_second:.1f} tokens/s, "
    line += f"average depth {made.average_depth:.1f}, {made.num_heads} heads"
    if made.rounds:
        line += f"; {made.accepted} of {made.drafted} drafted tokens accepted "
        line += f"({made.acceptance:.0%}) in {made.rounds} rounds"
    return line


def _calibrated(found: Calibration, num_prompts: int) -> str:
    thresholds = " ".join(f"{threshold:.8g}" for threshold in found.thresholds)
    return (
        f"calibrated on {num_prompts} prompts ({found.num_tokens} tokens): --thresholds "
        f"{thresholds}; there {found.agreement:.1%} of the tokens are the whole model's, average "
        f"depth {found.average_depth:.1f}"
    )


def _compared(
    model: nn.Module, tokens: list[int], max_new_tokens: int, made: Generation, words: Any
) -> Iterator[str]:
    whole = greedy(model, tokens, max_new_tokens)
    same = "the same text" if whole.tokens == made.tokens else "another text"
    yield f"plain greedy: {described(whole)}; {same}"
    if whole.tokens != made.tokens:
        yield words.decode(whole.tokens, skip_special_tokens=True)
    if whole.tokens_per_second and made.tokens_per_second:
        yield f"{made.tokens_per_second / whole.tokens_per_second:.2f} x its tokens/s"


def _number(given: str | None, option: str) -> Any:
    """A number where it is one, and a name else."""
    names = ("auto",) if option == "draft" else ("auto", "heuristic")
    if given is None or given in names:
        return given
    try:
        return int(given)
    except ValueError:
        raise ValueError(
            f"--{option} is a number, or {' or '.join(names)}; got {given!r}"
        ) from None


__all__ = ["check_rows", "described", "encode", "generate", "read_prompts"]
