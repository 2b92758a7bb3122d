"""Loggers of a run folder that survive a kill: a resumed run goes on in the files of the first."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from lightning_kd.checkpoint_io import write_atomically

Row = Mapping[str, Any]


class MetricsFile(Logger):
    """Writes ``metrics.csv``, a row at a time, and goes on with one that is there.

    Lightning's ``CSVLogger`` deletes the file of the run it resumes and keeps up to 100 steps in
    memory. Here a row is on disk when it is logged; a resumed run drops the rows of the steps that
    it repeats, so that no step is there twice.

    Args:
        folder: Of the run.
        phase: Written to a column of that name, where a run has several; each counts its own steps.
    """

    def __init__(self, folder: str | Path, phase: str = "") -> None:
        super().__init__()
        self._phase = phase
        self._path = Path(folder) / "metrics.csv"
        self._columns: list[str] = []
        self._started = False

    @property
    @override
    def name(self) -> str:
        return ""

    @property
    @override
    def version(self) -> str:
        return ""

    @property
    @override
    def save_dir(self) -> str:
        return str(self._path.parent)

    @override
    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in the run's ``config.yaml``."""

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = 0 if step is None else step
        row = {**metrics, "step": step, **({"phase": self._phase} if self._phase else {})}
        if not self._started:
            self._go_on(step)
            self._started = True
        new = sorted(set(row) - set(self._columns))
        if new:
            rows = self._rows()
            names = {*self._columns, *new}
            first = ["phase"] * ("phase" in names) + ["epoch", "step"]
            self._columns = [*first, *sorted(names - set(first))]
            self._write([*rows, row])
        else:
            with self._path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)

    def _go_on(self, step: int) -> None:
        """Keep of the file that is there what was before ``step``."""
        rows = self._rows()
        kept = [r for r in rows if int(r["step"]) < step or r.get("phase", "") != self._phase]
        if rows:
            self._columns = list(rows[0])
            self._write(kept)

    def _rows(self) -> list[Row]:
        if not self._path.is_file():
            return []
        text = self._path.read_text()
        whole = text[: text.rfind("\n") + 1]  # a killed process may have left half a line
        return list(csv.DictReader(io.StringIO(whole)))

    def _write(self, rows: list[Row]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(lambda file: file.write(text.getvalue().encode()), self._path)


class Events(TensorBoardLogger):
    """TensorBoard events in the run folder itself, without an empty ``hparams.yaml`` beside them.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, name="", version="")

    @override
    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()


__all__ = ["Events", "MetricsFile"]
