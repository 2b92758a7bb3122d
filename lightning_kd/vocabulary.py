"""Do a student and a teacher mean the same tokens by the same numbers?

Models of one family often have heads of different heights (Qwen2 pads its vocabulary by size), and
distillation over logits then needs a common part that is proven and not guessed.
"""

from collections.abc import Mapping


def common_vocabulary(
    student: Mapping[str, int], teacher: Mapping[str, int], student_rows: int, teacher_rows: int
) -> int:
    """How many rows of two heads stand for the same tokens; what is above them is padding.

    Cut logits or head weights to it. The padding rows leave the softmax, which loses nothing but
    what a model believes of tokens that do not exist.

    Args:
        student: Numbers of the student's tokens (``tokenizer.get_vocab()``).
        teacher: Those of the teacher's.
        student_rows: Height of the student's head.
        teacher_rows: Height of the teacher's.

    Raises:
        ValueError: A number means different tokens, or one that a tokenizer uses has no row in both
            heads. The message names both sizes.

    >>> words = {"a": 0, "b": 1, "c": 2}
    >>> common_vocabulary(words, words, student_rows=3, teacher_rows=8)
    3
    """
    sizes = (
        f"the student's vocabulary ({len(student)} tokens, {student_rows} rows) and the teacher's "
        f"({len(teacher)} tokens, {teacher_rows} rows)"
    )
    way_out = "give a teacher with the student's tokenizer"
    named = [{number: token for token, number in words.items()} for words in (student, teacher)]
    for number in sorted(set(named[0]) | set(named[1])):
        ours, theirs = (names.get(number) for names in named)
        if ours != theirs:
            raise ValueError(f"{sizes} differ: {number} is {ours!r} and {theirs!r}; {way_out}")
    rows = min(student_rows, teacher_rows)
    if named[0] and max(named[0]) >= rows:
        raise ValueError(
            f"{sizes} do not fit: token {named[0][max(named[0])]!r} is {max(named[0])} and "
            f"has no row in one of the heads; {way_out}"
        )
    return rows


__all__ = ["common_vocabulary"]
