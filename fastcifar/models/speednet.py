"""SpeedNet: the fewest operations to 94 % on CIFAR-10.

After Keller Jordan, 94 % on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024 (https://arxiv.org/abs/2404.00498): a frozen first
layer that whitens patches, three groups of 3x3 convolutions with max pooling, BatchNorm without weights, a scaled linear head.

Shapes: B images, C channels, H x W pixels, K classes.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from fastcifar.runtime.errors import UserError

ACTIVATIONS = {"gelu": nn.GELU, "silu": nn.SiLU, "relu": nn.ReLU}
WHITENING_EPSILON = 5e-4
"""Added to the eigenvalues: directions in which patches hardly differ are not blown up."""


@dataclass(frozen=True)
class SpeedNetConfig:
    """The `[model]` table of a recipe, for name = "speednet"; the defaults are airbench94's network, 1.97 M parameters."""

    name: Annotated[Literal["speednet"], "the kind of model"] = "speednet"
    num_classes: Annotated[int, "classes; `train` takes them from the data set"] = 10
    in_channels: Annotated[int, "channels of an image; `train` takes them from the data set"] = 3
    widths: Annotated[tuple[int, ...], "channels of each group, whose first convolution is followed by 2x2 max pooling"] = (
        64,
        256,
        256,
    )
    depth: Annotated[int, "3x3 convolutions of each group"] = 2
    residual: Annotated[bool, "add what a group's first activation gives to what enters its last one"] = False
    whitening: Annotated[int, "side in pixels of the whitened patches"] = 2
    activation: Annotated[Literal["gelu", "silu", "relu"], "after each BatchNorm"] = "gelu"
    batchnorm_momentum: Annotated[float, "share of the running statistics that a batch replaces, above 0 to 1"] = 0.4
    head_scale: Annotated[float, "factor on the logits per feature: logits = head(x) * head_scale / features"] = 1.0
    budget: Annotated[int, "most parameters that the model may have, without padding; 0: no limit"] = 0

    def __post_init__(self) -> None:
        for name in ("num_classes", "in_channels", "depth", "whitening"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.residual and self.depth < 2:
            raise UserError(f"residual = true and depth = {self.depth}: needs a depth of at least 2")
        if not self.widths or min(self.widths) < 1:
            raise UserError(f"widths = {list(self.widths)}: must hold numbers of at least 1, one for each group")
        if not 0 < self.batchnorm_momentum <= 1:
            raise UserError(f"batchnorm_momentum = {self.batchnorm_momentum}: must be above 0 and at most 1")
        if not self.head_scale > 0:
            raise UserError(f"head_scale = {self.head_scale}: must be above 0")
        if self.budget < 0:
            raise UserError(f"budget = {self.budget}: must be at least 0")


class Group(nn.Sequential):
    """conv3x3-pool-BN-activation, then depth - 1 times conv3x3-BN-activation; with `residual`, the last one
    reads the sum with the first activation's output."""

    def __init__(self, in_channels: int, out_channels: int, config: SpeedNetConfig) -> None:
        super().__init__()
        for index in range(config.depth):
            conv = nn.Conv2d(out_channels if index else in_channels, out_channels, 3, padding=1, bias=False)
            nn.init.dirac_(conv.weight.data[: conv.in_channels])  # begins as the identity on as many channels as there are
            norm = nn.BatchNorm2d(out_channels, eps=1e-12, momentum=config.batchnorm_momentum)
            norm.weight.requires_grad = False
            self.add_module(f"conv{index + 1}", conv)
            if index == 0:
                self.add_module("pool", nn.MaxPool2d(2))
            self.add_module(f"norm{index + 1}", norm)
            self.add_module(f"activation{index + 1}", ACTIVATIONS[config.activation]())
        self.adds_to = f"activation{config.depth}" if config.residual else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = None
        for name, module in self.named_children():
            x = module(x + shortcut if name == self.adds_to else x)
            if name == "activation1":
                shortcut = x
        return x


class SpeedNet(nn.Module):
    """Whitening, groups, global max pooling and a linear head. Call `initialize_from` once, before training."""

    def __init__(self, config: SpeedNetConfig) -> None:
        super().__init__()
        features = 2 * config.in_channels * config.whitening**2
        self.first = nn.Conv2d(config.in_channels, features, config.whitening)
        self.first.weight.requires_grad = False
        self.activation = ACTIVATIONS[config.activation]()
        self.groups = nn.Sequential()
        for width in config.widths:
            self.groups.append(Group(features, width, config))
            features = width
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(features, config.num_classes, bias=False)
        self.head.weight.data /= self.head.weight.data.std()
        self.scale = config.head_scale / features

    @torch.no_grad()
    def initialize_from(self, images: torch.Tensor) -> None:
        """Set the first layer to whiten patches of `images`, (B, C, H, W) float32 as training sees them without augmentation.

        Its filters are the eigenvectors of the patches' second moments, each divided by the root of its eigenvalue, and their
        negatives.
        """
        side, channels = self.first.kernel_size[0], images.shape[1]
        patches = images.unfold(2, side, 1).unfold(3, side, 1)  # (B, C, h, w, side, side)
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels * side**2)
        eigenvalues, eigenvectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (eigenvectors / (eigenvalues + WHITENING_EPSILON).sqrt()).T.reshape(-1, channels, side, side)
        self.first.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images to (B, K) logits."""
        x = self.groups(self.activation(self.first(images)))
        return self.head(self.pool(x).flatten(1)) * self.scale
