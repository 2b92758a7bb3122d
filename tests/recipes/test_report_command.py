"""``lightning-kd report`` compares the runs that recipes left."""

import pytest

from lightning_kd.commands import main
from tests.recipes.command import summary


def test_two_runs_are_compared_with_the_numbers_of_their_summaries(
    dylora_run, lora_run, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main(["report", str(dylora_run), str(lora_run)])
    out = capsys.readouterr().out
    assert "DyLoRA" in out
    assert "LoRA" in out
    for result in summary(lora_run)["results"]:
        assert f"{result['value']:.4f}"[:5] in out


def test_a_folder_without_a_report_is_named(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["report", str(tmp_path)])
    assert end.value.code == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_a_run_without_a_report_among_others_is_left_out(dylora_run, tmp_path, capsys) -> None:
    main(["report", str(dylora_run), str(tmp_path)])
    out = capsys.readouterr().out
    assert "DyLoRA" in out
    assert f"left out, it has no report: {tmp_path}" in out
