"""Language models: where targets are predicted, what they cost, and what is written."""

import math

import pytest
import torch
from torch.nn.functional import log_softmax

from lightning_kd.functional import kd_loss
from lightning_kd.tasks import CausalLM, Prediction, task_named
from lightning_kd.tasks.language import IGNORED, left_padded, sites
from tests import tiny

TASK = CausalLM("alpaca", max_new_tokens=4)
KINDS = ["llama", "gpt2"]


def lively(kind: str, seed: int = 0):
    """A tiny model whose answers depend on all before them."""
    model = tiny.model(kind, TASK)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.8)
    return model


def test_sites_are_the_places_before_targets() -> None:
    labels = torch.tensor([[-100, 4, 5, -100, 6], [-100, -100, -100, 7, -100], [9, -100, 8, 8, 8]])
    places, following = sites(labels)
    for row, (p, f) in enumerate(zip(places.tolist(), following.tolist(), strict=True)):
        wanted = [k - 1 for k in range(1, 5) if labels[row, k] != IGNORED]
        assert p[: len(wanted)] == wanted
        assert f[: len(wanted)] == [labels[row, k + 1] for k in wanted]
        assert f[len(wanted) :] == [IGNORED] * (3 - len(wanted))
    nowhere = torch.tensor([[5, -100, -100]])  # the first token is before no place
    assert sites(nowhere)[1].tolist() == [[IGNORED]]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_transformers_own(kind, padded) -> None:
    model, batch = lively(kind), tiny.batch(5, TASK)
    if not padded:
        keep = batch["attention_mask"].sum(1) == 8
        batch = {k: v[keep] for k, v in batch.items()}
        assert len(batch["idx"]) >= 1
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "labels")}
    loss = TASK.reduce(TASK.hard_loss(TASK.predict(model, batch), batch), batch)
    torch.testing.assert_close(loss, model(**inputs).loss)
    loss.backward()
    ours = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model(**inputs).loss.backward()
    theirs = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_at_the_sites_and_no_others_are_computed(kind, monkeypatch) -> None:
    model, batch = lively(kind), tiny.batch(4, TASK)
    seen = []
    model.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    prediction = TASK.predict(model, batch, hidden_states=True)
    whole = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    places, labels = sites(batch["labels"])
    for row in range(4):
        for site in (labels[row] != IGNORED).nonzero().flatten().tolist():
            torch.testing.assert_close(
                prediction.logits[row, site], whole[row, places[row, site]], rtol=1e-5, atol=1e-5
            )
    assert seen[0] == len(places.unique()) < 8 == seen[1]
    assert prediction.hidden_states is not None
    assert prediction.hidden_states[0].shape == (4, 8, 8)
    assert prediction.generated is None


def test_losses_by_hand() -> None:
    labels = torch.tensor([[-100, 0, 1], [-100, 1, -100]])
    logits = torch.zeros(2, 2, 2)
    logits[0, 1, 1] = math.log(3)
    batch = {"labels": labels}
    loss = TASK.hard_loss(Prediction(logits), batch)
    torch.testing.assert_close(loss, torch.tensor([math.log(2 * 4 / 3) / 2, math.log(2)]))
    assert TASK.truths(batch).tolist() == [2, 1]
    # three targets in all; a step of two such batches of six targets counts half of it
    mean = TASK.reduce(loss, batch)
    torch.testing.assert_close(mean, torch.tensor(math.log(2 * 2 * 4 / 3) / 3))
    halved = TASK.reduce(loss, batch | {"num_targets": torch.tensor(6.0)})
    torch.testing.assert_close(halved, mean / 2)


def test_soft_losses_leave_out_what_is_no_site() -> None:
    batch = tiny.batch(4, TASK)
    _, labels = sites(batch["labels"])
    student, teacher = torch.randn(2, *labels.shape, 7)
    found = TASK.soft_loss(Prediction(student), Prediction(teacher), batch, 2.0)
    for row in range(4):
        real = labels[row] != IGNORED
        expected = kd_loss(student[row, real], teacher[row, real], 2.0).mean()
        torch.testing.assert_close(found[row], expected)
    student[labels == IGNORED] = 1e4
    torch.testing.assert_close(
        TASK.soft_loss(Prediction(student), Prediction(teacher), batch, 2.0), found
    )


def test_a_value_per_token_and_class_is_a_mean_over_classes_and_targets() -> None:
    batch = {"labels": torch.tensor([[-100, 0, 1], [-100, 1, -100], [-100, -100, -100]])}
    values = torch.tensor([[[1.0, 3], [5, 7]], [[2, 4], [99, 99]], [[9, 9], [9, 9]]])
    assert TASK.per_example(values, batch).tolist() == [4, 3, 0]
    assert TASK.per_example(values.mean(2), batch).tolist() == [4, 3, 0]
    assert TASK.per_example(torch.tensor([1.0, 2, 3]), batch).tolist() == [1, 2, 3]


