"""Thresholds and drafts are chosen from what the exits said, by numbers that can be recounted."""

import math

import pytest
import torch

from lightning_kd.decoding import (
    Costs,
    calibrate_thresholds,
    dynamic_exit,
    greedy,
    measure_costs,
    probe_exits,
    self_speculative,
    tune_speculation,
)
from lightning_kd.decoding.tuning import predicted_speedups
from tests.decoding.models import agreeing, cut, decoder, prompt

PROMPTS = [prompt(seed=seed) for seed in range(4)]
FLAT = Costs(block=(1.0,) * 9, head=(0.5,) * 9, depth=6)  # rows are free: memory is the limit


def test_a_probe_is_what_cut_models_say_after_the_full_models_text() -> None:
    model = agreeing()
    (probe,) = probe_exits(model, PROMPTS[:1], [2, 4, 6], 20, eos=())
    assert (probe.exits, probe.depth) == ((2, 4), 6)
    text = greedy(model, PROMPTS[0], 20, eos=()).tokens
    whole = torch.cat([PROMPTS[0], torch.tensor([text])], 1)
    for row, exit_ in enumerate(probe.exits):
        with torch.no_grad():
            logits = cut(model, exit_)(whole).logits[0, 9:-1]
        assert probe.agrees[row].tolist() == (logits.argmax(-1) == whole[0, 10:]).tolist()
        torch.testing.assert_close(probe.confidence[row], logits.softmax(-1).amax(-1))


@pytest.mark.parametrize("confidence", ["max_prob", "margin", "entropy"])
@pytest.mark.parametrize("target", [0.5, 0.8, 1.0])
def test_calibrated_exits_agree_as_often_as_asked_for_and_no_lower_threshold_does(
    target, confidence
) -> None:
    model = agreeing()
    found = calibrate_thresholds(
        model, PROMPTS, [2, 4], agreement=target, confidence=confidence, max_new_tokens=40, eos=()
    )
    probes = probe_exits(model, PROMPTS, [2, 4], 40, confidence=confidence, eos=())
    sure = torch.cat([p.confidence for p in probes], 1).double()
    right = torch.cat([p.agrees for p in probes], 1)
    left = torch.ones(sure.shape[1], dtype=torch.bool)
    stopped = []
    for row, threshold in enumerate(found.thresholds):
        stops = left & (sure[row] > threshold)
        if stops.any():
            assert right[row][stops].double().mean() >= target
        for lower in [*sure[row][left & ~stops].tolist()]:
            more = left & (sure[row] >= lower)
            assert right[row][more].double().mean() < target
        stopped.append(int(stops.sum()))
        left &= ~stops
    stopped.append(int(left.sum()))
    total = found.num_tokens
    assert total == 4 * 39 == sum(stopped)
    assert found.shares == tuple(count / total for count in stopped)
    mean = sum(n * d for n, d in zip(stopped, (2, 4, 6), strict=True)) / total
    assert found.average_depth == pytest.approx(mean)
    assert found.agreement >= target


def test_calibrated_thresholds_decode_at_a_smaller_depth() -> None:
    model = agreeing()
    found = calibrate_thresholds(model, PROMPTS, [2, 4], agreement=0.7, max_new_tokens=40, eos=())
    made = dynamic_exit(
        model, PROMPTS[0], 40, exits=found.exits, thresholds=found.thresholds, eos=()
    )
    assert made.average_depth < 6
    assert found.average_depth < 6


def test_an_exit_that_never_agrees_is_never_taken() -> None:
    model = decoder()
    with torch.no_grad():
        model.model.layers[5].mlp.down_proj.weight.mul_(40)  # the last block decides alone
    found = calibrate_thresholds(model, PROMPTS, [1], agreement=1.0, max_new_tokens=20, eos=())
    assert found.thresholds in [(math.inf,), (float(found.thresholds[0]),)]
    assert found.agreement == 1.0


@pytest.mark.parametrize("draft", [2, 4])
@pytest.mark.parametrize("window", [1, 3, 8])
def test_replayed_rounds_are_those_that_decoding_takes(draft, window) -> None:
    model = agreeing()
    (probe,) = probe_exits(model, PROMPTS[:1], [draft], 61, eos=())
    made = self_speculative(model, PROMPTS[0], 61, draft=draft, window=window, eos=())
    table = predicted_speedups([probe], FLAT, window)
    rounds = 60 * FLAT.step / (table[draft, window] * FLAT.round(draft, window))
    assert made.rounds == round(rounds)


def test_the_tuner_takes_the_largest_of_its_table() -> None:
    found = tune_speculation(agreeing(), PROMPTS, max_new_tokens=40, eos=(), costs=FLAT)
    assert set(found.table) == {(exit_, k) for exit_ in range(1, 6) for k in range(1, 9)}
    assert found.speedup == max(found.table.values()) == found.table[found.draft, found.window]
    probes = probe_exits(agreeing(), PROMPTS, [found.draft], 40, eos=())
    agrees = torch.cat([probe.agrees[0] for probe in probes])
    assert found.acceptance == pytest.approx(float(agrees.float().mean()))
    few = tune_speculation(agreeing(), PROMPTS, [4, 5], max_window=2, eos=(), costs=FLAT)
    assert set(few.table) == {(4, 1), (4, 2), (5, 1), (5, 2)}


def test_an_exit_that_is_as_good_and_cheaper_drafts() -> None:
    model = decoder()
    with torch.no_grad():
        for block in list(model.model.layers)[3:]:  # blocks 4 to 6 add nothing
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    found = tune_speculation(model, PROMPTS, [3, 4, 5], max_new_tokens=46, eos=(), costs=FLAT)
    assert (found.draft, found.window, found.acceptance) == (3, 8, 1.0)
    assert found.speedup == pytest.approx(45 * 6.5 / (5 * (9 * 3 + 8 * 0.5 + 3 + 0.5)))


def test_costs_are_measured_for_every_number_of_rows() -> None:
    costs = measure_costs(decoder(), length=9, max_rows=3, repeats=1)
    assert len(costs.block) == len(costs.head) == 3
    assert min(*costs.block, *costs.head) > 0
    assert costs.depth == 6


def test_bad_samples_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"exits below the full depth 6, got \[6\]"):
        probe_exits(decoder(), PROMPTS, [6])
    with pytest.raises(ValueError, match="none of 4 prompts is followed by more than one token"):
        probe_exits(decoder(), PROMPTS, [2], 1)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got 1.5"):
        calibrate_thresholds(decoder(), PROMPTS, [2], agreement=1.5)
    with pytest.raises(ValueError, match="max_prob, margin, entropy, got 'sure'"):
        probe_exits(decoder(), PROMPTS, [2], confidence="sure")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_window must be at least 1, got 0"):
        tune_speculation(decoder(), PROMPTS, max_window=0)
    with pytest.raises(ValueError, match="exits 1 to 6, got 9"):
        tune_speculation(decoder(), PROMPTS, [2, 9])


def test_texts_end_where_the_model_ends_them() -> None:
    tokens = greedy(agreeing(), PROMPTS[0], 20, eos=()).tokens
    end = tokens[5]
    (probe,) = probe_exits(agreeing(), PROMPTS[:1], [2], 20, eos=end)
    assert probe.agrees.shape == (1, tokens.index(end))


def test_measured_costs_do_not_fall_with_more_rows() -> None:
    """Noise that made one row slow would promise a gain to every window."""
    costs = measure_costs(decoder("llama"), 4, 6, repeats=1)
    assert list(costs.block) == sorted(costs.block)
    assert list(costs.head) == sorted(costs.head)
