"""Phases: each its own fit from the student of the one before, on record, resumable anywhere."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from lightning_kd.methods import FineTuning
from lightning_kd.phases import Phase, check_epochs, fit_phases, read_lineage
from lightning_kd.run_checkpoints import run_checkpoints
from tests import tiny
from tests.conformance.matrix import TinyData, differing, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")

TASK = tiny.TASKS["classification"]
SCORE = "val/accuracy"


class Twice(FineTuning):
    """Fine-tuning in two phases; the second minimizes twice the loss."""

    second = Phase("second", 1)

    @property
    def phases(self):
        return (Phase("first", 3), self.second)

    def objective(self, batch):
        (loss,) = super().objective(batch).values()
        return {self.phase: loss * (2 if self.phase == "second" else 1)}


class FromLast(Twice):
    second = Phase("second", 1, start="last")


class Injected(Callback):
    """Validation scores as given, epoch by epoch; keeps the weights of each epoch's end."""

    def __init__(self, scores) -> None:
        self.scores = scores
        self.kept: list[dict[str, torch.Tensor]] = []

    def on_validation_end(self, trainer, pl_module) -> None:
        trainer.callback_metrics[SCORE] = torch.tensor(self.scores[trainer.current_epoch])
        self.kept.append(weights(pl_module))


class Begins(Callback):
    """What a phase begins with."""

    def on_train_start(self, trainer, pl_module) -> None:
        self.weights = weights(pl_module)
        self.moments = [len(o.state) for o in trainer.optimizers]


class DiedError(Exception):
    """In the place of a kill."""


class Dies(Callback):
    """Fails before a batch of a phase."""

    def __init__(self, phase, step) -> None:
        self.phase, self.step = phase, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if (pl_module.phase, trainer.global_step) == (self.phase, self.step):
            raise DiedError


def run(folder: Path, method=Twice, scores=(), more=(), **settings):
    """Fit all phases; returns the module, the trainers' callbacks by phase and the selection."""
    module = method(tiny.model(), TASK, learning_rate=0.01)
    seen: dict[str, list[Callback]] = {}

    def trainer_for(phase, checkpoints):
        # before the checkpoints, which read the scores
        own = [Injected(scores[phase.name])] if scores else []
        seen[phase.name] = [*own, Begins(), *more]
        callbacks = [*seen[phase.name], *run_checkpoints(checkpoints, SCORE, 1)]
        return trainer(callbacks=callbacks, max_epochs=phase.max_epochs, enable_checkpointing=True)

    _, path = fit_phases(module, TinyData(TASK), folder, trainer_for, **settings)
    return module, seen, path


SCORES = {"first": [0.1, 0.9, 0.2], "second": [0.5]}


@pytest.mark.parametrize(("method", "epoch"), [(Twice, 1), (FromLast, 2)])
def test_the_next_phase_begins_with_the_chosen_student_and_an_empty_optimizer(
    method, epoch, tmp_path
) -> None:
    _, seen, _ = run(tmp_path, method, SCORES)
    injected, _ = seen["first"]
    _, begins = seen["second"]
    assert differing(injected.kept[epoch], begins.weights) == []
    assert begins.moments == [0]


@pytest.mark.parametrize(
    ("select", "second", "expected"),
    [
        ("best", 0.5, "first/best.ckpt"),
        ("best", 0.9, "second/best.ckpt"),  # of equals the later
        ("phase", 0.5, "second/best.ckpt"),
        ("last", 0.5, "second/last.ckpt"),
    ],
)
def test_the_selected_checkpoint_is_the_best_of_the_run(select, second, expected, tmp_path) -> None:
    scores = {**SCORES, "second": [second]}
    _, _, path = run(tmp_path, scores=scores, final_select=select)
    assert path == tmp_path / "checkpoints/best.ckpt"
    assert path.read_bytes() == (tmp_path / "checkpoints" / expected).read_bytes()


def test_the_record_says_what_came_from_what(tmp_path) -> None:
    run(tmp_path, scores=SCORES)
    first, second = read_lineage(tmp_path)
    assert (first.phase, first.epochs, first.parent) == ("first", 3, None)
    assert first.monitor == SCORE
    assert first.score == pytest.approx(0.9)
    assert (second.phase, second.parent) == ("second", first.best_sha256)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Weights of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    module, _, _ = run(folder)
    return weights(module), [record.score for record in read_lineage(folder)]


