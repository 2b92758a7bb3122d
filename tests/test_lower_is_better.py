"""Where the lowest value is the best: checkpoints, phases, sizes, references."""

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from lightning_kd.methods import FineTuning
from lightning_kd.phases import Phase, fit_phases, read_lineage
from lightning_kd.report import Result, Summary, choose_sizes
from lightning_kd.report.selection import explain
from lightning_kd.report.writing import _levels
from lightning_kd.run_checkpoints import run_checkpoints
from lightning_kd.tasks import best_of
from tests import tiny
from tests.conformance.matrix import TinyData, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
TASK = tiny.TASKS["text"]
SCORE = "val/perplexity"


@pytest.mark.parametrize(
    ("metric", "way"),
    [
        ("perplexity", "min"), ("ter", "min"), ("test/ter_unseen", "min"), (SCORE, "min"),
        ("val/rank_4/perplexity", "min"), ("accuracy", "max"), ("val/mean/bleu", "max"),
        ("perplexity/accuracy", "max"), ("later", "max"), ("nist", "max"),
    ],
)  # fmt: skip
def test_which_way(metric, way) -> None:
    assert best_of(metric) == way


class Injected(Callback):
    """Validation scores as given, epoch by epoch."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def on_validation_end(self, trainer, pl_module) -> None:
        trainer.callback_metrics[SCORE] = torch.tensor(self.scores[trainer.current_epoch])


def test_the_checkpoint_of_the_lowest_perplexity_is_kept(tmp_path) -> None:
    module = FineTuning(tiny.model("llama", TASK), TASK)
    assert module.monitor == SCORE
    injected = Injected([9.0, 3.0, 5.0])
    checkpoints = run_checkpoints(tmp_path, module.monitor, 10**9)
    run = trainer(max_epochs=3, callbacks=[injected, *checkpoints], enable_checkpointing=True)
    run.fit(module, datamodule=TinyData(TASK))
    assert checkpoints[0].best_model_score == 3
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 1
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 2


class Twice(FineTuning):
    """Fine-tuning in two phases."""

    @property
    def phases(self):
        return (Phase("first", 2), Phase("second", 2))


@pytest.mark.parametrize(("second", "expected"), [(6.0, "first"), (4.0, "second")])
def test_the_better_phase_is_the_one_of_the_lower_perplexity(tmp_path, second, expected) -> None:
    scores = {"first": [7.0, 4.0], "second": [second, 8.0]}

    def make(phase: Phase, folder: Path):
        callbacks = [Injected(scores[phase.name]), *run_checkpoints(folder, SCORE, 10**9)]
        return trainer(max_epochs=2, callbacks=callbacks, enable_checkpointing=True)

    module = Twice(tiny.model("llama", TASK), TASK)
    _, best = fit_phases(module, TinyData(TASK), tmp_path, make)
    assert best.read_bytes() == (tmp_path / f"checkpoints/{expected}/best.ckpt").read_bytes()
    assert [record.score for record in read_lineage(tmp_path)] == [4.0, second]


def results(values: dict[int, float], error: float | None = None) -> list[Result]:
    return [Result(r, "validation", "perplexity", v, r, None, error) for r, v in values.items()]


def test_the_smallest_size_near_the_lowest_value_is_chosen() -> None:
    values = {1: 9.0, 2: 5.2, 4: 5.0, 8: 5.1}
    assert choose_sizes(results(values), "validation", "perplexity") == [4]
    assert choose_sizes(results(values, 0.15), "validation", "perplexity") == [4]
    assert choose_sizes(results(values, 0.25), "validation", "perplexity") == [2, 4]
    equal = {1: 9.0, 2: 5.0, 4: 5.0}
    assert choose_sizes(results(equal), "validation", "perplexity") == [2]
    diverged = {1: 9.0, 2: math.inf, 4: math.nan}
    assert choose_sizes(results(diverged), "validation", "perplexity") == [1]


def summary(values: dict[int, float], error: float | None = None) -> Summary:
    found = tuple(results(values, error))
    return Summary("DyLoRA", "instructions", "alpaca", "org/model", 0, 1.0, {}, "ab", found)


def test_a_report_says_so_and_draws_the_best_of_a_reference() -> None:
    ours = summary({1: 9.0, 2: 5.2, 4: 5.0}, 0.25)
    text = explain(ours, [2, 4])
    assert text.startswith("Rank 4 is best by perplexity on validation; rank 2 is the smallest")
    levels = _levels(ours, {Path("teacher"): summary({1: 8.0, 2: 4.0})}, None)
    assert levels == {"teacher": 4.0}
