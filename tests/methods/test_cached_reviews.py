"""Real texts, a real teacher: its cache gives the losses of a live teacher, bit for bit."""

from pathlib import Path

import pytest
import torch

from lightning_kd.data import GLUE
from lightning_kd.methods import VanillaKD
from lightning_kd.models import load_model
from tests import tiny
from tests.conformance.matrix import differing, weights
from tests.methods.test_distillation import Losses

pytestmark = [pytest.mark.offline, pytest.mark.timeout(300)]


def test_losses_of_shuffled_reviews_with_a_cache_are_those_of_a_live_teacher(
    assets: Path, tmp_path: Path
) -> None:
    """Cut to 8 tokens: beside a longer text, padding changes the last bit of a live answer."""
    named, found = str(assets / "minilm"), []
    for cache in (None, str(tmp_path), str(tmp_path)):
        torch.manual_seed(0)  # of the heads
        data = GLUE("sst2", named, str(assets / "reviews"), max_length=8, limit_examples=96)
        teacher = load_model(named, data.spec)
        module = VanillaKD(named, "sst2", teacher, student_layers=2, teacher_cache=cache)
        losses = Losses()
        tiny.trainer(losses, max_epochs=2, limit_val_batches=0).fit(module, datamodule=data)
        found.append((losses.seen, weights(module)))
    (live, trained), *others = found
    assert len(live) == 6
    for seen, ended in others:
        assert seen == live
        assert differing(trained, ended) == []
