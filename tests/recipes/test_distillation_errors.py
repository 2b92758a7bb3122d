"""What a distillation run must refuse, in one sentence, before it costs the user anything."""

import importlib.util
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertTokenizer

from lightning_kd.methods import FineTuning, VanillaKD
from tests import tiny
from tests.recipes.command import Site, make_site, summary

PHASES = {"model.max_temperature": 1, "model.teacher_epochs": 1, "model.label_epochs": 1}


def refusal(capsys, command) -> str:
    """Standard error of a command that must fail; one sentence, and no trace."""
    with pytest.raises(SystemExit) as end:
        command()
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    message = error[error.index("error: ") :]
    assert len(message.splitlines()) <= 3, message
    return message


def other_tokens(folder):
    """A model folder whose tokenizer knows other words."""
    tiny.model_folder(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"v{i}" for i in range(35))]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder


def fewer_tokens(folder):
    """A model folder without a tokenizer, with embeddings of 20 tokens."""
    tiny.model_folder(folder, vocab_size=20)
    for file in folder.glob("*token*"):
        file.unlink()
    return folder


def other_labels(folder):
    tiny.model_folder(folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "positive", "1": "negative"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def no_weights(folder):
    tiny.model_folder(folder)
    (folder / "model.safetensors").unlink()
    return folder


def broken(folder):
    """A teacher whose answers are not numbers."""
    from safetensors.torch import load_file, save_file

    file = tiny.model_folder(folder) / "model.safetensors"
    state = load_file(file)
    state["classifier.bias"][0] = torch.nan
    save_file(state, file, {"format": "pt"})
    return folder


def no_checkpoint(folder):
    torch.save({"state_dict": dict(tiny.model().state_dict())}, folder / "half.ckpt")
    os.truncate(folder / "half.ckpt", 2000)
    return folder / "half.ckpt"


def somebody_elses(folder):
    torch.save({"state_dict": {}}, folder / "other.ckpt")
    return folder / "other.ckpt"


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (lambda _: "nobody/nothing", ["nobody/nothing is neither on the reachable", "offline"]),
        (lambda _: "no/such/folder", ["there is no model folder no/such/folder"]),
        (other_tokens, ["reads 40 tokens of its own tokenizer, the student 40"]),
        (fewer_tokens, ["knows 20 tokens, the student 40", "the student's tokenizer"]),
        (other_labels, ["positive, negative, the student's are negative, positive"]),
        (no_weights, ["is not a loadable Hugging Face folder", "safetensors"]),
        (broken, ["answers that are not finite", "a teacher that is intact"]),
        (no_checkpoint, ["half.ckpt (2,000 bytes) is cut off or not a checkpoint"]),
        (somebody_elses, ["was not written by a method of lightning-kd"]),
    ],
)
def test_a_teacher_that_cannot_teach_is_named_with_the_way_out(
    teacher, said, site, tmp_path, capsys
) -> None:
    given = teacher(tmp_path)
    cache = tmp_path / "cache"
    more = {"model.teacher": given, "model.teacher_cache": cache}
    message = refusal(capsys, lambda: site.fit("vanilla_kd_glue", **more))
    for words in [str(given), *said]:
        assert words in message, message
    assert not cache.exists()


def test_a_teacher_of_other_tokens_is_refused_before_it_is_trained(
    site, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(FineTuning, "objective", None)
    more = {"model.teacher": other_tokens(tmp_path), "teacher.epochs": 1}
    assert "of its own tokenizer" in refusal(capsys, lambda: site.fit("vanilla_kd_glue", **more))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trainer.max_epochs": 3}, "1 (teacher) + 1 (labels) = 2 epochs and trainer.max_epochs"),
        ({"model.teacher_cache": "{file}/in"}, "for 384 bytes of the teacher's answers"),
        ({"model.teacher_bits": 4, "teacher.epochs": 0}, "pip install -e .[quant]"),
    ],
)
def test_settings_that_contradict_are_refused_before_the_teacher_is_trained(
    settings, said, site, tmp_path, capsys, monkeypatch
) -> None:
    (tmp_path / "file").touch()
    found = importlib.util.find_spec
    missing = {"bitsandbytes"}
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name in missing else found(name, *a)
    )
    settings = {k: str(v).replace("{file}", str(tmp_path / "file")) for k, v in settings.items()}
    given = {**PHASES, "trainer.max_epochs": 2, "teacher.epochs": 1, **settings}
    if "trainer.max_epochs" in settings:
        monkeypatch.setattr(FineTuning, "objective", None)
    assert said in refusal(capsys, lambda: site.fit("annealing_kd_glue", **given))


