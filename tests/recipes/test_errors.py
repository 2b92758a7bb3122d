"""Bad input: one sentence with the value and the way out, and no folder of a run that was not."""

import pytest

from lightning_kd.methods import DyLoRA
from tests import tiny
from tests.recipes.command import Site

# settings on the command line, and what the message must say
SETTINGS = [
    ({"data.task": "sst3"}, ["'sst3'", "sst2", "mnli"]),
    ({"model.max_rank": 0}, ["max_rank", "0"]),
    ({"model.max_rank": 4, "model.min_rank": 5}, ["5", "1", "4"]),
    ({"model.max_rank": 4, "model.min_rank": 0}, ["0", "1", "4"]),
    ({"model.max_rank": 4, "model.evaluation_ranks": "[5]"}, ["5", "1", "4"]),
    ({"model.target_modules": "[querry]"}, ["querry", "query"]),
    ({"model.modules_to_save": "[head]"}, ["'head'", "classifier"]),
    ({"model.student": "nowhere/in/particular"}, ["nowhere/in/particular", "Hub name"]),
    ({"model.student": "nobody/nothing"}, ["nobody/nothing", "offline.yaml"]),
    ({"data.data_dir": "nowhere"}, ["nowhere", "--data.data_dir"]),
    ({"data.data_dir": "null"}, ["Hub", "--data.data_dir"]),
    ({"data.batch_size": 0}, ["batch_size", "0"]),
    ({"data.max_length": 0}, ["max_length", "0"]),
    ({"model.adapter": "nowhere"}, ["nowhere", "adapter_config.json"]),
    ({"model.warmup_fraction": 2}, ["warmup_fraction", "2"]),
    ({"model.max_rank": 4, "export_sizes": "[9]"}, ["9", "1", "4"]),
    ({"references": "[nowhere]"}, ["nowhere", "run folder"]),
    ({"save_every_n_steps": -1}, ["every_n_train_steps=-1"]),
    ({"trainer.default_root_dir": "elsewhere"}, ["elsewhere", "runs/<recipe>/<time>"]),
]
# what the command line parser itself refuses
WRONG_TYPES = [
    ("--model.max_rank=2.5", "2.5"),
    ("--model.scaling=alpha", "alpha/b"),
    ("--model.no_such_option=1", "no_such_option"),
    ("--data.task", "expected"),
]


def refused(site: Site, capsys, *args: str) -> tuple[object, str]:
    """Exit code and standard error of a command that must fail and leave no folder."""
    before = site.runs()
    with pytest.raises(SystemExit) as end:
        site.run("dylora_glue", *args)
    assert site.runs() == before
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return end.value.code, error


@pytest.mark.parametrize(("given", "said"), SETTINGS)
def test_the_message_has_the_value_and_the_way_out(given, said, site, capsys) -> None:
    code, error = refused(site, capsys, *site.settings(**given))
    assert code == 1
    message = error[error.index("error: ") :]
    for words in said:
        assert words in message, message
    assert len(message.splitlines()) <= 3, message


@pytest.mark.parametrize(("argument", "said"), WRONG_TYPES)
def test_wrong_types_and_unknown_options_stop_the_parser(argument, said, site, capsys) -> None:
    code, error = refused(site, capsys, *site.settings(), argument)
    assert code != 0
    assert said in error


def test_an_unknown_key_in_a_config_is_an_error(site, capsys, tmp_path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model:\n  max_rnak: 4\n")
    code, error = refused(site, capsys, "--config", str(overlay), *site.settings())
    assert code != 0
    assert "max_rnak" in error


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ("sentence\tlabel\n", "no example"),
        ("sentence\tlabel\nw1 w2\n", "line 2"),
        ("sentence\tlabel\nw1\t1\nw2\t7\n", "line 3"),
    ],
)
def test_malformed_data_name_file_and_line(content, said, site, capsys, tmp_path) -> None:
    folder = tiny.sst2_folder(tmp_path)
    file = folder / "SST-2" / "dev.tsv"
    file.write_text(content)
    code, error = refused(site, capsys, *site.settings(**{"data.data_dir": folder}))
    assert code == 1
    assert str(file) in error
    assert said in error


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    site, capsys, monkeypatch
) -> None:
    objective = DyLoRA.objective

    def breaks(self, batch):
        terms = objective(self, batch)
        return {k: v * float("nan") for k, v in terms.items()} if self.global_step == 3 else terms

    monkeypatch.setattr(DyLoRA, "objective", breaks)
    before = site.runs()
    with pytest.raises(SystemExit) as end:
        site.fit("dylora_glue", **{"model.max_rank": 2, "save_every_n_steps": 1})
    assert end.value.code == 1
    assert "the term hard became nan at step 3" in capsys.readouterr().err
    (run_dir,) = set(site.runs()) - set(before)
    assert [f.name for f in (run_dir / "checkpoints").iterdir()] == ["last.ckpt"]
    monkeypatch.undo()
    assert site.folder / site.run("dylora_glue", "--resume", run_dir).run_dir == run_dir
    assert (run_dir / "report/summary.json").is_file()
