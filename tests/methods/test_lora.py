"""The baseline is PEFT's own LoRA, with the head trained beside it."""

import pytest
import torch
from peft.tuners.lora import LoraLayer

from lightning_kd.methods import LoRA
from tests import tiny

TASK = tiny.TASKS["classification"]
pytestmark = pytest.mark.filterwarnings(
    # PEFT 0.21 asks transformers 5 for a property that it renamed
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)


def made(**settings) -> LoRA:
    return LoRA(tiny.model(), TASK, **settings)


def layers(module: LoRA) -> dict[str, LoraLayer]:
    named = module.student.named_modules()
    return {n.removeprefix("base_model.model."): m for n, m in named if isinstance(m, LoraLayer)}


def test_the_layers_are_peft_s_with_the_settings_given() -> None:
    found = layers(made(rank=3, alpha=12.0, target_modules=["key"], dropout=0.25))
    assert list(found) == [f"bert.encoder.layer.{i}.attention.self.key" for i in range(2)]
    for layer in found.values():
        assert layer.r["default"] == 3
        assert layer.scaling["default"] == 4
        assert layer.lora_dropout["default"].p == 0.25
    assert next(iter(layers(made(rank=4, alpha=12.0, rslora=True)).values())).scaling == {
        "default": 6
    }


def test_the_defaults_are_query_and_value_and_the_whole_head() -> None:
    module = made()
    assert {name.rpartition(".")[2] for name in layers(module)} == {"query", "value"}
    trainable = {n for n, p in module.named_parameters() if p.requires_grad and "lora" not in n}
    assert len(trainable) == 4
    assert all("modules_to_save" in name for name in trainable)
    whole = made(modules_to_save=["classifier"])
    names = {n for n, p in whole.named_parameters() if p.requires_grad and "lora" not in n}
    assert len(names) == 2


def test_starts_as_the_plain_model() -> None:
    module = made()
    module.student.eval()
    with torch.no_grad():
        plain = TASK.predict(tiny.model(), tiny.batch()).logits
        assert torch.equal(module.predict(tiny.batch()).logits, plain)


def test_the_objective_is_the_mean_of_the_task_s_loss() -> None:
    module, batch = tiny.filled(made()), tiny.batch()
    module.student.eval()
    loss = module.objective(batch)
    assert set(loss) == {"hard"}
    expected = torch.nn.functional.cross_entropy(module.predict(batch).logits, batch["labels"])
    torch.testing.assert_close(loss["hard"], expected)


def test_an_export_is_what_peft_loads(tmp_path) -> None:
    from peft import PeftModel

    module = tiny.filled(made(rank=2))
    module.student.eval()
    module.export(tmp_path / "export")
    loaded = PeftModel.from_pretrained(tiny.model(), str(tmp_path / "export")).eval()
    with torch.no_grad():
        mine = module.predict(tiny.batch()).logits
        assert torch.equal(TASK.predict(loaded, tiny.batch()).logits, mine)


@pytest.mark.parametrize("rank", [0, -1, 2.5, True])
def test_a_rank_that_is_none_is_refused(rank) -> None:
    with pytest.raises(ValueError, match=f"rank must be a whole number of at least 1, got {rank}"):
        made(rank=rank)


@pytest.mark.parametrize("alpha", [0.0, float("nan")])
def test_an_alpha_that_is_no_positive_number_is_refused(alpha) -> None:
    with pytest.raises(ValueError, match=f"alpha must be a positive number, got {alpha}"):
        made(alpha=alpha)


def test_a_dropout_of_everything_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        made(dropout=1.0)