def test_a_checkpoint_cannot_continue_phases_nor_another_method(site, lora_run, capsys) -> None:
    checkpoint = f"--ckpt_path={lora_run}/checkpoints/best.ckpt"
    more = {**PHASES, "trainer.max_epochs": 2, "model.teacher": site.model}
    message = refusal(
        capsys, lambda: site.run("annealing_kd_glue", "fit", checkpoint, *site.settings(**more))
    )
    assert "cannot continue a training in phases; use --resume" in message
    one = site.settings(**{"model.teacher": site.model})
    message = refusal(capsys, lambda: site.run("vanilla_kd_glue", "fit", checkpoint, *one))
    assert "the checkpoint is of LoRA on sst2, this is VanillaKD on sst2" in message


def test_the_checkpoint_of_another_task_cannot_teach(site, tmp_path, capsys) -> None:
    from tests.conformance.matrix import fit

    module = FineTuning(tiny.named_model(), tiny.TASKS["regression"])
    fit(module, folder=tmp_path, max_steps=1)
    more = {"model.teacher": tmp_path / "step=1.ckpt"}
    message = refusal(capsys, lambda: site.fit("vanilla_kd_glue", **more))
    assert "was trained on stsb, the student learns sst2" in message


@pytest.mark.slow
def test_a_stale_cache_says_what_changed_and_stays_as_it_is(site, tmp_path, capsys) -> None:
    cache = tmp_path / "cache"
    more = {"model.teacher": site.model, "model.teacher_cache": cache, "trainer.max_epochs": 1}
    site.fit("vanilla_kd_glue", **more)
    before = {file: file.read_bytes() for file in cache.iterdir()}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"model.teacher": tiny.named_model()}, "(teacher: "),
        ({"data.max_length": 15}, "max_length: 16 there, 15 now"),
        ({"trainer.precision": "bf16-mixed"}, "precision: 32-true there, bf16-mixed now"),
        ({"data.data_dir": tiny.sst2_folder(tmp_path / "more", train=40)}, "text: "),
    ]
    for change, said in changes:
        message = refusal(capsys, partial(site.fit, "vanilla_kd_glue", **{**more, **change}))
        assert f"{cache} was made for something else" in message
        assert said in message
        assert "give this run another --model.teacher_cache, or delete that folder" in message
    assert {file: file.read_bytes() for file in cache.iterdir()} == before


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_step_and_term_and_keeps_the_last_checkpoint(
    site, capsys, monkeypatch, tmp_path
) -> None:
    objective = VanillaKD.objective

    def breaks(self, batch):
        terms = objective(self, batch)
        if self.trainer.global_step == 3:
            terms["soft"] = terms["soft"] * float("inf")
        return terms

    monkeypatch.setattr(VanillaKD, "objective", breaks)
    stopped = Site(tmp_path, site.model, site.data)
    message = refusal(capsys, lambda: stopped.fit("vanilla_kd_glue", save_every_n_steps=1))
    assert "the term soft became inf at step 3; the last checkpoint is kept" in message
    (run_dir,) = stopped.runs()
    kept = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] == 3
    monkeypatch.undo()
    stopped.run("vanilla_kd_glue", "--resume", run_dir)
    assert summary(run_dir)["method"] == "VanillaKD"


@pytest.mark.slow
def test_settings_cut_off_while_they_are_written_again_stay_whole(
    tmp_path, capsys, monkeypatch
) -> None:
    """Each phase writes ``config.yaml``: a full disk in the second leaves that of the first."""
    site = make_site(tmp_path)
    fsync, written = os.fsync, []

    def full(descriptor) -> None:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if "config.yaml" in name:
            written.append(name)
            if len(written) == 2:
                raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    more = {**PHASES, "trainer.max_epochs": 2}
    message = refusal(capsys, lambda: site.fit("annealing_kd_glue", **more))
    assert "config.yaml: No space left on device; nothing was changed under that name" in message
    monkeypatch.undo()
    (run_dir,) = site.runs()
    site.run("annealing_kd_glue", "--resume", run_dir)
    assert summary(run_dir)["method"] == "AnnealingKD"


def test_a_folder_in_use_is_refused(site, dylora_run, capsys) -> None:
    from tests.test_runs import other_process

    child = other_process(dylora_run)
    try:
        message = refusal(capsys, lambda: site.run("dylora_glue", "--resume", dylora_run))
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert "another process is working in" in message
