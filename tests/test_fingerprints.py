"""What tells inputs and networks apart: the same for the same, another where anything counts."""

from typing import Any

import numpy as np
import pytest
import torch

from lightning_kd.fingerprints import content_key, fingerprint_of
from tests import tiny


def test_a_content_key_is_of_the_tokens_alone() -> None:
    assert content_key(np.array([5, 6])) == content_key(np.array([5, 6], dtype=np.int32))
    assert content_key(np.array([5, 6])) != content_key(np.array([6, 5]))


def test_the_fingerprint_of_a_network_is_of_every_weight_and_buffer() -> None:
    one, same = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    assert fingerprint_of(one) == fingerprint_of(same)
    assert same.running_mean is not None
    same.running_mean[1] = 1e-6
    assert fingerprint_of(one) != fingerprint_of(same)
    model = tiny.model()
    before = fingerprint_of(model)
    next(model.parameters()).data[0, 0] += 1e-6
    assert fingerprint_of(model) != before


@pytest.mark.parametrize(
    "settings", [{"num_attention_heads": 4}, {"hidden_act": "relu"}, {"layer_norm_eps": 1e-3}]
)
def test_equal_weights_that_answer_otherwise_have_another_fingerprint(settings) -> None:
    from lightning_kd.models import load_model

    task = tiny.TASKS["classification"]
    one, other = tiny.model(), load_model(tiny.config(**settings), task).eval()
    other.load_state_dict(one.state_dict())
    batch = tiny.batch()
    with torch.no_grad():
        assert not torch.equal(task.predict(one, batch).logits, task.predict(other, batch).logits)
    assert fingerprint_of(one) != fingerprint_of(other)


def test_where_a_network_is_kept_does_not_matter(tmp_path) -> None:
    from lightning_kd.teachers import load_teacher

    task = tiny.TASKS["classification"]
    for name in ("here", "there"):
        tiny.model_folder(tmp_path / name)
    one, other = (load_teacher(str(tmp_path / name), task) for name in ("here", "there"))
    assert fingerprint_of(one) == fingerprint_of(other)
    named: Any = one
    assert named.config._name_or_path != ""
