"""MixUp and CutMix: an image and its label are mixed with those of a partner.

The partner is any sample of the data set, augmented by its own draws of the epoch, and both it and the weight, drawn from
Beta(alpha, alpha), are functions of (seed, epoch, sample), as all draws: the batch size changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from fastcifar.augment.philox import Draws, Words, below, uniform
from fastcifar.augment.transforms.base import Transform, is_number, triton_code
from fastcifar.augment.transforms.erasing import inside_boxes

if TYPE_CHECKING:
    import triton.language as tl

    from fastcifar.augment import triton_functions


@dataclass(frozen=True)
class Mixing(Transform):
    """Base of both. Words of the first stream: partner, two for the weight.

    `mix` replaces `draw`, and `kernel_mix` replaces `kernel_place` and `kernel_color`. T.height and T.width are those of the
    batch. `kernel_draw` returns the weight of the image's own label and the argument of `kernel_mix`.
    """

    alpha: float = 1.0
    streams: ClassVar = (8,)
    kernel_mix: ClassVar[triton_code | None] = None

    def check(self) -> None:
        self.require(is_number(self.alpha) and self.alpha > 0, "alpha", "must be above 0")

    def mix(self, own: torch.Tensor, partner: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix float32 images (B, C, H, W); return them and the weights of their own labels, (B,) float64."""
        raise NotImplementedError

    def weight(self, draws: Draws) -> torch.Tensor:
        """Draw the weights, (B,) float64."""
        _, radius, angle, _ = draws.words(Mixing.streams[0])
        return symmetric_beta(radius, angle, self.alpha)


@dataclass(frozen=True)
class MixUp(Mixing):
    """weight * image + (1 - weight) * partner.

    Zhang et al., mixup: Beyond Empirical Risk Minimization, 2017 (https://arxiv.org/abs/1710.09412).
    """

    def mix(self, own: torch.Tensor, partner: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        weight = self.weight(draws)
        return partner + weight.float()[:, None, None, None] * (own - partner), weight

    @triton_code
    def kernel_draw(T: tl.constexpr, image, lane, words):
        weight = _weight(T, lane, words).to(tl.float32)
        return weight, weight

    @triton_code
    def kernel_mix(T: tl.constexpr, weight, y, x, red, green, blue, other_red, other_green, other_blue):
        red, green = other_red + weight * (red - other_red), other_green + weight * (green - other_green)
        return red, green, other_blue + weight * (blue - other_blue)


@dataclass(frozen=True)
class CutMix(Mixing):
    """A rectangle of 1 - weight of the area, centred on a random pixel and clipped, is the partner's.

    The labels are mixed by the visible areas. Words of the second stream: row, column. Yun et al., CutMix: Regularization
    Strategy to Train Strong Classifiers with Localizable Features, 2019 (https://arxiv.org/abs/1905.04899).
    """

    streams: ClassVar = (*Mixing.streams, 9)

    def mix(self, own: torch.Tensor, partner: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = own.shape[2:]
        boxes = cut_mix_boxes(draws.words(self.streams[1]), self.weight(draws), (height, width))
        weight = 1 - (boxes[:, 2] * boxes[:, 3]).double() / (height * width)
        return torch.where(inside_boxes(boxes, own.shape), partner, own), weight

    @triton_code
    def kernel_draw(T: tl.constexpr, image, lane, words):
        row = triton_functions.below(triton_functions.pick(lane, words[0], T.streams[1]), T.height)
        column = triton_functions.below(triton_functions.pick(lane, words[1], T.streams[1]), T.width)
        half = 0.5 * tl.sqrt(1.0 - _weight(T, lane, words))
        down, right = (half * T.height).to(tl.int32), (half * T.width).to(tl.int32)
        top, left = tl.maximum(row - down, 0), tl.maximum(column - right, 0)
        height, width = tl.minimum(row + down, T.height) - top, tl.minimum(column + right, T.width) - left
        weight = 1.0 - (height * width).to(tl.float64) * (1.0 / (T.height * T.width))
        return weight.to(tl.float32), (top, left, height, width)

    @triton_code
    def kernel_mix(T: tl.constexpr, box, y, x, red, green, blue, other_red, other_green, other_blue):
        inside = triton_functions.inside(box, y, x)
        return triton_functions.choose(inside, other_red, other_green, other_blue, red, green, blue)


def symmetric_beta(radius: torch.Tensor, angle: torch.Tensor, alpha: float) -> torch.Tensor:
    """Draw from Beta(alpha, alpha), float64, with two words per draw; any alpha above 0, no rejection.

    t / sqrt(2 alpha + t**2) of Student's t with 2 alpha degrees of freedom, by Bailey's polar method. Devroye, Random Variate
    Generation in One Line of Code, 1996.
    """
    cos = torch.cos(uniform(angle).double() * (2 * torch.pi))
    spread = torch.exp(torch.log(1 - uniform(radius).double()) * (-1 / alpha)) - 1
    return 0.5 + torch.where(cos < 0, -0.5, 0.5) / torch.sqrt(1 + 1 / (spread * cos * cos))


def cut_mix_boxes(words: Words, weight: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Compute the partner's rectangles, (B, 4) int64: top, left, height, width, clipped to the image, as in torchvision."""
    half = 0.5 * torch.sqrt(1 - weight)
    edges = []
    for word, length in zip(words[:2], size, strict=True):
        centre, reach = below(word, length), (half * length).long()
        edges.append(((centre - reach).clamp(min=0), (centre + reach).clamp(max=length)))
    (top, bottom), (left, right) = edges
    return torch.stack([top, left, bottom - top, right - left], dim=1)


@triton_code
def _weight(T: tl.constexpr, lane, words):
    """Draw from Beta(alpha, alpha), float64; see `symmetric_beta`."""
    u = triton_functions.uniform(triton_functions.pick(lane, words[1], T.stream)).to(tl.float64)
    cos, _ = triton_functions.cos_sin(triton_functions.uniform(triton_functions.pick(lane, words[2], T.stream)).to(tl.float64))
    spread = tl.exp(tl.log(1.0 - u) * (-1.0 / T.alpha)) - 1.0
    side = tl.where(cos < 0, -0.5, 0.5)
    return 0.5 + side / tl.sqrt(1.0 + 1.0 / (spread * cos * cos))
