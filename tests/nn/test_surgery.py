"""`target_modules` picks what PEFT picks; replacement keeps the model's structure."""

import warnings

import pytest
import torch
from torch import nn

from lightning_kd.models import head_modules
from lightning_kd.nn import match_linear_layers, replace_modules
from tests import tiny


def peft_picks(kind: str, target_modules: str | list[str] | None, whole: list[str]) -> list[str]:
    """Names of the layers that PEFT itself adapts on a fresh model."""
    from peft import LoraConfig, TaskType, get_peft_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, target_modules=target_modules, modules_to_save=whole
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about fan_in_fan_out and about transformers' renames
        model = get_peft_model(tiny.model(kind), config)
    adapted = [n for n, m in model.named_modules() if isinstance(m, LoraLayer)]
    return [name.removeprefix("base_model.model.") for name in adapted]


TARGETS: dict[str, list[str | list[str] | None]] = {
    "bert": [
        None,
        "all-linear",
        ["query", "value"],
        ["key"],
        ["attention.self.query", "bert.encoder.layer.1.attention.self.key"],
        ["dense"],
        r".*\.(query|dense)",
        r"bert\.encoder\.layer\.1\..*(query|dense)",
    ],
    "roberta": [None, "all-linear", ["query"], ["dense"], r".*layer\.0.*value"],
    "gpt2": [None, "all-linear", ["c_attn", "c_proj"], ["attn.c_proj"], r".*mlp\.c_.*"],
    "llama": [None, "all-linear", ["q_proj", "v_proj"], ["down_proj"], r".*self_attn\.o_proj"],
}


@pytest.mark.parametrize(
    ("kind", "target_modules"), [(kind, t) for kind, targets in TARGETS.items() for t in targets]
)
def test_picks_the_layers_that_peft_picks(kind, target_modules) -> None:
    model = tiny.model(kind)
    heads = head_modules(model)
    theirs = peft_picks(kind, target_modules, heads)
    assert match_linear_layers(model, target_modules, exclude=heads) == theirs


@pytest.mark.parametrize(
    "target_modules", [[".*query"], ["Query"], "query", r".*\.quer", ["uery"], []]
)
def test_matches_nothing_where_peft_does(target_modules) -> None:
    with pytest.raises(
        ValueError, match=r"not found|No modules were targeted|cannot be empty|None"
    ):
        peft_picks("bert", target_modules, [])
    with pytest.raises(ValueError, match="match no linear layer"):
        match_linear_layers(tiny.model("bert"), target_modules)


def test_a_pattern_that_also_matches_containers_adapts_the_linear_layers_in_them() -> None:
    """PEFT stops here with an error about the first container."""
    matched = match_linear_layers(tiny.model("gpt2"), r".*h\.1\.mlp.*")
    assert matched == ["transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj"]


@pytest.mark.parametrize("whole", [["classifier"], ["bert.pooler"], ["pooler", "layer.0"], []])
def test_leaves_out_what_trains_whole_as_peft_does(whole) -> None:
    ours = match_linear_layers(tiny.model("bert"), ["dense", "query"], exclude=whole)
    assert ours == peft_picks("bert", ["dense", "query"], whole)


@pytest.mark.parametrize("kind", TARGETS)
def test_all_linear_is_every_linear_layer_but_the_head(kind) -> None:
    model = tiny.model(kind)
    heads = head_modules(model)
    matched = match_linear_layers(model, "all-linear", exclude=heads)
    assert len(matched) == {"bert": 12, "roberta": 12, "gpt2": 8, "llama": 14}[kind]
    assert not any(name.startswith(tuple(heads)) for name in matched)


@pytest.mark.parametrize("target_modules", [["quary", "valu"], "quary", ["q"]])
def test_a_miss_is_answered_with_near_names(target_modules) -> None:
    with pytest.raises(ValueError, match=r"match no linear layer; (near names|there are).*query"):
        match_linear_layers(tiny.model("bert"), target_modules)


def test_a_far_miss_is_answered_with_all_names() -> None:
    with pytest.raises(ValueError, match=r"'zzz'\] match no linear layer; there are \['classifier"):
        match_linear_layers(tiny.model("bert"), ["zzz"])


def test_a_model_without_a_default_asks_for_names() -> None:
    with pytest.raises(ValueError, match=r"model type None; name them .*all-linear"):
        match_linear_layers(nn.Sequential(nn.Linear(2, 2)), None)
    assert match_linear_layers(nn.Sequential(nn.Linear(2, 2)), "all-linear") == ["0"]


def test_replacement_puts_new_modules_where_the_old_ones_were() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    first, inner = model.get_submodule("0"), model.get_submodule("1.0")
    seen = []

    def make(old: nn.Module) -> nn.Module:
        seen.append(old)
        return nn.Sequential(old, nn.Tanh())

    replace_modules(model, ["1.0", "0"], make)
    assert seen == [inner, first]
    assert model.get_submodule("0.0") is first
    assert model.get_submodule("1.0.0") is inner
    x = torch.randn(3, 2)
    torch.testing.assert_close(model(x), inner(first(x).tanh()).tanh().relu())
