"""The two experiments around Pro-KD, in small: what the arms share, and how it is counted."""

import json
from typing import Any

import pytest
import torch

from benchmarks import checkpoint_search, pro_kd_parity
from benchmarks.checkpoint_search import Arm, Students, arms_of, groups_of, split, total_loss
from lightning_kd.functional import annealed_logit_mse, kd_loss


def last_line(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_parity_prints_every_arm(capsys) -> None:
    small = {"seeds": 1, "steps": 500, "checkpoints": 2, "teacher_width": 8, "width": 4}
    pro_kd_parity.main([f"--{name}={value}" for name, value in small.items()])
    found = last_line(capsys)
    assert set(found["results"]) == set(pro_kd_parity.ARMS)
    assert found["holds"] == [False]
    assert all(0 <= accuracy <= 1 for ((accuracy, _),) in found["results"].values())


def test_parity_of_five_signs() -> None:
    signs, labels = pro_kd_parity.draw(64, torch.Generator().manual_seed(0))
    for row, label in zip(signs.tolist(), labels.tolist(), strict=True):
        assert label == (sum(sign < 0 for sign in row[:5]) % 2 == 0)


def images(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 10
    return torch.rand(count, 5, generator=generator) + labels[:, None], labels


def test_the_asked_share_of_training_labels_is_wrong_and_nothing_else() -> None:
    inputs, labels = images()
    data = split((inputs, labels), flip=0.25, seed=3)
    parts = (data.train, data.validation, data.test)
    assert [len(part[1]) for part in parts] == [36, 12, 12]
    wrong = [
        int(sum(truth != label for truth, label in zip(x[:, 0].floor().long(), y, strict=True)))
        for x, y in parts
    ]
    assert wrong == [9, 0, 0]
    assert torch.equal(
        torch.cat([x for x, _ in parts])[:, 0].sort().values, inputs[:, 0].sort().values
    )


SMALL = ["--seeds=2", "--epochs=4", "--label_epochs=1", "--teacher_epochs=4", "--checkpoints=3",
         "--teacher_width=8", "--max_temperature=3", "--widths", "3"]  # fmt: skip


def test_a_batch_is_priced_arm_by_arm() -> None:
    options = checkpoint_search.parse(SMALL)
    arms = arms_of(options)
    generator = torch.Generator().manual_seed(0)
    students = torch.randn(len(arms), 6, 10, generator=generator)
    answers = torch.randn(3, 6, 10, generator=generator)
    labels = torch.arange(6)

    def by_hand(arm: Arm, logits: torch.Tensor, epoch: int) -> float:
        if arm.loss == "labels" or (arm.label_epochs and epoch == 3):
            return torch.nn.functional.cross_entropy(logits, labels).item()
        j = arm.checkpoint or ([1, 2, 3, 3] if arm.label_epochs else [1, 1, 2, 3])[epoch]
        temperature = [3.0, 2.0, 1.0][j - 1]
        if arm.loss == "kl":
            tau = 4.0 if arm.checkpoint else temperature
            return kd_loss(logits, answers[j - 1], tau).mean().item()
        phi = 1.0 if arm.checkpoint else 1 - (temperature - 1) / 3
        return annealed_logit_mse(logits, answers[j - 1], phi).mean().item()

    for epoch in range(4):
        expected = [by_hand(arm, students[i], epoch) for i, arm in enumerate(arms)]
        groups = groups_of(arms, epoch, options)
        found = total_loss(groups, students, answers, labels).item()
        assert found == pytest.approx(sum(expected), rel=1e-5)


def test_slices_share_nothing_but_their_start() -> None:
    students = Students(3, 5, 4)
    logits = students(torch.randn(6, 5))
    assert torch.equal(logits[0], logits[2])
    logits[1].sum().backward()
    for weight in students.weights:
        assert weight.grad is not None
        assert not weight.grad[0].any()
        assert weight.grad[1].any()


def test_the_search_prints_every_arm_and_the_gates(capsys) -> None:
    checkpoint_search.main(SMALL, images())
    out = capsys.readouterr().out
    for name in ("labels", "mse, checkpoint 3", "kl, Pro-KD, then labels"):
        assert f"  {name} " in out
    gates = json.loads(out.splitlines()[-1])["gates"]
    assert set(gates) == {"3 mse", "3 kl"}
    assert all(1 <= gate["best_checkpoint"] <= 3 for gate in gates.values())
