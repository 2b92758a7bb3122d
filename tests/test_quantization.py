"""A model in four bits: which layers, types that fit together, devices, and what is recorded."""

import copy
import json
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_kd.base_record import RECORD, BaseRecord, record_of, warn_of_another_base
from lightning_kd.methods import QDyLoRA
from lightning_kd.models import head_modules
from lightning_kd.nn import FourBitLinear, dense_weight, is_four_bit
from lightning_kd.nn.dynamic_lora import linear_shape
from lightning_kd.quantization import (
    check_device,
    choose_compute_dtype,
    dequantize,
    quantize,
    require_bitsandbytes,
)
from tests import tiny

TASK = tiny.TASKS["classification"]
UNKNOWN: Any = "int4"
KINDS = pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama"])


def quantized(kind: str = "bert", dtype: torch.dtype = torch.float32, **settings: Any) -> nn.Module:
    model = tiny.model(kind).to(dtype)
    exclude = head_modules(model)
    quantize(model, backend="reference", exclude=exclude, **settings)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return TASK.predict(model, tiny.batch()).logits


@KINDS
def test_all_linear_layers_but_the_head_become_codes_and_the_rest_stays(kind) -> None:
    model, before = quantized(kind), tiny.model(kind)
    packed = {name for name, module in model.named_modules() if is_four_bit(module)}
    heads = head_modules(model)
    linear = {name for name, module in before.named_modules() if linear_shape(module) is not None}
    assert packed == {n for n in linear if not any(n.startswith(head) for head in heads)}
    assert len(packed) in (8, 12, 14)
    kept = dict(model.named_parameters())
    for name, parameter in before.named_parameters():
        if name.rpartition(".")[0] not in packed:
            assert torch.equal(kept[name], parameter), name


@KINDS
def test_its_answers_are_those_of_a_dense_model_with_the_decoded_weights(kind) -> None:
    model = quantized(kind)
    dense = copy.deepcopy(model)
    dequantize(dense)
    assert not any(is_four_bit(module) for module in dense.modules())
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-6, atol=1e-6)
    assert not torch.equal(logits(model), logits(tiny.model(kind)))


def test_gpt2_s_transposed_layer_is_quantized_as_it_multiplies() -> None:
    name = "transformer.h.0.attn.c_attn"
    layer = quantized("gpt2").get_submodule(name)
    kept: Any = tiny.model("gpt2").get_submodule(name)
    assert isinstance(layer, FourBitLinear)
    assert (layer.in_features, layer.out_features) == (8, 24)
    assert torch.equal(dense_weight(layer), dense_weight(FourBitLinear(kept.weight.t())))
    assert layer.bias is not None
    assert torch.equal(layer.bias, kept.bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@KINDS
def test_a_model_in_16_bits_runs_with_norms_in_32_and_the_head_in_its_own_type(kind, dtype) -> None:
    model = quantized(kind, dtype)
    wide = [m for n, m in model.named_modules() if "norm" in type(m).__name__.lower()]
    assert {p.dtype for m in wide for p in m.parameters()} == {torch.float32}
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    assert {m.weight.dtype for m in embeddings} == {dtype}
    assert {m(torch.zeros(1, dtype=torch.long)).dtype for m in embeddings} == {torch.float32}
    answer = logits(model)
    assert answer.dtype == dtype  # the head's
    expected = logits(quantized(kind))
    torch.testing.assert_close(answer.float(), expected, rtol=0.1, atol=0.02)
    torch.nn.functional.cross_entropy(model(**tiny.batch()).logits, tiny.batch()["labels"])


def test_excluded_modules_are_named_whole_or_by_suffix() -> None:
    model = tiny.model("llama")
    names = quantize(model, backend="reference", exclude=["score", "self_attn", "mlp.up_proj"])
    assert {name.rpartition(".")[2] for name in names} == {"gate_proj", "down_proj"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: quantize(m, UNKNOWN), "quantization must be nf4 or fp4, got 'int4'"),
        (lambda m: quantize(m, backend=UNKNOWN), "backend must be .* got 'int4'"),
        (
            lambda m: quantize(m, backend="reference", exclude=["bert", "classifier"]),
            r"BertForSequenceClassification has no linear layer outside \['bert', 'classifier'\]",
        ),
        (
            lambda m: [quantize(m, backend="reference") for _ in range(2)],
            "query is quantized already; give the model in 16 or 32 bits",
        ),
    ],
)
def test_what_cannot_be_quantized_is_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(tiny.model())


def test_without_bitsandbytes_the_way_out_is_the_extra(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install -e .\[quant\].*backend reference"):
        quantize(tiny.model())
    with pytest.raises(ImportError, match="needs bitsandbytes"):
        require_bitsandbytes()


def test_a_device_without_four_bits_is_refused(monkeypatch) -> None:
    pytest.importorskip("bitsandbytes")
    check_device(torch.device("cpu"), "bitsandbytes")
    check_device(torch.device("xla"), "reference")
    with pytest.raises(ValueError, match=r"no four-bit layers on xla; set --model\.backend ref"):
        check_device(torch.device("xla"), "bitsandbytes")
    with pytest.raises(ValueError, match="64-bit numbers, which mps lacks"):
        check_device(torch.device("mps"), "reference")
    cuda = {"get_device_capability": lambda _: (5, 2), "get_device_name": lambda _: "GTX 980"}
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(**cuda))
    with pytest.raises(ValueError, match="no four-bit layers for GTX 980"):
        check_device(torch.device("cuda"), "bitsandbytes")


