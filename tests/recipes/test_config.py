"""Every config and overlay parses with every recipe, and settings survive being written."""

import os
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from lightning_kd import methods
from lightning_kd.runs import with_settings
from tests.kill import ROOT
from tests.recipes.command import RECIPES, every_recipe, printed_config

OVERLAYS = sorted((ROOT / "configs" / "overlays").glob("*.yaml"))
LANGUAGE_ONLY = {"v100_qlora": "qdylora_"}
"""Overlays that set what only some recipes have, and how the names of these begin."""


def flat(settings, prefix="") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            for place, part in enumerate(value):
                found |= flat(part, f"{prefix}{key}.{place}.")
        else:
            found[prefix + key] = value
    return found


def test_overlays_are_found() -> None:
    assert {file.stem for file in OVERLAYS} >= {
        *("bf16", "ddp_cpu", "ddp_gpu", "debug", "deepspeed_cpu", "deepspeed_zero2"),
        *("deepspeed_zero3_offload", "fsdp", "offline", "v100_qlora"),
    }


@every_recipe
def test_the_recipes_own_config_is_its_default(stem, site, capsys) -> None:
    written = yaml.safe_load((ROOT / "configs" / f"{stem}.yaml").read_text())
    printed = flat(printed_config(capsys, lambda: site.run(stem, "--print_config")))
    assert {key: printed[key] for key in flat(written)} == flat(written)


def pairs() -> list[Any]:
    """Each overlay with each method's recipe, and those that it has a file of their own for."""
    own = {getattr(methods, name).paper.recipe for name in methods.METHODS}
    found = []
    for overlay in OVERLAYS:
        only = LANGUAGE_ONLY.get(overlay.stem, "")
        for stem in RECIPES:
            version, supplement = (
                (overlay.with_suffix("") / f"{name}.yaml").is_file()
                for name in (stem.rpartition("_")[2], stem)
            )
            if stem.startswith(only) and (version or supplement or stem in own or only):
                found.append(pytest.param(stem, overlay, id=f"{stem}-{overlay.stem}"))
    return found


@pytest.mark.parametrize(("stem", "overlay"), pairs())
def test_overlay_parses_and_wins_over_the_recipes_config(stem, overlay, site, capsys) -> None:
    version = overlay.with_suffix("") / f"{stem.rpartition('_')[2]}.yaml"
    written = flat(yaml.safe_load((version if version.is_file() else overlay).read_text()))
    assert written
    supplement = overlay.with_suffix("") / f"{stem}.yaml"
    if supplement.is_file():
        written |= flat(yaml.safe_load(supplement.read_text()))
    command = ["--config", str(overlay), "--print_config"]
    printed = flat(printed_config(capsys, lambda: site.run(stem, *command)))
    assert {key: printed[key] for key in written} == written


def test_overlays_stack_and_options_win(site, capsys) -> None:
    overlays = [f"--config={ROOT}/configs/overlays/{name}.yaml" for name in ("offline", "debug")]
    command = [*overlays, "--trainer.log_every_n_steps", "7", "--print_config"]
    printed = printed_config(capsys, lambda: site.run("dylora_glue", *command))
    assert printed["model"]["student"] == "assets/minilm"
    assert printed["trainer"]["max_epochs"] == 1
    assert printed["trainer"]["log_every_n_steps"] == 7


@every_recipe
def test_printed_settings_load_back_unchanged(stem, site, capsys, tmp_path) -> None:
    printed = printed_config(capsys, lambda: site.run(stem, *site.settings(stem), "--print_config"))
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(printed))
    command = ["--config", file, "--print_config"]
    assert printed_config(capsys, lambda: site.run(stem, *command)) == printed


def test_a_single_callback_needs_no_list(site) -> None:
    given = {"trainer.callbacks": "lightning.pytorch.callbacks.LearningRateMonitor"}
    assert (site.fit("dylora_glue", **given) / "report/summary.json").is_file()


def test_the_config_of_a_run_is_what_ran(site, dylora_run, capsys) -> None:
    command = ["--config", dylora_run / "config.yaml", "--print_config"]
    again = printed_config(capsys, lambda: site.run("dylora_glue", *command))
    assert again == yaml.safe_load((dylora_run / "config.yaml").read_text())
    assert again["model"]["max_rank"] == 4


def test_parsing_makes_no_run_folder_and_leaves_no_setting_behind(site, capsys) -> None:
    before = site.runs()
    printed_config(capsys, lambda: site.run("dylora_glue", "--print_config"))
    assert site.runs() == before
    assert not [name for name in os.environ if name.startswith("LIGHTNING_KD_RUN")]


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"])
def test_a_launchers_job_names_the_folder_and_a_second_run_in_it_gets_its_own(
    variable, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "17")
    _, first = with_settings("fit", [], "dylora_glue")
    assert str(first) == "runs/dylora_glue/job_17"
    first.mkdir(parents=True)
    assert with_settings("fit", [], "dylora_glue")[1] != first
    monkeypatch.setenv(variable, "none")  # torchrun's when nothing was given
    assert "none" not in str(with_settings("fit", [], "dylora_glue")[1])


@pytest.mark.parametrize("stage", ["fit", "test"])
@pytest.mark.parametrize("joined", [True, False])
def test_a_config_after_the_checkpoint_does_not_put_it_out(stage, joined, tmp_path) -> None:
    """A run's config.yaml says ``ckpt_path: null``, and the last word counts."""
    (tmp_path / "checkpoints").mkdir()
    checkpoint = tmp_path / "checkpoints" / "best.ckpt"
    checkpoint.touch()
    given = [f"--ckpt_path={checkpoint}"] if joined else ["--ckpt_path", str(checkpoint)]
    args, _ = with_settings(stage, [*given, "--config", "run/config.yaml"], "dylora_glue")
    assert args[-2:] == ["--ckpt_path", str(checkpoint)]
    assert args[:-2] == ["--config", "run/config.yaml"]
