"""ResNets for small images: He et al., Deep Residual Learning for Image Recognition, 2015 (https://arxiv.org/abs/1512.03385).

Shapes: B images, C channels, H x W pixels, K classes.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from fastcifar.runtime.errors import UserError

BOTTLENECK_REDUCTION = 4  # a bottleneck's 3x3 convolution has a quarter of the block's channels


@dataclass(frozen=True)
class ResNetConfig:
    """The `[model]` table of a recipe, for name = "resnet". The defaults are the seed model with 4,662,098 parameters."""

    name: Annotated[Literal["resnet"], "the kind of model"] = "resnet"
    num_classes: Annotated[int, "classes; `train` takes them from the data set"] = 10
    in_channels: Annotated[int, "channels of an image; `train` takes them from the data set"] = 3
    stem_channels: Annotated[int, "channels after the first 3x3 convolution"] = 48
    channels: Annotated[tuple[int, ...], "channels of each stage"] = (48, 196, 192, 384)
    blocks: Annotated[tuple[int, ...], "residual blocks of each stage"] = (2, 2, 2, 1)
    strides: Annotated[tuple[int, ...], "stride of each stage's first block"] = (1, 2, 2, 2)
    block: Annotated[Literal["basic", "bottleneck"], "basic: two 3x3 convolutions; bottleneck: 1x1, 3x3, 1x1"] = "basic"
    dropout: Annotated[float, "share of pooled features dropped before the linear layer, 0 to below 1"] = 0.5

    def __post_init__(self) -> None:
        for name in ("num_classes", "in_channels", "stem_channels"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name in ("channels", "blocks", "strides"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise UserError(f"{name} = {list(values)}: must hold numbers of at least 1, one for each stage")
            if len(values) != len(self.channels):
                raise UserError(f"{name} = {list(values)}: must hold one number for each of {len(self.channels)} channels")
        if self.block not in ("basic", "bottleneck"):
            raise UserError(f"block = {self.block!r}: must be basic or bottleneck")
        if self.block == "bottleneck" and min(self.channels) < BOTTLENECK_REDUCTION:
            raise UserError(f"channels = {list(self.channels)}: a bottleneck needs {BOTTLENECK_REDUCTION} or more")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout = {self.dropout}: must be at least 0 and below 1")


class ConvNorm(nn.Sequential):
    """A convolution without bias, padded to keep the size at stride 1, and its BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)


class Block(nn.Module):
    """A residual block: ReLU(body(x) + shortcut(x)); the shortcut is a 1x1 convolution if the shape changes."""

    def __init__(self, body: nn.Sequential, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = body
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Sequential() if same_shape else ConvNorm(in_channels, out_channels, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def basic(in_channels: int, out_channels: int, stride: int) -> Block:
    """Build the block conv3x3-BN-ReLU-conv3x3-BN."""
    body = nn.Sequential(
        ConvNorm(in_channels, out_channels, 3, stride), nn.ReLU(inplace=True), ConvNorm(out_channels, out_channels, 3)
    )
    return Block(body, in_channels, out_channels, stride)


def bottleneck(in_channels: int, out_channels: int, stride: int) -> Block:
    """Build the block conv1x1-BN-ReLU-conv3x3-BN-ReLU-conv1x1-BN, with the stride in the 3x3 convolution."""
    width = out_channels // BOTTLENECK_REDUCTION
    body = nn.Sequential(
        ConvNorm(in_channels, width, 1),
        nn.ReLU(inplace=True),
        ConvNorm(width, width, 3, stride),
        nn.ReLU(inplace=True),
        ConvNorm(width, out_channels, 1),
    )
    return Block(body, in_channels, out_channels, stride)


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pooling, dropout and a linear layer.

    Weights have PyTorch's default initialisation, as in the seed.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        make = basic if config.block == "basic" else bottleneck
        self.stem = nn.Sequential(ConvNorm(config.in_channels, config.stem_channels, 3), nn.ReLU(inplace=True))
        self.stages = nn.Sequential()
        width = config.stem_channels
        for channels, count, stride in zip(config.channels, config.blocks, config.strides, strict=True):
            stage = nn.Sequential(make(width, channels, stride), *(make(channels, channels, 1) for _ in range(count - 1)))
            self.stages.append(stage)
            width = channels
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(width, config.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        features = self.stages(self.stem(images))
        return self.linear(self.dropout(self.pool(features).flatten(1)))
