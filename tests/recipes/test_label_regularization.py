"""The taught arms as commands: self-distillation trains its own teacher first."""

import pytest
from safetensors.torch import load_file

from lightning_kd.methods import distillation
from tests.conformance.matrix import differing
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


@pytest.mark.slow
def test_the_copy_that_teaches_self_kd_is_the_run_of_none_with_the_same_seed(tmp_path) -> None:
    site = make_site(tmp_path)
    more = {"trainer.max_epochs": 1, "model.student_layers": 1}
    plain = site.fit(STEM, **{"model.regularizer": "none"}, **more)
    taught = {"model.regularizer": "self_kd", "model.teacher": site.model}
    copied = site.fit(
        STEM, **taught, **{"teacher.epochs": 1, "teacher.learning_rate": 0.02}, **more
    )
    weights = [
        load_file(run / "export/model/model.safetensors") for run in (plain, copied / "teacher")
    ]
    assert differing(*weights) == []
    other = {**taught, "model.teacher": make_site(tmp_path / "other").model, "teacher.epochs": 1}
    with pytest.raises(SystemExit):
        site.fit(STEM, **other, **more)


def test_an_arm_without_a_teacher_compares_no_vocabularies(tmp_path, monkeypatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(distillation, "check_vocabulary", lambda name, _: asked.append(name))
    make_site(tmp_path).fit(STEM, **{"trainer.max_epochs": 1})
    assert asked == []


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
