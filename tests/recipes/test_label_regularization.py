"""The taught arms as commands: self-distillation trains its own teacher first."""

import pytest

from tests.recipes.command import make_site, summary

STEM = "label_regularization_glue"


@pytest.mark.slow
def test_self_kd_is_taught_by_the_student_that_the_run_fine_tuned(tmp_path, capsys) -> None:
    site = make_site(tmp_path)
    taught = {"model.regularizer": "self_kd", "model.teacher": site.model}
    run_dir = site.fit(STEM, **taught, **{"teacher.epochs": 1, "trainer.max_epochs": 1})
    assert (run_dir / "teacher" / "export" / "model" / "config.json").is_file()
    assert summary(run_dir)["method"] == "LabelRegularization"
    assert "self_kd with alpha=0.1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.regularizer": "kd"}, "regularizer=kd needs a teacher, a model"),
        ({"teacher.epochs": 1}, "teacher.epochs trains model.teacher, which this run has not"),
        ({"model.gold": 0.9}, "regularizer=label_smoothing does not read gold=0.9"),
    ],
)
def test_what_an_arm_cannot_use_is_one_sentence(tmp_path, settings, message, capsys) -> None:
    with pytest.raises(SystemExit):
        make_site(tmp_path).fit(STEM, **settings)
    assert message in capsys.readouterr().err
