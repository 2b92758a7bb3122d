"""DeepSpeed's ZeRO with ordinary checkpoints, and the same on CPU processes without a GPU.

Rajbhandari, Rasley, Ruwase and He, "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", SC 2020, arXiv 1910.02054. Importing this module makes ``deepspeed_cpu`` a strategy's name.
"""

import os
import warnings
from argparse import Namespace
from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    Strategy,
    StrategyRegistry,
)
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_kd.zero import (
    Untouched,
    read_optimizer_state,
    require_element_wise,
    require_floats,
    whole_optimizer_state,
)

__all__ = ["DeepSpeedCPUStrategy", "ZeROStrategy", "strategy_for_run"]

if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no other


class ZeROStrategy(DeepSpeedStrategy):
    """Lightning's `DeepSpeedStrategy`, whose checkpoints are ordinary files.

    The first process writes one ``.ckpt`` with whole weights and the optimizer's whole state, which
    every command, any strategy and any number of processes can read; loading distributes them
    again. After a fit or an evaluation the module is an ordinary one, with whole fp32 weights.

    Gradients are divided by the number of accumulated batches once (Lightning and DeepSpeed would
    both do it), and the last window of an epoch may be shorter than the others.

    Args:
        stage: 1 distributes the optimizer's state, 2 its gradients too, 3 the weights as well.
        settings: See Lightning's `DeepSpeedStrategy`: ``offload_optimizer``, ``offload_parameters``
            and so on, or a DeepSpeed ``config`` instead of all of them.

    Raises:
        ModuleNotFoundError: DeepSpeed is not installed.
        ValueError: The optimizer or the weights cannot be cut into pieces.
    """

    def __init__(self, stage: int = 2, **settings: Any) -> None:
        if find_spec("deepspeed") is None:
            raise ModuleNotFoundError(
                "DeepSpeed is not installed; pip install 'lightning-kd[distributed]' beside an "
                "installed torch, or use the ddp strategy"
            )
        super().__init__(stage=stage, **settings)
        assert self.config is not None  # noqa: S101 - Lightning has just made it
        self.config.setdefault("train_micro_batch_size_per_gpu", 1)  # only for printed timings
        # Offloading takes any optimizer; with a C++ compiler, deepspeed.ops.adam has a faster one.
        self.config.setdefault("zero_force_ds_cpu_optimizer", False)
        self._untouched: Untouched | None = None
        self._order: list[list[nn.Parameter]] = []
        self._failed = False

    # A training of its own

    @override
    def setup(self, trainer: L.Trainer) -> None:
        module = self._module
        if self.zero_stage_3:
            require_floats(module)
        fits = trainer.state.fn == TrainerFn.FITTING
        if fits and not module.automatic_optimization:
            raise ValueError(
                f"{type(module).__name__} makes its optimizer steps itself (manual optimization, "
                "as with two optimizers), and ZeRO has one optimizer of its own; use the ddp "
                "strategy or one device"
            )
        self._untouched, self._failed = Untouched(module, fits=fits), False
        super().setup(trainer)
        self._untouched.undo_rounding()

    @override
    def _init_optimizers(self) -> tuple[Optimizer, Any]:
        optimizer, schedule = super()._init_optimizers()
        require_element_wise(optimizer)
        self._order = [list(group["params"]) for group in optimizer.param_groups]
        return optimizer, schedule

    @override
    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        if not self.zero_stage_3 and self.precision_plugin.precision == "32-true":
            self.model = model.to(self.root_device)  # whole as it is
            return
        import deepspeed

        # As Lightning does, which would remove every hook of the module's own, too.
        names = ["fp16", "bf16"]
        if self.zero_stage_3:
            names += ["zero_optimization", "zero_allow_untested_optimizer"]
        ours: dict[str, Any] = self.config or {}
        config = {name: ours[name] for name in names if name in ours}
        self.model, *_ = deepspeed.initialize(
            args=Namespace(device_rank=self.root_device.index),
            config={"train_micro_batch_size_per_gpu": 1, **config},
            model=model,
            model_parameters=[],
            dist_init_required=False,
        )

    @property
    @override
    def handles_gradient_accumulation(self) -> bool:
        return False  # Lightning ends a window with the epoch, DeepSpeed would count on

    @override
    def block_backward_sync(self) -> Any:
        return nullcontext()  # as `backward` says where a window ends

    @override
    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        ends = not self._module.trainer.fit_loop._should_accumulate()
        self.deepspeed_engine.set_gradient_accumulation_boundary(is_boundary=ends)
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    @override
    def on_exception(self, exception: BaseException) -> None:
        self._failed = True  # and the other processes, perhaps, have not: nothing can be gathered
        super().on_exception(exception)

    @override
    def teardown(self) -> None:
        if self._untouched is not None and not self._failed:
            engine = self.model
            self.model = self.lightning_module
            self._untouched.restore(None if engine is self.lightning_module else engine)
            self._untouched = None
        self.optimizers, self.lr_scheduler_configs = [], []
        super().teardown()

    # Checkpoints

    @property
    @override
    def restore_checkpoint_after_setup(self) -> bool:
        return False  # weights are read whole, and distributed with the rest

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        module, untouched = self._module, self._untouched
        state, found = module.state_dict(), dict[int, Tensor]()
        if untouched is None:
            return state
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if name in state:  # on all processes in one order: they gather it together
                if id(parameter) not in found:
                    found[id(parameter)] = untouched.whole(parameter)
                state[name] = found[id(parameter)]
        return state

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return whole_optimizer_state(self.deepspeed_engine, self._order, keep=self.is_global_zero)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        (state,) = checkpoint["optimizer_states"]
        read_optimizer_state(self.deepspeed_engine, self._order, state)

    @property
    def _module(self) -> L.LightningModule:
        assert self.lightning_module is not None  # noqa: S101 - a trainer has connected it
        return self.lightning_module

    # As of strategies that know nothing of DeepSpeed
    save_checkpoint = Strategy.save_checkpoint
    load_checkpoint = Strategy.load_checkpoint
    load_model_state_dict = Strategy.load_model_state_dict


