"""Folders that appear whole; PEFT's constants; reading what is no plain LoRA."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_kd.export import (
    Adapter,
    atomic_directory,
    common_targets,
    cut_adapter,
    paste_adapter,
    peft_alpha,
    read_peft,
    write_peft,
)
from lightning_kd.functional import lora_scale
from lightning_kd.nn import DynamicLoRALinear
from tests import tiny


def adapter(**changes) -> Adapter:
    factors = {f"layer.{i}.query": (torch.randn(2, 6), torch.randn(5, 2)) for i in range(2)}
    settings = {"rank": 2, "alpha": 16.0, "rslora": False, "factors": factors}
    return Adapter(**{**settings, "saved": {"head.weight": torch.randn(3, 5)}, **changes})


def write(folder, made: Adapter | None = None) -> None:
    write_peft(
        folder,
        adapter() if made is None else made,
        base_model="owner/model",
        modules_to_save=["head"],
        target_modules=["query"],
        fan_in_fan_out=False,
    )


def layers(scaling: str = "alpha/b", max_rank: int = 4) -> dict[str, DynamicLoRALinear]:
    def layer() -> DynamicLoRALinear:
        return tiny.filled(DynamicLoRALinear(torch.nn.Linear(6, 5), max_rank, 16.0, scaling))

    return {f"layer.{i}.query": layer() for i in range(2)}


def test_a_folder_appears_when_its_block_ends_and_not_before(tmp_path) -> None:
    target = tmp_path / "deep" / "folder"
    with atomic_directory(target) as work:
        (work / "file").write_text("new")
        assert not target.exists()
        assert work.parent == target.parent  # same file system: the last move is one step
    assert (target / "file").read_text() == "new"
    assert [f.name for f in target.parent.iterdir()] == ["folder"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_folder_is_replaced_whole(tmp_path) -> None:
    for name in ("adapter_old", "adapter_new"):
        with atomic_directory(tmp_path / "folder") as work:
            (work / name).touch()
    assert [f.name for f in (tmp_path / "folder").iterdir()] == ["adapter_new"]
    assert [f.name for f in tmp_path.iterdir()] == ["folder"]


def spoil(folder) -> None:
    with atomic_directory(folder) as work:
        (work / "new").touch()
        raise ZeroDivisionError


def test_after_an_error_the_old_folder_is_there_and_nothing_else(tmp_path) -> None:
    with atomic_directory(tmp_path / "folder") as work:
        (work / "adapter_old").touch()
    with pytest.raises(ZeroDivisionError):
        spoil(tmp_path / "folder")
    assert [f.name for f in (tmp_path / "folder").iterdir()] == ["adapter_old"]
    assert [f.name for f in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("other", ["thesis.tex", "tokenizer.json", "models/"])
def test_a_folder_with_anything_else_in_it_is_not_replaced(other, tmp_path) -> None:
    mine = tmp_path / "folder" / other
    mine.parent.mkdir()
    mine.mkdir() if other[-1] == "/" else mine.touch()
    with pytest.raises(FileExistsError, match=f"holds {mine.name}, which an export would delete"):
        write(tmp_path / "folder")
    assert mine.exists()
    assert [f.name for f in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("alpha", [16.0, 10.0, 0.7])
@pytest.mark.parametrize("max_rank", [1, 7, 8])
def test_peft_s_factor_times_the_ratio_is_ours(alpha, max_rank) -> None:
    for rank in range(1, max_rank + 1):
        lora_alpha, ratio = peft_alpha("alpha/R", alpha, rank, max_rank)
        ours = lora_scale("alpha/R", alpha, rank, max_rank)
        assert lora_alpha / rank * ratio == pytest.approx(ours, rel=1e-15)
        assert abs(ratio - 1) < 1e-15
        assert (ratio == 1) == (lora_alpha / rank == ours)
        assert peft_alpha("alpha/b", alpha, rank, max_rank) == (alpha, 1)
        assert peft_alpha("alpha/sqrt(b)", alpha, rank, max_rank) == (alpha, 1)


def test_the_scale_of_an_adapter_is_peft_s() -> None:
    assert adapter().scale == 8
    assert adapter(rslora=True).scale == 16 / 2**0.5


def test_what_is_written_is_read(tmp_path) -> None:
    made = adapter(alpha=2.5, rslora=True)
    write(tmp_path / "adapter", made)
    read = read_peft(tmp_path / "adapter")
    assert (read.rank, read.alpha, read.rslora) == (2, 2.5, True)
    assert set(read.factors) == set(made.factors)
    for name, pair in made.factors.items():
        assert torch.equal(read.factors[name][0], pair[0])
        assert torch.equal(read.factors[name][1], pair[1])
    assert set(read.saved) == {"head.weight"}
    assert torch.equal(read.saved["head.weight"], made.saved["head.weight"])


def test_views_and_strided_factors_are_written_by_value(tmp_path) -> None:
    whole = torch.randn(2, 5).t()
    write(tmp_path / "adapter", adapter(factors={"q": (torch.randn(4, 6)[:2], whole)}))
    assert torch.equal(read_peft(tmp_path / "adapter").factors["q"][1], whole)


def test_whole_numbers_are_written_as_peft_declares_them(tmp_path) -> None:
    for alpha, text in ((16.0, "16"), (2.5, "2.5")):
        write(tmp_path / "adapter", adapter(alpha=alpha))
        config = (tmp_path / "adapter" / "adapter_config.json").read_text()
        assert f'"lora_alpha": {text},' in config


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_an_adapter_is_said_to_have_none(missing, tmp_path) -> None:
    write(tmp_path / "adapter")
    (tmp_path / "adapter" / missing).unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter has no adapter_config\.json with"):
        read_peft(tmp_path / "adapter")


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True},
        {"rank_pattern": {"layer.0.query": 4}},
        {"alpha_pattern": {"layer.0.query": 4}},
        {"bias": "lora_only"},
        {"lora_bias": True},
    ],
)
def test_what_is_no_plain_lora_of_one_rank_is_refused(change, tmp_path) -> None:
    write(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match="not a plain LoRA adapter of one rank"):
        read_peft(tmp_path / "adapter")


def test_another_kind_of_adapter_is_refused(tmp_path) -> None:
    from peft import IA3Config

    write(tmp_path / "adapter")
    IA3Config(target_modules=["query"], feedforward_modules=[]).save_pretrained(
        str(tmp_path / "adapter")
    )
    with pytest.raises(ValueError, match="not a plain LoRA adapter"):
        read_peft(tmp_path / "adapter")


def test_a_factor_without_its_partner_is_named(tmp_path) -> None:
    write(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors["base_model.model.layer.1.query.lora_B.weight"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"layer\.1\.query has only one of lora_A and lora_B"):
        read_peft(tmp_path / "adapter")


@pytest.mark.parametrize("scaling", ["alpha/b", "alpha/R", "alpha/sqrt(b)"])
@pytest.mark.parametrize("target", ["alpha/b", "alpha/R", "alpha/sqrt(b)"])
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_a_cut_pasted_into_layers_of_any_scaling_is_the_same_update(rank, target, scaling) -> None:
    source, other = layers(scaling), layers(target, max_rank=6)
    cut = cut_adapter(source, rank, {})
    assert {tuple(a.shape) + tuple(b.shape) for a, b in cut.factors.values()} == {
        (rank, 6, 5, rank)
    }
    paste_adapter(other, cut)
    for name, layer in source.items():
        for one in (layer, other[name]):
            one.set_rank(rank)
        x = torch.randn(3, 6)
        with torch.no_grad():
            mine = layer(x) - layer.base_layer(x)
            theirs = other[name](x) - other[name].base_layer(x)
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)


def test_targets_are_said_by_last_name_where_that_says_the_same() -> None:
    names = ["a.query", "a.value", "b.query", "b.value"]
    assert common_targets(names, [*names, "a.key"]) == ["query", "value"]
    assert common_targets(names[:3], names) == ["a.query", "a.value", "b.query"]
    assert common_targets(["a.query"], ["a.query"]) == ["query"]
