"""The augmentation in PyTorch, for a whole batch at once: the specification that every kernel is held to.

Each transform is two functions. One draws: it turns words of the transform's stream (`philox.Stream` says which word is
for what) into parameters, one set for each sample, for the whole batch at once. The other applies given parameters, as
torchvision would to each image alone; it may do so in place.

Shapes: B images, C channels, H x W pixels in, h x w out. Images are planar (B, C, H, W) inside: uint8 until a transform
needs float32, whose scale is 0 .. 1. Nothing here waits for the device, and no shape depends on the data.

A sample comes out the same to the last bit whatever its batch. Hence every product is rounded before it is added (an
addcmul fuses the two in its vector loop, and not in its remainder), and sums run in float64, where their order does not
show.
"""

import itertools
import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from fastcifar.augment import policy as p
from fastcifar.augment.philox import ERASING_ATTEMPTS, Stream, Words, below, normals, philox4x32, uniform

CPU_CHUNK = 128
"""Images at once on a CPU: few enough that freed memory is used again. Fresh pages took a third of the time of 2,048."""

GREY = 0.2989, 0.587, 0.114  # ITU-R 601-2 luma, in the digits torchvision uses
JITTER_ORDERS = tuple(itertools.permutations(range(3)))  # of brightness (0), contrast (1), saturation (2)
FIXED_POINT = 16  # fractional bits of a source coordinate in a rotation


class Draws:
    """The words of a batch, for every stream of a policy, from one call of Philox.

    Attributes:
        index: (B,) int64, the samples' indices in the data set.
        epoch: an int or a () int64 tensor.
    """

    def __init__(
        self, seed: torch.Tensor | int, epoch: torch.Tensor | int, index: torch.Tensor, streams: tuple[int, ...]
    ) -> None:
        self.seed, self.epoch, self.index = seed, epoch, index
        self.column = {int(stream): column for column, stream in enumerate(streams)}
        table = _constant(tuple(self.column), torch.int64, index.device)
        epochs = torch.where(table == Stream.ALTERNATING_FLIP, 0, epoch)
        self.table = philox4x32(seed, index[:, None], epochs, table) if streams else ()

    def words(self, stream: int, count: int = 1) -> Words:
        """The four words of `stream`, each (B,); with `count` those of as many streams from it on, each (B, count)."""
        first = self.column[int(stream)]
        if count == 1:
            return tuple(words[:, first] for words in self.table)
        return tuple(words[:, first : first + count] for words in self.table)


def augment(
    images_NHWC: torch.Tensor,
    index: torch.Tensor,
    *,
    epoch: torch.Tensor | int,
    seed: torch.Tensor | int,
    policy: p.Policy,
) -> torch.Tensor:
    """Apply `policy` to a batch.

    Args:
        images_NHWC: (B, H, W, C) uint8; C is 1 or 3 where the policy jitters colours, anything otherwise.
        index: (B,) int64, the samples' indices in the data set, which select their draws.
        epoch: which epoch's draws, an int or a () int64 tensor on the images' device.
        seed: the run's 64-bit seed, an int or a () int64 tensor.

    Returns:
        (B, C, h, w) in channels-last memory and the policy's dtype.

    Raises:
        UserError: the policy does not fit images of this size or number of channels.
    """
    height, width, channels = images_NHWC.shape[1:]
    size = policy.output_size(height, width, channels)
    draws, steps, shape = Draws(seed, epoch, index, policy.streams()), [], (channels, height, width)
    for transform in policy.per_image:
        steps.append(DRAW[type(transform)](transform, draws, shape))
        shape = (channels, *transform.output_size(*shape[1:])) if hasattr(transform, "output_size") else shape

    out = torch.empty(
        (len(index), channels, *size),
        dtype=getattr(torch, policy.dtype),
        device=images_NHWC.device,
        memory_format=torch.channels_last,
    )
    chunk = CPU_CHUNK if images_NHWC.device.type == "cpu" else len(index)
    for rows in (slice(start, start + chunk) for start in range(0, len(index), chunk)):
        images = images_NHWC[rows].permute(0, 3, 1, 2).contiguous()
        for apply, *parameters in steps:
            images = apply(images, *(values[rows] for values in parameters))
        out[rows] = to_float(images).to(out.dtype)  # cast first: casting while the layout changes took twice the time
    return out


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 pixels as float32 in 0 .. 1; float32 as it is."""
    return torch.div(images, 255) if images.dtype == torch.uint8 else images


# Geometry: works on uint8 as on float32.


def pad(images: torch.Tensor, pixels: int, mode: str) -> torch.Tensor:
    """Images with `pixels` more on every side: 0 ("constant") or mirrored without repeating the border ("reflect")."""
    if mode == "constant" or not pixels:
        return F.pad(images, (pixels,) * 4)
    rows, columns = (_reflected(size, pixels, images.device) for size in images.shape[2:])
    return images[:, :, rows[:, None], columns]


def crop(images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The window of `size` (h, w) at row `top` and column `left`, (B,) int64 each."""
    rows = top[:, None] + torch.arange(size[0], device=images.device)
    columns = left[:, None] + torch.arange(size[1], device=images.device)
    return _pixels(images, rows[:, :, None] * images.shape[3] + columns[:, None])


