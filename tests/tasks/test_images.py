"""Images as a task: our networks and those of transformers; names; what it cannot do."""

from typing import Any

import pytest
import torch
import transformers

from lightning_kd.models import load_model
from lightning_kd.nn import CifarResNet
from lightning_kd.tasks import Image, task_named

THREE = Image("three", ("a", "b", "c"))


def batch() -> dict[str, torch.Tensor]:
    images = torch.randn(2, 3, 8, 8)
    return {"pixel_values": images, "labels": torch.tensor([0, 2]), "idx": torch.arange(2)}


def vit() -> transformers.PretrainedConfig:
    sizes: Any = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.ViTConfig(**sizes, intermediate_size=8, image_size=8, patch_size=4)


def test_pixels_go_in_and_logits_come_out_of_both_kinds_of_models() -> None:
    inputs = batch() | {"cache_row": torch.arange(2)}
    own = CifarResNet(8, 3).eval()
    assert torch.equal(THREE.predict(own, inputs).logits, own(inputs["pixel_values"]))
    theirs = load_model(vit(), THREE).eval()
    expected = theirs(inputs["pixel_values"]).logits
    assert torch.equal(THREE.predict(theirs, inputs).logits, expected)
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}  # type: ignore[union-attr]


def test_hidden_states_come_from_transformers_only() -> None:
    states = THREE.predict(load_model(vit(), THREE), batch(), hidden_states=True).hidden_states
    assert states is not None
    assert [tuple(state.shape) for state in states] == [(2, 5, 8)] * 3
    with pytest.raises(ValueError, match="CifarResNet has no hidden states to give"):
        THREE.predict(CifarResNet(8, 3), batch(), hidden_states=True)


def test_it_is_priced_and_scored_as_a_classification() -> None:
    prediction = THREE.predict(CifarResNet(8, 3).eval(), batch())
    loss = THREE.hard_loss(prediction, batch())
    expected = -prediction.logits.log_softmax(-1)[[0, 1], [0, 2]]
    assert torch.allclose(loss, expected)
    assert THREE.metric_names == ("accuracy",)


@pytest.mark.parametrize(
    ("name", "classes", "channels"), [("cifar10", 10, 3), ("cifar100", 100, 3), ("digits", 10, 1)]
)
def test_named_tasks(name, classes, channels) -> None:
    task = task_named(name)
    assert isinstance(task, Image)
    assert (len(set(task.labels)), task.num_labels) == (classes, classes)
    assert task.num_channels == channels


def test_cifar100_is_in_its_published_order() -> None:
    task = task_named("cifar100")
    assert isinstance(task, Image)
    assert list(task.labels) == sorted(task.labels)
    assert (task.labels[26], task.labels[99]) == ("crab", "worm")


def test_a_model_of_texts_is_refused_in_one_sentence(tmp_path) -> None:
    transformers.BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} is no image classifier, which three needs$"):
        load_model(str(tmp_path), THREE)


def test_channels_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="num_channels must be at least 1, got 0"):
        Image("none", ("a",), num_channels=0)
