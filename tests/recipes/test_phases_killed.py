"""SIGKILL where a training in phases has most to lose: resumed, it ends with the same bits."""

import csv

import pytest
import torch

from lightning_kd.phases import read_lineage
from tests.kill import ROOT, run_until_killed
from tests.recipes.command import Site, make_site, summary
from tests.recipes.run_phases_killed import SETTINGS, WAYS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of `run_phases_killed.py` after its death."""
    site = make_site(tmp_path_factory.mktemp("phases"))
    waiting: set[str] = set()

    def all_there(line: str) -> bool:
        if line.startswith("in "):
            waiting.add(line.removeprefix("in "))
        return waiting == set(WAYS)

    run_until_killed([ROOT / "tests/recipes/run_phases_killed.py", site.folder], all_there, 280)
    return site


@pytest.fixture(scope="module")
def straight(killed):
    """The same run, undisturbed."""
    folder = killed.folder / "straight"
    folder.mkdir()
    return Site(folder, killed.model, killed.data).fit("annealing_kd_glue", **SETTINGS)


def state(run_dir, name) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run_dir / name, weights_only=True)["state_dict"]
    return found


def rows(run_dir) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


BEFORE = {
    "exporting": [],
    "capturing": ["teacher/export", "teacher_cache"],
    "cached": ["teacher/export", "teacher_cache", "checkpoints/teacher/last.ckpt"],
    "recording": ["checkpoints/teacher/best.ckpt"],
    "recorded": ["checkpoints/teacher/best.ckpt", "lineage.json"],
    "selecting": ["checkpoints/labels/best.ckpt", "lineage.json"],
}
"""What the kill finds done; all of `AFTER` that is not named is not there."""
AFTER = {
    "teacher/export",
    "teacher_cache",
    "checkpoints/teacher/last.ckpt",
    "checkpoints/teacher/best.ckpt",
    "lineage.json",
    "checkpoints/labels/best.ckpt",
    "checkpoints/best.ckpt",
}


@pytest.mark.parametrize("way", WAYS)
def test_killed_there_and_resumed_it_is_the_run_undisturbed(way, killed, straight) -> None:
    site = Site(killed.folder / way, killed.model, killed.data)
    (run_dir,) = site.runs()
    there = {name for name in AFTER if (run_dir / name).exists()}
    assert set(BEFORE[way]) <= there
    assert "checkpoints/best.ckpt" not in there
    assert ("lineage.json" in there) == (way in ("recorded", "selecting"))
    assert bool(list(run_dir.rglob("*.tmp-*"))) == (way in ("recording", "selecting"))
    site.run("annealing_kd_glue", "--resume", run_dir)
    assert site.runs() == [run_dir]
    for name in ("best.ckpt", "teacher/last.ckpt", "labels/last.ckpt"):
        ours, theirs = (state(f, f"checkpoints/{name}") for f in (run_dir, straight))
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == [], name
    assert rows(run_dir) == rows(straight)
    assert summary(run_dir)["results"] == summary(straight)["results"]
    for mine, other in zip(read_lineage(run_dir), read_lineage(straight), strict=True):
        assert (mine.phase, mine.epochs, mine.score) == (other.phase, other.epochs, other.score)
    for name in ("header.json", "logits.bin", "sums.bin"):
        kept, expected = (f / "teacher_cache" / name for f in (run_dir, straight))
        assert kept.read_bytes() == expected.read_bytes()
    assert not list(run_dir.rglob("*.tmp-*"))
