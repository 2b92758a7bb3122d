"""What recipes train, read from their files and settings."""

from pathlib import Path

import pytest
import torch

from lightning_kd import methods
from lightning_kd.data import GLUE, Instructions
from lightning_kd.methods import DyLoRA, FineTuning, LoRA, VanillaKD
from lightning_kd.planning import gpu_named
from lightning_kd.planning.recipe import classes_of, training_of
from tests import tiny
from tests.kill import ROOT

V100, A100 = gpu_named("V100-32GB"), gpu_named("A100-40GB")
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_understood_without_running_it(recipe) -> None:
    method, data = classes_of(recipe)
    assert method.__name__ in methods.METHODS
    assert data.__name__ in recipe.read_text()


def test_what_is_no_recipe_is_said(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no recipe"):
        classes_of(tmp_path / "none.py")
    file = tmp_path / "x.py"
    file.write_text("raise SystemExit('it was run')\n")
    with pytest.raises(ValueError, match="has no run"):
        classes_of(file)
    file.write_text("run(\n")
    with pytest.raises(ValueError, match=r"x\.py is no Python file: .*give a recipe's file"):
        classes_of(file)
    file.write_text("from lightning_kd.methods import KD\nfrom x import Y\nrun(KD, Y)\n")
    with pytest.raises(ImportError, match=r"imports KD from lightning_kd\.methods, which has none"):
        classes_of(file)


def settings(data=None, trainer=None, **model):
    found = {"task": "sst2", "batch_size": 16, "max_length": 64, **(data or {})}
    student = tiny.named_model("llama" if found["task"] == "alpaca" else "bert")
    return {"model": {"student": student, **model}, "data": found, "trainer": trainer or {}}


def test_adapters_and_heads() -> None:
    given = settings(max_rank=4, target_modules=["query"], dropout=0.1)
    made = training_of(DyLoRA, GLUE, given, V100)
    assert (made.train, made.dynamic, made.rank, made.dropout) == ("adapter", True, 4, 0.1)
    assert (made.target_modules, made.batch_size, made.length) == (["query"], 16, 64)
    assert not training_of(LoRA, GLUE, settings(rank=2), V100).dynamic
    assert training_of(FineTuning, GLUE, settings(train="head"), V100).train == "head"
    assert training_of(FineTuning, GLUE, settings(train="all"), V100).train == "all"


def test_trainer_optimizer_and_teacher() -> None:
    trainer = {"precision": "16-mixed", "accumulate_grad_batches": 4}
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}
    given = settings(trainer=trainer, teacher=tiny.named_model(), optimizer=optimizer)
    made = training_of(VanillaKD, GLUE, given, V100)
    assert (made.precision, made.accumulate, made.fused) == ("16-mixed", 4, False)
    assert made.optimizer == "sgd_momentum"
    assert made.teacher.model_type == "bert"
    with pytest.raises(ValueError, match=r"x\.ckpt is a checkpoint"):
        training_of(VanillaKD, GLUE, settings(teacher="x.ckpt"), V100)


QUANTIZED = {
    "max_rank": 64, "quantization": "nf4", "double_quant": True, "gradient_checkpointing": True,
    "optimizer_semantics": "dense", "paged_optimizer": None, "target_modules": "all-linear",
}  # fmt: skip
TEXTS = {"task": "alpaca", "max_length": 32}


def test_the_arguments_of_a_quantized_method() -> None:
    given = settings(TEXTS, **QUANTIZED, compute_dtype="auto")
    made = training_of(DyLoRA, Instructions, given, A100)
    assert (made.quantization, made.checkpointing, made.paged) == ("nf4", True, True)
    assert (made.optimizer, made.compute_dtype) == ("adamw_32bit", torch.bfloat16)
    assert training_of(DyLoRA, Instructions, given, V100).compute_dtype is torch.float32
    mixed = {**given, "trainer": {"precision": "16-mixed"}}
    assert training_of(DyLoRA, Instructions, mixed, V100).compute_dtype is torch.float16
    mixed["model"] = {**given["model"], "compute_dtype": "float32"}
    with pytest.raises(ValueError, match=r"compute_dtype=float32 has no effect with .*16-mixed"):
        training_of(DyLoRA, Instructions, mixed, V100)


def test_the_arguments_of_exits() -> None:
    given = settings(TEXTS, exits=None, exit_start=1, exit_every=1, loss="mean", chunk_size=8)
    made = training_of(FineTuning, Instructions, given, A100)
    assert (made.exits, made.logit_chunk) == (2, 8)
    given["model"] |= {"exit_start": 12}  # beyond the model: its end answers
    assert training_of(FineTuning, Instructions, given, A100).exits == 1
    given["model"] |= {"exits": [1], "loss": "random"}
    assert training_of(FineTuning, Instructions, given, A100).exits == 1
    given["model"] |= {"exits": [1], "loss": "mean", "student_layers": 1}
    assert training_of(FineTuning, Instructions, given, A100).exits == 1
    given["model"] |= {"exits": [3]}
    with pytest.raises(ValueError, match="3"):
        training_of(FineTuning, Instructions, given, A100)
    given["model"] |= {"exits": [1], "student_layers": None, "head": "per_exit"}
    with pytest.raises(ValueError, match=r"head=per_exit.*add to that of head=shared 0\.00 GB"):
        training_of(FineTuning, Instructions, given, A100)


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match=r"GLUE has no task 'sst3'; choose from .*sst2"):
        training_of(FineTuning, GLUE, settings({"task": "sst3"}), V100)


def test_bf16_is_refused_where_a_card_has_none() -> None:
    given = settings(trainer={"precision": "bf16-mixed"})
    with pytest.raises(ValueError, match=r"V100-32GB.*7\.0.*16-mixed"):
        training_of(FineTuning, GLUE, given, V100)
    assert training_of(FineTuning, GLUE, given, A100).precision == "bf16-mixed"
    given = settings(TEXTS, **QUANTIZED, compute_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"compute_dtype float32.*unstable"):
        training_of(DyLoRA, Instructions, given, V100)


def test_models_that_are_not_there() -> None:
    given = settings(student="assets/no_such_model")
    with pytest.raises(FileNotFoundError, match="no model folder"):
        training_of(FineTuning, GLUE, given, V100)
    given = settings(student=str(Path("nobody/nothing")))
    with pytest.raises(ConnectionError, match="local folder"):
        training_of(FineTuning, GLUE, given, V100)
