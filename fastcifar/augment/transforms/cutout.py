"""Cutout: a square set to 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from fastcifar.augment.philox import Draws, below
from fastcifar.augment.transforms.base import Shape, Step, Transform, channel_values, triton_code
from fastcifar.augment.transforms.erasing import erase

if TYPE_CHECKING:
    import triton.language as tl

    from fastcifar.augment import triton_functions


@dataclass(frozen=True)
class Cutout(Transform):
    """A square of size x size pixels, centred on a random pixel and clipped at the borders, set to 0. Words: row, column.

    DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017
    (https://arxiv.org/abs/1708.04552).
    """

    size: int
    streams: ClassVar = (7,)

    def check(self) -> None:
        self.require_integer("size", 1)

    def draw(self, draws: Draws, shape: Shape) -> Step:
        row, column, _, _ = draws.words(self.streams[0])
        top, left = (below(word, length) - self.size // 2 for word, length in zip((row, column), shape[1:], strict=True))
        side = torch.full_like(top, self.size)
        black = channel_values(0.0, shape, draws)
        return lambda images, boxes: erase(images, boxes, black), torch.stack([top, left, side, side], dim=1)

    @triton_code
    def kernel_draw(T: tl.constexpr, image, lane, words):
        row = triton_functions.below(triton_functions.pick(lane, words[0], T.stream), T.height)
        column = triton_functions.below(triton_functions.pick(lane, words[1], T.stream), T.width)
        side = tl.full((), T.size, tl.int32)
        return row - T.size // 2, column - T.size // 2, side, side

    @triton_code
    def kernel_color(T: tl.constexpr, drawn, image, y, x, red, green, blue, c: tl.constexpr):
        return triton_functions.choose(triton_functions.inside(drawn, y, x), 0.0, 0.0, 0.0, red, green, blue)
