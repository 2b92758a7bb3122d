"""Span losses by hand, and that padding and the question have no part in them."""

import math

import pytest
import torch
from torch.nn.functional import softmax

from lightning_kd.functional import kd_loss, logit_mse
from lightning_kd.models import head_modules
from lightning_kd.tasks import Prediction, SpanQA, task_named
from lightning_kd.tasks.spans import METRICS
from tests import tiny

TASK = SpanQA("squad")
# [CLS] question passage passage [PAD]
MASK = torch.tensor([[True, False, True, True, False]])


def batch(*labels):
    return {"labels": torch.tensor(labels), "answer_mask": MASK.repeat(len(labels), 1)}


def test_cross_entropies_by_hand_are_averaged_over_start_and_end() -> None:
    logits = torch.zeros(2, 2, 5)
    logits[1, 1, 3] = math.log(2)
    loss = TASK.hard_loss(Prediction(logits), batch([2, 3], [0, 3]))
    expected = [math.log(3), (math.log(3) + math.log(2)) / 2]  # three tokens are allowed
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_tempered_divergences_are_those_of_the_allowed_tokens_alone() -> None:
    student, teacher = torch.randn(2, 3, 2, 5)
    given = batch(*[[2, 3]] * 3)
    for temperature in (0.5, 1.0, 4.0, 1000.0):
        loss = TASK.soft_loss(Prediction(student), Prediction(teacher), given, temperature)
        kept = MASK[0]
        expected = kd_loss(student[..., kept], teacher[..., kept], temperature).mean(1)
        torch.testing.assert_close(loss, expected)
    p, q = softmax(teacher[..., kept], -1), softmax(student[..., kept], -1)
    loss = TASK.soft_loss(Prediction(student), Prediction(teacher), given)
    torch.testing.assert_close(loss, (p * (p / q).log()).sum(-1).mean(1))


def losses(student, teacher, given):
    mask = TASK.logit_mask(given)
    return torch.stack(
        [
            TASK.hard_loss(Prediction(student), given),
            TASK.soft_loss(Prediction(student), Prediction(teacher), given, 2.0),
            TASK.per_example(logit_mse(student, teacher, mask), given),
            TASK.per_example((student - teacher).square(), given),
        ]
    )


@pytest.mark.parametrize("value", [1e6, -1e6])
def test_masked_logits_have_no_part_in_any_loss(value) -> None:
    """A11 of annealing_kd, check 10 of pro_kd."""
    given = batch([2, 3], [0, 0])
    student, teacher = torch.randn(2, 2, 2, 5)
    before = losses(student, teacher, given)
    for logits in (student, teacher):
        changed = logits.masked_fill(~MASK, value)
        other = losses(*((changed, teacher) if logits is student else (student, changed)), given)
        assert torch.equal(before, other)


def test_the_cls_position_has_a_part_in_every_loss() -> None:
    given = batch([2, 3], [2, 2])
    student, teacher = torch.randn(2, 2, 2, 5)
    before = losses(student, teacher, given)
    student[:, :, 0] += 1
    assert (losses(student, teacher, given) != before).all()


def test_masked_logits_get_no_gradient() -> None:
    given = batch([2, 3], [0, 0])
    student = torch.randn(2, 2, 5, requires_grad=True)
    losses(student, torch.randn(2, 2, 5), given).sum().backward()
    assert student.grad is not None
    moved = student.grad.abs().sum((0, 1)) > 0
    assert moved.tolist() == MASK[0].tolist()


def test_a_value_per_token_is_averaged_over_allowed_tokens_one_per_half_over_both() -> None:
    values = torch.tensor([[[1.0, 99, 2, 3, 99], [4, 99, 5, 6, 99]]])
    assert TASK.per_example(values, batch([0, 0])).tolist() == [3.5]
    assert TASK.per_example(torch.tensor([[1.0, 4.0]]), batch([0, 0])).tolist() == [2.5]


def test_the_best_span_is_decoded_unless_no_answer_scores_higher() -> None:
    logits = torch.zeros(2, 2, 5)
    logits[0, 0, 2] = logits[0, 1, 3] = 3.0
    logits[:, :, 0] = 2.0
    assert TASK.decode(Prediction(logits)).tolist() == [[2, 3], [0, 0]]


