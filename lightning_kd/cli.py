"""Recipes as commands: LightningCLI that fits, reports and exports, and run folders that resume.

python recipes/dylora_glue.py --config configs/overlays/offline.yaml --data.task sst2
python recipes/dylora_glue.py --resume runs/dylora_glue/2026-01-31_12-00-00
"""

import signal
import sys
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from lightning_kd.checkpoint_io import AtomicCheckpointIO, write_atomically
from lightning_kd.data import BenchmarkDataModule
from lightning_kd.errors import USER_ERRORS, explain
from lightning_kd.loggers import Events, MetricsFile
from lightning_kd.methods import DistillationModule, TaskModule
from lightning_kd.nested import Nested
from lightning_kd.outcome import Outcome, write_predictions
from lightning_kd.phases import FinalSelect, Phase, check_epochs, fit_phases
from lightning_kd.report import read_references
from lightning_kd.run_checkpoints import run_checkpoints
from lightning_kd.runs import STAGES, hold, shared, with_settings
from lightning_kd.strategies import strategy_for_run
from lightning_kd.teacher_training import TeacherTraining, train_teacher
from lightning_kd.terminal import keep_quiet


class _SaveConfig(SaveConfigCallback):
    """Writes the run's settings to its folder, whatever the loggers are."""

    @override
    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        text = self.parser.dump(self.config, skip_none=False)
        # Each phase writes it again: one that is killed meanwhile leaves it whole.
        write_atomically(lambda file: file.write(text.encode()), self.config_filename)
        hold(Path(self.config_filename).parent)


