"""The teacher: by name, by checkpoint, from the cache; never of other labels."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_kd.methods import FineTuning, VanillaKD
from lightning_kd.tasks import task_named
from lightning_kd.teachers import check_vocabulary, load_teacher
from tests import tiny
from tests.conformance.matrix import Watch, differing, fit, weights

TASK = tiny.TASKS["classification"]


def kd(teacher, task=TASK, **settings) -> VanillaKD:
    student = tiny.model(task=task)
    return VanillaKD(student, task, teacher=teacher, learning_rate=0.01, **settings)


def test_a_named_teacher_is_loaded_for_training_only() -> None:
    module = kd(tiny.named_model())
    assert module.teacher is None
    assert module.hparams["teacher"] == tiny.named_model()
    with pytest.raises(RuntimeError, match="is loaded when a training starts; call load_teacher"):
        module.teach(tiny.batch())
    fit(module, max_steps=1)
    assert module.teacher is not None


def test_a_checkpoint_can_teach(tmp_path) -> None:
    trained = FineTuning(tiny.named_model(), "sst2", learning_rate=0.01)
    fit(trained, folder=tmp_path, max_steps=2)
    path = str(tmp_path / "step=2.ckpt")
    teacher = load_teacher(path, TASK)
    assert differing(weights(trained.student), weights(teacher)) == []
    with pytest.raises(ValueError, match="was trained on sst2, the student learns stsb"):
        load_teacher(path, tiny.TASKS["regression"])
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint none\.ckpt"):
        load_teacher("none.ckpt", TASK)


def test_a_teacher_without_a_trained_head_is_refused(tmp_path) -> None:
    from transformers import BertModel

    BertModel(tiny.config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no trained weights for .*classifier.*fine-tune it"):
        load_teacher(str(tmp_path), TASK)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["positive", "negative"], "labels positive, negative, the student's are negative, pos"),
        (["good", "bad"], "has the labels good, bad, the student's are negative, positive"),
        (["a", "b", "c"], r"answers with 3 labels \(a, b, c\), sst2 has 2 \(negative, positive\)"),
    ],
)
def test_other_labels_or_another_order_are_refused_with_both(labels, message, tmp_path) -> None:
    tiny.model_folder(tmp_path)
    config = tiny.config()
    config.id2label = dict(enumerate(labels))
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_teacher(str(tmp_path), TASK)


def test_the_mnli_order_of_released_roberta_is_refused_with_both(tmp_path) -> None:
    """Its classes are contradiction, neutral, entailment; GLUE's are the other way round."""
    mnli = task_named("mnli")
    tiny.model_folder(tmp_path, "roberta")
    config = tiny.config("roberta")
    config.id2label = dict(enumerate(["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]))
    config.save_pretrained(tmp_path)
    both = "CONTRADICTION, NEUTRAL, ENTAILMENT, the student's are entailment, neutral, contra"
    with pytest.raises(ValueError, match=both):
        load_teacher(str(tmp_path), mnli)
    model: Any = tiny.model("roberta", mnli)
    model.config.id2label = config.id2label
    with pytest.raises(ValueError, match=both):
        VanillaKD(tiny.model("roberta", mnli), mnli, teacher=model)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("regression", r"2 labels \(negative, positive\), stsb has 1 \(a number\); give"),
        ("spans", r"no trained weights for \['qa_outputs"),
        ("choice", r"no trained weights for \['classifier"),
    ],
)
def test_a_classifier_teaches_no_other_kind(kind, message, tmp_path) -> None:
    tiny.model().save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        load_teacher(str(tmp_path), tiny.TASKS[kind])


def test_a_head_that_only_has_the_same_shape_is_refused(tmp_path) -> None:
    regression, choice = tiny.TASKS["regression"], tiny.TASKS["choice"]
    tiny.model(task=regression).save_pretrained(tmp_path / "number")  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"is a BertForSequenceClassification, hellaswag needs"):
        load_teacher(str(tmp_path / "number"), choice)
    tiny.model(task=choice).save_pretrained(tmp_path / "choice")  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"answers with 2 labels \(LABEL_0, LABEL_1\), stsb has 1"):
        load_teacher(str(tmp_path / "choice"), regression)


def test_unnamed_labels_are_taken_in_order(tmp_path) -> None:
    tiny.model_folder(tmp_path)
    tiny.config().save_pretrained(tmp_path)
    teacher: Any = load_teacher(str(tmp_path), TASK)
    assert teacher.config.num_labels == 2


def asked(module: VanillaKD) -> tuple[list[int], dict[str, torch.Tensor]]:
    """How often the teacher was asked in each step, and the student's weights in the end."""
    calls: list[int] = []
    assert module.teacher is not None
    teacher = module.teacher.module
    teacher.register_forward_pre_hook(lambda *_: calls.__setitem__(-1, calls[-1] + 1))
    fit(module, callbacks=[Watch(lambda _: calls.append(0))], max_steps=9)
    return calls, weights(module.student)


