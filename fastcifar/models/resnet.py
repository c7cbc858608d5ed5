"""ResNets for small images: He et al., Deep Residual Learning for Image Recognition, 2015 (https://arxiv.org/abs/1512.03385).

With pre-activation blocks: He et al., Identity Mappings in Deep Residual Networks, 2016 (https://arxiv.org/abs/1603.05027).

Shapes: B images, C channels, H x W pixels, K classes.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from fastcifar.models.norm import last_norm
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
    block: Annotated[
        Literal["basic", "bottleneck", "preactivation"],
        "basic: two 3x3 convolutions; bottleneck: 1x1, 3x3, 1x1; preactivation: two 3x3, BatchNorm and ReLU before each",
    ] = "basic"
    squeeze: Annotated[int, "squeeze-and-excitation in each block, with channels / squeeze hidden units (16); 0: none"] = 0
    stochastic_depth: Annotated[
        float, "probability that an image skips the last block in training, 0 to below 1; falls linearly towards the first"
    ] = 0.0
    dropout: Annotated[float, "share of pooled features dropped before the linear layer, 0 to below 1"] = 0.5
    budget: Annotated[int, "most parameters that the model may have, without padding; 0: no limit"] = 0

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
        if self.block not in BLOCKS:
            raise UserError(f"block = {self.block!r}: must be one of {', '.join(BLOCKS)}")
        if self.block == "bottleneck" and min(self.channels) < BOTTLENECK_REDUCTION:
            raise UserError(f"channels = {list(self.channels)}: a bottleneck needs {BOTTLENECK_REDUCTION} or more")
        if not 0 <= self.squeeze <= min(self.channels):
            raise UserError(f"squeeze = {self.squeeze}: must be from 0 to the fewest channels, {min(self.channels)}")
        for name in ("stochastic_depth", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: must be at least 0 and below 1")
        if self.budget < 0:
            raise UserError(f"budget = {self.budget}: must be at least 0")


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Build a convolution without bias, padded to keep the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


class ConvNorm(nn.Sequential):
    """A convolution as `conv` builds it, and its BatchNorm; the latter takes a residual if it is a `BatchNormAct`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel, stride)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor, *residual: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x), *residual)


class Block(nn.Module):
    """A residual block: ReLU(body(x) + shortcut(x)); the shortcut is a 1x1 convolution if the shape changes."""

    def __init__(self, body: nn.Sequential, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = body
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Sequential() if same_shape else ConvNorm(in_channels, out_channels, 1, stride)
        self.relu = nn.ReLU(inplace=True)
        self.adds_in_norm = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.adds_in_norm:
            return self.relu(self.body(x) + self.shortcut(x))
        *before, last = self.body
        features = x
        for layer in before:
            features = layer(features)
        return self.relu(last(features, self.shortcut(x)))

    def fuse_norms(self) -> None:
        """Let the body's last BatchNorm add the shortcut and compute ReLU, if it is the body's last layer."""
        if norm := last_norm(self.body):
            self.adds_in_norm, norm.relu, self.relu = True, True, nn.Identity()


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


class PreactivationBlock(nn.Module):
    """BN-ReLU-conv3x3-BN-ReLU-conv3x3, plus the input or, if the shape changes, a 1x1 convolution of the first ReLU's output.

    That convolution is where Wide ResNets have it: Zagoruyko and Komodakis, 2016 (https://arxiv.org/abs/1605.07146).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(
            ConvNorm(in_channels, out_channels, 3, stride), nn.ReLU(inplace=True), conv(out_channels, out_channels, 3)
        )
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = None if same_shape else conv(in_channels, out_channels, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = self.relu(self.norm(x))
        return self.body(active) + (x if self.shortcut is None else self.shortcut(active))

    def fuse_norms(self) -> None:
        """Let the first BatchNorm compute the ReLU that follows it."""
        if norm := last_norm(self.norm):
            norm.relu, self.relu = True, nn.Identity()


BLOCKS = {"basic": basic, "bottleneck": bottleneck, "preactivation": PreactivationBlock}
"""`ResNetConfig.block` -> function of input channels, output channels and stride; its result has a `body` to append to."""


class SqueezeExcitation(nn.Module):
    """Scale each channel by a factor between 0 and 1, which a small network computes from the means of all channels.

    Hu et al., Squeeze-and-Excitation Networks, 2018 (https://arxiv.org/abs/1709.01507). torchvision's computes the same, but
    importing torchvision takes longer than building a model.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = channels // reduction
        self.gate = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


class StochasticDepth(nn.Module):
    """In training, set an image's features to 0 with probability `rate`, else divide them by 1 - rate, to keep the mean.

    Huang et al., Deep Networks with Stochastic Depth, 2016 (https://arxiv.org/abs/1603.09382), with a draw for each image, as
    in torchvision. The draws are made on the device, from its random state.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.survival = 1 - rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        survives = torch.rand(len(x), 1, 1, 1, device=x.device) < self.survival
        return x * survives / self.survival  # of x's dtype: a float32 factor would make 16-bit features float32

    def extra_repr(self) -> str:
        return f"survival={self.survival:g}"


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pooling, dropout and a linear layer.

    With pre-activation blocks, the stem is a convolution alone, and the last block is followed by BatchNorm and ReLU. Weights
    have PyTorch's default initialisation, as in the seed.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        preactivation, features = config.block == "preactivation", config.channels[-1]
        first = (conv if preactivation else ConvNorm)(config.in_channels, config.stem_channels, 3)
        self.stem = nn.Sequential(first) if preactivation else nn.Sequential(first, nn.ReLU(inplace=True))
        self.stages = _stages(config)
        self.final = nn.Sequential(nn.BatchNorm2d(features), nn.ReLU(inplace=True)) if preactivation else nn.Sequential()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(features, config.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        features = self.final(self.stages(self.stem(images)))
        return self.linear(self.dropout(self.pool(features).flatten(1)))


def _stages(config: ResNetConfig) -> nn.Sequential:
    """Build the stages; block l of L is skipped with probability l / L times `stochastic_depth`."""
    stages, width, built, total = nn.Sequential(), config.stem_channels, 0, sum(config.blocks)
    for channels, count, stride in zip(config.channels, config.blocks, config.strides, strict=True):
        stage = nn.Sequential()
        for index in range(count):
            block = BLOCKS[config.block](width, channels, 1 if index else stride)
            width, built = channels, built + 1
            if config.squeeze:
                block.body.append(SqueezeExcitation(channels, config.squeeze))
            if config.stochastic_depth:
                block.body.append(StochasticDepth(config.stochastic_depth * built / total))
            stage.append(block)
        stages.append(stage)
    return stages
