"""A small convolutional network for images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from strategies.schema import key
from strategies.tasks.base import Shape, Task, task


@task("cnn")
@dataclass(frozen=True)
class CNN(Task):
    """Blocks of 3x3 convolution, GroupNorm, pooling and ReLU, then two dense layers; for classes or for one number.

    Maps are halved while they are at least 4 wide and high, so 8x8 digits and 32x32 photographs both fit. GroupNorm
    norms each row by itself (Wu & He 2018); BatchNorm would mix the rows that privacy keeps apart.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"classification", "regression"})

    channels: tuple[int, ...] = key((16, 32), at_least=1, help="channels of each convolution block")
    hidden: int = key(64, at_least=1, help="width of the dense layer before the outputs")

    def __post_init__(self) -> None:
        if not self.channels:
            raise ValueError("channels is empty, give at least one block; without convolutions use mlp")

    def module(self, shape: Shape) -> nn.Module:
        """The network for images of `(channels, height, width)`.

        Raises:
            ValueError: the features are no image.
        """
        if len(shape.features) != 3:
            raise ValueError(
                f"task cnn: needs images (channels, height, width), found features of shape {shape.features}: use mlp"
            )
        into, height, width = shape.features
        layers: list[nn.Module] = []
        for out in self.channels:
            # The norm's own shift makes a bias of the convolution superfluous.
            layers += [nn.Conv2d(into, out, 3, padding=1, bias=False), nn.GroupNorm(_groups(out), out)]
            if min(height, width) >= 4:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            layers.append(nn.ReLU())  # It commutes with the maximum, and costs a quarter after it.
            into = out
        layers += [nn.Flatten(), nn.Linear(into * height * width, self.hidden), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(self.hidden, shape.outputs))


def _groups(channels: int) -> int:
    """The most groups, up to 8, that leave at least two channels in each.

    A group of one channel on a 1x1 map would always norm to zero and learn nothing.

    >>> [_groups(channels) for channels in (1, 2, 6, 7, 16, 32)]
    [1, 1, 3, 1, 8, 8]
    """
    return max((groups for groups in range(1, 9) if channels % groups == 0 and channels // groups >= 2), default=1)
