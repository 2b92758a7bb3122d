"""Modules whose weights count their updates, so that an average is a number known beforehand."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd.callbacks import StudentAveraging
from lightning_kd.frozen import Frozen
from tests import tiny
from tests.conformance.matrix import weights


class Counter(L.LightningModule):
    """Anyone's module: its student's only weight grows by the learning rate with each update."""

    def __init__(self, batches: int = 1, lr: float = 1.0, schedule: Any = None) -> None:
        super().__init__()
        self.student: nn.Module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.weight)
        self.batches, self.lr, self.schedule = batches, lr, schedule
        self.validated: list[float] = []
        self.rates: list[float] = []

    @property
    def weight(self) -> nn.Parameter:
        return self.student.get_parameter("weight")

    @property
    def value(self) -> float:
        return self.weight.item()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return -self.weight.sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(round(float(optimizer.param_groups[0]["lr"]), 6))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.student.parameters(), lr=self.lr)
        if self.schedule is None:
            return optimizer
        scheduler = {"scheduler": self.schedule(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(self.value)
        self.log("value", self.value)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.validated.append(self.value)
        return torch.tensor(self.value)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.ones(self.batches, 1)))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.ones(1, 1)))

    test_dataloader = predict_dataloader = val_dataloader


class TwoOptimizers(Counter):
    """Generator and student take turns, as in MATE-KD; a teacher watches."""

    def __init__(self) -> None:
        super().__init__(batches=4)
        self.automatic_optimization = False
        self.generator = nn.Linear(1, 1, bias=False)
        self.teacher = Frozen(nn.Linear(1, 1))

    def planned_student_updates(self) -> int:
        return 2

    def training_step(self, batch: Any, batch_idx: int) -> None:
        generator, student = self.optimizers()  # type: ignore[attr-defined]
        turn = student if batch_idx % 2 else generator
        turn.zero_grad()
        network = self.student if batch_idx % 2 else self.generator
        self.manual_backward(-network.get_parameter("weight").sum())
        turn.step()

    def configure_optimizers(self) -> Any:
        networks = (self.generator, self.student)
        return [torch.optim.SGD(network.parameters(), lr=1.0) for network in networks]


def fit(
    module: L.LightningModule, *callbacks: L.Callback, ckpt_path: Any = None, **settings: Any
) -> L.Trainer:
    """Train one epoch unless told otherwise; returns the trainer."""
    made = tiny.trainer(*callbacks, **{"max_epochs": 1, **settings})
    made.fit(module, ckpt_path=ckpt_path)
    return made


def averaging(**settings: Any) -> StudentAveraging:
    """The callback, averaging from the first update on unless told otherwise."""
    return StudentAveraging(**{"start_fraction": 0.0, **settings})


class Record(L.Callback):
    """All of the module's weights after every batch."""

    def __init__(self) -> None:
        self.raw: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.raw.append(weights(pl_module))
