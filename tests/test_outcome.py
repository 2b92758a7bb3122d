"""What a run comes to, apart from what recipes show of it."""

from pathlib import Path

import pytest
import torch
from torchmetrics import Metric

from lightning_kd.evaluation import Evaluation
from lightning_kd.outcome import Outcome
from lightning_kd.tasks import CausalLM, Prediction
from lightning_kd.tasks.language import sites
from tests import tiny


@pytest.mark.parametrize("kind", tiny.TASKS)
def test_resampling_asks_no_other_process(kind, monkeypatch) -> None:
    task = tiny.TASKS[kind]
    evaluation = Evaluation(task)
    shape = (20, 2, 8) if task.ragged else (20, task.num_labels)
    batch = tiny.batch(20, task)
    if isinstance(task, CausalLM):
        shape = (*sites(batch["labels"])[1].shape, tiny.VOCABULARY)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    evaluation.update(Prediction(logits), batch, 0.0)
    evaluation.compute()
    answers, labels = evaluation.collected()
    outcome = Outcome(None, None, None, Path(), seed=0)  # type: ignore[arg-type]
    alone = outcome._error(evaluation, task.monitor, answers, labels)
    assert alone is not None
    assert alone > 0

    def fail(*_: object) -> None:
        raise AssertionError("a CPU tensor went to the other processes; NCCL cannot take it")

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr(Metric, "_sync_dist", fail)
    assert outcome._error(evaluation, task.monitor, answers, labels) == alone


def test_scores_of_a_key_are_resampled_and_questions_they_do_not_apply_to_left_out() -> None:
    evaluation = Evaluation(tiny.TASKS["spans"])
    scores = torch.rand(400, dtype=torch.float64)
    evaluation.scores = {"f1": scores, "half": scores.where(torch.arange(400) % 2 == 0, torch.nan)}
    outcome = Outcome(None, None, None, Path(), seed=0)  # type: ignore[arg-type]
    for metric, count in (("f1", 400), ("half", 200)):
        error = outcome._error(evaluation, metric, torch.empty(0), torch.empty(0))
        kept = evaluation.scores[metric]
        expected = float(kept[kept.isfinite()].std()) / count**0.5
        assert error == pytest.approx(expected, rel=0.2)
