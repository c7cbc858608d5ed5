"""ColorJitter: brightness, contrast and saturation."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fastcifar.augment.philox import Draws, below, between, constant
from fastcifar.augment.transforms.base import Shape, Step, Transform, to_float, triton_code
from fastcifar.runtime.errors import UserError

if TYPE_CHECKING:
    import triton.language as tl

    from fastcifar.augment import triton_functions

GREY = 0.2989, 0.587, 0.114  # ITU-R 601-2 luma, in the digits torchvision uses
JITTER_ORDERS = tuple(itertools.permutations(range(3)))  # of brightness (0), contrast (1), saturation (2)


@dataclass(frozen=True)
class ColorJitter(Transform):
    """Brightness, contrast and saturation, each changed by a random factor, in a random order.

    A number x means a factor between max(0, 1 - x) and 1 + x; a pair means its two bounds. Words: brightness, contrast,
    saturation, order of the three.
    """

    brightness: float | tuple[float, float] = 0.0
    contrast: float | tuple[float, float] = 0.0
    saturation: float | tuple[float, float] = 0.0
    streams: ClassVar = (4,)

    def check(self) -> None:
        for field in fields(self):
            self.require_number_or_pair(field.name, 0.0)

    def check_channels(self, channels: int) -> None:
        if channels not in (1, 3):
            raise UserError(f"ColorJitter: images of {channels} channels: must be of 1 or 3")

    def bounds(self) -> tuple[tuple[float, float], ...]:
        """Return the bounds of the three factors."""
        values = (self.brightness, self.contrast, self.saturation)
        return tuple(v if isinstance(v, tuple) else (max(0.0, 1.0 - v), 1.0 + v) for v in values)

    def draw(self, draws: Draws, shape: Shape) -> Step:
        *factor_words, order_word = draws.words(self.streams[0])
        factors = [between(word, *bounds) for word, bounds in zip(factor_words, self.bounds(), strict=True)]
        return jitter, torch.stack(factors, dim=1).float(), below(order_word, len(JITTER_ORDERS))

    def kernel_constants(self, height: int, width: int, channels: int) -> dict[str, Any]:
        bounds = tuple(float(bound) for pair in self.bounds() for bound in pair)
        return {"bounds": bounds, "has_contrast": self.bounds()[1] != (1.0, 1.0), "luma": GREY}

    @triton_code
    def kernel_draw(T: tl.constexpr, image, lane, words):
        """Draw, for each operation, the factor of the pixel, that of its grey, and the constant; see `jitter`."""
        w0, w1, w2, w3 = words
        B: tl.constexpr = T.bounds
        brightness = triton_functions.between(triton_functions.pick(lane, w0, T.stream), B[0], B[1]).to(tl.float32)
        contrast = triton_functions.between(triton_functions.pick(lane, w1, T.stream), B[2], B[3]).to(tl.float32)
        saturation = triton_functions.between(triton_functions.pick(lane, w2, T.stream), B[4], B[5]).to(tl.float32)
        order = triton_functions.below(triton_functions.pick(lane, w3, T.stream), 6)
        first = order // 2  # the permutations of 0, 1, 2 in lexicographic order
        second = tl.where(order % 2 == 0, tl.where(first == 0, 1, 0), tl.where(first == 2, 1, 2))
        third = 3 - first - second
        f0 = tl.where(first == 0, brightness, tl.where(first == 1, contrast, saturation))
        f1 = tl.where(second == 0, brightness, tl.where(second == 1, contrast, saturation))
        f2 = tl.where(third == 0, brightness, tl.where(third == 1, contrast, saturation))
        g0, g1 = tl.where(first == 2, 1.0 - f0, 0.0), tl.where(second == 2, 1.0 - f1, 0.0)
        g2 = tl.where(third == 2, 1.0 - f2, 0.0)
        if T.has_contrast:
            turns = tl.where(first == 1, 0, tl.where(second == 1, 1, 2))
            grey = _mean_grey(T, image, turns, f0, g0, f1, g1)
        else:
            grey = 0.0
        o0, o1 = tl.where(first == 1, (1.0 - f0) * grey, 0.0), tl.where(second == 1, (1.0 - f1) * grey, 0.0)
        o2 = tl.where(third == 1, (1.0 - f2) * grey, 0.0)
        return f0, g0, o0, f1, g1, o1, f2, g2, o2

    @triton_code
    def kernel_color(T: tl.constexpr, drawn, image, y, x, red, green, blue, c: tl.constexpr):
        f0, g0, o0, f1, g1, o1, f2, g2, o2 = drawn
        red, green, blue = _blend(T, red, green, blue, f0, g0, o0)
        red, green, blue = _blend(T, red, green, blue, f1, g1, o1)
        return _blend(T, red, green, blue, f2, g2, o2)


def grey(images: torch.Tensor) -> torch.Tensor:
    """Compute the luma, (B, 1, H, W); an image of one channel is its own luma."""
    if images.shape[1] == 1:
        return images
    red, green, blue = (plane * weight for plane, weight in zip(images.split(1, dim=1), GREY, strict=True))
    return red.add_(green).add_(blue)


def jitter(images: torch.Tensor, factors: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Apply brightness, contrast and saturation by `factors`, (B, 3), in the order JITTER_ORDERS[order], order (B,).

    Each is a blend, clamp(f * image + (1 - f) * other, 0, 1), with other = 0 for brightness, the image's mean grey for
    contrast and each pixel's grey for saturation. The order differs between samples, so each of the three passes computes
    f * image + (g * grey + m * mean(grey)), where g or m or both are 0.
    """
    images = to_float(images)
    orders = constant(JITTER_ORDERS, torch.int64, images.device)[order]  # (B, 3), as all below
    factors = factors.gather(1, orders)
    of_mean, of_grey = ((1 - factors) * (orders == kind) for kind in (1, 2))
    for turn in range(3):
        factor, m, g = (weights[:, turn, None, None, None] for weights in (factors, of_mean, of_grey))
        luma = grey(images)
        mean = luma.mean((2, 3), keepdim=True, dtype=torch.float64).float()
        other = (luma * g).add_(mean * m)
        images.mul_(factor).add_(other).clamp_(0, 1)
    return images


