"""Checkpoints of adapters: the trainable weights, a fingerprint of the rest, and refusals."""

from typing import Any

import pytest
import torch

from lightning_kd.methods import AdapterModule, DyLoRA, LoRA
from tests import tiny

TASK = tiny.TASKS["classification"]


def made(name: str, seed: int = 0, **settings) -> AdapterModule:
    module = tiny.method(name, seed=seed, **settings)
    assert isinstance(module, AdapterModule)
    return module


def saved(module: AdapterModule, folder) -> dict[str, object]:
    trainer = tiny.trainer(max_epochs=1)
    trainer.fit(module, tiny.loader(), tiny.loader())
    trainer.save_checkpoint(folder / "some.ckpt")
    loaded: dict[str, object] = torch.load(folder / "some.ckpt", weights_only=True)
    return loaded


@pytest.mark.parametrize("name", ["DyLoRA", "LoRA"])
def test_a_checkpoint_holds_the_trainable_weights_and_nothing_else(name, tmp_path) -> None:
    module = made(name)
    trainable = {n for n, p in module.named_parameters() if p.requires_grad}
    checkpoint = saved(module, tmp_path)
    assert set(checkpoint["state_dict"]) == trainable  # type: ignore[call-overload]
    assert {n.split(".")[-1] for n in trainable if "lora" not in n} == {"weight", "bias"}
    assert len(trainable) == 2 * 4 + 4


@pytest.mark.parametrize("name", ["DyLoRA", "LoRA"])
def test_a_loaded_checkpoint_predicts_equally_on_the_same_base(name, tmp_path) -> None:
    base = tiny.model_folder(tmp_path / "base")
    kind: Any = {"DyLoRA": DyLoRA, "LoRA": LoRA}[name]
    module = kind(str(base), "sst2", learning_rate=0.05, alpha=32.0)
    saved(module, tmp_path)
    loaded = kind.load_from_checkpoint(tmp_path / "some.ckpt")
    with torch.no_grad():
        mine, theirs = (m.eval().predict(tiny.batch()).logits for m in (module, loaded))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["DyLoRA", "LoRA"])
def test_another_base_is_refused(name, tmp_path) -> None:
    checkpoint = saved(made(name), tmp_path)
    made(name).on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="trained on other base weights than this model's"):
        made(name, seed=1).on_load_checkpoint(checkpoint)


def test_the_same_base_in_half_precision_is_the_same_base(tmp_path) -> None:
    checkpoint = saved(made("DyLoRA"), tmp_path)
    made("DyLoRA").bfloat16().on_load_checkpoint(checkpoint)


def test_another_method_is_refused(tmp_path) -> None:
    checkpoint = saved(made("LoRA"), tmp_path)
    with pytest.raises(ValueError, match="is of LoRA on sst2, this is DyLoRA on sst2"):
        made("DyLoRA").on_load_checkpoint(checkpoint)


def test_missing_and_foreign_weights_are_named() -> None:
    module = made("DyLoRA")
    state = module.state_dict()
    lost = state.pop("student.classifier.bias")
    with pytest.raises(ValueError, match=r"lacks \['student.classifier.bias'\] and has \[\]"):
        module.load_state_dict(state)
    state["student.classifier.bias"], state["student.scorer.bias"] = lost, lost
    with pytest.raises(ValueError, match=r"lacks \[\] and has \['student.scorer.bias'\] besides"):
        module.load_state_dict(state)
    module.load_state_dict(state, strict=False)


def test_another_rank_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"size mismatch for .*lora_A"):
        made("DyLoRA").load_state_dict(made("DyLoRA", max_rank=3).state_dict())


@pytest.mark.parametrize("name", ["DyLoRA", "LoRA"])
def test_a_state_goes_to_another_module_bit_for_bit(name) -> None:
    source, other = tiny.filled(made(name)), made(name)
    other.load_state_dict(source.state_dict())
    for (n, mine), (_, theirs) in zip(
        source.named_parameters(), other.named_parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), n


def test_a_state_can_be_saved_under_a_prefix() -> None:
    module = made("DyLoRA")
    inner = torch.nn.ModuleDict({"inner": module})
    assert set(inner.state_dict()) == {f"inner.{name}" for name in module.state_dict()}


def test_modules_that_train_whole_are_found_by_suffix_or_named_as_missing() -> None:
    module = made("DyLoRA", modules_to_save=["pooler", "classifier"])
    trainable = {n for n, p in module.named_parameters() if p.requires_grad and "lora" not in n}
    assert {n.rpartition(".")[0] for n in trainable} == {
        "student.classifier",
        "student.bert.pooler.dense",
    }
    with pytest.raises(ValueError, match=r"modules_to_save has 'head', .*\['bert', .*'classifier'"):
        made("DyLoRA", modules_to_save=["head"])
