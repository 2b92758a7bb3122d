"""What a run comes to: its best weights evaluated, sizes chosen, adapters exported, a report."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_kd.callbacks import StudentAveraging
from lightning_kd.data import BenchmarkDataModule
from lightning_kd.evaluation import Evaluation
from lightning_kd.export import export_whole
from lightning_kd.methods import AdapterModule, TaskModule
from lightning_kd.nested import Nested
from lightning_kd.report import (
    Result,
    Summary,
    choose_sizes,
    environment,
    show,
    standard_error,
    write_report,
)
from lightning_kd.tasks import Classification


class Outcome:
    """Collects results of a run stage by stage, then writes what the user keeps.

    Sizes are chosen on validation only. All processes of a run must make the same calls.

    Args:
        trainer: The run's; it evaluates.
        module: The trained method.
        datamodule: Its data.
        run_dir: Where the report and the exports go.
        seed: The run's, for the record.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        module: TaskModule,
        datamodule: BenchmarkDataModule,
        run_dir: Path,
        seed: int,
    ) -> None:
        self.trainer, self.module, self.datamodule = trainer, module, datamodule
        self.run_dir, self.seed = run_dir, seed
        self.results: list[Result] = []
        self.baseline: float | None = None

    def evaluate(self, stage: str, ckpt_path: str | None = None) -> None:
        """Run ``validate`` or ``test``, with the weights of ``ckpt_path`` where one is given."""
        run = self.trainer.validate if stage == "validate" else self.trainer.test
        run(self.module, datamodule=self.datamodule, ckpt_path=ckpt_path, verbose=False)
        self.collect(stage)

    def collect(self, stage: str) -> None:
        """Take over what the module found in the stage that just ended."""
        splits = self.datamodule.eval_splits("validate" if stage == "validate" else "test")
        names = dict(zip(self.module.task.eval_sets, splits, strict=False))
        for (eval_set, size), evaluation in self.module.evaluations.items():
            answers, labels = evaluation.collected()
            if self.baseline is None:
                self.baseline = self._majority(labels)
            for metric, value in evaluation.values.items():
                self.results.append(
                    Result(
                        size=size,
                        split=names[eval_set],
                        metric=metric,
                        value=value,
                        trainable_parameters=self.module.num_trainable_parameters(size),
                        seconds=evaluation.seconds,
                        standard_error=self._error(evaluation, metric, answers, labels),
                    )
                )

    def finish(
        self,
        seconds: float,
        references: Sequence[Path],
        sizes: Sequence[int] | None,
        *,
        export: bool,
    ) -> None:
        """Choose sizes (unless given), export them, write the report and show it."""
        if not self.trainer.is_global_zero:
            return
        module = self.module
        summary = Summary(
            method=self._method(),
            benchmark=self.datamodule.benchmark,
            task=module.task.name,
            model=str(module.hparams.get("student", type(module.student).__name__)),
            seed=self.seed,
            seconds=seconds,
            environment=environment(),
            data_sha256=self.datamodule.data_sha256,
            results=tuple(self.results),
            size_name=module.size_name if isinstance(module, Nested) else "rank",
            notes={**self.datamodule.notes, **module.notes},
        )
        chosen = list(sizes) if sizes is not None else self._choose()
        exports: dict[int | None, Path] = {}
        if export:
            sizes_or_whole: Sequence[int | None] = chosen or [None]
            exports = {size: self._export_folder(size) for size in sizes_or_whole}
            for size, folder in exports.items():
                if size is not None and isinstance(module, AdapterModule):
                    module.export(folder, size)
                else:
                    write = partial(module.export, size=size)
                    export_whole(write, self.datamodule.save_processing, folder)
        write_report(self.run_dir, summary, references, chosen, exports, self.baseline)
        show(summary, self.run_dir, chosen, exports)

    def _method(self) -> str:
        """The method's name; with averaging it is another one, whose runs are not the same."""
        averages = any(isinstance(c, StudentAveraging) for c in vars(self.trainer)["callbacks"])
        return type(self.module).__name__ + (" + StudentAveraging" if averages else "")

    def _choose(self) -> list[int]:
        validation = self.datamodule.eval_splits("validate")[0]
        chose_on = [result for result in self.results if result.split == validation]
        if not isinstance(self.module, Nested) or not chose_on:
            return []
        return choose_sizes(chose_on, validation, self.module.task.monitor)

    def _export_folder(self, size: int | None) -> Path:
        name = "model" if size is None else f"{getattr(self.module, 'size_name', 'size')}_{size}"
        return self.run_dir / "export" / name

    def _error(
        self, evaluation: Evaluation, metric: str, answers: Tensor, labels: Tensor
    ) -> float | None:
        if metric in evaluation.scores:
            values = evaluation.scores[metric]
            return standard_error(lambda drawn, _: drawn.nanmean(), values, values, seed=self.seed)
        if evaluation.key is not None:  # one figure of all answers together
            return None
        score = evaluation.task.metrics()[metric]
        # Every process has all answers, on the CPU, where NCCL could not even gather them.
        score.distributed_available_fn = lambda: False

        def value(resampled_answers: Tensor, resampled_labels: Tensor) -> Tensor:
            score.reset()
            score.update(resampled_answers, resampled_labels)
            return score.compute()

        return standard_error(value, answers, labels, seed=self.seed)

    def _majority(self, labels: Tensor) -> float | None:
        """Accuracy of always answering the most frequent class."""
        task = self.module.task
        if not isinstance(task, Classification) or task.monitor != "accuracy":
            return None
        return float(labels.long().bincount().max() / labels.numel())


def write_predictions(
    trainer: L.Trainer, datamodule: BenchmarkDataModule, found: Any, folder: Path
) -> None:
    """Write what ``trainer.predict`` found as the benchmark wants it, one file per test set."""
    sets = datamodule.submissions
    batches = found if len(datamodule.eval_splits("predict")) > 1 else [found]
    for name, parts in zip(sets, batches, strict=False):
        answers = {k: torch.cat([part[k] for part in parts]).cpu() for k in ("idx", "answers")}
        gathered: list[Any] = [answers]
        if trainer.world_size > 1:
            gathered *= trainer.world_size
            torch.distributed.all_gather_object(gathered, answers)
        if trainer.is_global_zero:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = {k: torch.cat([part[k] for part in gathered]) for k in answers}
            datamodule.write_predictions(path, whole["idx"], whole["answers"])
            print(f"predictions: {path}")  # noqa: T201 - what the user asked for


__all__ = ["Outcome", "write_predictions"]
