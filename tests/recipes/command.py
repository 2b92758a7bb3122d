"""Recipes as commands on tiny models and data: what is the same for all of their tests."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from lightning_kd import methods
from lightning_kd.cli import RecipeCLI, run
from lightning_kd.data import (
    CIFAR,
    DART,
    E2E,
    GLUE,
    GSM8K,
    BenchmarkDataModule,
    HellaSwag,
    Instructions,
    SQuAD,
    TriviaQA,
    WebNLG,
)
from tests import tiny
from tests.kill import ROOT

RECIPES = {
    "annealing_kd_cifar": "AnnealingKD",
    "annealing_kd_glue": "AnnealingKD",
    "continuation_kd_cifar": "ContinuationKD",
    "annealing_kd_squad": "AnnealingKD",
    "continuation_kd_glue": "ContinuationKD",
    "dylora_dart": "DyLoRA",
    "dylora_e2e": "DyLoRA",
    "dylora_glue": "DyLoRA",
    "dylora_webnlg": "DyLoRA",
    "fine_tuning_alpaca": "FineTuning",
    "fine_tuning_cifar": "FineTuning",
    "fine_tuning_glue": "FineTuning",
    "fine_tuning_hellaswag": "FineTuning",
    "fine_tuning_squad": "FineTuning",
    "label_regularization_glue": "LabelRegularization",
    "lora_alpaca": "LoRA",
    "lora_glue": "LoRA",
    "noisy_label_kd_glue": "NoisyLabelKD",
    "vanilla_kd_cifar": "VanillaKD",
    "soft_alpaca": "SoFT",
    "soft_triviaqa": "SoFT",
    "qdylora_alpaca": "QDyLoRA",
    "qdylora_gsm8k": "QDyLoRA",
    "qdylora_triviaqa": "QDyLoRA",
    "swa_glue": "FineTuning",
    "swa_squad": "FineTuning",
    "pro_kd_cifar": "ProKD",
    "pro_kd_glue": "ProKD",
    "pro_kd_squad": "ProKD",
    "vanilla_kd_glue": "VanillaKD",
    "vanilla_kd_hellaswag": "VanillaKD",
    "vanilla_kd_squad": "VanillaKD",
}
"""The method of each recipe; `tests/meta/test_recipes.py` checks that none is missing."""
BENCHMARKS: dict[str, type[BenchmarkDataModule]] = {
    "alpaca": Instructions,
    "cifar": CIFAR,
    "dart": DART,
    "e2e": E2E,
    "glue": GLUE,
    "gsm8k": GSM8K,
    "hellaswag": HellaSwag,
    "squad": SQuAD,
    "triviaqa": TriviaQA,
    "webnlg": WebNLG,
}
"""The data of each recipe, by the end of its name."""
WRITTEN = {
    "alpaca": ("reviews", tiny.films_folder),
    "triviaqa": ("triviaqa", tiny.trivia_folder),
}
"""Where answers are texts: the task of the tiny files, and what makes them."""

every_recipe = pytest.mark.parametrize("stem", RECIPES)


@dataclass(frozen=True)
class Site:
    """A folder with a tiny model and tiny SST-2 files, in which recipes run.

    Attributes:
        folder: Where ``runs/`` appears.
        model: A Hugging Face folder.
        data: Has SST-2 in it.
    """

    folder: Path
    model: Path
    data: Path

    def settings(self, stem: str = "", /, **more: Any) -> list[str]:
        """Arguments of a short run: 32 examples (30 images) in 8 batches, two epochs."""
        values: dict[str, Any]
        if stem.endswith("_cifar"):
            values = {
                "model.student": "resnet8",
                "data.task": "digits",
                "data.data_dir": tiny.digits_folder(self.folder / "digits"),
                "data.holdout_fraction": 0.25,
            }
        elif stem.rpartition("_")[2] in WRITTEN:
            task, files = WRITTEN[stem.rpartition("_")[2]]
            values = {
                "model.student": tiny.writer_folder(self.folder / "writer"),
                "model.learning_rate": 0.02,
                "data.task": task,
                "data.data_dir": files(self.folder / task),
                "data.cache_dir": self.folder / "cache",
                "data.max_length": 24,
                "data.holdout_fraction": 0.0,
                "data.generate_examples": 4,
            }
        else:
            values = {
                "model.student": self.model,
                "model.learning_rate": 0.02,
                "data.data_dir": self.data,
                "data.cache_dir": self.folder / "cache",
                "data.max_length": 16,
            }
        values |= {
            "data.batch_size": 4,
            "trainer.accelerator": "cpu",
            "trainer.devices": 1,
            "trainer.max_epochs": 2,
            "trainer.accumulate_grad_batches": 1,
            "trainer.log_every_n_steps": 1,
            "trainer.num_sanity_val_steps": 0,
            "trainer.enable_progress_bar": "false",
            "trainer.enable_model_summary": "false",
            **more,
        }
        return [f"--{key}={value}" for key, value in values.items()]

    def run(self, stem: str, *args: str | Path) -> RecipeCLI:
        """The command ``python recipes/<stem>.py *args``, in this process and this folder."""
        method = getattr(methods, RECIPES[stem])
        data = BENCHMARKS[stem.rpartition("_")[2]]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            return run(method, data, [str(a) for a in args], ROOT / "recipes" / f"{stem}.py")

    def fit(self, stem: str, *args: str | Path, **more: Any) -> Path:
        """A whole run with `settings`; returns its folder."""
        teacher = signature(getattr(methods, RECIPES[stem])).parameters.get("teacher")
        text = not stem.endswith("_cifar")  # elsewhere the teacher is trained in the run
        if text and teacher is not None and teacher.default is teacher.empty:
            more = {"model.teacher": self.model, **more}
        return self.folder / self.run(stem, *args, *self.settings(stem, **more)).run_dir

    def runs(self) -> list[Path]:
        """All run folders so far."""
        return sorted(self.folder.glob("runs/*/*"))


def make_site(folder: Path) -> Site:
    """Fill a folder."""
    return Site(folder, tiny.model_folder(folder / "model"), tiny.sst2_folder(folder / "data"))


def summary(run_dir: Path) -> Any:
    """The run's ``summary.json``."""
    return json.loads((run_dir / "report" / "summary.json").read_text())


def printed_config(capsys: pytest.CaptureFixture[str], command: Callable[[], object]) -> Any:
    """What a command with ``--print_config`` prints, parsed."""
    with pytest.raises(SystemExit) as end:
        command()
    assert end.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)