def flip(images: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
    """Mirror the images where `flipped`, (B,) bool."""
    columns = torch.arange(images.shape[3], device=images.device)
    columns = torch.where(flipped[:, None], columns.flip(0), columns)
    return images.gather(3, columns[:, None, None].expand_as(images))


def rotation(degrees: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The turns by `degrees`, (B,), counter-clockwise about the centre of images of `size` (H, W), for `rotate`.

    (B, 6) int32 in fixed point, so that every device finds the same pixel: a, b, c, d, e, f of column = a x + b y + c and
    row = d x + e y + f, the place in an image with a black border of 1 that the pixel in column x and row y comes from.
    """
    height, width = size
    cos, sin = (function(torch.deg2rad(degrees.double())) for function in (torch.cos, torch.sin))
    right, down = (1 - width) / 2, (1 - height) / 2  # of the first pixel's centre from the image's
    first_column = cos * right - sin * down + (width / 2 + 1)  # in an image with a black border of 1
    first_row = sin * right + cos * down + (height / 2 + 1)
    return torch.floor(torch.stack([cos, -sin, first_column, sin, cos, first_row], dim=1) * 2**FIXED_POINT + 0.5).int()


def rotate(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate by `turns` of `rotation`, nearest neighbour, 0 outside.

    As PIL does it, to the pixel: a pixel's centre (x + 1/2, y + 1/2) is turned back, and takes the pixel that it falls in.
    """
    height, width = images.shape[2:]
    turn = turns.T[:, :, None, None]
    x, y = (torch.arange(size, device=images.device, dtype=torch.int32) for size in (width, height))
    columns = (turn[0] * x + (turn[1] * y[:, None] + turn[2])) >> FIXED_POINT
    rows = (turn[3] * x + (turn[4] * y[:, None] + turn[5])) >> FIXED_POINT
    source = rows.clamp_(0, height + 1).mul_(width + 2).add_(columns.clamp_(0, width + 1))
    return _pixels(F.pad(images, (1,) * 4), source.long())


# Colour: float32 in 0 .. 1.


def grey(images: torch.Tensor) -> torch.Tensor:
    """Luma, (B, 1, H, W); images of one channel are their own."""
    if images.shape[1] == 1:
        return images
    red, green, blue = (plane * weight for plane, weight in zip(images.split(1, dim=1), GREY, strict=True))
    return red.add_(green).add_(blue)


def jitter(images: torch.Tensor, factors: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Apply brightness, contrast and saturation by `factors`, (B, 3), in the order JITTER_ORDERS[order], order (B,).

    Each is a blend, clamp(f * image + (1 - f) * other, 0, 1), with other = 0 for brightness, the image's mean grey for
    contrast and each pixel's grey for saturation. Which of the three a sample is at differs, so every one of the three
    passes computes f * image + (g * grey + m * mean(grey)), where g or m or both are 0.
    """
    images = to_float(images)
    orders = _constant(JITTER_ORDERS, torch.int64, images.device)[order]  # (B, 3), as all below
    factors = factors.gather(1, orders)
    of_mean, of_grey = ((1 - factors) * (orders == kind) for kind in (1, 2))
    for turn in range(3):
        factor, m, g = (weights[:, turn, None, None, None] for weights in (factors, of_mean, of_grey))
        luma = grey(images)
        mean = luma.mean((2, 3), keepdim=True, dtype=torch.float64).float()
        other = (luma * g).add_(mean * m)
        images.mul_(factor).add_(other).clamp_(0, 1)
    return images


def normalize(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """(images - mean) / std; mean and std (1 or C,)."""
    return to_float(images).sub_(mean[:, None, None]).div_(std[:, None, None])


# Erasing: whole rectangles.


def erase(images: torch.Tensor, boxes: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Overwrite `boxes` with `value`, which broadcasts against (B, C, H, W).

    `boxes`: (B, 4) int64: top, left, height, width, in part outside the image or not; 0 high or wide means none.
    """
    # A weight of 0 or 1 selects exactly one of the two; torch.where took ten times the time on a CPU.
    return to_float(images).lerp_(value, inside_boxes(boxes, images.shape).float())


def inside_boxes(boxes: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Which pixels of images of `shape` (B, C, H, W) lie in `boxes`, as of `erase`: (B, 1, H, W) bool."""
    top, left, tall, wide = boxes[:, :, None].unbind(1)
    y, x = (torch.arange(size, device=boxes.device) for size in shape[2:])
    rows, columns = (y >= top) & (y < top + tall), (x >= left) & (x < left + wide)
    return (rows[:, :, None] & columns[:, None])[:, None]


def erasing_boxes(words: Words, scale: tuple[float, float], ratio: tuple[float, float], size: tuple[int, int]) -> torch.Tensor:
    """The first attempt whose box fits, (B, 4) int64: top, left, height, width; all 0 where none of the attempts fits.

    `words` are of shape (B, attempts). As in torchvision: an area uniform in `scale` of the image's, a ratio h / w
    log-uniform in `ratio`, sides rounded to even; a box must be smaller than the image in both directions. In float64,
    so that no other implementation's exp or sqrt rounds a side differently.
    """
    height, width = size
    area = _between(words[0], *scale) * (height * width)
    aspect = torch.exp(_between(words[1], math.log(ratio[0]), math.log(ratio[1])))
    tall, wide = (torch.sqrt(x).round().long() for x in (area * aspect, area / aspect))
    fits = (tall < height) & (wide < width)
    first = fits.byte().argmax(1, keepdim=True)
    top, left = below(words[2], height - tall + 1), below(words[3], width - wide + 1)
    chosen = torch.stack([top, left, tall, wide], dim=1).gather(2, first[:, None].expand(-1, 4, -1))[:, :, 0]
    return chosen * fits.any(1, keepdim=True)


def erasing_noise(draws: Draws, shape: torch.Size) -> torch.Tensor:
    """Standard normal noise, float32 of `shape` (B, C, H, W)."""
    count, channels, height, width = shape
    groups = math.ceil(channels / 4)
    group = torch.arange(height * width * groups, device=draws.index.device)
    noise = normals(philox4x32(draws.seed, draws.index[:, None], draws.epoch, int(Stream.ERASING_NOISE), group))
    return noise.view(count, height, width, groups * 4)[..., :channels].permute(0, 3, 1, 2)


# Draws: words into parameters. Each gives the function that applies them, and the parameters, (B, ...) each.

Step = tuple[Any, ...]
Shape = tuple[int, int, int]
"""Channels, height and width of the images that a transform is given."""


def _random_crop(transform: p.RandomCrop, draws: Draws, shape: Shape) -> Step:
    return _crop(draws.words(Stream.CROP), shape, (transform.size,) * 2, transform.padding, transform.padding_mode)


def _translate(transform: p.Translate, draws: Draws, shape: Shape) -> Step:
    return _crop(draws.words(Stream.TRANSLATE), shape, shape[1:], transform.pixels, transform.padding_mode)


def _crop(words: Words, shape: Shape, size: tuple[int, int], padding: int, mode: str) -> Step:
    top, left = (below(word, have + 2 * padding - need + 1) for word, have, need in zip(words, shape[1:], size, strict=False))
    return lambda images, top, left: crop(pad(images, padding, mode), top, left, size), top, left


def _random_flip(transform: p.RandomHorizontalFlip, draws: Draws, shape: Shape) -> Step:
    return flip, uniform(draws.words(Stream.FLIP)[0]) < transform.p


def _alternating_flip(transform: p.AlternatingFlip, draws: Draws, shape: Shape) -> Step:
    coin = draws.words(Stream.ALTERNATING_FLIP)[0] >> 31
    return flip, (coin + draws.epoch) % 2 == 1


def _color_jitter(transform: p.ColorJitter, draws: Draws, shape: Shape) -> Step:
    *factor_words, order_word = draws.words(Stream.JITTER)
    factors = [_between(word, *bounds) for word, bounds in zip(factor_words, transform.bounds(), strict=True)]
    return jitter, torch.stack(factors, dim=1).float(), below(order_word, len(JITTER_ORDERS))


def _random_rotation(transform: p.RandomRotation, draws: Draws, shape: Shape) -> Step:
    return rotate, rotation(_between(draws.words(Stream.ROTATION)[0], *transform.bounds()), shape[1:])


def _normalize(transform: p.Normalize, draws: Draws, shape: Shape) -> Step:
    mean, std = (_per_channel(value, shape, draws) for value in (transform.mean, transform.std))
    return (lambda images: normalize(images, mean, std),)


def _random_erasing(transform: p.RandomErasing, draws: Draws, shape: Shape) -> Step:
    boxes = erasing_boxes(draws.words(Stream.ERASING_ATTEMPT, ERASING_ATTEMPTS), transform.scale, transform.ratio, shape[1:])
    boxes = boxes * (uniform(draws.words(Stream.ERASING)[0]) < transform.p)[:, None]
    if transform.value != "random":
        value = _per_channel(transform.value, shape, draws)[:, None, None]
        return lambda images, boxes: erase(images, boxes, value), boxes

    def erase_by_noise(images: torch.Tensor, boxes: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return erase(images, boxes, erasing_noise(Draws(draws.seed, draws.epoch, index, ()), images.shape))

    return erase_by_noise, boxes, draws.index


def _cutout(transform: p.Cutout, draws: Draws, shape: Shape) -> Step:
    row, column, _, _ = draws.words(Stream.CUTOUT)
    top, left = (below(word, size) - transform.size // 2 for word, size in zip((row, column), shape[1:], strict=True))
    side = torch.full_like(top, transform.size)
    black = _per_channel(0.0, shape, draws)[:, None, None]
    return lambda images, boxes: erase(images, boxes, black), torch.stack([top, left, side, side], dim=1)


def _pixels(images: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w): the pixels of (B, C, H, W) at `source`, (B, h, w) int64 in 0 .. H * W - 1."""
    count, channels = images.shape[:2]
    flat = source.reshape(count, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, flat).view(count, channels, *source.shape[1:])


def _between(word: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """A word as a float64 in [low, high)."""
    return low + (high - low) * uniform(word).double()


def _per_channel(value: float | tuple[float, ...], shape: Shape, draws: Draws) -> torch.Tensor:
    return _constant(p.per_channel(value, shape[0]), torch.float32, draws.index.device)


@cache
def _constant(values: tuple, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of constants, made once: copying it to a GPU waits for the GPU, and is forbidden during graph capture."""
    return torch.tensor(values, dtype=dtype, device=device)


def _reflected(size: int, pixels: int, device: torch.device) -> torch.Tensor:
    """Rows (or columns) of an image of `size` that stand in its padded version."""
    inside = torch.arange(-pixels, size + pixels, device=device).abs()
    return (size - 1) - ((size - 1) - inside).abs()


DRAW = {
    p.RandomCrop: _random_crop,
    p.Translate: _translate,
    p.RandomHorizontalFlip: _random_flip,
    p.AlternatingFlip: _alternating_flip,
    p.ColorJitter: _color_jitter,
    p.RandomRotation: _random_rotation,
    p.Normalize: _normalize,
    p.RandomErasing: _random_erasing,
    p.Cutout: _cutout,
}
