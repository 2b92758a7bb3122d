"""Pro-KD as a training: the right teacher in each epoch, kept answers, resuming; checks 5-10."""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_kd.methods import AnnealingKD, ProKD
from lightning_kd.phases import Phase, fit_phases
from lightning_kd.run_checkpoints import run_checkpoints
from lightning_kd.trajectory import TeacherTrajectory
from tests import tiny
from tests.conformance.matrix import TinyData, differing, trainer, weights
from tests.trajectories import recorded, trajectory

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")

TASK = tiny.TASKS["classification"]


class Trace(L.Callback):
    """By phase, the checkpoint, temperature and loss of each batch."""

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[float, ...]]] = defaultdict(list)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        shown = trainer.progress_bar_metrics
        moving = [shown[name] for name in ("checkpoint", "temperature") if name in shown]
        self.seen[pl_module.phase].append((*moving, outputs["loss"].item()))

    def places(self, phase: str = "teacher") -> list[tuple[float, ...]]:
        return [seen[:2] for seen in self.seen[phase]]


class DiedError(Exception):
    """In the place of a kill."""


class Dies(L.Callback):
    def __init__(self, phase, step) -> None:
        self.where = phase, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if (pl_module.phase, trainer.global_step) == self.where:
            raise DiedError


def run(folder: Path, *callbacks: L.Callback, module: Any = None, **settings: Any) -> Any:
    module = module or tiny.method("ProKD", TASK, learning_rate=0.01)

    def trainer_for(phase, checkpoints):
        own = [*callbacks, *run_checkpoints(checkpoints, "val/accuracy", 1)]
        limits = {"max_epochs": phase.max_epochs, "enable_checkpointing": True}
        return trainer(callbacks=own, **{"default_root_dir": folder, **limits, **settings})

    fit_phases(module, TinyData(TASK), folder, trainer_for)
    return module


def test_it_follows_in_the_first_phase_alone(tmp_path) -> None:
    trace = Trace()
    run(tmp_path, trace)
    assert trace.places() == [(1, 3)] * 3 + [(2, 1)] * 3  # 2 epochs of 3 batches
    assert len(trace.seen["labels"]) == 6


@pytest.mark.parametrize(("best_from", "start"), [("stage1", "best"), ("last_checkpoint", "last")])
def test_phases(best_from, start) -> None:
    module = tiny.method("ProKD", TASK, best_from=best_from)
    assert module.phases == (Phase("teacher", 2), Phase("labels", 2, start))
    assert tiny.method("ProKD", TASK, label_epochs=0).phases == (Phase("teacher", 2),)


@pytest.mark.parametrize(
    ("settings", "same"),
    [({"smoothing": False}, {"schedule": "constant"}), ({"temperature_by": "epoch"}, {})],
)
def test_5_with_one_checkpoint_it_is_annealing(settings, same, tmp_path) -> None:
    common: Any = {"max_temperature": 3, "teacher_epochs": 3, "label_epochs": 0}
    ours, theirs = Trace(), Trace()
    given = {**common, "num_checkpoints": 1, **settings}
    pro = run(
        tmp_path / "pro", ours, module=tiny.method("ProKD", TASK, learning_rate=0.01, **given)
    )
    other = tiny.method("AnnealingKD", TASK, learning_rate=0.01, **common, **same)
    assert isinstance(other, AnnealingKD)
    run(tmp_path / "annealing", theirs, module=other)
    assert differing(weights(pro), weights(other)) == []
    assert [s[-1] for s in ours.seen["teacher"]] == [s[-1] for s in theirs.seen["teacher"]]


