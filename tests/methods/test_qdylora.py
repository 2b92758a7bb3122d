"""QDyLoRA as a module: a frozen base, checkpointing, resuming, optimizers, refusals."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from scipy.stats import chisquare

from lightning_kd.callbacks import SizeSampler
from lightning_kd.methods import DyLoRA, QDyLoRA
from lightning_kd.nn import is_four_bit
from lightning_kd.nn.four_bit_linear import packed_tensors
from lightning_kd.optim import NestedAdamW
from tests import tiny
from tests.conformance.matrix import differing, fit, weights

TASK = tiny.TASKS["classification"]
BACKENDS = pytest.mark.parametrize("backend", ["reference", "bitsandbytes"])
WIDE = {"hidden_size": 64, "intermediate_size": 64}


def made(kind: str = "bert", backend: str = "reference", **settings: Any) -> QDyLoRA:
    if backend == "bitsandbytes":
        pytest.importorskip("bitsandbytes")
    student = settings.pop("student", None)
    if student is None:
        student = tiny.model(kind) if backend == "reference" else wide(kind)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        given: dict[str, Any] = {"max_rank": 4, "dropout": 0.0, "backend": backend, **settings}
        return QDyLoRA(student, TASK, **given)


def wide(kind: str = "bert") -> torch.nn.Module:
    """Of a shape that every backend decodes rightly."""
    from lightning_kd.models import load_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"n_embd": 64} if kind == "gpt2" else WIDE
        return load_model(tiny.config(kind, **sizes), TASK).eval()


def packed(module: QDyLoRA) -> list[torch.Tensor]:
    layers = [m for m in module.student.modules() if is_four_bit(m)]
    return [tensor.clone() for layer in layers for tensor in packed_tensors(layer)]


@torch.no_grad()
def logits(module: QDyLoRA, rank: int) -> torch.Tensor:
    with module.at_size(rank):
        return module.predict(tiny.batch()).logits


@BACKENDS
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_at_the_start_every_rank_answers_as_the_quantized_base(kind, backend) -> None:  # Q9
    module = made(kind, backend).eval()
    expected = [logits(module, rank) for rank in range(1, 5)]
    for layer in module.adapters.values():
        layer.forward = layer.base_layer.forward  # type: ignore[method-assign]
    bare = logits(module, 1)
    assert all(torch.equal(found, bare) for found in expected)


@BACKENDS
def test_fifty_steps_leave_codes_and_scales_byte_identical(backend) -> None:  # Q6
    module = made(backend=backend, learning_rate=0.05, weight_decay=0.1)
    before = packed(module)
    frozen = {n: p.clone() for n, p in module.named_parameters() if not p.requires_grad}
    fit(module, max_steps=50)
    assert len(before) == 12 * (3 if backend == "reference" else 4)
    assert all(torch.equal(a, b) for a, b in zip(before, packed(module), strict=True))
    after = dict(module.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())
    assert all(layer.lora_B.any() for layer in module.adapters.values())


@pytest.mark.parametrize(
    ("ranks", "bound"), [(list(range(1, 65)), 103.44), ([1, 2, 4, 8, 16, 32, 64], 22.46)]
)
def test_the_ranks_are_drawn_evenly(ranks, bound) -> None:  # Q12
    sampler = SizeSampler(ranks)
    counts = dict.fromkeys(ranks, 0)
    for step in range(1000 * len(ranks)):
        counts[sampler.draw(step)] += 1
    assert chisquare(list(counts.values())).statistic < bound


@BACKENDS
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_recomputing_layers_changes_no_gradient_and_no_rank(kind, backend) -> None:  # Q15
    grads = []
    for checkpointing in (True, False):
        module = tiny.filled(made(kind, backend, gradient_checkpointing=checkpointing)).train()
        used: list[int] = []
        for layer in module.adapters.values():
            layer.register_forward_pre_hook(lambda m, _, to=used: to.append(m.rank))
        torch.manual_seed(3)
        module.resize(2)
        for start in range(4):  # of one optimizer step
            batch = {k: v[start * 2 : start * 2 + 2] for k, v in tiny.batch(8).items()}
            sum(module.objective(batch).values()).backward()  # type: ignore[union-attr]
        assert set(used) == {2}
        assert len(used) == 4 * len(module.adapters) * (2 if checkpointing else 1)
        grads.append({n: p.grad for n, p in module.named_parameters() if p.requires_grad})
    assert all(bool(g is not None and g.any()) for n, g in grads[0].items() if "lora" in n)
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-5, atol=1e-7)


@BACKENDS
def test_a_checkpoint_has_no_base_and_a_resumed_run_ends_the_same(backend, tmp_path) -> None:  # Q16
    settings: dict[str, Any] = {"dropout": 0.2, "learning_rate": 0.01}
    whole, resumed = made(backend=backend, **settings), made(backend=backend, **settings)
    fit(whole, folder=tmp_path)
    saved = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == {n for n, p in whole.named_parameters() if p.requires_grad}
    torch.manual_seed(99)
    fit(resumed, folder=tmp_path, ckpt_path=tmp_path / "step=2.ckpt")
    assert differing(weights(whole), weights(resumed)) == []
    assert all(torch.equal(a, b) for a, b in zip(packed(whole), packed(resumed), strict=True))


@pytest.mark.parametrize(
    "other",
    [
        {"quantization": "fp4"},
        {"double_quant": False},
        {"student": tiny.model("bert", seed=1)},
    ],
)
def test_a_checkpoint_on_another_base_is_refused(other, tmp_path) -> None:
    fit(made(), folder=tmp_path, max_steps=1)
    path = tmp_path / "step=1.ckpt"
    fit(made(compute_dtype="bfloat16"), folder=tmp_path, ckpt_path=path)  # the same base
    with pytest.raises(ValueError, match=r"trained on other base weights|does not fit the model"):
        fit(made(**other), folder=tmp_path, ckpt_path=path)


def test_codes_and_scales_are_part_of_the_fingerprint() -> None:
    module = made()
    before = module._frozen_fingerprint()
    for name, change in (("weight", 1), ("scales", 1), ("outer_scales", 2**20)):  # bits of a float
        layer = next(iter(module.adapters.values())).base_layer
        value = getattr(layer, name).data
        value[0] += change
        assert module._frozen_fingerprint() != before, name
        value[0] -= change
    assert module._frozen_fingerprint() == before


def test_ranks_are_those_of_dylora_with_the_same_seed() -> None:  # Q17
    settings: dict[str, Any] = {"max_rank": 4, "seed": 5}
    plain = DyLoRA(tiny.model(), TASK, **settings)
    ours = made(**settings)
    ranks = [plain.sampler.draw(step) for step in range(100)]
    assert [ours.sampler.draw(step) for step in range(100)] == ranks


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_rank": 64}, [1, 2, 4, 8, 16, 32, 64]),
        ({"max_rank": 6}, [1, 2, 4, 6]),
        ({"max_rank": 6, "min_rank": 3}, [4, 6]),
        ({"max_rank": 6, "sampler": [1, 3]}, [1, 3]),
        ({"max_rank": 6, "evaluation_ranks": [5]}, [5]),
    ],
)
def test_powers_of_two_are_evaluated_unless_told_otherwise(settings, expected) -> None:
    assert made(**settings).evaluation_sizes == expected


def test_on_a_cpu_the_optimizer_is_not_paged_and_that_is_said(capsys) -> None:  # Q18
    module = made()
    run = fit(module, max_steps=1)
    assert type(run.optimizers[0]) is torch.optim.AdamW
    said = "optimizer: AdamW in the device's own memory: there is no paged AdamW on cpu"
    assert said in capsys.readouterr().out
    assert module.notes["optimizer"] == said.partition(": ")[2]
    fit(made(paged_optimizer=False), max_steps=1)
    fit(made(optimizer_semantics="strict"), max_steps=1)
    assert "optimizer" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"paged_optimizer=True, but there is no .* on cpu; leave"):
        fit(made(paged_optimizer=True), max_steps=1)


def test_strict_components_and_pages_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="paged_optimizer needs optimizer_semantics=dense"):
        made(paged_optimizer=True, optimizer_semantics="strict")
    with pytest.raises(ValueError, match="an optimizer is given, which paged_optimizer=True"):
        made(paged_optimizer=True, optimizer=torch.optim.SGD)
    assert isinstance(made(optimizer_semantics="strict").make_optimizer(), NestedAdamW)


def test_with_cuda_the_optimizer_is_paged(monkeypatch) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    module = made()
    monkeypatch.setattr(QDyLoRA, "device", torch.device("cuda"))
    optimizer = module.make_optimizer()
    assert type(optimizer) is bitsandbytes.optim.PagedAdamW32bit
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0]
    assert {group["lr"] for group in optimizer.param_groups} == {2e-4}


def test_without_bitsandbytes_the_reference_trains_on_cuda_all_the_same(
    monkeypatch, capsys
) -> None:
    module = made()
    monkeypatch.setattr(QDyLoRA, "device", torch.device("cuda"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert type(module.make_optimizer()) is torch.optim.AdamW
    assert "there is no paged AdamW without bitsandbytes (`pip" in capsys.readouterr().out


def test_a_mixed_precision_is_what_is_said_and_set(capsys) -> None:
    module = made()
    fit(module, max_steps=1, precision="bf16-mixed")
    assert "compute_dtype: bfloat16: trainer.precision=bf16-mixed" in capsys.readouterr().out
    layers = [m for m in module.student.modules() if is_four_bit(m)]
    assert {m.compute_dtype for m in layers} == {torch.bfloat16}
    with pytest.raises(ValueError, match="compute_dtype=float32 has no effect"):
        fit(made(compute_dtype="float32"), max_steps=1, precision="bf16-mixed")


def test_the_compute_type_is_said_and_set_on_every_layer(capsys) -> None:
    module = made()
    fit(module, max_steps=1)
    assert "compute_dtype: float32: few processors have bfloat16" in capsys.readouterr().out
    module = made(compute_dtype="bfloat16")
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        strategy=DDPStrategy(parallel_devices=[torch.device("cpu")]),
        precision="32-true",
        is_global_zero=False,
    )
    module.setup("fit")
    layers = [m for m in module.student.modules() if is_four_bit(m)]
    assert {m.compute_dtype for m in layers} == {torch.bfloat16}
    assert module.notes["compute_dtype"] == "bfloat16: as it was set"


@pytest.mark.parametrize("name", ["FSDPStrategy", "ModelParallelStrategy", "ZeRO3"])
def test_a_strategy_that_shards_codes_is_refused(name) -> None:
    module = made()
    settings = {"zero_stage_3": name == "ZeRO3", "root_device": torch.device("cpu")}
    strategy = type(name, (), settings)()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module._trainer = SimpleNamespace(strategy=strategy, is_global_zero=True)  # type: ignore[assignment]
    with pytest.raises(
        ValueError, match=f"{name} (cannot distribute .* quantized|would shard codes)"
    ):
        module.setup("fit")


def test_float16_that_overflows_stops_with_the_way_out() -> None:
    module = made(compute_dtype="float16")
    with torch.no_grad():
        for module_ in module.student.modules():
            if isinstance(module_, torch.nn.LayerNorm):
                module_.weight.mul_(1e6)
    with pytest.raises(FloatingPointError, match=r"became nan at step 0.*wider precision"):
        fit(module, max_steps=1)


def test_a_model_that_cannot_recompute_is_told_how_to_go_without(monkeypatch) -> None:
    model = tiny.model()
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(ValueError, match=r"no gradient checkpointing; set --model\.gradient_ch"):
        made(student=model)
    made(student=tiny.model(), gradient_checkpointing=False)


def test_without_bitsandbytes_the_way_out_is_named(monkeypatch) -> None:
    student = wide()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"`pip install -e .\[quant\]`"):
        QDyLoRA(student, TASK, max_rank=4)


def test_heads_train_in_32_bits_and_are_not_quantized() -> None:
    module = made(student=tiny.model().bfloat16())
    heads = ("classifier", "bert.pooler.dense")
    assert all(not is_four_bit(module.student.get_submodule(name)) for name in heads)
    trained = {n: p.dtype for n, p in module.named_parameters() if p.requires_grad}
    assert set(trained.values()) == {torch.float32}
    assert {n for n in trained if "lora" not in n} == {
        f"student.{name}.{part}" for name in heads for part in ("weight", "bias")
    }
    frozen = {p.dtype for n, p in module.named_parameters() if "embeddings.weight" in n}
    assert frozen == set() or torch.bfloat16 in frozen
    fit(module, max_steps=2)
