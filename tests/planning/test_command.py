"""``lightning-kd plan``: the table, the verdict, the way out, and the exit status."""

import pytest

from lightning_kd.commands import main
from tests import tiny
from tests.kill import ROOT


def plan(capsys, *words, recipe="dylora_glue"):
    student = ["--model.student", tiny.named_model(), "--data.max_length", "16"]
    try:
        main(["plan", str(ROOT / "recipes" / f"{recipe}.py"), *words, *student])
        status: object = 0
    except SystemExit as end:
        status = end.code
    out, error = capsys.readouterr()
    return status, out, error


@pytest.fixture(autouse=True)
def wide(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


def test_a_training_that_fits(capsys, tmp_path) -> None:
    status, out, _ = plan(capsys, "--gpu", "V100-32GB", "--data.batch_size", "8")
    assert status == 0
    for words in ("dylora_glue: 8 x 16", "adapters", "optimizer", "peak", "fits on one V100-32GB"):
        assert words in out
    assert "largest batch that fits: 1024 or more" in out
    assert list(tmp_path.iterdir()) == []  # no run has begun


def test_one_that_does_not_is_told_what_to_change(capsys) -> None:
    status, out, _ = plan(capsys, "--memory", "600.2MB", "--data.batch_size", "64")
    assert status == 1
    assert "does not fit on one 600.2MB" in out
    assert "--data.batch_size 32 --trainer.accumulate_grad_batches 16" in out
    assert "--model.max_rank 4" in out


def test_errors_are_one_sentence(capsys) -> None:
    status, _, error = plan(capsys, "--gpu", "V101")
    assert status == 1
    assert "there is no GPU 'V101'" in error
    status, _, error = plan(capsys, "--trainer.precision", "bf16-mixed")
    assert status == 1
    assert "does not compute in bfloat16" in error
    status, _, error = plan(capsys, "--model.no_such_option", "1")
    assert status != 0
    assert "no_such_option" in error


def test_options_of_other_commands_stay_errors(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["methods", "--data.batch_size", "8"])
    assert "unrecognized arguments" in capsys.readouterr().err
