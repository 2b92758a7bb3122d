"""Out-of-fold teachers: who is asked about whom, what becomes of the labels (checks 7, 8, 8.2)."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_kd.functional import kd_loss
from lightning_kd.methods import NoisyLabelKD, cross_fit
from lightning_kd.methods.cross_fit import CrossFit, OutOfFold
from tests import tiny
from tests.conformance.matrix import TinyData, differing, fit, trainer, weights
from tests.kill import ROOT, run_to_end

TASK = tiny.TASKS["classification"]
FOLDS = 3


def make(folder: Path, **settings: Any) -> NoisyLabelKD:
    defaults = {"fold_learning_rate": 0.05, "folds": FOLDS, "fold_epochs": 1, "alpha": 0.4}
    options = {**defaults, "fold_dir": str(folder), "mitigation": "label_refine", **settings}
    module = tiny.METHODS["NoisyLabelKD"](tiny.model(), TASK, learning_rate=0.01, **options)
    assert isinstance(module, NoisyLabelKD)
    return module


def with_answers(probabilities: list[list[float]], labels: list[int], **settings: Any) -> Any:
    """A module whose out-of-fold teachers said that, and a batch of those examples."""
    batch = {**tiny.batch(len(labels)), "labels": torch.tensor(labels)}
    module = make(Path(), **settings)
    module.out_of_fold = OutOfFold(batch["idx"], batch["labels"], torch.tensor(probabilities).log())
    return module, batch


Q = [[0.7, 0.3], [0.1, 0.9], [0.8, 0.2], [0.45, 0.55]]
LABELS = [1, 1, 0, 0]


def test_check_8_hard_refinement_trains_on_the_labels_of_sure_teachers() -> None:
    for threshold, wanted in ((0.6, [0, 1, 0, 0]), (0.8, LABELS), (0.5, [0, 1, 0, 1])):
        module, batch = with_answers(Q, LABELS, refine="hard", threshold=threshold)
        loss = cross_entropy(module.predict(batch).logits, torch.tensor(wanted))
        torch.testing.assert_close(module.objective(batch)["hard"], 0.6 * loss)


def test_check_7_soft_refinement_is_a_mixture_of_cross_entropies() -> None:
    module, batch = with_answers(Q, LABELS, refine="soft", blend=0.8, alpha=0.0)
    log_p, q = module.predict(batch).logits.log_softmax(-1), torch.tensor(Q)
    expected = -0.2 * log_p[range(4), LABELS] - 0.8 * (q * log_p).sum(-1)
    terms = module.objective(batch)
    assert set(terms) == {"hard"}
    torch.testing.assert_close(terms["hard"], expected.mean(), atol=1e-7, rtol=1e-6)


def test_filtering_drops_the_hard_term_of_vetoed_labels_and_keeps_the_soft_one() -> None:
    module, batch = with_answers(Q, LABELS, refine="filter")
    logits = module.predict(batch).logits
    losses = cross_entropy(logits, batch["labels"], reduction="none")
    terms = module.objective(batch)
    torch.testing.assert_close(terms["hard"], 0.6 * (losses[1] + losses[2]) / 4)
    soft = kd_loss(logits, torch.tensor(Q).log()).mean()
    torch.testing.assert_close(terms["soft"], 0.4 * soft)


def test_a_threshold_that_nobody_reaches_is_distillation_from_the_out_of_fold_answers() -> None:
    module, batch = with_answers(Q, LABELS, refine="hard", threshold=1.01)
    logits = module.predict(batch).logits
    expected = 0.6 * cross_entropy(logits, batch["labels"])
    torch.testing.assert_close(module.objective(batch)["hard"], expected)


def test_answers_are_looked_up_by_idx() -> None:
    table = OutOfFold(
        torch.tensor([3, 7, 20]), torch.zeros(3), torch.tensor([[3.0], [7.0], [20.0]])
    )
    assert table.find({"idx": torch.tensor([20, 3])}).flatten().tolist() == [20, 3]
    for unknown in (2, 8, 21):
        with pytest.raises(ValueError, match=f"no teacher was asked about example {unknown}"):
            table.find({"idx": torch.tensor([3, unknown])})


@pytest.fixture
def spied(monkeypatch):
    """Which examples each teacher was trained on and asked about, in order."""
    seen: list[set[int]] = []
    asked: list[list[int]] = []
    train, ask = cross_fit._train, cross_fit._ask

    def idx_of(loader: Any) -> list[int]:
        return [int(i) for batch in loader for i in batch["idx"]]

    def spy_train(plan, module, loader, outer) -> None:
        seen.append(set(idx_of(loader)))
        train(plan, module, loader, outer)

    def spy_ask(module, loader, outer):
        asked.append(idx_of(loader))
        return ask(module, loader, outer)

    monkeypatch.setattr(cross_fit, "_train", spy_train)
    monkeypatch.setattr(cross_fit, "_ask", spy_ask)
    return seen, asked


def test_no_teacher_is_asked_what_it_was_trained_on_and_each_example_is_asked_once(
    spied, tmp_path
) -> None:
    seen, asked = spied
    fit(make(tmp_path), max_steps=1)
    assert len(seen) == len(asked) == FOLDS
    for trained, predicted in zip(seen, asked, strict=True):
        assert trained | set(predicted) == set(range(12))
        assert not trained & set(predicted)
    assert sorted(i for fold in asked for i in fold) == list(range(12))


def test_the_table_holds_what_the_teachers_said(tmp_path, monkeypatch) -> None:
    """The teacher of a fold here answers with the idx it is asked about."""

    def say_idx(module, loader, outer):
        idx = torch.cat([batch["idx"] for batch in loader])
        return {"idx": idx.numpy(), "logits": torch.stack([idx, -idx], 1).float().numpy()}

    monkeypatch.setattr(cross_fit, "_ask", say_idx)
    module = make(tmp_path)
    fit(module, max_steps=1)
    data = TinyData(TASK)
    batch = data.rows[0]["idx"].new_tensor([5, 0, 11])
    assert module.teach({"idx": batch, "labels": batch}).logits[:, 0].tolist() == [5, 0, 11]
    assert module.out_of_fold is not None
    labels = torch.stack([row["labels"] for row in data.rows])
    assert torch.equal(module.out_of_fold.labels, labels)


def test_folds_are_a_function_of_seed_and_idx_and_about_equal() -> None:
    plan, other = CrossFit(5, 1, 0, {}), CrossFit(5, 1, 1, {})
    folds = torch.tensor([plan.fold_of(i) for i in range(5000)])
    assert ((folds.bincount() - 1000).abs() < 3 * 28.3).all()  # 3 sigma
    assert folds.tolist() != [other.fold_of(i) for i in range(5000)]


def test_teachers_are_trained_and_the_one_that_was_given_is_not(tmp_path) -> None:
    module = make(tmp_path)
    assert module.teacher is not None
    before = weights(module.teacher.module)
    fit(module, max_steps=1)
    assert differing(before, weights(module.teacher.module)) == []
    assert not any(p.requires_grad for p in module.teacher.module.parameters())
    assert module.out_of_fold is not None
    untrained = TASK.predict(module.teacher, tiny.batch(12)).logits
    assert (module.out_of_fold.logits - untrained).abs().max() > 0.01


def test_done_folds_are_kept_and_found_again(spied, tmp_path) -> None:
    first = make(tmp_path)
    fit(first, max_steps=1)
    files = sorted(tmp_path.glob("*.npz"))
    assert len(files) == FOLDS
    files[1].unlink()  # as if the run had been cut off
    again = make(tmp_path)
    fit(again, max_steps=1)
    assert len(spied[0]) == FOLDS + 1
    assert again.out_of_fold is not None
    assert first.out_of_fold is not None
    assert again.out_of_fold.sha256 == first.out_of_fold.sha256


@pytest.mark.parametrize("change", [{"fold_epochs": 2}, {"seed": 3}, {"fold_learning_rate": 0.1}])
def test_other_settings_do_not_find_them(change, spied, tmp_path) -> None:
    fit(make(tmp_path), max_steps=1)
    fit(make(tmp_path, **change), max_steps=1)
    assert len(spied[0]) == 2 * FOLDS


def test_another_size_of_step_does_not_find_them(spied, tmp_path) -> None:
    fit(make(tmp_path), max_steps=1)
    fit(make(tmp_path), max_steps=1, accumulate_grad_batches=2)
    assert len(spied[0]) == 2 * FOLDS


def test_other_labels_do_not_find_them(spied, tmp_path) -> None:
    fit(make(tmp_path), max_steps=1)
    data = TinyData(TASK)
    data.rows[0]["labels"] = 1 - data.rows[0]["labels"]
    trainer(max_steps=1).fit(make(tmp_path), datamodule=data)
    assert len(spied[0]) == 2 * FOLDS


@pytest.mark.parametrize("refine", ["hard", "soft", "filter"])
def test_a_resumed_run_ends_with_the_same_bits(refine, tmp_path) -> None:
    settings: dict[str, Any] = {"refine": refine, "threshold": 0.5}
    whole, resumed = (make(tmp_path / str(k), **settings) for k in range(2))
    fit(whole, folder=tmp_path)
    torch.manual_seed(99)
    fit(resumed, folder=tmp_path, ckpt_path=tmp_path / "step=2.ckpt")
    assert differing(weights(whole), weights(resumed)) == []
    assert whole.out_of_fold is not None
    assert resumed.out_of_fold is not None  # made anew, in another folder
    assert torch.equal(whole.out_of_fold.logits, resumed.out_of_fold.logits)
    assert whole.notes == resumed.notes
    assert whole.notes["refinement"] == refine
    assert 0 <= whole.notes["estimated_noise_rate"] <= 1


def test_a_checkpoint_with_other_answers_is_refused(tmp_path) -> None:
    fit(make(tmp_path), folder=tmp_path)
    other = make(tmp_path, fold_learning_rate=0.2)
    with pytest.raises(ValueError, match="trained with other out-of-fold answers"):
        fit(other, folder=tmp_path, ckpt_path=tmp_path / "step=2.ckpt")


def test_training_is_not_disturbed_by_the_training_of_teachers(tmp_path) -> None:
    """With the answers there or not, the student draws the same random numbers."""
    first, second = make(tmp_path), make(tmp_path)
    fit(first)
    fit(second)
    assert differing(weights(first), weights(second)) == []


def test_a_named_teacher_starts_from_its_weights_and_needs_no_head(tmp_path) -> None:
    name = tiny.named_model()
    module = make(tmp_path, teacher=name)
    fit(module, max_steps=1)
    assert module.teacher is None
    assert module.out_of_fold is not None


def test_shared_idx_and_plain_loaders_are_refused(tmp_path) -> None:
    data = TinyData(TASK)
    data.rows[1]["idx"] = data.rows[0]["idx"]
    with pytest.raises(ValueError, match="12 training examples share 11 idx"):
        trainer(max_steps=1).fit(make(tmp_path), datamodule=data)
    with pytest.raises(TypeError, match="needs a data module of"):
        trainer(max_steps=1).fit(make(tmp_path), tiny.loader(), tiny.loader())


@pytest.mark.ddp
@pytest.mark.timeout(200)
def test_two_processes_share_the_folds_and_get_the_same_answers(tmp_path) -> None:
    run_to_end([ROOT / "tests/methods/test_label_refine.py", tmp_path / "pair"], timeout=150)
    alone = make(tmp_path / "alone")
    fit(alone, max_steps=1)
    first, second = (torch.load(tmp_path / "pair" / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    assert alone.out_of_fold is not None
    assert len(list((tmp_path / "pair").glob("*.npz"))) == FOLDS
    torch.testing.assert_close(first, alone.out_of_fold.logits)


def _one_of_two(folder: Path, rank: int) -> Tensor:
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2")
    module = make(folder)
    fit(module, batch_size=4, max_steps=1, devices=2, strategy="ddp")
    assert module.out_of_fold is not None
    return module.out_of_fold.logits


if __name__ == "__main__":
    import sys

    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
    target = Path(sys.argv[1])
    other = os.fork()
    rank = 0 if other else 1
    logits = _one_of_two(target, rank)
    torch.save(logits, target / f"{rank}.pt")
    if other and os.waitpid(other, 0)[1] != 0:
        sys.exit("the second process failed")
