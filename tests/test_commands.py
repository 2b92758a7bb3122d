"""The ``lightning-kd`` command: exports, lists, and says what is wrong in one sentence."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from lightning_kd import methods
from lightning_kd.commands import main
from lightning_kd.methods import DyLoRA, FineTuning
from tests import tiny
from tests.conformance.matrix import fit
from tests.kill import ROOT


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run folder's checkpoints: DyLoRA of rank 4 and a fine-tuned model."""
    folder = tmp_path_factory.mktemp("run")
    student = str(tiny.model_folder(folder / "model"))
    dylora = DyLoRA(student, "sst2", max_rank=4, learning_rate=0.05)
    fit(dylora, folder=folder / "checkpoints", max_steps=2)
    fit(FineTuning(student, "sst2"), folder=folder / "whole" / "checkpoints", max_steps=1)
    return folder


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT 0.21
def test_export_writes_the_adapter_of_the_rank_asked_for(run_dir, tmp_path, capsys) -> None:
    from peft import PeftModel

    checkpoint = run_dir / "checkpoints" / "step=2.ckpt"
    main(["export", str(checkpoint), "--rank", "3", "--output", str(tmp_path / "adapter")])
    assert capsys.readouterr().out.strip() == f"written: {tmp_path / 'adapter'}"
    module = DyLoRA.load_from_checkpoint(checkpoint).eval()
    adapter = PeftModel.from_pretrained(tiny.model(), str(tmp_path / "adapter")).eval()
    batch = tiny.batch()
    with torch.no_grad(), module.at_size(3):
        theirs = adapter(batch["input_ids"], batch["attention_mask"]).logits
        assert torch.equal(theirs, module.predict(batch).logits)
    with torch.no_grad(), module.at_size(4):
        assert not torch.equal(theirs, module.predict(batch).logits)


def test_without_rank_and_output_it_is_the_largest_in_the_runs_folder(run_dir, capsys) -> None:
    main(["export", str(run_dir / "checkpoints" / "step=2.ckpt")])
    folder = run_dir / "export" / "rank_4"
    assert str(folder) in capsys.readouterr().out
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {t.shape[0] for name, t in tensors.items() if "lora_A" in name} == {4}
    shutil.rmtree(run_dir / "export")


def test_a_method_without_ranks_exports_its_model(run_dir, capsys) -> None:
    checkpoint = run_dir / "whole" / "checkpoints" / "step=1.ckpt"
    main(["export", str(checkpoint)])
    assert (run_dir / "whole" / "export" / "model" / "model.safetensors").is_file()
    assert "export/model" in capsys.readouterr().out
    main(["export", str(checkpoint)])  # the run's own, tokenizer and all, is replaced
    assert (run_dir / "whole" / "export" / "model" / "tokenizer.json").is_file()


def test_a_model_of_somebody_s_is_not_replaced(run_dir, tmp_path, capsys) -> None:
    checkpoint = run_dir / "whole" / "checkpoints" / "step=1.ckpt"
    theirs = shutil.copytree(run_dir / "model", tmp_path / "theirs")
    tiny.tokenizer_folder(theirs)
    before = {file.name: file.read_bytes() for file in theirs.iterdir()}
    assert "which an export would delete" in failing(
        capsys, "export", checkpoint, "--output", theirs
    )
    assert {file.name: file.read_bytes() for file in theirs.iterdir()} == before
    error = failing(capsys, "export", checkpoint, "--output", checkpoint)
    assert f"{checkpoint} is a file; give a folder of its own" in error


def failing(capsys, *args) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(arg) for arg in args])
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return str(error)


@pytest.mark.parametrize("rank", [0, 5, -1])
def test_a_rank_that_is_not_there_is_answered_with_those_that_are(
    rank, run_dir, tmp_path, capsys
) -> None:
    checkpoint = run_dir / "checkpoints" / "step=2.ckpt"
    error = failing(capsys, "export", checkpoint, "--rank", rank, "--output", tmp_path / "x")
    for words in (str(rank), "1", "4"):
        assert words in error
    assert list(tmp_path.iterdir()) == []


def test_a_rank_for_a_method_without_ranks_is_an_error(run_dir, capsys) -> None:
    checkpoint = run_dir / "whole" / "checkpoints" / "step=1.ckpt"
    assert "FineTuning, which has no ranks" in failing(capsys, "export", checkpoint, "--rank", 2)


def test_what_is_no_checkpoint_is_said(run_dir, tmp_path, capsys) -> None:
    assert "there is no checkpoint none.ckpt" in failing(capsys, "export", "none.ckpt")
    half = tmp_path / "half.ckpt"
    half.write_bytes((run_dir / "checkpoints" / "step=2.ckpt").read_bytes()[:1000])
    assert "half.ckpt (1,000 bytes) is cut off or not a checkpoint" in failing(
        capsys, "export", half
    )
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    error = failing(capsys, "export", tmp_path / "other.ckpt")
    assert "was not written by a method of lightning-kd" in error


def test_methods_lists_every_method_and_its_recipe(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main(["methods"])
    out = capsys.readouterr().out
    for name in methods.METHODS:
        assert any(
            name in row and getattr(methods, name).paper.recipe in row for row in out.split("\n")
        )


def test_the_installed_command_is_this_one() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"lightning-kd": "lightning_kd.commands:main"}


@pytest.mark.parametrize("command", ["export", "methods", "plan", "assets", "report"])
def test_every_command_has_help(command, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "usage: lightning-kd " + command in capsys.readouterr().out


def test_an_unknown_command_is_answered_with_the_known_ones(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["exprot"])
    error = capsys.readouterr().err
    assert "exprot" in error
    assert "export" in error