@pytest.mark.parametrize("kind", tiny.CACHED)
def test_with_a_cache_each_example_is_asked_once_and_the_weights_are_the_same(
    kind, tmp_path
) -> None:
    task = tiny.TASKS[kind]

    def taught(**settings) -> VanillaKD:
        return kd(tiny.model(task=task, seed=1), task, **settings)

    live, expected = asked(taught())
    assert live == [1] * 9
    first, kept = asked(taught(teacher_cache=str(tmp_path)))
    assert first == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    second, found = asked(taught(teacher_cache=str(tmp_path)))
    assert second == [0] * 9
    assert differing(expected, kept) == []
    assert differing(expected, found) == []


class Losses(Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append(outputs["loss"].item())


@pytest.mark.parametrize("kind", tiny.CACHED)
def test_losses_with_a_cache_are_those_of_a_live_teacher_bit_for_bit(kind, tmp_path) -> None:
    """Over four epochs, each in another order: live, while the answers are kept, and from them."""
    task, found = tiny.TASKS[kind], []
    for cache in (None, tmp_path, tmp_path):
        module = tiny.method(
            "VanillaKD",
            task,
            learning_rate=0.01,
            teacher_cache=None if cache is None else str(cache),
        )
        losses = Losses()
        fit(module, max_epochs=4, callbacks=[losses])
        found.append((losses.seen, weights(module)))
    (live, trained), *others = found
    assert len(set(live)) == len(live) == 12
    for seen, ended in others:
        assert seen == live
        assert differing(trained, ended) == []


def test_answers_that_are_not_finite_are_neither_used_nor_kept(tmp_path) -> None:
    teacher = tiny.model(seed=1)
    teacher.get_parameter("classifier.bias").data[0] = torch.inf
    for cache in (None, str(tmp_path / "cache")):
        with pytest.raises(FloatingPointError, match=r"BertFor.* gave answers that are not finite"):
            fit(kd(teacher, teacher_cache=cache), max_steps=1)
    assert not (tmp_path / "cache").exists()


def test_a_named_teacher_has_one_fingerprint_until_it_is_loaded_again(tmp_path) -> None:
    """4-bit weights are packed anew when they are first used: a second fit must not notice."""
    module = kd(tiny.named_model(), teacher_cache=str(tmp_path))
    fit(module, max_steps=1)
    assert module.teacher is not None
    module.teacher.module.get_parameter("classifier.bias").data += 1
    fit(module, max_steps=2)
    module.teach_with(tiny.named_model())
    fit(module, max_steps=3)


def test_bits_are_refused_where_they_would_be_ignored(tmp_path) -> None:
    with pytest.raises(ValueError, match="teacher_bits=4 quantizes a teacher while it is read"):
        kd(tiny.model(seed=1), teacher_bits=4)
    with pytest.raises(ValueError, match=r"teacher_bits=8 .*one\.ckpt is a checkpoint"):
        load_teacher(str(tmp_path / "one.ckpt"), TASK, 8)


def test_a_checkpoint_is_the_student_and_its_optimizer_and_nothing_more(
    tmp_path, record_property
) -> None:
    """At a realistic size; the teacher has twice the layers, so that it would be seen."""
    from transformers import BertConfig

    from lightning_kd.models import load_model

    wide: Any = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}
    student, teacher = (
        load_model(BertConfig(vocab_size=8000, num_hidden_layers=layers, **wide), TASK)
        for layers in (2, 4)
    )
    module = VanillaKD(student, TASK, teacher=teacher, teacher_cache=str(tmp_path / "cache"))
    fit(module, max_steps=1, folder=tmp_path / "checkpoints")
    (file,) = (tmp_path / "checkpoints").iterdir()
    needed = 3 * sum(p.nbytes for p in student.parameters())  # and AdamW's two moments
    ratio = file.stat().st_size / needed
    record_property("checkpoint bytes / (student + optimizer)", ratio)
    assert 1 <= ratio <= 1.02


def test_the_cache_of_another_teacher_is_refused(tmp_path) -> None:
    fit(kd(tiny.model(seed=1), teacher_cache=str(tmp_path)), max_steps=1)
    with pytest.raises(ValueError, match=r"was made for something else \(teacher: "):
        fit(kd(tiny.model(seed=2), teacher_cache=str(tmp_path)), max_steps=1)


def test_with_augmented_inputs_nothing_can_be_kept(tmp_path, monkeypatch) -> None:
    from tests.conformance.matrix import TinyData

    monkeypatch.setattr(TinyData, "augments", True)
    with pytest.raises(ValueError, match="augmented at random, so that no answer can be kept"):
        fit(kd(tiny.model(seed=1), teacher_cache=str(tmp_path)), max_steps=1)


def test_a_teacher_of_other_tokens_is_refused_with_both(tmp_path) -> None:
    from transformers import AutoTokenizer, BertTokenizer

    ours = AutoTokenizer.from_pretrained(tiny.named_model())
    check_vocabulary(tiny.named_model(), ours)
    tiny.config().save_pretrained(tmp_path)
    check_vocabulary(str(tmp_path), ours)  # there is nothing to compare with
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "other"]
    BertTokenizer(vocab={w: i for i, w in enumerate(words)}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="reads 6 tokens of its own tokenizer, the student 40 of"):
        check_vocabulary(str(tmp_path), ours)
