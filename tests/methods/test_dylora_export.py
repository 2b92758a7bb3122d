"""Every rank as a PEFT folder: what `PeftModel` loads and what comes back (check A15)."""

import json

import pytest
import torch
from torch import Tensor

from lightning_kd.export import peft_alpha
from lightning_kd.methods import DyLoRA, LoRA
from tests import tiny

TASK = tiny.TASKS["classification"]
KINDS = ["bert", "roberta", "gpt2", "llama"]
pytestmark = pytest.mark.filterwarnings(
    # PEFT 0.21 asks transformers 5 for a property that it renamed
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)


def made(kind: str = "bert", **settings) -> DyLoRA:
    return tiny.filled(DyLoRA(tiny.model(kind), TASK, **{"max_rank": 4, **settings}))


@torch.no_grad()
def answer(module: DyLoRA | LoRA, rank: int | None = None) -> Tensor:
    module.eval()
    if isinstance(module, DyLoRA) and rank is not None:
        module.resize(rank)
    return module.predict(tiny.batch()).logits


@torch.no_grad()
def peft_answer(folder, kind: str) -> Tensor:
    """What anyone gets who loads the folder onto a fresh model."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(tiny.model(kind), folder).eval()
    return TASK.predict(model, tiny.batch()).logits


@pytest.mark.parametrize("scaling", ["alpha/b", "alpha/sqrt(b)", "alpha/R"])
@pytest.mark.parametrize("kind", KINDS)
def test_peft_gives_the_same_bits_at_every_rank(kind, scaling, tmp_path) -> None:  # A15
    module = made(kind, scaling=scaling, alpha=7.0)
    answers = []
    for rank in range(1, 5):
        module.export(tmp_path / str(rank), rank)
        answers.append(answer(module, rank))
        assert torch.equal(peft_answer(tmp_path / str(rank), kind), answers[-1])
    assert not torch.allclose(answers[0], answers[3])  # the ranks differ, so this says something


def test_alpha_over_r_folds_what_peft_s_constant_cannot_hold_into_b(tmp_path) -> None:  # A15
    module = made(scaling="alpha/R", alpha=0.7, max_rank=7)
    ratios = {rank: peft_alpha("alpha/R", 0.7, rank, 7)[1] for rank in range(1, 8)}
    assert 0 < [ratio == 1 for ratio in ratios.values()].count(True) < 7  # both kinds occur
    for rank, ratio in ratios.items():
        module.export(tmp_path / str(rank), rank)
        theirs, ours = peft_answer(tmp_path / str(rank), "bert"), answer(module, rank)
        torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-6)
        assert torch.equal(theirs, ours) or ratio != 1


@pytest.mark.parametrize("target_modules", ["all-linear", ["dense"], [r"layer.0.output.dense"]])
def test_any_choice_of_layers_arrives_at_the_same_layers(target_modules, tmp_path) -> None:
    module = made(target_modules=target_modules)
    module.export(tmp_path / "adapter", 2)
    assert torch.equal(peft_answer(tmp_path / "adapter", "bert"), answer(module, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scaling", ["alpha/b", "alpha/sqrt(b)", "alpha/R"])
def test_an_exported_adapter_comes_back_with_the_same_answers(kind, scaling, tmp_path) -> None:
    module = made(kind, scaling=scaling)
    module.export(tmp_path / "adapter")
    again = DyLoRA(
        tiny.model(kind), TASK, max_rank=4, scaling=scaling, adapter=str(tmp_path / "adapter")
    )
    for rank in range(1, 5):
        assert torch.equal(answer(again, rank), answer(module, rank))


@pytest.mark.parametrize("scaling", ["alpha/b", "alpha/sqrt(b)", "alpha/R"])
def test_a_smaller_adapter_in_a_larger_one_gives_the_same_answer_at_its_rank(
    scaling, tmp_path
) -> None:
    module = made(scaling=scaling)
    module.export(tmp_path / "adapter", 3)
    larger = made(scaling=scaling, max_rank=6)
    larger.load_adapter(tmp_path / "adapter")
    ranks = range(1, 4) if scaling != "alpha/R" else range(3, 4)
    for rank in ranks:
        torch.testing.assert_close(answer(larger, rank), answer(module, rank), rtol=1e-6, atol=1e-6)
    # Components beyond are new: A has numbers, B is zero.
    for layer in larger.adapters.values():
        assert layer.lora_A[3:].all()
        assert layer.lora_A[3:].abs().max() <= 16**-0.5 * 2
        assert not layer.lora_B[:, 3:].any()


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_that_peft_wrote_can_be_started_from(rslora, tmp_path) -> None:
    lora = tiny.filled(LoRA(tiny.model("bert"), TASK, rank=3, alpha=5.0, rslora=rslora))
    lora.export(tmp_path / "lora")
    for scaling in ("alpha/b", "alpha/sqrt(b)", "alpha/R"):
        module = DyLoRA(tiny.model("bert"), TASK, max_rank=4, scaling=scaling)
        module.load_adapter(tmp_path / "lora")
        torch.testing.assert_close(answer(module, 3), answer(lora), rtol=1e-5, atol=1e-5)


def test_a_head_for_another_task_stays_new(tmp_path) -> None:
    made().export(tmp_path / "adapter")
    task = tiny.TASKS["regression"]
    module = DyLoRA(tiny.model("bert", task), task, max_rank=4)
    before = {n: p.detach().clone() for n, p in module.student.named_parameters()}
    module.load_adapter(tmp_path / "adapter")
    after = dict(module.student.named_parameters())
    assert torch.equal(after["classifier.weight"], before["classifier.weight"])
    assert not torch.equal(after["bert.pooler.dense.weight"], before["bert.pooler.dense.weight"])


def test_the_folder_is_what_peft_s_users_expect(tmp_path) -> None:
    module = made("gpt2")
    module.export(tmp_path / "adapter", 2)
    assert {f.name for f in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    wanted = {"r": 2, "lora_alpha": 16, "use_rslora": False, "target_modules": ["c_attn"]}
    wanted |= {"fan_in_fan_out": True, "modules_to_save": ["score"], "task_type": "SEQ_CLS"}
    assert {key: config[key] for key in wanted} == wanted


def test_without_a_rank_the_largest_is_exported_and_a_named_base_is_in_the_config(tmp_path) -> None:
    base = tiny.model_folder(tmp_path / "base")
    module = DyLoRA(str(base), TASK, max_rank=3)
    module.export(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 3
    assert config["base_model_name_or_path"] == str(base)


@pytest.mark.parametrize("rank", [0, 5])
def test_exporting_a_rank_that_is_none_writes_nothing(rank, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"between 1 and max_rank=4, got {rank}"):
        made().export(tmp_path / "adapter", rank)
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_does_not_fit_is_refused_before_anything_changes(tmp_path) -> None:
    made(target_modules=["key"]).export(tmp_path / "key")
    made(max_rank=6).export(tmp_path / "six")
    wider = DyLoRA(_wider(), TASK, max_rank=4)
    wider.export(tmp_path / "wider")
    module = made()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    with pytest.raises(ValueError, match=r"adapter is for .*key.*the model adapts .*query"):
        module.load_adapter(tmp_path / "key")
    with pytest.raises(ValueError, match="between 1 and max_rank=4, got 6"):
        module.load_adapter(tmp_path / "six")
    with pytest.raises(
        ValueError, match="query is 12 -> 12 in the adapter and 8 -> 8 in the model"
    ):
        module.load_adapter(tmp_path / "wider")
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())


def test_with_a_list_of_ranks_the_largest_that_was_drawn_is_what_one_gets(tmp_path) -> None:
    module = made(sampler=[1, 3])  # component 4 is never trained
    assert (module.size, module.predict_rank) == (3, 3)
    module.export(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["r"] == 3


def test_a_checkpoint_does_not_need_the_adapter_that_it_started_from(tmp_path) -> None:
    made().export(tmp_path / "adapter")
    module = made(adapter=str(tmp_path / "adapter"))
    tiny.trainer(max_epochs=1).fit(module, tiny.loader(), tiny.loader())
    module.trainer.save_checkpoint(tmp_path / "run.ckpt")
    (tmp_path / "adapter").rename(tmp_path / "moved")
    again = DyLoRA.load_from_checkpoint(tmp_path / "run.ckpt", student=tiny.model(), task=TASK)
    assert torch.equal(answer(again, 2), answer(module, 2))


def _wider() -> torch.nn.Module:
    from lightning_kd.models import load_model

    return load_model(tiny.config("bert", hidden_size=12), TASK)