class Normalized(nn.Module):
    """A teacher with buffers: a batch normalization of the embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(tiny.VOCABULARY, 4), nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask) -> SimpleNamespace:
        mean = (self.embed(input_ids) * attention_mask[..., None]).mean(1)
        return SimpleNamespace(logits=self.head(self.norm(mean)))


def test_6_in_each_epoch_the_teacher_is_its_file_with_buffers_and_without_gradients(
    tmp_path,
) -> None:
    teacher, states = Normalized().train(), []
    for _ in range(3):
        teacher(**{k: tiny.batch()[k] for k in ("input_ids", "attention_mask")})  # moves the means
        nn.init.normal_(teacher.head.weight)
        states.append({name: value.clone() for name, value in teacher.state_dict().items()})
    path = TeacherTrajectory.read(recorded(tmp_path / "path", *states))
    seen: list[int] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            network, j = pl_module.teacher.module, trainer.current_epoch // 2
            expected = path.weights(path.checkpoints[j])
            assert differing(expected, network.state_dict()) == []
            assert expected["norm.num_batches_tracked"] == j + 1
            assert not any(m.training for m in network.modules())
            assert all(p.grad is None and not p.requires_grad for p in network.parameters())
            seen.append(j)

    given: Any = {"teacher": Normalized(), "trajectory": str(path.folder), "teacher_epochs": 6}
    run(tmp_path / "run", Look(), module=tiny.method("ProKD", TASK, **given, label_epochs=0))
    assert seen == [0] * 6 + [1] * 6 + [2] * 6


def test_8_kept_answers_train_like_the_live_teacher_and_serve_a_second_run(tmp_path) -> None:
    trace, again = Trace(), Trace()
    live = run(tmp_path / "live", trace)
    kept = str(tmp_path / "kept")

    def cached() -> Any:
        return tiny.method("ProKD", TASK, learning_rate=0.01, teacher_cache=kept)

    run(tmp_path / "first", module=cached())
    found = sorted(folder.name for folder in Path(kept).iterdir())
    assert found == ["checkpoint_0001", "checkpoint_0002"]
    second, calls = cached(), []
    second.teacher.module.register_forward_pre_hook(lambda *_: calls.append(1))
    run(tmp_path / "second", again, module=second)
    assert calls == []
    assert differing(weights(live), weights(second)) == []
    assert again.seen == trace.seen


def test_a_cache_is_found_where_the_last_checkpoint_comes_first(tmp_path) -> None:
    by_name: Any = {"teacher": tiny.named_model(), "teacher_cache": str(tmp_path / "kept")}
    run(tmp_path / "run", module=tiny.method("ProKD", TASK, **by_name, num_checkpoints=1))
    assert (tmp_path / "kept" / "checkpoint_0002" / "header.json").exists()


@pytest.mark.parametrize(
    ("phase", "step"),
    [("teacher", 2), ("teacher", 3), ("teacher", 5), ("labels", 0), ("labels", 4)],
)
def test_9_a_resumed_run_is_the_same_run(phase, step, tmp_path) -> None:
    straight, first, second = Trace(), Trace(), Trace()
    whole = run(tmp_path / "whole", straight)
    with pytest.raises(DiedError):
        run(tmp_path / "cut", first, Dies(phase, step))
    resumed = run(tmp_path / "cut", second)
    assert len(first.seen[phase]) == step
    assert first.seen[phase] + second.seen[phase] == straight.seen[phase]
    assert differing(weights(whole), weights(resumed)) == []


def test_10_padding_does_not_count_and_the_first_token_does(tmp_path) -> None:
    task = tiny.TASKS["spans"]
    module = tiny.method("ProKD", task)
    assert isinstance(module, ProKD)
    batch = tiny.batch(4, task)
    student = module.predict(batch).logits
    hidden = ~batch["answer_mask"][:, None].expand_as(student)

    def loss(logits: Tensor) -> float:
        module.predict = lambda *_: SimpleNamespace(logits=logits)  # type: ignore[assignment, method-assign]
        return module.objective(batch)["followed"].item()

    assert hidden.any()
    assert loss(student.masked_fill(hidden, 1e6)) == loss(student)
    first = torch.zeros_like(hidden)
    first[:, :, 0] = True
    assert loss(student.masked_fill(first, 3.0)) != loss(student)


def test_a_teacher_by_name_comes_from_the_trajectory_and_is_dropped_before_the_labels(
    tmp_path,
) -> None:
    network = tiny.model(seed=4)
    module = ProKD(
        tiny.model(),
        TASK,
        trajectory=trajectory(network),
        max_temperature=2,
        teacher_epochs=2,
        label_epochs=1,
    )
    with pytest.raises(RuntimeError, match="is loaded when a training starts"):
        module.teach(tiny.batch())
    state = torch.get_rng_state()
    module.load_teacher()
    assert torch.equal(state, torch.get_rng_state())
    assert module.teacher is not None
    assert differing(weights(network), weights(module.teacher.module)) == []
    trained = run(tmp_path, module=module)
    assert trained.teacher is None
    assert trained.notes["followed_steps"] == [3, 6]
