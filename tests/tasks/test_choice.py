"""Multiple choice: scores of texts are classes; its head, and teachers with and without it."""

import math
from typing import Any

import pytest
import torch

from lightning_kd.functional import kd_loss
from lightning_kd.methods import FineTuning, VanillaKD
from lightning_kd.models import head_modules, load_model, make_student
from lightning_kd.tasks import MultipleChoice, Prediction, task_named
from lightning_kd.teachers import load_teacher
from tests import tiny

TASK = MultipleChoice("hellaswag", 4)


def test_each_choice_is_scored_for_itself() -> None:
    """A text's score is what it gets as the only one, so that the others have no part in it."""
    model, batch = tiny.model("bert", TASK), tiny.batch(3, TASK)
    logits = TASK.predict(model, batch).logits
    assert logits.shape == (3, 4)
    for i in range(4):
        alone = {k: batch[k][:, i : i + 1] for k in ("input_ids", "attention_mask")}
        torch.testing.assert_close(TASK.predict(model, alone).logits, logits[:, i : i + 1])


def test_losses_by_hand() -> None:
    logits = torch.tensor([[math.log(5), 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    batch = {"labels": torch.tensor([0, 2])}
    loss = TASK.hard_loss(Prediction(logits), batch)
    torch.testing.assert_close(loss, torch.tensor([math.log(8 / 5), math.log(4)]))
    soft = TASK.soft_loss(Prediction(logits.flip(0)), Prediction(logits), batch, 2.0)
    torch.testing.assert_close(soft, kd_loss(logits.flip(0), logits, 2.0))
    assert TASK.answers(Prediction(logits), batch).tolist() == [0, 0]
    values = torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 0.0, 4.0]])
    assert TASK.per_example(values, batch).tolist() == [3.0, 1.0]


def test_accuracy_by_hand_and_the_name() -> None:
    metrics = TASK.metrics()
    metrics.update(torch.tensor([0, 3, 2]), torch.tensor([0, 3, 1]))
    assert metrics.compute()["accuracy"] == pytest.approx(2 / 3)
    named = task_named("hellaswag")
    assert isinstance(named, MultipleChoice)
    assert (named.num_labels, named.monitor) == (4, "accuracy")


def test_one_text_is_no_choice() -> None:
    with pytest.raises(ValueError, match="at least 2 texts, got num_choices=1"):
        MultipleChoice("one", 1)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_head_has_one_output_and_is_found(kind) -> None:
    model: Any = tiny.model(kind, TASK)
    assert head_modules(model) == ["classifier", f"{kind}.pooler"]
    assert model.classifier.out_features == 1
    assert model.config.num_labels == 2  # transformers' own: it means nothing to this head


def test_a_student_is_cut_exported_and_teaches_the_next(tmp_path) -> None:
    tiny.model("bert", TASK, seed=4).save_pretrained(tmp_path / "whole")  # type: ignore[operator]
    student = make_student(str(tmp_path / "whole"), TASK, layers=[1])
    module, batch = FineTuning(student, TASK).eval(), tiny.batch(3, TASK)
    module.export(tmp_path / "student")
    teacher: Any = load_teacher(str(tmp_path / "student"), TASK)
    assert teacher.config.num_hidden_layers == 1
    assert teacher.config.architectures == ["BertForMultipleChoice"]
    expected = module.predict(batch).logits
    assert torch.equal(TASK.predict(teacher.eval(), batch).logits, expected)
    following = VanillaKD(tiny.model("bert", TASK), TASK, teacher=str(tmp_path / "student"))
    following.load_teacher()
    assert torch.equal(following.teach(batch).logits, expected)


def test_a_number_of_labels_in_the_teachers_config_means_nothing_here(tmp_path) -> None:
    model: Any = tiny.model("bert", TASK)
    model.config.num_labels = 7
    model.save_pretrained(tmp_path)
    assert load_teacher(str(tmp_path), TASK) is not None


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("name", ["DyLoRA", "LoRA"])
def test_adapters_train_the_head_and_are_exported(name, tmp_path) -> None:
    from peft import PeftConfig, PeftModel

    base = tiny.model("bert", TASK)
    base.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    module = tiny.filled(tiny.METHODS[name](str(tmp_path / "base"), TASK)).eval()
    module.export(tmp_path / "adapter", 4)
    assert PeftConfig.from_pretrained(str(tmp_path / "adapter")).task_type is None
    bare: Any = load_model(str(tmp_path / "base"), TASK)
    loaded = PeftModel.from_pretrained(bare, str(tmp_path / "adapter")).eval()
    batch = tiny.batch(3, TASK)
    theirs = TASK.predict(loaded, batch).logits
    torch.testing.assert_close(theirs, module.predict(batch).logits)
    assert not torch.allclose(theirs, TASK.predict(base, batch).logits, atol=1e-2)
