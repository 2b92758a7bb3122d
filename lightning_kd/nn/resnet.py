"""Residual networks for small images: He, Zhang, Ren and Sun (CVPR 2016), section 4.2.

A 3x3 convolution, three stages of n blocks with two 3x3 convolutions each, the mean over the image
and one linear layer: 6n+2 layers. Filters double (16, 32, 64) where the image is halved; a shortcut
that passes such a place takes every second pixel and fills the new channels with zeros ("option
A"), so that no shortcut has weights.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

MODEL_TYPE = "lightning_kd.cifar_resnet"
"""In ``config.json``; transformers does not know it, so it does not mistake the folder for its."""

Norm = Literal["batch", "group"]
_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(math.gcd(8, channels), channels),
}
_KNOWN = "resnet8, resnet14, resnet20, resnet32, resnet44, resnet56 or resnet110"


@dataclass(frozen=True)
class CifarResNetConfig:
    """What a network is built from.

    Attributes:
        depth: Layers with weights, 6n+2.
        labels: Names of the classes, in order.
        num_channels: Of the images: 3 for colours, 1 for grey.
        width: Filters of the first stage; the others have twice and four times as many.
        norm: The normalization.
    """

    depth: int
    labels: tuple[str, ...]
    num_channels: int = 3
    width: int = 16
    norm: Norm = "batch"

    @property
    def num_labels(self) -> int:
        """Width of the head."""
        return len(self.labels)

    @property
    def id2label(self) -> dict[int, str]:
        """As in a transformers config."""
        return dict(enumerate(self.labels))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        settings = {"model_type": MODEL_TYPE, **asdict(self)}
        (Path(folder) / "config.json").write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "CifarResNetConfig":
        """What `save_pretrained` wrote.

        Raises:
            ValueError: The file is damaged, or of another network.
        """
        try:
            settings = json.loads((Path(folder) / "config.json").read_text())
            del settings["model_type"]
            return cls(**{**settings, "labels": tuple(settings["labels"])})
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise _incomplete(folder, error) from error


class CifarResNet(nn.Module):
    """A ResNet for images of any size, 32x32 in the paper.

    Args:
        depth: 6n+2: 8, 14, 20, ... 110.
        labels: Names of the classes, or how many there are.
        num_channels: Of the images.
        width: Filters of the first stage; 16 in the paper.
        norm: ``batch`` normalization (the paper's), or ``group``, whose output for an image does
            not depend on the others of a batch.

    Raises:
        ValueError: Another depth or normalization, or a size below 1.

    >>> sum(p.numel() for p in CifarResNet(8, 10).parameters())
    75290
    """

    base_model_prefix = "backbone"  # all but this is the head, as in transformers

    def __init__(
        self,
        depth: int,
        labels: Sequence[str] | int,
        num_channels: int = 3,
        width: int = 16,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        check_depth(depth)
        if norm not in _NORMS:
            raise ValueError(f"norm must be {' or '.join(_NORMS)}, got {norm!r}")
        names = [f"LABEL_{i}" for i in range(labels)] if isinstance(labels, int) else labels
        for name, value in (
            ("labels", len(names)), ("num_channels", num_channels), ("width", width)
        ):  # fmt: skip
            if value < 1:
                raise ValueError(f"{name} of a ResNet must be at least 1, got {value}")
        self.config = CifarResNetConfig(depth, tuple(names), num_channels, width, norm)
        stem = _convolution(num_channels, width), _NORMS[norm](width), nn.ReLU()
        layers: list[nn.Module] = [*stem]
        channels = width
        for wanted in (width, 2 * width, 4 * width):
            for _ in range((depth - 2) // 6):
                layers.append(_Block(channels, wanted, _NORMS[norm]))
                channels = wanted
        self.backbone = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, len(names))

    def forward(self, pixel_values: Float[Tensor, "b channels h w"]) -> Float[Tensor, "b classes"]:
        """The logits."""
        found = pixel_values.shape[1]
        if found != self.config.num_channels:
            raise ValueError(
                f"this ResNet reads images of {self.config.num_channels} channel(s), got {found}"
            )
        return self.classifier(self.backbone(pixel_values).mean((2, 3)))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``.

        The folder is for `from_pretrained` and ``--model.teacher``; it is *not* a transformers
        model, and ``AutoModel`` refuses it.
        """
        folder = Path(folder)
        self.config.save_pretrained(folder)
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    @classmethod
    def from_config(cls, config: CifarResNetConfig) -> "CifarResNet":
        """A network with random weights."""
        return cls(config.depth, config.labels, *astuple(config)[2:])

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "CifarResNet":
        """The network that `save_pretrained` wrote, in eval mode.

        Raises:
            ValueError: A file is damaged, or of another network.
        """
        config = CifarResNetConfig.from_pretrained(folder)
        try:
            network = cls.from_config(config)
            network.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        except (OSError, TypeError, RuntimeError, SafetensorError) as error:
            raise _incomplete(folder, error) from error
        return network.eval()


def _incomplete(folder: str | Path, error: Exception) -> ValueError:
    return ValueError(
        f"{folder} is no complete ResNet of lightning-kd ({str(error).splitlines()[0]}); export it "
        "again"
    )


class _Block(nn.Module):
    """Two convolutions beside a shortcut without weights."""

    def __init__(self, channels: int, wanted: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.new_channels, self.stride = wanted - channels, 1 if wanted == channels else 2
        self.first = nn.Sequential(_convolution(channels, wanted, self.stride), norm(wanted))
        self.second = nn.Sequential(_convolution(wanted, wanted), norm(wanted))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        shortcut = images
        if self.new_channels:
            every_second = images[:, :, :: self.stride, :: self.stride]
            shortcut = F.pad(every_second, (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(self.second(F.relu(self.first(images))) + shortcut)


def check_depth(depth: int) -> None:
    """Raise `ValueError` for a depth that is not 6n+2."""
    if depth < 8 or depth % 6 != 2:
        raise ValueError(
            f"a CIFAR ResNet has 6n+2 layers, got resnet{depth}; choose {_KNOWN} (any 6n+2)"
        )


def depth_of(name: object) -> int | None:
    """The depth that a name such as ``resnet20`` asks for; None for what is no such name.

    Raises:
        ValueError: There is no ResNet of that depth.

    >>> depth_of("resnet20"), depth_of("microsoft/resnet-18")
    (20, None)
    """
    found = re.fullmatch(r"resnet(\d+)", name) if isinstance(name, str) else None
    if found is None:
        return None
    check_depth(int(found.group(1)))
    return int(found.group(1))


def is_resnet_folder(folder: str | Path) -> bool:
    """Whether `CifarResNet.save_pretrained` wrote the folder."""
    try:
        settings = json.loads((Path(folder) / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.get("model_type") == MODEL_TYPE


def _convolution(channels: int, wanted: int, stride: int = 1) -> nn.Conv2d:
    """3x3, without the bias that a normalization would take away; He's initial weights."""
    made = nn.Conv2d(channels, wanted, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(made.weight, nonlinearity="relu")
    return made


__all__ = ["CifarResNet", "CifarResNetConfig", "check_depth", "depth_of", "is_resnet_folder"]
