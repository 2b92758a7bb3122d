"""Plans against arithmetic, against real tensors, and against each other."""

import gc
from dataclasses import replace

import pytest
import torch
from typing_extensions import override

from lightning_kd.methods import DyLoRA, FineTuning, QDyLoRA
from lightning_kd.models import load_model
from lightning_kd.planning import gpu_named, largest_batch, plan_memory
from lightning_kd.planning import trace as tracing
from lightning_kd.planning.live import tensor_bytes
from lightning_kd.planning.memory import optimizer_bytes
from lightning_kd.planning.trace import trace
from tests import tiny
from tests.conformance.matrix import fit
from tests.planning.shapes import bert, falcon, language_model, training
from tests.planning.test_quantized import stored


def test_weights_and_moments_of_a_llama_by_hand() -> None:
    parts = plan_memory(training()).parts
    block = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 64 + 2 * 32
    weights = 2 * 96 * 32 + 2 * block + 32
    rotary = 4 * 4  # half of a head's width, in fp32; and a second copy
    assert parts["weights, float32"] == 4 * weights + 2 * rotary
    assert parts["optimizer"] == 8 * weights + 4 * (2 + 2 * 9 + 1)


@pytest.mark.parametrize("double_quant", [True, False])
def test_a_dynamic_adapter_on_four_bits_is_counted_exactly(double_quant) -> None:  # Q13
    """Codes, scales, adapters, gradients and moments against the tensors of a real step."""
    pytest.importorskip("bitsandbytes")
    config, task = language_model(hidden_size=64), tiny.TASKS["text"]
    module = QDyLoRA(load_model(config, task), task, max_rank=8, double_quant=double_quant)
    layers = module.adapters.values()
    expected = [stored(layer.base_layer) for layer in layers]
    factors = [p for layer in layers for p in (layer.lora_A, layer.lora_B)]
    optimizer = module.make_optimizer()
    tokens = torch.ones(4, 24, dtype=torch.long)
    module.student(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    states = optimizer.state.values()
    moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]

    planned = training(
        student=config, train="adapter", dynamic=True, rank=8, target_modules="all-linear",
        quantization="nf4", double_quant=double_quant, accumulate=2, optimizer="adamw_32bit",
    )  # fmt: skip
    parts = plan_memory(planned).parts
    assert len(layers) == 14
    assert parts["weights, 4 bits"] == sum(codes for codes, _ in expected)
    assert parts["scales of 4-bit weights"] == sum(scales for _, scales in expected)
    assert parts["adapters"] == tensor_bytes(factors)
    assert parts["gradients"] == tensor_bytes(p.grad for p in factors if p.grad is not None)
    assert parts["optimizer"] == tensor_bytes(moments)


def test_gpt2_s_transposed_layers_are_in_four_bits_too() -> None:
    given = {"train": "adapter", "dynamic": True, "rank": 2, "target_modules": "all-linear"}
    parts = trace(bert(student=tiny.config("gpt2"), quantization="nf4", **given)).parts
    assert parts["weights, 4 bits"] == 2 * 8 * (3 * 8 + 8 + 2 * 4 * 8) // 2


def test_lightning_s_step_has_the_last_ones_gradients_while_it_goes_forward() -> None:
    early, late = plan_memory(training()), plan_memory(training(late_zero_grad=True))
    weights = early.parts["weights, float32"] - 2 * 4 * 4  # less the rotary buffers
    assert late.parts["gradients"] == weights
    assert early.total < late.total < early.total + weights  # backward begins without them

    class Watched(FineTuning):
        @override
        def on_before_zero_grad(self, optimizer) -> None:  # after the forward pass
            seen.append(all(p.grad is not None for p in self.student.parameters()))

    seen: list[bool] = []
    fit(Watched(tiny.model(), tiny.TASKS["classification"]), max_steps=2)
    assert seen == [False, True]


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


@pytest.mark.timeout(300)
def test_falcon_40b_fits_one_v100_as_the_arithmetic_says() -> None:  # Q14
    plan = plan_memory(falcon())
    wanted = {
        "weights, 4 bits": 20.38, "scales of 4-bit weights": 0.647, "weights, float16": 1.07,
        "adapters": 0.889, "gradients": 0.889, "optimizer": 3.555,
        # 60 inputs of blocks, and the final norm's: fp32 between layers
        "activations": 61 * 8192 * 512 * 4 / 1e9,
    }  # fmt: skip
    for name, size in wanted.items():
        assert plan.parts[name] / 1e9 == pytest.approx(size, rel=0.01), name
    assert plan.pageable == plan.parts["optimizer"]
    memory = gpu_named("V100-32GB").memory
    assert 4 < plan.free(memory) / 1e9 < 4.5
    assert 29 < (plan.total - plan.parts["framework (estimate)"]) / 1e9 < 30
    # As the method trains it on that card: adapters in fp32, under a guarded loss scale.
    ours = plan_memory(falcon(adapter_dtype=None, precision="16-mixed", fused=False, dropout=0.05))
    assert 2 < ours.free(memory) / 1e9 < 3
    without = plan_memory(falcon(checkpointing=False))
    assert without.free(memory) < 0


def test_a_peft_adapter_s_kept_head_leaves_nothing_that_cannot_be_collected() -> None:
    plain, dynamic = (
        trace(bert(train="adapter", rank=4, dynamic=dynamic)).parts for dynamic in (False, True)
    )
    gc.collect()  # of deep copies of fake tensors: the end of the process
    head = 4 * (8 * 8 + 8 + 8 * 2 + 2)
    assert plain["weights, float32"] - dynamic["weights, float32"] == head
