"""Plans against arithmetic, against real tensors, and against each other."""

from dataclasses import replace

import pytest
import torch

from lightning_kd.methods import DyLoRA
from lightning_kd.nn import DynamicLoRALinear, match_linear_layers, replace_modules
from lightning_kd.planning import gpu_named, largest_batch, plan_memory
from lightning_kd.planning import trace as tracing
from lightning_kd.planning.live import tensor_bytes
from lightning_kd.planning.memory import optimizer_bytes
from lightning_kd.planning.trace import trace
from tests import tiny
from tests.planning.shapes import bert, falcon, language_model, training
from tests.planning.test_quantized import quantized, stored


def test_weights_and_moments_of_a_llama_by_hand() -> None:
    parts = plan_memory(training()).parts
    block = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 64 + 2 * 32
    weights = 2 * 96 * 32 + 2 * block + 32
    rotary = 4 * 4  # half of a head's width, in fp32; and a second copy
    assert parts["weights, float32"] == 4 * weights + 2 * rotary
    assert parts["optimizer"] == 8 * weights + 4 * (2 + 2 * 9 + 1)


@pytest.mark.parametrize("double_quant", [True, False])
def test_a_dynamic_adapter_on_four_bits_is_counted_exactly(double_quant) -> None:
    """Codes, scales, adapters, gradients and moments against the tensors of a real step."""
    import transformers

    model = transformers.LlamaForCausalLM(language_model()).train()
    names = match_linear_layers(model, "all-linear", exclude=["lm_head"])
    shapes = {name: model.get_submodule(name).weight.shape[::-1] for name in names}
    replace_modules(
        model, names, lambda old: quantized((old.in_features, old.out_features), double_quant)
    )
    expected = [stored(model.get_submodule(name)) for name in names]
    model.requires_grad_(requires_grad=False)
    replace_modules(model, names, lambda base: DynamicLoRALinear(base, 8))
    layers = [model.get_submodule(name) for name in names]
    for layer in layers:
        layer.set_rank(8)
    factors = [p for layer in layers for p in (layer.lora_A, layer.lora_B)]
    optimizer = torch.optim.AdamW(factors, fused=True)
    tokens = torch.ones(4, 24, dtype=torch.long)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    moments = [v for state in optimizer.state.values() for v in state.values()]

    planned = training(
        train="adapter", dynamic=True, rank=8, target_modules="all-linear", quantization="nf4",
        double_quant=double_quant, accumulate=2,
    )  # fmt: skip
    parts = plan_memory(planned).parts
    assert len(shapes) == 14
    assert parts["weights, 4 bits"] == sum(codes for codes, _ in expected)
    assert parts["scales of 4-bit weights"] == sum(scales for _, scales in expected)
    assert parts["adapters"] == tensor_bytes(factors)
    assert parts["gradients"] == tensor_bytes(p.grad for p in factors)
    assert parts["optimizer"] == tensor_bytes(moments)


def test_weights_of_an_adapter_method_are_those_of_the_module() -> None:
    module = DyLoRA(tiny.model(), tiny.TASKS["classification"], max_rank=4)
    planned = bert(train="adapter", dynamic=True, rank=4)
    found = trace(planned)
    assert sum(found.parts.values()) == tensor_bytes(
        [*module.student.parameters(), *module.student.buffers()]
    )
    trained = [p for p in module.parameters() if p.requires_grad]
    assert sorted(found.trainable) == sorted((p.numel(), p.element_size()) for p in trained)
    assert optimizer_bytes(planned, found.trainable) == 8 * sum(map(torch.numel, trained)) + (
        4 * len(trained)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 1, "length": 2},
        {"checkpointing": True, "accumulate": 2},
        {"train": "adapter", "target_modules": "all-linear", "device": "cuda", "dropout": 0.1},
        {"precision": "bf16-mixed", "device": "cuda"},
    ],
)
def test_a_continued_stack_is_the_stack(changes, monkeypatch) -> None:
    deep = training(student=language_model(num_hidden_layers=9), **changes)
    continued = plan_memory(deep)
    monkeypatch.setattr(tracing, "DEEPER", 99)
    whole = plan_memory(deep)
    assert continued.total == pytest.approx(whole.total, rel=0.005)
    for name, size in whole.parts.items():
        if not name.startswith(("activations", "working", "gradients", "logits")):
            assert continued.parts[name] == size


def test_checkpointing_keeps_the_inputs_of_blocks() -> None:
    deep = training(student=language_model(num_hidden_layers=4), train="adapter", rank=1)
    deep = replace(deep, target_modules="all-linear")
    kept = trace(replace(deep, checkpointing=True)).kept.activations
    deeper = replace(deep, student=language_model(num_hidden_layers=5), checkpointing=True)
    assert trace(deeper).kept.activations - kept == 4 * 24 * 32 * 4  # b l d in fp32
    assert trace(deep).kept.activations > 5 * kept


def test_a_teacher_adds_its_weights_and_no_activations() -> None:
    alone, taught = plan_memory(bert()), plan_memory(bert(teacher=tiny.config("bert")))
    assert taught.parts["teacher"] == sum(trace(bert()).parts.values())
    assert taught.parts["activations"] < 1.05 * alone.parts["activations"]


def test_the_largest_batch_is_the_largest() -> None:
    given = training()
    needs = [plan_memory(replace(given, batch_size=size)).total for size in range(1, 8)]
    for size in (1, 3, 6):
        assert largest_batch(given, needs[size - 1]) == size
        assert largest_batch(given, needs[size - 1] - 1) == size - 1
    assert largest_batch(given, 10**12, limit=16) == 16


def test_eight_bit_moments() -> None:
    planned = training(optimizer="adamw_8bit")
    assert optimizer_bytes(planned, [(4096, 4)]) == 2 * 4096 + 2 * 4 * 16
    assert optimizer_bytes(planned, [(100, 4)]) == 800  # small ones stay in 32 bits
    assert optimizer_bytes(training(optimizer="adamw_32bit"), [(100, 2)]) == 800
    assert optimizer_bytes(training(optimizer="sgd"), [(100, 2)]) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"precision": "64"}, "precision must be one of 32-true"),
        ({"quantization": "nf4"}, "cannot be trained"),
        ({"exits": 3}, "logit_chunk"),
    ],
)
def test_what_cannot_be_is_refused(changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        training(**changes)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_falcon_40b_fits_one_v100_as_the_arithmetic_says() -> None:
    plan = plan_memory(falcon())
    wanted = {
        "weights, 4 bits": 20.38, "scales of 4-bit weights": 0.647, "weights, float16": 1.07,
        "adapters": 0.889, "gradients": 0.889, "optimizer": 3.555,
        # 60 inputs of blocks, and the final norm's
        "activations": 61 * 8192 * 512 * 2 / 1e9,
    }  # fmt: skip
    for name, size in wanted.items():
        assert plan.parts[name] / 1e9 == pytest.approx(size, rel=0.01), name
    assert plan.pageable == plan.parts["optimizer"]
    free = plan.free(gpu_named("V100-32GB").memory) / 1e9
    assert 4 < free < 6
    assert 28 < (plan.total - plan.parts["framework (estimate)"]) / 1e9 < 29
    without = plan_memory(falcon(checkpointing=False))
    assert without.free(gpu_named("V100-32GB").memory) < 0
