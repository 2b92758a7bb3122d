"""CIFAR ResNets: weights counted by hand, shortcuts without weights, and their folders."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from lightning_kd.models import head_modules, load_model
from lightning_kd.nn import CifarResNet
from lightning_kd.nn.resnet import is_resnet_folder
from lightning_kd.tasks import Classification, Image
from lightning_kd.teachers import load_teacher

TEN = [f"c{i}" for i in range(10)]
COLOURS, GREY = Image("ten", TEN), Image("ten", TEN, num_channels=1)


def weights_of(n: int, channels: int = 3, classes: int = 10) -> int:
    """By hand: 3x3 kernels, two numbers per channel for each normalization, one linear layer."""

    def convolution(ins: int, outs: int) -> int:
        return 9 * ins * outs + 2 * outs

    total = convolution(channels, 16) + 2 * n * convolution(16, 16)
    for width in (32, 64):
        total += convolution(width // 2, width) + (2 * n - 1) * convolution(width, width)
    return total + 64 * classes + classes


@pytest.mark.parametrize(
    ("depth", "count", "millions"), [(8, 75_290, 0.08), (20, 269_722, 0.27), (110, 1_727_962, 1.7)]
)
def test_the_weights_are_the_papers(depth, count, millions) -> None:
    network = CifarResNet(depth, 10)
    found = sum(p.numel() for p in network.parameters())
    assert found == count == weights_of((depth - 2) // 6)
    assert found / 1e6 == pytest.approx(millions, rel=0.06)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(convolutions) == depth


def test_grey_images_of_any_size_fit_and_other_channels_are_named() -> None:
    network = CifarResNet(8, 7, num_channels=1).eval()
    assert sum(p.numel() for p in network.parameters()) == weights_of(1, channels=1, classes=7)
    for size in (4, 7, 8, 32):
        assert network(torch.randn(2, 1, size, size)).shape == (2, 7)
    with pytest.raises(ValueError, match=r"reads images of 1 channel\(s\), got 3"):
        network(torch.randn(2, 3, 8, 8))


def test_a_shortcut_takes_every_second_pixel_and_fills_channels_with_zeros() -> None:
    network = CifarResNet(8, 10, width=2)
    block = network.backbone[4]  # after the stem's three and the first stage's block
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()  # nothing but the shortcut is left
    images = torch.rand(1, 2, 6, 6)
    expected = torch.cat([images[:, :, ::2, ::2], torch.zeros(1, 2, 3, 3)], 1)
    assert torch.equal(block(images), expected)


def test_the_network_computes_what_its_paper_says() -> None:
    """Against the same composition of plain functions."""
    network = CifarResNet(8, 3, num_channels=1, width=2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
    state = network.eval().state_dict()

    def layer(x, name, norm, stride=1):
        out = F.conv2d(x, state[f"{name}.weight"], stride=stride, padding=1)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(out, *(state[f"{norm}.{n}"] for n in names))

    images = torch.randn(2, 1, 8, 8)
    x = layer(images, "backbone.0", "backbone.1").relu()
    for block in (3, 4, 5):
        name, stride = f"backbone.{block}", 1 if block == 3 else 2
        out = layer(x, f"{name}.first.0", f"{name}.first.1", stride).relu()
        out = layer(out, f"{name}.second.0", f"{name}.second.1")
        if stride == 2:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))
        x = (out + x).relu()
    logits = F.linear(x.mean((2, 3)), state["classifier.weight"], state["classifier.bias"])
    assert torch.allclose(network(images), logits, atol=1e-5)


@pytest.mark.parametrize("depth", [0, 2, 9, 18])
def test_another_depth_is_answered_with_the_valid_ones(depth) -> None:
    with pytest.raises(ValueError, match=f"got resnet{depth}; choose resnet8, .* or resnet110"):
        load_model(f"resnet{depth}", COLOURS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width of a ResNet must be at least 1, got 0"),
        ({"labels": []}, "labels of a ResNet must be at least 1, got 0"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_named(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        CifarResNet(**{"depth": 8, "labels": 10, **settings})


def test_a_name_gives_the_tasks_channels_and_classes_and_one_head() -> None:
    network = load_model("resnet14", GREY)
    assert isinstance(network, CifarResNet)
    assert network.config.labels == tuple(TEN)
    assert (network.config.depth, network.config.num_channels) == (14, 1)
    assert head_modules(network) == ["classifier"]
    with pytest.raises(ValueError, match="resnet14 reads images, sst2 is not about any"):
        load_model("resnet14", Classification("sst2", ("negative", "positive")))


@pytest.fixture
def saved(tmp_path):
    """A network with statistics of its own, and its folder."""
    network = CifarResNet(8, TEN, 1, width=3, norm="batch").train()
    network(torch.randn(5, 1, 8, 8))
    network.save_pretrained(tmp_path / "resnet")
    return network.eval(), tmp_path / "resnet"


def test_a_saved_network_answers_alike_as_teacher_and_as_student(saved) -> None:
    network, folder = saved
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert set(load_file(folder / "model.safetensors")) == set(network.state_dict())
    images = torch.randn(2, 1, 8, 8)
    for loaded in (load_teacher(str(folder), GREY), load_model(str(folder), GREY)):
        assert torch.equal(loaded.eval()(images), network(images))
    fresh = load_model(str(folder), GREY, pretrained=False)
    assert fresh.config.width == 3  # type: ignore[union-attr]
    assert not torch.equal(fresh.eval()(images), network(images))


def test_a_student_gets_a_new_head_for_other_classes_and_a_teacher_is_refused(saved) -> None:
    _, folder = saved
    three = Image("three", ("a", "b", "c"), num_channels=1)
    assert load_model(str(folder), three)(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"answers with 10 labels .*, three has 3 \(a, b, c\)"):
        load_teacher(str(folder), three)
    other = Image("ten", TEN[::-1], num_channels=1)
    with pytest.raises(ValueError, match=r"the student's are c9, c8"):
        load_teacher(str(folder), other)


def test_a_teacher_that_cannot_teach_is_named(saved) -> None:
    _, folder = saved
    with pytest.raises(ValueError, match=r"reads images of 1 channel\(s\), those of ten have 3"):
        load_teacher(str(folder), COLOURS)
    with pytest.raises(ValueError, match=r"resnet20 is an architecture .*--teacher.epochs 100"):
        load_teacher("resnet20", GREY)
    with pytest.raises(ValueError, match="no 4-bit form; leave teacher_bits out"):
        load_teacher(str(folder), GREY, bits=4)


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "other depth"])
def test_a_damaged_folder_is_named(saved, damage) -> None:
    _, folder = saved
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "no weights":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"depth": 14}))
    with pytest.raises(
        ValueError, match=r"resnet is no complete ResNet of lightning-kd \(.*export"
    ):
        load_teacher(str(folder), GREY)


def test_a_folder_of_something_else_is_not_taken_for_one(tmp_path) -> None:
    for text in ('{"model_type": "bert"}', "[]", "{"):
        (tmp_path / "config.json").write_text(text)
        assert not is_resnet_folder(tmp_path)
    assert not is_resnet_folder(tmp_path / "none")


def test_the_folder_does_not_pass_for_a_transformers_model(saved) -> None:
    import transformers

    with pytest.raises(ValueError, match=r"lightning_kd.cifar_resnet"):
        transformers.AutoConfig.from_pretrained(saved[1])


def test_group_normalization_keeps_examples_apart_and_survives_saving(tmp_path) -> None:
    network = CifarResNet(8, 4, 1, width=2, norm="group").train()
    images = torch.randn(3, 1, 8, 8)
    assert torch.allclose(network(images)[:1], network(images[:1]), atol=1e-6)
    network.save_pretrained(tmp_path)
    assert torch.equal(CifarResNet.from_pretrained(tmp_path)(images), network(images))
