"""RandomErasing: a rectangle overwritten."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from fastcifar.augment.philox import Draws, Words, below, between, normals, philox4x32, uniform
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

    from fastcifar.augment import triton_functions

ATTEMPTS = 10
NOISE_STREAM = 32
"""The only stream with a fourth counter word: group `pixel * ceil(C / 4) + channel // 4` makes the normals of four channels of
a pixel, from two pairs of words by the Box-Muller transform."""


@dataclass(frozen=True)
class RandomErasing(Transform):
    """A rectangle overwritten with probability p; up to ten attempts at an area and a log-uniform aspect ratio.

    `value`: a number, one for each channel, or "random" for standard normal noise in every pixel and channel. Words of the
    first stream: whether to erase; of each of the others, one attempt: area, log ratio, top, left.
    Zhong et al., Random Erasing Data Augmentation, 2017 (https://arxiv.org/abs/1708.04896).
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float | tuple[float, ...] | Literal["random"] = 0.0
    streams: ClassVar = tuple(range(16, 17 + ATTEMPTS))

    def check(self) -> None:
        self.require_probability("p")
        self.require_pair("scale", 0.0, 1.0)
        self.require_pair("ratio", 0.0, math.inf)
        self.require(self.ratio[0] > 0, "ratio", "must be above 0")
        values = as_tuple(self.value)
        valid = self.value == "random" or (bool(values) and all(map(is_number, values)))
        self.require(valid, "value", 'must be a number, one for each channel, or "random"')

    def check_channels(self, channels: int) -> None:
        self.require_per_channel("value", channels)

    def draw(self, draws: Draws, shape: Shape) -> Step:
        boxes = erasing_boxes(draws.words(self.streams[1], ATTEMPTS), self.scale, self.ratio, shape[1:])
        boxes = boxes * (uniform(draws.words(self.streams[0])[0]) < self.p)[:, None]
        if self.value != "random":
            value = channel_values(self.value, shape, draws)
            return lambda images, boxes: erase(images, boxes, value), boxes

        def erase_by_noise(images: torch.Tensor, boxes: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return erase(images, boxes, erasing_noise(Draws(draws.seed, draws.epoch, index, ()), images.shape))

        return erase_by_noise, boxes, draws.index

    def kernel_constants(self, height: int, width: int, channels: int) -> dict[str, Any]:
        noise = self.value == "random"
        return {
            "area": tuple(map(float, self.scale)),
            "log_ratio": tuple(map(math.log, self.ratio)),
            "attempts": ATTEMPTS,
            "noise": noise,
            "noise_stream": NOISE_STREAM,
            "fill": per_channel(0.0 if noise else self.value, channels),
        }

    @triton_code
    def kernel_draw(T: tl.constexpr, image, lane, words):
        """Draw top, left, height and width of the box, int32 scalars; all 0 if nothing is erased. See `erasing_boxes`.

        One lane makes one attempt; the first box that fits is taken.
        """
        w0, w1, w2, w3 = words
        area = triton_functions.between(w0, T.area[0], T.area[1]) * (T.height * T.width)
        aspect = tl.exp(triton_functions.between(w1, T.log_ratio[0], T.log_ratio[1]))
        height = triton_functions.round_to_even(tl.sqrt(area * aspect))
        width = triton_functions.round_to_even(tl.sqrt(area / aspect))
        attempt = (lane > T.stream) & (lane <= T.stream + T.attempts)
        first = tl.min(tl.where(attempt & (height < T.height) & (width < T.width), lane, triton_functions.LANES))
        whether = triton_functions.uniform(triton_functions.pick(lane, w0, T.stream)) < T.p
        first = tl.where(whether, first, triton_functions.LANES)
        height, width = triton_functions.pick(lane, height, first), triton_functions.pick(lane, width, first)
        top = triton_functions.below(triton_functions.pick(lane, w2, first), T.height + 1 - height)
        left = triton_functions.below(triton_functions.pick(lane, w3, first), T.width + 1 - width)
        return top, left, height, width

    @triton_code
    def kernel_color(T: tl.constexpr, drawn, image, y, x, red, green, blue, c: tl.constexpr):
        erased = triton_functions.inside(drawn, y, x)
        if T.noise:
            if tl.max(erased.to(tl.int32)) > 0:
                r, g, b = _noise(T, image[1], y * T.width + x, c)
                red, green, blue = triton_functions.choose(erased, r, g, b, red, green, blue)
            return red, green, blue
        else:
            return triton_functions.choose(erased, T.fill[c], T.fill[c + T.green], T.fill[c + T.blue], red, green, blue)


def erase(images: torch.Tensor, boxes: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Overwrite `boxes` with `value`, which broadcasts against (B, C, H, W).

    `boxes`: (B, 4) int64: top, left, height, width; they may lie partly outside the image; height or width 0 means none.
    """
    # A weight of 0 or 1 selects exactly one of the two; torch.where took ten times the time on a CPU.
    return to_float(images).lerp_(value, inside_boxes(boxes, images.shape).float())


def inside_boxes(boxes: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Mask the pixels in `boxes`, as in `erase`, for images of `shape` (B, C, H, W): (B, 1, H, W) bool."""
    top, left, height, width = boxes[:, :, None].unbind(1)
    y, x = (torch.arange(size, device=boxes.device) for size in shape[2:])
    rows, columns = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
    return (rows[:, :, None] & columns[:, None])[:, None]


def erasing_boxes(words: Words, scale: tuple[float, float], ratio: tuple[float, float], size: tuple[int, int]) -> torch.Tensor:
    """Choose the first attempt whose box fits, (B, 4) int64: top, left, height, width; all 0 if none fits.

    `words` are of shape (B, attempts). As in torchvision: an area uniform in `scale` of the image's, a ratio h / w
    log-uniform in `ratio`, sides rounded to even; a box must be smaller than the image in both directions. In float64,
    so that a side rounds to the same integer with every implementation of exp and sqrt.
    """
    area = between(words[0], *scale) * (size[0] * size[1])
    aspect = torch.exp(between(words[1], math.log(ratio[0]), math.log(ratio[1])))
    height, width = (torch.sqrt(x).round().long() for x in (area * aspect, area / aspect))
    fits = (height < size[0]) & (width < size[1])
    first = fits.byte().argmax(1, keepdim=True)
    top, left = below(words[2], size[0] - height + 1), below(words[3], size[1] - width + 1)
    chosen = torch.stack([top, left, height, width], dim=1).gather(2, first[:, None].expand(-1, 4, -1))[:, :, 0]
    return chosen * fits.any(1, keepdim=True)


def erasing_noise(draws: Draws, shape: torch.Size) -> torch.Tensor:
    """Make standard normal noise, float32 of `shape` (B, C, H, W)."""
    count, channels, height, width = shape
    groups = math.ceil(channels / 4)
    group = torch.arange(height * width * groups, device=draws.index.device)
    noise = normals(philox4x32(draws.seed, draws.index[:, None], draws.epoch, NOISE_STREAM, group))
    return noise.view(count, height, width, groups * 4)[..., :channels].permute(0, 3, 1, 2)


@triton_code
def _noise(T: tl.constexpr, key, pixel, c: tl.constexpr):
    """Make standard normals for red, green and blue."""
    seed, sample, epoch = key
    group = pixel * ((T.channels + 3) // 4) + c // 4
    zero = tl.zeros_like(group)
    sample, epoch = zero + sample.to(tl.int32), zero + epoch.to(tl.int32)
    w0, w1, w2, w3 = tl.philox(seed, sample, epoch, zero + T.noise_stream, group)
    noise = triton_functions.normals(w0, w1, w2, w3)
    return noise[c % 4], noise[(c + T.green) % 4], noise[(c + T.blue) % 4]
