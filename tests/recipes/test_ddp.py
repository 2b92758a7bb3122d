"""Two processes, started as a user starts them: one run folder, which one process can resume."""

import json

import pytest
import torch

from lightning_kd.methods import DyLoRA
from tests.kill import ROOT, run_to_end
from tests.recipes.command import Site, make_site, summary

pytestmark = [pytest.mark.ddp, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder in which a recipe ran on two processes at batch 4."""
    site = make_site(tmp_path_factory.mktemp("pair"))
    overlay = f"--config={ROOT}/configs/overlays/ddp_cpu.yaml"
    more = {"model.max_rank": 2, "trainer.devices": 2, "trainer.max_epochs": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(site.folder)
        recipe = ROOT / "recipes" / "dylora_glue.py"
        lines = run_to_end([recipe, overlay, *site.settings(**more)], timeout=280)
    return site, lines


def test_there_is_one_run_folder_with_one_report(pair) -> None:
    site, lines = pair
    (run_dir,) = site.runs()
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert {r["split"] for r in summary(run_dir)["results"]} == {"validation", "test"}
    assert len(list((run_dir / "export").iterdir())) >= 1
    assert sum("trainable parameters" in line for line in lines) == 2  # one table per split
    assert not [line for line in lines if "Warning" in line or "Traceback" in line]


def test_its_numbers_are_those_of_one_process_with_twice_the_batch(pair) -> None:
    site, _ = pair
    (run_dir,) = site.runs()
    folder = site.folder / "alone"
    folder.mkdir()
    more = {"model.max_rank": 2, "trainer.max_epochs": 2, "data.batch_size": 8}
    alone = Site(folder, site.model, site.data).fit("dylora_glue", **more)
    ours, theirs = summary(run_dir), summary(alone)
    assert ours["results"] == theirs["results"]
    assert ours["data_sha256"] == theirs["data_sha256"]
    weights = [torch.load(run / "checkpoints/last.ckpt")["state_dict"] for run in (run_dir, alone)]
    assert max(float((a - weights[1][k]).abs().max()) for k, a in weights[0].items()) < 1e-5


def test_one_process_goes_on_with_it(pair) -> None:
    site, _ = pair
    (run_dir,) = site.runs()
    one = ["--trainer.devices", "1", "--trainer.strategy", "auto", "--data.batch_size", "8"]
    cli = site.run("dylora_glue", "--resume", run_dir, *one, "--trainer.max_epochs", "3")
    assert site.folder / cli.run_dir == run_dir
    written = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    assert written["global_step"] == 12  # four more
    module = DyLoRA.load_from_checkpoint(run_dir / "checkpoints/last.ckpt")
    assert module.sizes == [1, 2]
    json.loads((run_dir / "report/summary.json").read_text())