@triton_code
def _luma(T: tl.constexpr, red, green, blue):
    if T.channels == 3:
        return red * T.luma[0] + green * T.luma[1] + blue * T.luma[2]
    else:
        return red


@triton_code
def _blend(T: tl.constexpr, red, green, blue, factor, of_grey, other):
    """Apply one operation: clamp(factor * pixel + (of_grey * grey + other), 0, 1)."""
    other = _luma(T, red, green, blue) * of_grey + other
    red = tl.minimum(tl.maximum(red * factor + other, 0.0), 1.0)
    green = tl.minimum(tl.maximum(green * factor + other, 0.0), 1.0)
    blue = tl.minimum(tl.maximum(blue * factor + other, 0.0), 1.0)
    return red, green, blue


@triton_code
def _mean_grey(T: tl.constexpr, image, turns, f0, g0, f1, g1):
    """Compute the mean grey, float32, of the image after `turns` operations (0 to 2).

    Summed in integers, in units of 2**-20, so that the order of the sum, and with it the number of threads, has no effect.
    """
    BEFORE: tl.constexpr = T.before
    PIXELS: tl.constexpr = T.height * T.width
    total = tl.zeros((), tl.int64)
    for start in range(0, PIXELS, T.block):
        pixel = start + tl.arange(0, T.block)
        mask = pixel < PIXELS
        red, green, blue = triton_functions.value(BEFORE, image, pixel // T.width, pixel % T.width, mask, 0)
        if turns > 0:
            red, green, blue = _blend(T, red, green, blue, f0, g0, 0.0)
        if turns > 1:
            red, green, blue = _blend(T, red, green, blue, f1, g1, 0.0)
        # The bits of a float32 in [8, 9) are those of 8.0 and its fraction in units of 2**-20.
        units = (_luma(T, red, green, blue) + 8.0).to(tl.int32, bitcast=True) - 0x41000000
        total += tl.sum(tl.where(mask, units, 0)).to(tl.int64)
    return (total.to(tl.float64) * (1.0 / (PIXELS * 1048576.0))).to(tl.float32)
