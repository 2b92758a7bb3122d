"""Averaging as a command: a recipe of its own, and one more word on another's line."""

import re

import pytest
import torch

from lightning_kd.callbacks import StudentAveraging
from lightning_kd.checkpoint_io import AtomicCheckpointIO
from lightning_kd.methods import FineTuning
from tests.kill import ROOT
from tests.recipes.command import Site, make_site, summary
from tests.recipes.test_squad import SETTINGS, squad_site

EARLY = ("--trainer.callbacks.start_fraction", "0.25")
"""Inside the first of two epochs, so that the best of both is an average."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder, and the run of SWA in it."""
    site = make_site(tmp_path_factory.mktemp("swa"))
    return site, site.fit("swa_glue", *EARLY, save_every_n_steps=3)


def results(run_dir) -> dict[tuple[str, str], float]:
    return {(r["split"], r["metric"]): r["value"] for r in summary(run_dir)["results"]}


def test_what_is_reported_loaded_and_exported_is_the_average(ran) -> None:
    from safetensors.torch import load_file

    _, run_dir = ran
    checkpoint = AtomicCheckpointIO().load_checkpoint(run_dir / "checkpoints/best.ckpt")
    beside = checkpoint["student_averaging"]["student"]
    assert beside["holds"] == "average"
    module = FineTuning.load_from_checkpoint(run_dir / "checkpoints/best.ckpt")
    exported = load_file(run_dir / "export/model/model.safetensors")
    for name, value in module.student.state_dict().items():
        assert torch.equal(checkpoint["state_dict"][f"student.{name}"], value)
        if name in exported:
            assert torch.equal(exported[name], value)
    assert len(exported) > 20
    name = "student.classifier.weight"
    assert not torch.equal(beside["other"][name], checkpoint["state_dict"][name])


def test_evaluated_again_a_checkpoint_has_the_numbers_of_its_run(ran) -> None:
    site, run_dir = ran
    assert summary(run_dir)["method"] == "FineTuning + StudentAveraging"
    best = run_dir / "checkpoints/best.ckpt"
    found = {}
    for word in ("average", "raw"):
        cli = site.run(
            "swa_glue", "validate", "--ckpt_path", best, "--trainer.callbacks.weights", word
        )
        found[word] = cli.model.student.classifier.weight.detach().clone()
        if word == "average":
            assert results(site.folder / cli.run_dir).items() <= results(run_dir).items()
    checkpoint = AtomicCheckpointIO().load_checkpoint(best)
    name = "student.classifier.weight"
    assert torch.equal(found["average"], checkpoint["state_dict"][name])
    assert torch.equal(found["raw"], checkpoint["student_averaging"]["student"]["other"][name])


def test_a_run_resumed_from_inside_an_epoch_ends_alike(ran, monkeypatch) -> None:
    site, whole = ran
    objective, before = FineTuning.objective, set(site.runs())

    def fails(self, batch):
        if self.trainer.global_step == 11:
            raise OSError("the power is gone")
        return objective(self, batch)

    monkeypatch.setattr(FineTuning, "objective", fails)
    with pytest.raises(SystemExit):
        site.fit("swa_glue", *EARLY, save_every_n_steps=3)
    monkeypatch.undo()
    (cut,) = set(site.runs()) - before
    last = AtomicCheckpointIO().load_checkpoint(cut / "checkpoints/last.ckpt")
    assert last["global_step"] == 9
    assert last["student_averaging"]["student"]["num_averaged"] == 5
    site.run("swa_glue", "--resume", cut)
    one, two = (
        AtomicCheckpointIO().load_checkpoint(run / "checkpoints/last.ckpt") for run in (whole, cut)
    )
    assert all(torch.equal(v, two["state_dict"][n]) for n, v in one["state_dict"].items())
    beside, again = (c["student_averaging"]["student"] for c in (one, two))
    assert beside["num_averaged"] == again["num_averaged"] == 12
    assert all(torch.equal(v, again["other"][n]) for n, v in beside["other"].items())


def words_of_the_readme() -> list[str]:
    (line,) = re.findall(
        r"vanilla_kd_glue\.py (--trainer\.callbacks\+=.*)", (ROOT / "README.md").read_text()
    )
    return str(line).split()


@pytest.mark.parametrize(
    "stem", ["vanilla_kd_glue", "annealing_kd_glue", "dylora_glue", "lora_glue"]
)
def test_the_words_of_the_readme_average_any_recipe(stem, ran) -> None:
    site, _ = ran
    short = {
        "annealing_kd_glue": {
            "model.max_temperature": 1,
            "model.teacher_epochs": 1,
            "model.label_epochs": 1,
            "trainer.max_epochs": "null",
        }
    }.get(stem, {})
    run_dir = site.fit(stem, *words_of_the_readme(), **short)
    for path in (run_dir / "checkpoints").rglob("last.ckpt"):  # one in each phase
        last = AtomicCheckpointIO().load_checkpoint(path)
        assert last["student_averaging"]["student"]["num_averaged"] >= 4
        assert not [name for name in last["state_dict"] if "teacher" in name]


def test_squad_too(tmp_path) -> None:
    site: Site = squad_site(tmp_path)
    run_dir = site.fit("swa_squad", **SETTINGS)
    last = AtomicCheckpointIO().load_checkpoint(run_dir / "checkpoints/last.ckpt")
    assert last["student_averaging"]["student"]["num_averaged"] >= 1
    assert {metric for _, metric in results(run_dir)} == {"f1", "exact_match"}


def test_the_callback_is_found_by_the_name_in_the_readme() -> None:
    assert words_of_the_readme()[0].rpartition(".")[2] == StudentAveraging.__name__