@pytest.mark.parametrize(("phase", "step"), [("first", 4), ("second", 0), ("second", 2)])
def test_cut_off_anywhere_it_ends_with_the_same_bits(phase, step, straight, tmp_path) -> None:
    with pytest.raises(DiedError):
        run(tmp_path, more=[Dies(phase, step)])
    module, _, _ = run(tmp_path)
    expected, scores = straight
    assert differing(expected, weights(module)) == []
    assert [record.score for record in read_lineage(tmp_path)] == scores


@pytest.mark.parametrize("step", [0, 2, None])
def test_a_record_that_was_deleted_is_made_again_from_the_checkpoints(
    step, straight, tmp_path
) -> None:
    if step is None:
        run(tmp_path)
    else:
        with pytest.raises(DiedError):
            run(tmp_path, more=[Dies("second", step)])
    (tmp_path / "lineage.json").unlink()
    module, _, _ = run(tmp_path)
    assert differing(straight[0], weights(module)) == []
    assert [record.score for record in read_lineage(tmp_path)] == straight[1]


def test_what_is_logged_after_a_finished_run_is_at_its_last_step(tmp_path) -> None:
    for _ in range(2):
        module = Twice(tiny.model(), TASK, learning_rate=0.01)

        def trainer_for(phase, checkpoints):
            callbacks = run_checkpoints(checkpoints, SCORE, 1)
            epochs = {"max_epochs": phase.max_epochs}
            return trainer(callbacks=callbacks, enable_checkpointing=True, **epochs)

        ended, _ = fit_phases(module, TinyData(TASK), tmp_path, trainer_for)
        assert (module.phase, ended.global_step, ended.current_epoch) == ("second", 3, 1)


def test_a_finished_run_is_not_trained_again(tmp_path) -> None:
    run(tmp_path)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    module, seen, path = run(tmp_path)
    assert set(seen) == {"second"}  # a trainer to evaluate with
    assert not hasattr(seen["second"][0], "weights")
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before
    assert module.phase == "second"
    assert path.exists()


def test_a_parent_that_was_changed_is_refused(tmp_path) -> None:
    with pytest.raises(DiedError):
        run(tmp_path, more=[Dies("second", 0)])
    (tmp_path / "checkpoints/first/best.ckpt").write_bytes(b"other")
    with pytest.raises(ValueError, match="not the checkpoint that phase 'first' ended with"):
        run(tmp_path)


def test_a_record_of_other_phases_or_a_damaged_one_is_refused(tmp_path) -> None:
    run(tmp_path)
    path = tmp_path / "lineage.json"
    content = json.loads(path.read_text())
    content["phases"][0]["phase"] = "zeroth"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"has the phases \['zeroth', 'second'\], this run has"):
        run(tmp_path)
    for damaged in ("{", "[]", '{"phases": 2}', '{"phases": [{"phase": "first"}]}'):
        path.write_text(damaged)
        with pytest.raises(
            ValueError, match=r"lineage\.json is damaged .*; delete it and --resume"
        ):
            run(tmp_path)


def test_phases_that_do_not_add_up_are_refused() -> None:
    phases = [Phase("teacher", 14), Phase("labels", 4)]
    with pytest.raises(ValueError, match=r"have 14 \(teacher\) \+ 4 \(labels\) = 18 epochs and tr"):
        check_epochs(phases, 17)
    for fine in (None, -1, 18):
        check_epochs(phases, fine)
    check_epochs([], 3)


def test_a_phase_needs_an_epoch_and_a_known_start() -> None:
    with pytest.raises(ValueError, match="phase 'labels' needs at least one epoch, got 0"):
        Phase("labels", 0)
    with pytest.raises(ValueError, match="from best or last, got 'first'"):
        Phase("labels", 1, start="first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="final_select must be best, phase or last, got 'worst'"):
        run(Path(), final_select="worst")


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
def test_without_validation_there_is_no_best(tmp_path) -> None:
    def trainer_for(phase, checkpoints):
        callbacks = run_checkpoints(checkpoints, SCORE, 1)
        return trainer(
            None, callbacks=callbacks, max_epochs=1, limit_val_batches=0, enable_checkpointing=True
        )

    with pytest.raises(ValueError, match="phase 'first' was never validated"):
        fit_phases(Twice(tiny.model(), TASK), TinyData(TASK), tmp_path, trainer_for)
