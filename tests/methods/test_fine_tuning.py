"""Fine-tuning trains all weights, or the head alone."""

import pytest
import torch

from lightning_kd.methods import FineTuning
from tests import tiny

TASK = tiny.TASKS["classification"]


def test_all_weights_train() -> None:
    assert all(p.requires_grad for p in FineTuning(tiny.model(), TASK).parameters())


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("bert", {"bert.pooler.dense", "classifier"}),
        ("roberta", {"classifier.dense", "classifier.out_proj"}),
        ("llama", {"score"}),
    ],
)
def test_the_head_alone_trains_over_a_frozen_encoder(kind, names) -> None:
    module = FineTuning(tiny.model(kind), TASK, train="head")
    trainable = {n for n, p in module.student.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[0] for name in trainable} == names
    before = {n: p.detach().clone() for n, p in module.student.named_parameters()}
    module.learning_rate, module.warmup_fraction = 0.1, 0.0
    tiny.trainer(max_epochs=1).fit(module, tiny.loader(), tiny.loader())
    after = dict(module.student.named_parameters())
    assert {n for n in after if not torch.equal(after[n], before[n])} == trainable


def test_the_objective_is_the_mean_of_the_task_s_loss() -> None:
    task = tiny.TASKS["regression"]
    module, batch = FineTuning(tiny.model(task=task), task), tiny.batch(task=task)
    loss = module.objective(batch)
    assert set(loss) == {"hard"}
    expected = (module.predict(batch).logits[:, 0] - batch["labels"]).square().mean()
    torch.testing.assert_close(loss["hard"], expected)


def test_another_part_is_refused() -> None:
    with pytest.raises(ValueError, match="train must be all or head, got 'body'"):
        FineTuning(tiny.model(), TASK, train="body")  # type: ignore[arg-type]
