"""RandomRotation: a rotation about the image's centre."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F

from fastcifar.augment.philox import Draws, between
from fastcifar.augment.transforms.base import Shape, Step, Transform, pixels_at, triton_code

if TYPE_CHECKING:
    import triton.language as tl

    from fastcifar.augment import triton_functions

FIXED_POINT = 16
"""Fractional bits of a source coordinate."""


@dataclass(frozen=True)
class RandomRotation(Transform):
    """A rotation about the centre by a random angle, nearest neighbour, 0 outside; x means -x to x degrees. Words: angle."""

    degrees: float | tuple[float, float]
    streams: ClassVar = (5,)

    def check(self) -> None:
        self.require_number_or_pair("degrees", -math.inf)

    def bounds(self) -> tuple[float, float]:
        """Return the bounds of the angle in degrees, counter-clockwise."""
        return self.degrees if isinstance(self.degrees, tuple) else (-self.degrees, self.degrees)

    def draw(self, draws: Draws, shape: Shape) -> Step:
        return rotate, rotation(between(draws.words(self.streams[0])[0], *self.bounds()), shape[1:])

    def kernel_constants(self, height: int, width: int, channels: int) -> dict[str, Any]:
        low, high = map(float, self.bounds())
        return {"low": low, "high": high, "fixed_point": FIXED_POINT, "black_outside": True}

    @triton_code
    def kernel_draw(T: tl.constexpr, image, lane, words):
        degrees = triton_functions.between(triton_functions.pick(lane, words[0], T.stream), T.low, T.high)
        cos, sin = triton_functions.cos_sin(degrees * (1.0 / 360.0))
        right, down = (1 - T.width) / 2, (1 - T.height) / 2
        column = cos * right - sin * down + (T.width / 2 + 1)
        row = sin * right + cos * down + (T.height / 2 + 1)
        ONE: tl.constexpr = 1 << T.fixed_point
        return _fixed(cos, ONE), _fixed(-sin, ONE), _fixed(column, ONE), _fixed(sin, ONE), _fixed(cos, ONE), _fixed(row, ONE)

    @triton_code
    def kernel_place(T: tl.constexpr, drawn, y, x):
        a, b, first_column, d, e, first_row = drawn
        column = ((a * x + (b * y + first_column)) >> T.fixed_point) - 1
        row = ((d * x + (e * y + first_row)) >> T.fixed_point) - 1
        return row, column


def rotation(degrees: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Compute coefficients for `rotate`: by `degrees`, (B,), counter-clockwise about the centre of images of `size` (H, W).

    (B, 6) int32 in fixed point, so that every device finds the same pixel: a, b, c, d, e, f of column = a x + b y + c and
    row = d x + e y + f, the source of the pixel in column x and row y, in an image with a black border of 1.
    """
    height, width = size
    cos, sin = (function(torch.deg2rad(degrees.double())) for function in (torch.cos, torch.sin))
    right, down = (1 - width) / 2, (1 - height) / 2  # of the first pixel's centre from the image's
    first_column = cos * right - sin * down + (width / 2 + 1)  # in an image with a black border of 1
    first_row = sin * right + cos * down + (height / 2 + 1)
    return torch.floor(torch.stack([cos, -sin, first_column, sin, cos, first_row], dim=1) * 2**FIXED_POINT + 0.5).int()


def rotate(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate by `turns` from `rotation`, nearest neighbour, 0 outside.

    Exactly as PIL: a pixel's centre (x + 1/2, y + 1/2) is rotated back, and the pixel there is taken.
    """
    height, width = images.shape[2:]
    turn = turns.T[:, :, None, None]
    x, y = (torch.arange(size, device=images.device, dtype=torch.int32) for size in (width, height))
    columns = (turn[0] * x + (turn[1] * y[:, None] + turn[2])) >> FIXED_POINT
    rows = (turn[3] * x + (turn[4] * y[:, None] + turn[5])) >> FIXED_POINT
    source = rows.clamp_(0, height + 1).mul_(width + 2).add_(columns.clamp_(0, width + 1))
    return pixels_at(F.pad(images, (1,) * 4), source.long())


@triton_code
def _fixed(x, ONE: tl.constexpr):
    return tl.floor(x * ONE + 0.5).to(tl.int32)
