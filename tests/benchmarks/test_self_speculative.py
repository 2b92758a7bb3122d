"""The benchmark's model, the same terms for both sides, and its count of equal texts."""

from argparse import Namespace

import torch

from benchmarks.self_speculative import (
    EXIT,
    WINDOW,
    decoder,
    drafts,
    full_passes,
    identical,
    plain,
    prompts,
    set_assistant,
)


def test_transformers_drafts_on_the_same_terms() -> None:
    """The same exit and window: the same number of passes of the last layer, the same text."""
    model = decoder(64, 64, scale=0.1, seed=0)
    set_assistant(model)
    for row in prompts(3, 64, seed=0):
        made = drafts(model, row, 24)
        theirs = []
        passes = full_passes(
            model,
            lambda r=row, t=theirs: t.extend(plain(model, r[None], 24, assistant_early_exit=EXIT)),
        )
        assert theirs[0] == made.tokens
        assert 0 < made.acceptance < 1
        # ours reads the prompt first; theirs verifies the first drafts with it
        assert abs(passes - made.rounds) <= 1


def test_layers_after_the_exit_add_less() -> None:
    model, full = decoder(64, 64, 0.1, seed=0), decoder(64, 64, 1.0, seed=0)
    for index, (ours, theirs) in enumerate(zip(model.model.layers, full.model.layers, strict=True)):
        factor = 0.1 if index >= EXIT else 1.0
        torch.testing.assert_close(ours.mlp.down_proj.weight, factor * theirs.mlp.down_proj.weight)
    assert WINDOW == EXIT == 4


def test_equal_texts_are_counted(capsys) -> None:
    given = Namespace(scale=0.05, seed=0, prompts=3, tokens=18)
    counts = identical(given)
    assert counts == {"equal": 3, "equal_to_ours_only": 0, "prompts": 3}
    assert "3 of 3 texts" in capsys.readouterr().out