def test_a_batch_without_any_target_costs_nothing() -> None:
    batch = tiny.batch(2, TASK) | {"labels": torch.full((2, 8), IGNORED)}
    prediction = TASK.predict(lively("llama"), batch)
    assert TASK.reduce(TASK.hard_loss(prediction, batch), batch) == 0


@torch.no_grad()
def test_metrics_are_ratios_of_sums_over_batches() -> None:
    model, metrics = lively("gpt2"), TASK.metrics()
    losses, right, count = 0.0, 0, 0
    for seed in range(3):
        batch = tiny.batch(4, TASK, seed)
        metrics.update(TASK.answers(TASK.predict(model, batch), batch), TASK.truths(batch))
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        for row in range(4):
            for k in range(7):
                if (label := int(batch["labels"][row, k + 1])) != IGNORED:
                    losses -= float(log_softmax(logits[row, k], -1)[label])
                    right += int(logits[row, k].argmax()) == label
                    count += 1
    found = metrics.compute()
    assert found["perplexity"].item() == pytest.approx(math.exp(losses / count), rel=1e-4)
    assert found["token_accuracy"].item() == pytest.approx(right / count)


def test_scores_of_texts_are_the_data_module_s() -> None:
    metrics = CausalLM("x", ("perplexity", "bleu")).metrics()
    metrics.update(torch.tensor([[1.0, 1, 1]]), torch.tensor([1]))
    assert math.isnan(metrics.compute()["bleu"])


def asked(size: int = 5, seed: int = 0):
    batch = tiny.batch(size, TASK, seed)
    prompts = (batch["labels"] != IGNORED).int().argmax(1)
    generate = torch.arange(size) % 3 != 1
    return batch | {"prompt_lengths": prompts, "generate": generate}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_a_batch_is_continued_as_each_prompt_alone(kind, beams) -> None:
    task = CausalLM("alpaca", max_new_tokens=4, num_beams=beams)
    model, ended, ends = lively(kind), 0, list(range(0, 40, 4))
    model.generation_config.eos_token_id = ends
    for seed in range(3):
        batch = asked(seed=seed)
        found = task.predict(model, batch).generated
        assert found is not None
        assert found.shape == (int(batch["generate"].sum()), 4)
        for row, tokens in zip(batch["generate"].nonzero().flatten(), found.tolist(), strict=True):
            prompt = batch["input_ids"][row : row + 1, : batch["prompt_lengths"][row]]
            alone = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, num_beams=beams,
                do_sample=False, pad_token_id=0,
            )[0, prompt.shape[1] :].tolist()  # fmt: skip
            kept = alone[: next((k for k, x in enumerate(alone) if x in ends), 4)]
            assert tokens == [*kept, *[-1] * (4 - len(kept))]
            ended += 0 < len(kept) < 4
    assert ended  # or nothing was seen of what comes after an end


def test_nothing_is_written_while_training_or_unasked() -> None:
    model, batch = lively("llama"), asked()
    assert TASK.predict(model, batch).generated is None
    with torch.no_grad():
        nobody = batch | {"generate": torch.zeros(5, dtype=torch.bool)}
        written = TASK.predict(model, nobody).generated
    assert written is not None
    assert written.shape == (0, 4)


def test_prompts_are_padded_on_the_left_whatever_the_batch_s_side() -> None:
    right = {
        "input_ids": torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]),
        "prompt_lengths": torch.tensor([2, 1]),
    }
    left = right | {
        "input_ids": torch.tensor([[0, 5, 6, 7], [0, 0, 8, 9]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]]),
    }
    for batch in (right, left):
        prompts, mask = left_padded(batch, [0, 1])
        assert prompts.tolist() == [[5, 6], [0, 8]]
        assert mask.tolist() == [[1, 1], [0, 1]]
        assert left_padded(batch, [1])[0].tolist() == [[8]]
        assert left_padded(batch, [0, 1], longest=1)[0].tolist() == [[6], [8]]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_prompt_as_long_as_the_model_s_context_loses_its_beginning(kind) -> None:
    model = lively(kind)  # of 24 places
    tokens = torch.randint(5, 40, (1, 24))
    batch = {
        "input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens,
        "prompt_lengths": torch.tensor([24]), "generate": torch.tensor([True]),
    }  # fmt: skip
    short = batch | {k: batch[k][:, 4:] for k in ("input_ids", "attention_mask", "labels")}
    short["prompt_lengths"] = torch.tensor([20])
    written = TASK.generate(model, batch)
    assert torch.equal(written, TASK.generate(model, short))
    with pytest.raises(ValueError, match=r"max_new_tokens=24 of x leave no place .* the 24"):
        CausalLM("x", max_new_tokens=24).generate(model, batch)


def test_arguments() -> None:
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        CausalLM("x", max_new_tokens=0)
    with pytest.raises(ValueError, match="num_beams must be at least 1, got 0"):
        CausalLM("x", num_beams=0)
    assert task_named("triviaqa").monitor == "perplexity"
