"""A recipe under ZeRO on two processes, as a user starts it; every command reads its files."""

from importlib.util import find_spec

import pytest
import torch

from lightning_kd.commands import export
from tests.kill import ROOT, run_to_end
from tests.recipes.command import Site, make_site, summary

pytestmark = [
    pytest.mark.ddp,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]
SETTINGS = {"model.max_rank": 2, "model.optimizer_semantics": "dense"}
ONE = ["--trainer.devices", "1", "--trainer.strategy", "auto"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder in which a recipe ran under ZeRO-3 at batch 4, the run, and what was printed."""
    site = make_site(tmp_path_factory.mktemp("zero"))
    overlay = f"--config={ROOT}/configs/overlays/deepspeed_cpu.yaml"
    more = [*site.settings(**SETTINGS, **{"trainer.devices": 2}), "--trainer.strategy.stage=3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(site.folder)
        lines = run_to_end([ROOT / "recipes" / "dylora_glue.py", overlay, *more], timeout=280)
    (run_dir,) = site.runs()
    return site, run_dir, lines


def test_there_is_one_run_folder_whose_checkpoints_are_files(pair) -> None:
    _, run_dir, lines = pair
    files = sorted((run_dir / "checkpoints").iterdir())
    assert [file.name for file in files] == ["best.ckpt", "last.ckpt"]
    assert all(file.is_file() for file in files)
    assert not [line for line in lines if "Warning" in line or "Traceback" in line]
    assert not [line for line in lines if "deepspeed" in line.lower()]


def test_its_numbers_are_those_of_one_process_with_twice_the_batch(pair) -> None:
    site, run_dir, _ = pair
    folder = site.folder / "alone"
    folder.mkdir()
    alone = Site(folder, site.model, site.data).fit(
        "dylora_glue", **{**SETTINGS, "data.batch_size": 8}
    )
    assert summary(run_dir)["results"] == summary(alone)["results"]
    weights = [torch.load(run / "checkpoints/last.ckpt")["state_dict"] for run in (run_dir, alone)]
    assert weights[0].keys() == weights[1].keys()
    assert max(float((a - weights[1][k]).abs().max()) for k, a in weights[0].items()) < 1e-5


def test_every_command_reads_its_checkpoints(pair) -> None:
    site, run_dir, _ = pair
    best = run_dir / "checkpoints" / "best.ckpt"
    tested = site.folder / site.run("dylora_glue", "test", "--ckpt_path", best, *ONE).run_dir
    ours, theirs = (
        [r for r in summary(run)["results"] if r["split"] == "test"] for run in (tested, run_dir)
    )
    assert [(r["size"], r["value"]) for r in ours] == [(r["size"], r["value"]) for r in theirs]
    export(best, 1, site.folder / "exported")
    assert (site.folder / "exported" / "adapter_model.safetensors").is_file()
    more = ["--data.batch_size", "8", "--trainer.max_epochs", "3"]
    cli = site.run("dylora_glue", "--resume", run_dir, *ONE, *more)
    assert site.folder / cli.run_dir == run_dir
    assert torch.load(run_dir / "checkpoints/last.ckpt")["global_step"] == 12  # four more
