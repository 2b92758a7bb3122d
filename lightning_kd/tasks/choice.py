"""One of several endings, each read beside the same context."""

from collections.abc import Sequence

from lightning_kd.tasks.labels import Classification


class MultipleChoice(Classification):
    """Choose one of ``num_choices`` texts: inputs ``[b, k, l]``, logits ``[b, k]``.

    The model scores each choice for itself, with a head of width 1; a softmax over the k scores
    makes them classes, whose names are their places. So losses, metrics and label noise are those
    of `Classification`, and there is no order of labels that two models could differ in.

    Args:
        name: The benchmark's name for it.
        num_choices: k, at least 2 and the same for all examples.
        metrics: See `Classification`.
        eval_sets: See `Task`.

    Raises:
        ValueError: Fewer than two choices.

    >>> MultipleChoice("hellaswag", 4).labels
    ('0', '1', '2', '3')
    """

    auto_class = "AutoModelForMultipleChoice"
    peft_type = None

    def __init__(
        self,
        name: str,
        num_choices: int,
        metrics: Sequence[str] = ("accuracy",),
        eval_sets: Sequence[str] = ("",),
    ) -> None:
        if num_choices < 2:
            raise ValueError(f"a choice needs at least 2 texts, got num_choices={num_choices}")
        super().__init__(name, [str(i) for i in range(num_choices)], metrics, eval_sets)


__all__ = ["MultipleChoice"]