def test_answers_leave_out_what_the_mask_does() -> None:
    logits = torch.zeros(1, 2, 5)
    logits[:, 0, 1] = logits[:, 1, 4] = 9.0  # question and padding
    logits[:, 0, 3] = 1.0
    assert TASK.decode(Prediction(logits)).tolist() == [[1, 4]]
    assert TASK.answers(Prediction(logits), batch([0, 0])).tolist() == [[3, 3]]


def test_half_precision_logits_give_full_losses() -> None:
    student, teacher = torch.randn(2, 1, 2, 5).bfloat16()
    assert losses(student, teacher, batch([2, 3])).dtype == torch.float32


def test_position_scores_by_hand() -> None:
    metrics = SpanQA("squad_v2", METRICS).metrics()
    answers = torch.tensor([[2, 3], [2, 5], [0, 0], [4, 4], [0, 0]])
    labels = torch.tensor([[2, 3], [4, 7], [0, 0], [0, 0], [3, 3]])
    for part in (slice(0, 2), slice(2, 5)):
        metrics.update(answers[part], labels[part])
    found = {name: value.item() for name, value in metrics.compute().items()}
    assert found["exact_match"] == pytest.approx(2 / 5)
    assert found["f1"] == pytest.approx((1 + 0.5 + 1) / 5)  # 2 of 4 and 4 tokens in common
    assert found["has_answer_f1"] == pytest.approx(1.5 / 3)
    assert found["no_answer_f1"] == pytest.approx(1 / 2)


def test_without_a_window_of_a_kind_its_score_is_no_number() -> None:
    metrics = SpanQA("squad_v2", METRICS).metrics()
    metrics.update(torch.tensor([[2, 2]]), torch.tensor([[2, 2]]))
    assert math.isnan(metrics.compute()["no_answer_f1"].item())


def test_predict_stacks_start_and_end_and_gives_the_model_no_mask() -> None:
    model, given = tiny.model("bert", TASK), tiny.batch(task=TASK)
    prediction = TASK.predict(model, given, hidden_states=True)
    inputs = {k: given[k] for k in ("input_ids", "attention_mask")}
    output = model(**inputs)
    assert torch.equal(prediction.logits, torch.stack([output.start_logits, output.end_logits], 1))
    assert prediction.hidden_states is not None


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_head_is_found(kind) -> None:
    assert head_modules(tiny.model(kind, TASK)) == ["qa_outputs"]


def test_a_batch_without_mask_is_answered_with_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"squad needs batches with answer_mask .* has labels"):
        TASK.hard_loss(Prediction(torch.zeros(1, 2, 5)), {"labels": torch.zeros(1, 2)})


def test_an_unknown_metric_is_answered_with_the_known() -> None:
    with pytest.raises(ValueError, match="SpanQA has no metric 'bleu'; choose from f1, exact"):
        SpanQA("squad", ("bleu",)).metrics()


def test_names_and_what_is_monitored() -> None:
    assert task_named("squad").metric_names == ("f1", "exact_match")
    assert task_named("squad_v2").monitor == "f1"
    assert task_named("squad_v2").metric_names == METRICS


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("name", ["DyLoRA", "LoRA"])
def test_adapters_train_the_head_and_are_exported_as_question_answering(name, tmp_path) -> None:
    from peft import AutoPeftModelForQuestionAnswering, PeftConfig

    base = tiny.model("bert", TASK)
    base.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    module = tiny.filled(tiny.METHODS[name](str(tmp_path / "base"), TASK)).eval()
    assert any("qa_outputs" in n and p.requires_grad for n, p in module.named_parameters())
    module.export(tmp_path / "adapter", 4)
    assert PeftConfig.from_pretrained(str(tmp_path / "adapter")).task_type == "QUESTION_ANS"
    loaded = AutoPeftModelForQuestionAnswering.from_pretrained(str(tmp_path / "adapter")).eval()
    given = tiny.batch(task=TASK)
    theirs = TASK.predict(loaded, given).logits
    torch.testing.assert_close(theirs, module.predict(given).logits)
    assert not torch.allclose(theirs, TASK.predict(base, given).logits, atol=1e-2)