class RecipeCLI(LightningCLI):
    """LightningCLI for one method on one benchmark; see `run`."""

    model: TaskModule
    datamodule: BenchmarkDataModule

    def __init__(
        self,
        method: type[TaskModule],
        data: type[BenchmarkDataModule],
        run_dir: Path,
        args: Sequence[str],
        default_config: Path,
    ) -> None:
        self.run_dir = run_dir
        self._teaches = issubclass(method, DistillationModule)
        self._started = perf_counter()
        files = {"default_config_files": [str(default_config)]}
        super().__init__(
            method,
            data,
            args=list(args),
            seed_everything_default=0,
            save_config_callback=_SaveConfig,
            save_config_kwargs={
                "save_to_log_dir": False,
                "config_filename": str(run_dir / "config.yaml"),
            },
            parser_kwargs=dict.fromkeys(STAGES, files),
            auto_configure_optimizers=False,  # a method makes its own, or takes --model.optimizer
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.task", "model.task")
        known = {action.dest for action in parser._actions}
        if "data.tokenizer" in known:  # images have none
            parser.link_arguments("model.student", "data.tokenizer")
        for target in {"data.seed", "model.seed"} & known:
            parser.link_arguments("seed_everything", target, compute_fn=int)
        parser.add_argument(
            "--references",
            type=list[str],
            default=[],
            help="Run folders of other methods (LoRA) to draw and list beside this one.",
        )
        parser.add_argument(
            "--export_sizes",
            type=list[int] | None,
            default=None,
            help="Sizes (ranks) to export; by default the best on validation, and the smallest "
            "within one standard error of it.",
        )
        parser.add_argument(
            "--save_every_n_steps",
            type=int,
            default=100,
            help="Optimizer steps between two checkpoints to resume from.",
        )
        parser.add_argument(
            "--final_select",
            type=FinalSelect,
            default="best",
            help="Of a training in phases: the best of all by validation, the best of the last "
            "phase, or the last weights.",
        )
        if self._teaches:
            parser.add_class_arguments(TeacherTraining, "teacher")

    def _parse_ckpt_path(self) -> None:
        """Nothing: the settings come from the run folder's config.yaml, links included."""

    @override
    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        return self._trainer_in(self.run_dir, self.run_dir / "checkpoints", self.model, **kwargs)

    def _trainer_in(
        self, folder: Path, checkpoints: Path, module: TaskModule, phase: str = "", **kwargs: Any
    ) -> L.Trainer:
        config = self._get(self.config_init, "trainer")
        if config.default_root_dir is not None:
            raise ValueError(
                f"trainer.default_root_dir={config.default_root_dir} has no effect: a run writes "
                "to runs/<recipe>/<time> where it is started; drop it and start it elsewhere"
            )
        callbacks = deepcopy(config.callbacks or [])  # each phase begins with fresh ones
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if config.enable_progress_bar is not False and not has_bar:
            callbacks.append(RichProgressBar(refresh_rate=2))
        if self.subcommand != "fit":
            kwargs["enable_checkpointing"] = False
        elif config.enable_checkpointing is not False:
            every = self._get(self.config_init, "save_every_n_steps")
            callbacks += run_checkpoints(checkpoints, module.monitor, every)
        plugins = config.plugins or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        kwargs = {"strategy": strategy_for_run(config.strategy), "callbacks": callbacks, **kwargs}
        if config.enable_model_summary is None:  # one line says it; see before_fit
            kwargs["enable_model_summary"] = False
        if config.logger is None or config.logger is True:
            events = Events(folder / "events" / phase if phase else folder)
            kwargs["logger"] = [MetricsFile(folder, phase), events]
        return super().instantiate_trainer(default_root_dir=str(folder), plugins=plugins, **kwargs)

    def before_fit(self) -> None:
        """Refuse what would fail at the end, say what is about to train, and start the clock."""
        task = self.model.task.name
        read_references(self._references, self.datamodule.benchmark, task)
        for size in self._get(self.config_init, "export_sizes") or []:
            if not isinstance(self.model, Nested):
                raise TypeError(f"{type(self.model).__name__} has no sizes; drop --export_sizes")
            with self.model.at_size(size):
                pass
        self._started = perf_counter()
        whole = sum(parameter.numel() for parameter in self.model.parameters())
        name = f"{type(self.model).__name__} on {self.datamodule.benchmark}/{task}"
        if self.trainer.is_global_zero:
            print(  # noqa: T201 - what a user wants to know before waiting
                f"{name}: {self.model.num_trainable_parameters():,} of {whole:,} weights train; "
                f"writing to {self.run_dir}"
            )

    def fit(self, model: TaskModule, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Fit (the teacher first, where asked), once or phase by phase, from where it was left."""
        data = kwargs["datamodule"]
        if model.phases and ckpt_path is not None:
            raise ValueError(
                f"--ckpt_path {ckpt_path} cannot continue a training in phases; use --resume with "
                "its run folder"
            )
        given = self._get(self.config_init, "trainer")
        check_epochs(model.phases, given.max_epochs)  # this first: a teacher may take hours
        if isinstance(model, DistillationModule):
            if given.max_steps == -1 and (given.max_epochs or 0) > 0:
                model.check_length(given.max_epochs)
            self._train_teacher(model, data)
        if not model.phases:
            last = self.run_dir / "checkpoints" / "last.ckpt"
            path = ckpt_path or (str(last) if last.exists() else None)
            self.trainer.fit(model, ckpt_path=path, **kwargs)
            return
        select = self._get(self.config_init, "final_select")
        self.trainer, _ = fit_phases(model, data, self.run_dir, self._trainer_of, select)

    def _train_teacher(self, model: DistillationModule, data: BenchmarkDataModule) -> None:
        folder = self.run_dir / "teacher"
        settings: TeacherTraining = self._get(self.config_init, "teacher")
        if settings.epochs == 0 or not model.trains_teacher:
            return
        trainer_for = partial(
            self._trainer_in, folder, folder / "checkpoints", max_epochs=settings.epochs
        )
        train_teacher(model, data, folder, trainer_for, settings.learning_rate, self._seed)

    def _trainer_of(self, phase: Phase, checkpoints: Path) -> L.Trainer:
        return self._trainer_in(
            self.run_dir, checkpoints, self.model, phase.name, max_epochs=phase.max_epochs
        )

    def after_fit(self) -> None:
        """Evaluate the best weights, choose, export, report."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        seconds = perf_counter() - self._started
        outcome = Outcome(self.trainer, self.model, self.datamodule, self.run_dir, self._seed)
        best = self.run_dir / "checkpoints" / "best.ckpt"
        if not best.exists():
            self.model.notes["weights"] = "the last ones: training ended before a validation"
        outcome.evaluate("validate", str(best) if best.exists() else None)
        if self.datamodule.has_test:
            outcome.evaluate("test")
        sizes = self._get(self.config_init, "export_sizes")
        outcome.finish(seconds, self._references, sizes, export=True)

    def after_validate(self) -> None:
        """Report what validation found."""
        self._after_evaluation("validate")

    def after_test(self) -> None:
        """Report what the test found."""
        self._after_evaluation("test")

    def _after_evaluation(self, stage: str) -> None:
        outcome = Outcome(self.trainer, self.model, self.datamodule, self.run_dir, self._seed)
        outcome.collect(stage)
        outcome.finish(perf_counter() - self._started, self._references, None, export=False)

    def predict(self, **kwargs: Any) -> None:
        """Write the answers as the benchmark wants them, one file per test set."""
        found: Any = self.trainer.predict(**kwargs)
        write_predictions(self.trainer, self.datamodule, found, self.run_dir / "predictions")

    @property
    def _seed(self) -> int:
        return int(self._get(self.config_init, "seed_everything"))

    @property
    def _references(self) -> list[Path]:
        given = [Path(path) for path in self._get(self.config_init, "references")]
        teacher = self.run_dir / "teacher"
        return [*given, teacher] if (teacher / "report").is_dir() else given


def run(
    method: type[TaskModule],
    data: type[BenchmarkDataModule],
    args: Sequence[str] | None = None,
    recipe: str | Path | None = None,
) -> RecipeCLI:
    """Run a recipe as a command: fit, evaluate the best checkpoint, report and export.

    Args:
        method: The method's class; its arguments become ``--model.*``.
        data: The benchmark's data module; its arguments become ``--data.*``.
        args: Command line; by default that of the process. A first word out of ``fit``,
            ``validate``, ``test``, ``predict`` chooses the stage, ``fit`` by default;
            ``--resume RUN_DIR`` goes on with a run where its last checkpoint was written.
        recipe: The recipe's file, by default the running script: its stem names the run folder
            ``runs/<stem>/<time>/`` and the default settings ``configs/<stem>.yaml``.

    Raises:
        SystemExit: The command line or the run failed; the reason is on standard error. Set
            ``LIGHTNING_KD_TRACEBACK=1`` for the whole trace.
    """
    keep_quiet()
    given = list(sys.argv[1:] if args is None else args)
    recipe = Path(sys.argv[0] if recipe is None else recipe)
    try:
        stage, rest = (given[0], given[1:]) if given[:1] and given[0] in STAGES else ("fit", given)
        rest, run_dir = with_settings(stage, rest, recipe.stem)
        with shared(run_dir):
            default = recipe.resolve().parent.parent / "configs" / f"{recipe.stem}.yaml"
            return RecipeCLI(method, data, run_dir, [stage, *rest], default)
    except SIGTERMException:  # Lightning's own ends with status 0, which a scheduler takes for done
        print(f"terminated; go on with --resume {run_dir}", file=sys.stderr)  # noqa: T201
        sys.exit(128 + signal.SIGTERM)
    except (*USER_ERRORS, MisconfigurationException) as error:
        explain(error)


__all__ = ["RecipeCLI", "run"]
