"""``--resume``: whatever a run was doing when it was killed, it ends with the same weights."""

import csv
import os
import random
import signal
from pathlib import Path

import pytest
import torch

from lightning_kd.methods import DyLoRA
from tests.kill import ROOT, run_until_killed
from tests.recipes.command import Site, make_site, summary
from tests.recipes.run_killed import SETTINGS, WAYS


def last_weights(run_dir):
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def rows(run_dir) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of `run_killed.py` after its death."""
    site = make_site(tmp_path_factory.mktemp("killed"))
    steps = random.SystemRandom().randint(1, 13)
    waited: set[str] = set()
    reached: list[int] = []

    def now(line: str) -> bool:
        if line.startswith("in "):
            waited.add(line)
        if line.startswith("step "):
            reached.append(int(line.split()[1]))
        return waited == {"in window", "in writing"} and max(reached, default=-1) >= steps

    run_until_killed([ROOT / "tests/recipes/run_killed.py", site.folder], now, timeout=200)
    return site


@pytest.fixture(scope="module")
def straight(killed):
    """The same run, undisturbed."""
    folder = killed.folder / "straight"
    folder.mkdir()
    return Site(folder, killed.model, killed.data).fit("dylora_glue", **SETTINGS)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_resumed_is_the_run_undisturbed(way, killed, straight) -> None:
    site = Site(killed.folder / way, killed.model, killed.data)
    (run_dir,) = site.runs()
    before = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert 0 < before < 16
    assert bool(list(run_dir.rglob("*.tmp-*"))) == (way == "writing")
    cli = site.run("dylora_glue", "--resume", run_dir)
    assert site.folder / cli.run_dir == run_dir
    assert site.runs() == [run_dir]
    ours, theirs = last_weights(run_dir), last_weights(straight)
    assert ours.keys() == theirs.keys()
    differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert differing == [], f"killed after step {before}"
    assert rows(run_dir) == rows(straight)
    assert summary(run_dir)["results"] == summary(straight)["results"]
    assert not list(run_dir.rglob("*.tmp-*"))


def stop_at(patch, moment) -> None:
    """Let DyLoRA fail at a moment of its second epoch."""
    step, validate = DyLoRA.training_step, DyLoRA.on_validation_start

    def fail(module) -> None:
        if module.trainer.state.fn == "fit" and module.current_epoch == 1:
            raise RuntimeError("stopped")

    def training_step(self, batch, batch_idx):
        if moment == "inside a window, after a validation" and batch_idx == 3:
            fail(self)
        return step(self, batch, batch_idx)

    def on_validation_start(self) -> None:
        if moment == "before a validation":
            fail(self)
        validate(self)

    patch.setattr(DyLoRA, "training_step", training_step)
    patch.setattr(DyLoRA, "on_validation_start", on_validation_start)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "more"),
    [
        ("before a validation", {}),
        ("inside a window, after a validation", {"trainer.val_check_interval": 3}),
    ],
)
def test_no_validation_and_no_half_window_is_lost(
    moment, more, site, tmp_path, monkeypatch
) -> None:
    settings = {**SETTINGS, "trainer.max_epochs": 2, **more}
    whole, stopped = (Site(tmp_path / name, site.model, site.data) for name in ("whole", "stopped"))
    whole.folder.mkdir()
    stopped.folder.mkdir()
    straight = whole.fit("dylora_glue", **settings)
    stop_at(monkeypatch, moment)
    with pytest.raises(SystemExit):
        stopped.fit("dylora_glue", **settings)
    monkeypatch.undo()
    (run_dir,) = stopped.runs()
    stopped.run("dylora_glue", "--resume", run_dir)
    ours, theirs = last_weights(run_dir), last_weights(straight)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert rows(run_dir) == rows(straight)


def test_a_finished_run_resumed_reports_the_same(site, dylora_run) -> None:
    results, weights, logged = (
        summary(dylora_run)["results"],
        last_weights(dylora_run),
        rows(dylora_run),
    )
    best = (dylora_run / "checkpoints/best.ckpt").read_bytes()
    (dylora_run / "report/summary.json").unlink()
    cli = site.run("dylora_glue", "--resume", dylora_run)
    assert cli.run_dir == dylora_run
    assert summary(dylora_run)["results"] == results
    again = last_weights(dylora_run)
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert (dylora_run / "checkpoints/best.ckpt").read_bytes() == best
    assert rows(dylora_run) == logged


def test_sigterm_ends_with_its_status_and_says_how_to_go_on(site, capsys, monkeypatch) -> None:
    step = DyLoRA.training_step

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DyLoRA, "training_step", training_step)
    before = site.runs()
    with pytest.raises(SystemExit) as end:
        site.fit("dylora_glue", **{"model.max_rank": 2, "save_every_n_steps": 2})
    assert end.value.code == 143
    monkeypatch.undo()
    (run_dir,) = set(site.runs()) - set(before)
    assert f"--resume {run_dir.relative_to(site.folder)}" in capsys.readouterr().err
    site.run("dylora_glue", "--resume", run_dir)
    assert summary(run_dir)["results"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--resume", "runs/none"],
            r"runs/none cannot be resumed: there is no runs/none/config\.yaml",
        ),
        (["fit", "--ckpt_path", "none.ckpt"], "there is no checkpoint none.ckpt"),
    ],
)
def test_nothing_to_resume_from_is_said(site, arguments, message, capsys) -> None:
    before = site.runs()
    with pytest.raises(SystemExit):
        site.run("dylora_glue", *arguments)
    assert message.replace("\\", "") in capsys.readouterr().err
    assert site.runs() == before


def test_a_run_of_another_recipe_is_refused(site, lora_run, capsys) -> None:
    with pytest.raises(SystemExit):
        site.run("dylora_glue", "--resume", Path(lora_run))
    assert "resume it with its own recipe" in capsys.readouterr().err
