"""Merged and exported adapters: on the same codes, on the dense base, and on another one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from lightning_kd.base_record import RECORD
from lightning_kd.methods import DyLoRA, QDyLoRA
from lightning_kd.models import head_modules, load_model
from lightning_kd.nn import is_four_bit
from lightning_kd.quantization import quantize
from tests import tiny

TASK = tiny.TASKS["classification"]
KINDS = pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
R = 4


def base(kind: str = "bert") -> nn.Module:
    """Wide enough for every backend; the same one each time."""
    sizes = {"n_embd": 64} if kind == "gpt2" else {"hidden_size": 64, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_model(tiny.config(kind, **sizes), TASK).eval()


def made(kind: str = "bert", backend: str = "reference", **settings: Any) -> QDyLoRA:
    if backend == "bitsandbytes":
        pytest.importorskip("bitsandbytes")
    module = QDyLoRA(base(kind), TASK, **{"max_rank": R, "backend": backend, **settings})
    module = tiny.filled(module).eval()
    for layer in module.adapters.values():  # an update of the size of the weights
        layer.lora_B.data.mul_(0.02)
    return module


@torch.no_grad()
def answer(model: nn.Module | QDyLoRA, rank: int = 0) -> torch.Tensor:
    if isinstance(model, DyLoRA):
        with model.at_size(rank):
            return model.predict(tiny.batch()).logits
    return TASK.predict(model, tiny.batch()).logits


def with_peft(model: nn.Module, folder: Path) -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fan_in_fan_out.*")
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        return PeftModel.from_pretrained(model, str(folder)).eval()


@KINDS
@pytest.mark.parametrize("backend", ["reference", "bitsandbytes"])
def test_merging_into_the_decoded_weights_answers_alike(kind, backend) -> None:  # Q10
    module = made(kind, backend)
    codes = {n: p.clone() for n, p in module.named_parameters()}
    for rank in (1, 3):
        merged = module.merged_student(rank)
        assert not any(is_four_bit(m) for m in merged.modules())
        torch.testing.assert_close(answer(merged), answer(module, rank), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(p, codes[n]) for n, p in module.named_parameters())
    # Quantized once more it is another model: why there is no merging into codes.
    quantize(merged, backend="reference", exclude=head_modules(merged))
    assert not torch.allclose(answer(merged), answer(module, 3), rtol=1e-3, atol=1e-3)
    with pytest.raises(RuntimeError, match="cannot be merged into"):
        module.merge(1)
    with pytest.raises(ValueError, match="between 1 and max_rank=4, got 5"):
        module.merged_student(5)


@KINDS
@pytest.mark.parametrize("scaling", ["alpha/b", "alpha/R"])
@pytest.mark.parametrize("backend", ["reference", "bitsandbytes"])
def test_an_exported_rank_answers_bit_for_bit_on_the_same_codes(
    kind, scaling, backend, tmp_path
) -> None:  # Q11
    module = made(kind, backend, scaling=scaling)
    for rank in (1, 2, 4):
        folder = tmp_path / f"rank_{rank}"
        module.export(folder, rank)
        student = base(kind)
        quantize(student, backend=backend, exclude=head_modules(student))
        assert torch.equal(answer(with_peft(student, folder)), answer(module, rank))


@KINDS
def test_it_loads_on_a_base_that_transformers_quantized(kind, tmp_path) -> None:
    import transformers

    module = made(kind, "bitsandbytes")
    student: Any = base(kind)
    student.save_pretrained(tmp_path / "base")
    module.export(tmp_path / "adapter", 2)
    settings: Any = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
        "llm_int8_skip_modules": head_modules(student),
    }
    made_config: Any = transformers.BitsAndBytesConfig
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", quantization_config=made_config(**settings)
    )
    packed = [m for m in loaded.modules() if is_four_bit(m)]
    assert len(packed) == len(module.adapters)
    for layer in packed:  # in evaluation it would repack its weight for a kernel in bf16
        layer.support_avx512bf16_for_cpu = False
    theirs = answer(with_peft(loaded, tmp_path / "adapter"))
    torch.testing.assert_close(theirs, answer(module, 2), rtol=1e-5, atol=1e-6)


@KINDS
@pytest.mark.parametrize("rank", [1, 4])
def test_it_loads_on_the_dense_base_which_differs_by_the_quantization_error(
    kind, rank, tmp_path
) -> None:
    module = made(kind)
    module.export(tmp_path / "adapter", rank)
    plain = DyLoRA(base(kind), TASK, max_rank=R, target_modules="all-linear").eval()
    with pytest.warns(UserWarning, match="trained on a base in four bits .nf4., this one is not"):
        plain.load_adapter(tmp_path / "adapter")
    theirs = answer(with_peft(base(kind), tmp_path / "adapter"))
    assert torch.equal(theirs, answer(plain, rank))
    apart = (theirs - answer(module, rank)).abs().max() / theirs.abs().max()
    assert 0 < apart < 0.5


def test_the_folder_records_the_base_beside_peft_s_files(tmp_path) -> None:
    module = made(double_quant=False, quantization="fp4", compute_dtype="bfloat16")
    for _ in range(2):  # an export replaces an older one
        module.export(tmp_path / "adapter", 2)
    files = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", RECORD}
    record = json.loads((tmp_path / "adapter" / RECORD).read_text())
    assert len(record.pop("weights")) == 32
    assert record == {
        "kind": "fp4",
        "double_quant": False,
        "block_size": 64,
        "compute_dtype": "bfloat16",
    }
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 16)


def test_an_adapter_comes_back_onto_its_own_base_without_a_word(tmp_path) -> None:
    module = made()
    module.export(tmp_path / "adapter", 3)
    again = QDyLoRA(
        base(), TASK, max_rank=R, backend="reference", adapter=str(tmp_path / "adapter")
    ).eval()
    assert torch.equal(answer(again, 3), answer(module, 3))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quantization": "fp4"}, "kind nf4 there and fp4 here"),
        ({"double_quant": False}, "double_quant True there and False here"),
        ({"compute_dtype": "bfloat16"}, r"\(compute_dtype float32 there and bfloat16 here\)"),
    ],
)
def test_another_base_is_warned_of_with_what_differs(settings, said, tmp_path) -> None:
    made().export(tmp_path / "adapter", 2)
    other = made(**settings)
    with pytest.warns(UserWarning, match=said):
        other.load_adapter(tmp_path / "adapter")


def test_other_weights_are_warned_of(tmp_path) -> None:
    made().export(tmp_path / "adapter", 2)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        sizes = {"hidden_size": 64, "intermediate_size": 64}
        student = load_model(tiny.config("bert", **sizes), TASK)
    other = QDyLoRA(student, TASK, max_rank=R, backend="reference")
    with pytest.warns(UserWarning, match=r"another base \(weights \w+ there and \w+ here\)"):
        other.load_adapter(tmp_path / "adapter")
