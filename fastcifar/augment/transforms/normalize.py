"""Normalize: (x - mean) / std."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fastcifar.augment.philox import Draws
from fastcifar.augment.transforms.base import (
    Shape,
    Step,
    Transform,
    as_tuple,
    channel_values,
    is_number,
    per_channel,
    to_float,
    triton_code,
)

if TYPE_CHECKING:
    import triton.language as tl


@dataclass(frozen=True)
class Normalize(Transform):
    """(x - mean) / std, one number for all channels or one for each; x is in 0 .. 1.

    Without mean and std, `Policy.fitted_to` takes those of the training split's channels.
    """

    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None

    def check(self) -> None:
        if self.mean is None and self.std is None:
            return
        for name in ("mean", "std"):
            values = as_tuple(getattr(self, name))
            self.require(bool(values) and all(map(is_number, values)), name, "must be a number or one for each channel")
        self.require(min(as_tuple(self.std)) > 0, "std", "must be above 0")

    def fitted_to(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Normalize:
        return Normalize(mean, std) if self.mean is None else self

    def check_channels(self, channels: int) -> None:
        self.require(self.mean is not None, "mean", "must be given, or taken from a data set")
        self.require_per_channel("mean", channels)
        self.require_per_channel("std", channels)

    def draw(self, draws: Draws, shape: Shape) -> Step:
        mean, std = (channel_values(value, shape, draws) for value in (self.mean, self.std))
        return (lambda images: normalize(images, mean, std),)

    def kernel_constants(self, height: int, width: int, channels: int) -> dict[str, Any]:
        inverse_std = tuple(1 / std for std in per_channel(self.std, channels))
        return {"mean": per_channel(self.mean, channels), "inverse_std": inverse_std}

    @triton_code
    def kernel_color(T: tl.constexpr, drawn, image, y, x, red, green, blue, c: tl.constexpr):
        red = (red - T.mean[c]) * T.inverse_std[c]
        green = (green - T.mean[c + T.green]) * T.inverse_std[c + T.green]
        blue = (blue - T.mean[c + T.blue]) * T.inverse_std[c + T.blue]
        return red, green, blue


def normalize(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """(images - mean) / std; mean and std broadcast against (B, C, H, W)."""
    return to_float(images).sub_(mean).div_(std)