class DeepSpeedCPUStrategy(ZeROStrategy):
    """ZeRO on CPU processes: the cluster job rehearsed on a laptop, also in tests.

    Processes talk by gloo; nothing is compiled. ``Trainer(strategy="deepspeed_cpu", devices=2)``.

    Args:
        stage: See `ZeROStrategy`.
        settings: See `ZeROStrategy`.
    """

    strategy_name = "deepspeed_cpu"

    def __init__(self, stage: int = 2, **settings: Any) -> None:
        super().__init__(stage=stage, **settings)
        from deepspeed.accelerator import set_accelerator
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        set_accelerator(CPU_Accelerator())  # also beside a GPU

    @override
    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)  # not DeepSpeedStrategy's: it wants CUDA

    @override
    def setup_distributed(self) -> None:
        import deepspeed

        # It would compile a shared-memory collective that only inference calls.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # DeepSpeed 0.19 calls torch's collectives by their older names.
        warnings.filterwarnings("ignore", ".torch.distributed.* is deprecated", FutureWarning)
        self.set_world_ranks()
        self._set_node_environment_variables()
        deepspeed.init_distributed("gloo", timeout=self._timeout)

    @property
    @override
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank)

    @classmethod
    @override
    def register_strategies(cls, strategy_registry: Any) -> None:
        strategy_registry.register("deepspeed_cpu", cls, description="ZeRO-2 on CPU processes")


def strategy_for_run(strategy: str | Strategy) -> str | Strategy:
    """The strategy of one trainer of a run: its own, and of DeepSpeed's one that writes files.

    Args:
        strategy: As it was given: a name or an instance, of which several trainers need copies.

    Raises:
        ValueError: An instance of Lightning's `DeepSpeedStrategy`, which writes folders.

    >>> strategy_for_run("ddp")
    'ddp'
    """
    if isinstance(strategy, str):
        if not strategy.startswith("deepspeed") or strategy == DeepSpeedCPUStrategy.strategy_name:
            return strategy
        return ZeROStrategy(**StrategyRegistry[strategy]["init_params"])
    if isinstance(strategy, DeepSpeedStrategy) and not isinstance(strategy, ZeROStrategy):
        raise ValueError(  # noqa: TRY004 - a setting, not a type
            "lightning's DeepSpeedStrategy writes checkpoints that are folders, which no command "
            "reads; take lightning_kd.strategies.ZeROStrategy, with the same settings"
        )
    return deepcopy(strategy)


DeepSpeedCPUStrategy.register_strategies(StrategyRegistry)
