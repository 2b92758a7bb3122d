"""The way of a training: all checkpoints of one run in their order, in a folder that is checked.

``index.json`` names the run and lists its checkpoints; each is a safetensors file with a network's
weights and buffers. A file is written before its entry, and nothing is ever pruned: a checkpoint
that keeps the best few destroys the way. `lightning_kd.callbacks.TrajectoryRecorder` writes one,
`lightning_kd.methods.ProKD` follows one. Where the network is a transformers model, its
``config.json`` and the tokenizer lie beside, so that the folder needs nothing else.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_kd.checkpoint_io import write_atomically
from lightning_kd.functional import evenly_kept

__all__ = ["TeacherTrajectory", "TrajectoryCheckpoint"]

FORMAT_VERSION = 1


@dataclass(frozen=True)
class TrajectoryCheckpoint:
    """A point on the way.

    Attributes:
        j: Its number, counted from 1.
        epoch: That it was recorded in or at the end of, counted from 0.
        step: Optimizer steps done (Lightning's ``global_step``).
        file: Its name in the folder.
        sha256: Of the file.
        metric: Validation of exactly these weights; None where there was none at this step.
        train_loss: Mean since the checkpoint before; None where the module returned no loss.
    """

    j: int
    epoch: int
    step: int
    file: str
    sha256: str
    metric: float | None = None
    train_loss: float | None = None


@dataclass(frozen=True)
class TeacherTrajectory:
    """Checkpoints of one run in training order.

    Attributes:
        folder: Where ``index.json`` is.
        run: Identifies the run; every file has it too.
        labels: Names of the classes in the order of the logits; None where they have none.
        monitor: The logged value that ``metric`` is.
        checkpoints: In training order.
    """

    folder: Path
    run: str
    labels: tuple[str, ...] | None = None
    monitor: str | None = None
    checkpoints: tuple[TrajectoryCheckpoint, ...] = ()

    # Reading

    @classmethod
    def read(cls, folder: str | Path) -> "TeacherTrajectory":
        """The index of a folder; the files are looked at by `verify`.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged, or its checkpoints are not in the order of training.
        """
        folder = Path(folder).expanduser()
        path = folder / "index.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} is no trajectory, it has no index.json; record one with the callback "
                "lightning_kd.callbacks.TrajectoryRecorder, or train the teacher in this run "
                "(--teacher.epochs 3)"
            )
        try:
            index = json.loads(path.read_text())
            version, labels = index["format"], index["labels"]
            found = cls(
                folder,
                str(index["run"]),
                None if labels is None else tuple(labels),
                index["monitor"],
                tuple(TrajectoryCheckpoint(**record) for record in index["checkpoints"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); record the trajectory anew") from error
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format {version}, this version reads {FORMAT_VERSION}; record the "
                "trajectory anew"
            )
        found._check_order()
        return found

    def verify(self, labels: Sequence[str] | None = None) -> None:
        """Read every file once, so that nothing fails in the middle of a training.

        Args:
            labels: That the logits must stand for, in their order; None: whatever they are.

        Raises:
            FileNotFoundError: A checkpoint is missing.
            ValueError: There is none; one is damaged, of another run or of another network than the
                first; or the labels are others.
        """
        if not self.checkpoints:
            raise ValueError(
                f"{self.folder} has no checkpoint yet; let its run end an epoch, or give another"
            )
        self._check_labels(labels)
        first = None
        for checkpoint in self.checkpoints:
            path = self._intact(checkpoint)
            run, shapes = _header(path)
            if run != self.run:
                raise ValueError(
                    f"{path} is of run {run}, the trajectory of run {self.run}; a trajectory is "
                    "the checkpoints of one run"
                )
            first = shapes if first is None else first
            if shapes != first:
                raise ValueError(
                    f"{path} is of another network than {self.checkpoints[0].file} "
                    f"({_difference(shapes, first)}); a trajectory is the checkpoints of one run"
                )

    def check_network(self, state: Mapping[str, Tensor], what: str) -> None:
        """Raise where the checkpoints do not fit a network of this ``state``.

        Raises:
            ValueError: Names or shapes differ; the first difference is named.
        """
        path = self.folder / self.checkpoints[0].file
        theirs = _header(path)[1]
        ours = {name: tuple(value.shape) for name, value in state.items()}
        if ours != theirs:
            raise ValueError(
                f"{path} does not fit {what} ({_difference(theirs, ours)}); give the network whose "
                "training left this trajectory"
            )

    def choose(
        self, count: int | None, at_most: int, min_metric: float | None = None
    ) -> tuple[TrajectoryCheckpoint, ...]:
        """Checkpoints to follow, evenly spaced and with the last of those that qualify.

        Args:
            count: So many; None takes all that qualify, thinned to ``at_most``.
            at_most: As many as there is time for.
            min_metric: Least validation that qualifies; None lets all qualify.

        Raises:
            ValueError: Fewer than ``count`` qualify, none does, or one was never validated.
        """
        found = self.checkpoints
        if min_metric is not None:
            found = tuple(c for c in found if self._metric(c) >= min_metric)
            if not found:
                best = max(map(self._metric, self.checkpoints))
                raise ValueError(
                    f"min_metric={min_metric} leaves out all of {self.folder}, whose best has "
                    f"{self.monitor}={best:.4g}; lower it"
                )
        if count is not None and count > len(found):
            raise ValueError(
                f"num_checkpoints={count}, but {self.folder} has {len(found)}"
                f"{'' if min_metric is None else f' with {self.monitor} of {min_metric} or more'}; "
                "lower it, or record more (more epochs, or --model.record_every_n_steps)"
            )
        return tuple(found[j - 1] for j in evenly_kept(len(found), count or at_most))

    def weights(self, checkpoint: TrajectoryCheckpoint) -> dict[str, Tensor]:
        """Weights and buffers of a checkpoint, on the CPU."""
        from safetensors.torch import load_file

        return load_file(self.folder / checkpoint.file)

    # Writing

    def write(self) -> None:
        """Write the index, atomically."""
        content = {
            "format": FORMAT_VERSION,
            "run": self.run,
            "labels": None if self.labels is None else list(self.labels),
            "monitor": self.monitor,
            "checkpoints": [asdict(checkpoint) for checkpoint in self.checkpoints],
        }
        text = json.dumps(content, indent=2).encode()
        write_atomically(lambda file: file.write(text), self.folder / "index.json")

    def recorded(self, state: Mapping[str, Tensor], **about: Any) -> "TeacherTrajectory":
        """The trajectory with one more checkpoint, which is on disk, and then in the index.

        Args:
            state: Weights and buffers of the network.
            about: ``epoch``, ``step``, ``metric`` and ``train_loss`` of `TrajectoryCheckpoint`.
        """
        from safetensors.torch import save

        j = len(self.checkpoints) + 1
        # copies: safetensors refuses tensors that share memory, as tied weights do
        tensors = {
            name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()
        }
        content = save(tensors, {"format": "pt", "run": self.run, "checkpoint": str(j)})
        name = f"checkpoint_{j:04d}.safetensors"
        write_atomically(lambda file: file.write(content), self.folder / name)
        checkpoint = TrajectoryCheckpoint(
            j, file=name, sha256=hashlib.sha256(content).hexdigest(), **about
        )
        grown = replace(self, checkpoints=(*self.checkpoints, checkpoint))
        grown.write()
        return grown

    # Inside

    def _metric(self, checkpoint: TrajectoryCheckpoint) -> float:
        if checkpoint.metric is None:
            raise ValueError(
                f"{self.folder / checkpoint.file} was recorded without validation, which "
                "min_metric needs; validate where checkpoints are recorded "
                "(trainer.val_check_interval), or drop min_metric"
            )
        return checkpoint.metric

    def _check_order(self) -> None:
        path, step = self.folder / "index.json", -1
        for number, checkpoint in enumerate(self.checkpoints, start=1):
            if checkpoint.j != number:
                raise ValueError(
                    f"{path} has checkpoint {checkpoint.j} ({checkpoint.file}) in place {number}; "
                    "the order must be that of the training"
                )
            if checkpoint.step <= step:
                raise ValueError(
                    f"{path} has {checkpoint.file} of step {checkpoint.step} behind one of step "
                    f"{step}; the order must be that of the training"
                )
            step = checkpoint.step

    def _check_labels(self, labels: Sequence[str] | None) -> None:
        if labels is None or self.labels is None:
            return
        if [name.lower() for name in labels] != [name.lower() for name in self.labels]:
            ours = (
                f"student's are {', '.join(labels)}, in this order" if labels else "task has none"
            )
            raise ValueError(
                f"the trajectory {self.folder} has the labels {', '.join(self.labels)}, the "
                f"{ours}; give one with the same"
            )

    def _intact(self, checkpoint: TrajectoryCheckpoint) -> Path:
        path = self.folder / checkpoint.file
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing, checkpoint {checkpoint.j} of {len(self.checkpoints)}; put it "
                "back, or record the trajectory anew"
            )
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != checkpoint.sha256:
            raise ValueError(
                f"{path} is not what was recorded (SHA-256 {found[:12]} there, "
                f"{checkpoint.sha256[:12]} in the index): it was damaged or replaced; put the "
                "right one back, or record the trajectory anew"
            )
        return path


def _header(path: Path) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The run of a checkpoint, and the shapes of its tensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        run = (file.metadata() or {}).get("run", "unknown")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return run, shapes


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The first tensor that differs, in words."""
    name = next(n for n in sorted({*theirs, *ours}) if theirs.get(n) != ours.get(n))
    return f"{name}: {theirs.get(name, 'nothing')} there, {ours.get(name, 'nothing')} here"