@pytest.mark.parametrize(
    ("wanted", "device", "capability", "dtype", "reason"),
    [
        ("auto", "cuda", (8, 0), torch.bfloat16, "the paper's"),
        ("auto", "cuda", (7, 0), torch.float32, "V100 has no bfloat16 .* --model.compute_dtype"),
        ("auto", "xpu", None, torch.bfloat16, "the paper's"),
        ("auto", "cpu", None, torch.float32, "few processors"),
        ("float16", "cuda", (7, 0), torch.float16, "as it was set"),
        ("bfloat16", "cpu", None, torch.bfloat16, "as it was set"),
    ],
)
def test_the_compute_type_is_the_device_s(
    wanted, device, capability, dtype, reason, monkeypatch
) -> None:
    cuda = {"get_device_capability": lambda _: capability, "get_device_name": lambda _: "V100"}
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(**cuda))
    found, why = choose_compute_dtype(wanted, torch.device(device))
    assert found == dtype
    assert re.search(reason, why)


@pytest.mark.parametrize(
    ("wanted", "precision", "device", "said"),
    [
        ("float32", "bf16-mixed", "cpu", "compute_dtype=float32 has no effect with .*bf16-mixed"),
        ("bfloat16", "16-mixed", "cpu", "computes every product in float16; set .*32-true"),
        ("bfloat16", "32-true", "cuda", "V100 has no bfloat16 arithmetic; set .*16-mixed"),
        ("auto", "bf16-mixed", "cuda", "V100 has no bfloat16 arithmetic"),
    ],
)
def test_a_compute_type_that_would_not_be_is_refused(
    wanted, precision, device, said, monkeypatch
) -> None:
    cuda = {"get_device_capability": lambda _: (7, 0), "get_device_name": lambda _: "V100"}
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(**cuda))
    with pytest.raises(ValueError, match=said):
        choose_compute_dtype(wanted, torch.device(device), precision)


def test_a_mixed_precision_decides() -> None:
    found, why = choose_compute_dtype("auto", torch.device("cpu"), "bf16-mixed")
    assert found is torch.bfloat16
    assert why == "trainer.precision=bf16-mixed computes every product in it"
    assert choose_compute_dtype("float16", torch.device("cpu"), "16-mixed")[0] is torch.float16


def test_an_unknown_compute_type_is_named() -> None:
    with pytest.raises(ValueError, match=r"compute_dtype must be auto, .* got 'int8'"):
        choose_compute_dtype("int8", torch.device("cpu"))


def record(**changes: Any) -> BaseRecord:
    found = record_of(quantized().named_modules())
    assert found is not None
    return replace(found, **changes)


def test_a_record_says_what_the_base_is_and_tells_weights_apart() -> None:
    assert record_of(tiny.model().named_modules()) is None
    ours = record()
    assert (ours.kind, ours.double_quant, ours.block_size) == ("nf4", True, 64)
    assert ours.compute_dtype == "float32"
    assert ours == record()
    model = quantized()
    adapted = QDyLoRA(tiny.model(), TASK, max_rank=2, backend="reference")
    assert record_of(adapted.student.named_modules()) == ours
    scales = next(p for n, p in model.named_parameters() if n.endswith("outer_scales"))
    scales.view(torch.float32).mul_(2)  # the same codes, another weight
    assert record_of(model.named_modules()) != ours


def test_both_backends_have_the_same_record() -> None:
    pytest.importorskip("bitsandbytes")
    found = []
    for backend in ("reference", "bitsandbytes"):
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(0))
        quantize(model, backend=backend, double_quant=False)
        found.append(record_of(model.named_modules()))
    assert found[0] == found[1]


def test_a_record_is_read_as_it_was_written_and_a_damaged_one_is_named(tmp_path) -> None:
    assert BaseRecord.read(tmp_path) is None
    record().write(tmp_path)
    assert BaseRecord.read(tmp_path) == record()
    written = json.loads((tmp_path / RECORD).read_text())
    for text in ("{", json.dumps({**written, "bits": 4}), json.dumps({"kind": "nf4"})):
        (tmp_path / RECORD).write_text(text)
        with pytest.raises(ValueError, match=r"is damaged .*; export the adapter again"):
            BaseRecord.read(tmp_path)


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        (record(kind="fp4", weights="x"), record(), r"\(kind fp4 there and nf4 here\)"),
        (record(double_quant=False), record(), r"\(double_quant False there and True here\)"),
        (record(weights="00"), record(weights="11"), r"\(weights 00 there and 11 here\)"),
        (record(), record(compute_dtype="bfloat16"), "float32 there and bfloat16 here"),
        (record(), None, "four bits .nf4., this one is not quantized"),
    ],
)
def test_an_adapter_on_another_base_is_warned_of_with_what_differs(theirs, ours, said) -> None:
    with pytest.warns(UserWarning, match=said):
        warn_of_another_base(theirs, ours)


def test_an_adapter_on_its_own_base_or_without_a_record_is_not() -> None:
    warn_of_another_base(record(), record())
    warn_of_another_base(None, record())
    warn_of_another_base(None, None)
