"""A recipe's settings as a `Training`: its file is read, its config parsed, nothing started."""

import ast
import importlib
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from lightning_kd.nn.sorted_exits import check_exits
from lightning_kd.planning.gpus import GB, GPU
from lightning_kd.planning.training import PRECISIONS, Training
from lightning_kd.quantization import mixed_dtype
from lightning_kd.tasks import Image, Task

_PRECISIONS = {"None": "32-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
_IMAGE_SIZE = 32


def classes_of(recipe: Path) -> tuple[type[Any], type[Any]]:
    """Method and data module that a recipe runs: what it calls ``run`` with.

    The file is read and not executed; recipes are never imported.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has no ``run(Method, Data)``, or names classes that it does not import.
    """
    if not recipe.is_file():
        raise FileNotFoundError(f"there is no recipe {recipe}; give a file such as recipes/x.py")
    try:
        tree = ast.parse(recipe.read_text(encoding="utf-8"), str(recipe))
    except SyntaxError as error:
        raise ValueError(f"{recipe} is no Python file: {error}; give a recipe's file") from error
    imported = {
        name.asname or name.name: (node.module or "", name.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run":
            names = [arg.id for arg in node.args[:2] if isinstance(arg, ast.Name)]
            if len(names) == 2 and all(name in imported for name in names):
                method, data = (imported[name] for name in names)
                return _load(*method), _load(*data)
    raise ValueError(f"{recipe} has no run(Method, Data) of imported classes; give a recipe's file")


def _load(module: str, name: str) -> type[Any]:
    found: type[Any] | None = getattr(importlib.import_module(module), name, None)
    if found is None:
        raise ImportError(f"the recipe imports {name} from {module}, which has none; correct it")
    return found


def settings_of(
    recipe: Path, method: type[Any], data: type[Any], overrides: Sequence[str]
) -> dict[str, Any]:
    """All settings that a run of the recipe would have, defaults, overlays and overrides included.

    Args:
        recipe: Its file.
        method: Its method.
        data: Its data module.
        overrides: What would follow on its command line.

    Raises:
        SystemExit: They do not parse; the reason is on standard error.
    """
    import yaml  # type: ignore[import-untyped]

    from lightning_kd.cli import run

    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            run(method, data, args=[*overrides, "--print_config"], recipe=recipe)
    except SystemExit as end:
        if end.code:
            raise
    found: dict[str, Any] = yaml.safe_load(printed.getvalue())
    return found


def training_of(
    method: type[Any], data: type[Any], settings: Mapping[str, Any], gpu: GPU
) -> Training:
    """The training that a recipe's settings describe, on a GPU.

    What a method trains is told by the names of its arguments: ``rank`` or ``max_rank`` make an
    adapter, ``train`` says which part, ``teacher`` is a second model, ``quantization`` and its
    neighbours are those of QDyLoRA, ``exits`` those of SoFT.

    Raises:
        ValueError: Settings that a `Training` cannot have; bf16 on a GPU without.
        FileNotFoundError: A model's folder is not there.
        ConnectionError: Nor the Hub, for a model's config.
    """
    model, trainer = settings["model"], settings.get("trainer", {})
    named = settings["data"]["task"]
    if named not in data.tasks:
        raise ValueError(
            f"{data.__name__} has no task {named!r}; choose from {', '.join(data.tasks)}"
        )
    task: Task = data.tasks[named]
    given = str(trainer.get("precision"))
    precision = _PRECISIONS.get(given, given)
    student = config_of(model["student"], task)
    more: dict[str, Any] = {}
    if isinstance(task, Image):
        more["length"] = _IMAGE_SIZE
    else:
        more["length"] = settings["data"]["max_length"]
    training = Training(
        student=student,
        task=task,
        batch_size=settings["data"]["batch_size"],
        student_layers=model.get("student_layers"),
        precision=precision,
        fused=precision != "16-mixed",
        accumulate=trainer.get("accumulate_grad_batches") or 1,
        late_zero_grad=True,
        checkpointing=bool(model.get("gradient_checkpointing")),
        averaged=_averages(trainer.get("callbacks")),
        **_trained(method, model),
        **_quantized(model, precision, gpu),
        **_optimizer(model),
        **_teacher(model, task),
        **_exits(model, student),
        **more,
    )
    check_bf16(training, gpu)
    return training


def check_bf16(training: Training, gpu: GPU) -> None:
    """Refuse bfloat16 where a GPU does not compute in it.

    Raises:
        ValueError: It does not.
    """
    if gpu.has_bf16 or training.half is not torch.bfloat16:
        return
    major, minor = gpu.capability
    lacks = f"a {gpu.name} does not compute in bfloat16 (compute capability {major}.{minor} < 8.0)"
    mixed = PRECISIONS[training.precision] is torch.bfloat16
    if not mixed and training.quantization is not None:
        raise ValueError(
            f"{lacks}: use --model.compute_dtype float32; float16 is smaller, but unstable in "
            "QLoRA: about a fifth of its LLaMA-7B runs failed (its README)"
        )
    raise ValueError(f"{lacks}: use --trainer.precision 16-mixed, or 32-true")


def config_of(name: str, task: Task) -> Any:
    """A model's transformers config, from its folder, the cache or the Hub; or a ResNet's name.

    Raises:
        FileNotFoundError: There is no such folder.
        ConnectionError: The Hub cannot be reached and the config is not in its cache.
    """
    import transformers

    from lightning_kd.models import check_local, check_looks_back, quiet, unreachable
    from lightning_kd.nn.resnet import depth_of, is_resnet_folder

    folder = Path(name).expanduser()
    if isinstance(task, Image) and (depth_of(name) is not None or is_resnet_folder(folder)):
        return name
    check_local(name)
    try:
        with quiet():
            found = transformers.AutoConfig.from_pretrained(
                str(folder) if folder.is_dir() else name
            )
    except (OSError, ValueError) as error:
        raise unreachable(name, error) from error
    check_looks_back(found, task, name)
    return found


def _trained(method: type[Any], model: Mapping[str, Any]) -> dict[str, Any]:
    from lightning_kd.methods import AdapterModule

    rank = model.get("max_rank", model.get("rank"))
    if rank is None or not issubclass(method, AdapterModule):
        part = str(model.get("train") or "all")
        return {"train": "head" if part.startswith("head") else "all"}
    return {
        "train": "adapter",
        "rank": rank,
        "dynamic": "max_rank" in model,
        "target_modules": model.get("target_modules"),
        "modules_to_save": model.get("modules_to_save"),
        "dropout": model.get("dropout") or 0.0,
    }


def _quantized(model: Mapping[str, Any], precision: str, gpu: GPU) -> dict[str, Any]:
    kind = model.get("quantization")
    if kind is None:
        return {}
    named = model.get("compute_dtype") or "auto"
    dtype = mixed_dtype(named, precision)
    if dtype is None and named == "auto":
        dtype = torch.bfloat16 if gpu.has_bf16 else torch.float32
    double = model.get("double_quant")
    return {
        "quantization": kind,
        "double_quant": True if double is None else double,
        "compute_dtype": dtype or getattr(torch, named),
    }


def _optimizer(model: Mapping[str, Any]) -> dict[str, Any]:
    given = model.get("optimizer")
    if given is None:
        dense = model.get("optimizer_semantics") == "dense"
        pages = "paged_optimizer" in model and model["paged_optimizer"] is not False and dense
        return {"optimizer": "adamw_32bit", "paged": True} if pages else {}
    kind, arguments = given["class_path"].rpartition(".")[2], given.get("init_args") or {}
    if kind == "SGD":
        return {"optimizer": "sgd_momentum" if arguments.get("momentum") else "sgd"}
    if "8bit" in kind:
        return {"optimizer": "adamw_8bit", "paged": "Paged" in kind}
    if given["class_path"].startswith("bitsandbytes."):
        return {"optimizer": "adamw_32bit", "paged": "Paged" in kind}
    return {"fused": bool(arguments.get("fused"))}


def _teacher(model: Mapping[str, Any], task: Task) -> dict[str, Any]:
    name = model.get("teacher")
    if not isinstance(name, str) or not name:
        return {}
    if name.endswith(".ckpt"):
        raise ValueError(
            f"the teacher {name} is a checkpoint, whose shape is not to be read before it is "
            "loaded; give the folder that `lightning-kd export` makes of it"
        )
    return {"teacher": config_of(name, task), "teacher_bits": model.get("teacher_bits")}


def _exits(model: Mapping[str, Any], student: Any) -> dict[str, Any]:
    if "exits" not in model:
        return {}
    cut = model.get("student_layers") or student.num_hidden_layers
    depth = cut if isinstance(cut, int) else len(cut)
    exits = model["exits"]
    if exits is None:
        exits = [*range(model["exit_start"], depth, model["exit_every"])] or [depth]
    number = len({*check_exits(exits, depth), depth})
    if model.get("head") == "per_exit":
        size = (number - 1) * student.hidden_size * student.vocab_size * 16 / GB
        raise ValueError(
            "heads of their own (head=per_exit) are in no plan: add to that of head=shared "
            f"{size:.2f} GB, their weights, gradients and moments in fp32"
        )
    number = 1 if model.get("loss") == "random" else number
    return {"exits": number, "logit_chunk": model.get("chunk_size") or 1024}


def _averages(callbacks: Any) -> bool:
    listed = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
    return any(str(c.get("class_path")).endswith("StudentAveraging") for c in listed)


__all__ = ["check_bf16", "classes_of", "config_of", "settings_of", "training_of"]
