"""The augmentation in PyTorch, for a whole batch at once: the specification that every kernel is held to.

Each transform is two functions. One draws: it turns words of the transform's stream (see `philox.Stream`) into
parameters, one set for each sample. The other applies given parameters, as torchvision would to each image alone.

Shapes: B images, C channels, H x W pixels in, h x w out. Images are planar (B, C, H, W) inside. Nothing here waits for the
device, and no shape depends on the data.
"""

import itertools
import math

import torch
import torch.nn.functional as F

from fastcifar.augment import policy as p
from fastcifar.augment.philox import ERASING_ATTEMPTS, Stream, Words, below, normals, philox4x32, uniform

GREY = 0.2989, 0.587, 0.114  # ITU-R 601-2 luma, in the digits torchvision uses
JITTER_ORDERS = tuple(itertools.permutations(range(3)))  # of brightness (0), contrast (1), saturation (2)


class Draws:
    """The words of a batch, for every stream of a policy, from one call of Philox.

    Attributes:
        index: (B,) int64, the samples' indices in the data set.
        epoch: an int or a () int64 tensor.
    """

    def __init__(self, seed: int, epoch: torch.Tensor | int, index: torch.Tensor, streams: tuple[int, ...]) -> None:
        self.seed, self.epoch, self.index = seed, epoch, index
        self.column = {int(stream): column for column, stream in enumerate(streams)}
        table = torch.tensor(list(self.column), dtype=torch.int64, device=index.device)
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
    seed: int,
    policy: p.Policy,
) -> torch.Tensor:
    """Apply `policy` to a batch.

    Args:
        images_NHWC: (B, H, W, C) uint8; C is 1 or 3 where the policy jitters colours, anything otherwise.
        index: (B,) int64, the samples' indices in the data set, which select their draws.
        epoch: which epoch's draws, an int or a () int64 tensor on the images' device.
        seed: the run's 64-bit seed.

    Returns:
        (B, C, h, w) in channels-last memory and the policy's dtype.
    """
    draws = Draws(seed, epoch, index, policy.streams())
    images = images_NHWC.permute(0, 3, 1, 2)
    for transform in policy.transforms:
        images = APPLY[type(transform)](images, transform, draws)
    return to_float(images).to(getattr(torch, policy.dtype), memory_format=torch.channels_last)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 pixels as float32 in 0 .. 1; float32 as it is."""
    return torch.div(images, 255) if images.dtype == torch.uint8 else images


# Geometry: works on uint8 as on float32.


def crop(images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The window of `size` (h, w) at row `top` and column `left`, (B,) int64 each."""
    windows = images.unfold(2, size[0], 1).unfold(3, size[1], 1)  # (B, C, tops, lefts, h, w), a view
    batch = torch.arange(len(images), device=images.device)
    return windows.permute(0, 2, 3, 1, 4, 5)[batch, top, left]


def pad(images: torch.Tensor, pixels: int, mode: str) -> torch.Tensor:
    """Images with `pixels` more on every side: 0 ("constant") or mirrored without repeating the border ("reflect")."""
    if mode == "constant" or not pixels:
        return F.pad(images, (pixels,) * 4)
    rows, columns = (_reflected(size, pixels, images.device) for size in images.shape[2:])
    return images[:, :, rows[:, None], columns]


def flip(images: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
    """Mirror the images where `flipped`, (B,) bool."""
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def rotate(images: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    """Rotate counter-clockwise about the centre by `degrees`, (B,), nearest neighbour (ties to even), 0 outside."""
    height, width = images.shape[2:]
    radians = torch.deg2rad(degrees.double())
    cos, sin = (f(radians).float()[:, None, None] for f in (torch.cos, torch.sin))
    y = torch.arange(height, device=images.device, dtype=torch.float32)[:, None] - (height - 1) / 2
    x = torch.arange(width, device=images.device, dtype=torch.float32) - (width - 1) / 2
    rows = (sin * x + cos * y).add_((height - 1) / 2).round_()
    columns = (cos * x - sin * y).add_((width - 1) / 2).round_()
    outside = (rows < 0) | (rows > height - 1) | (columns < 0) | (columns > width - 1)
    source = rows.clamp_(0, height - 1).mul_(width).add_(columns.clamp_(0, width - 1)).long()
    source = source.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, source).view_as(images).masked_fill_(outside[:, None], 0)


# Colour: float32 in 0 .. 1.


def grey(images: torch.Tensor) -> torch.Tensor:
    """Luma, (B, 1, H, W); images of one channel are their own."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def jitter(images: torch.Tensor, factors: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Apply brightness, contrast and saturation by `factors`, (B, 3), in the order JITTER_ORDERS[order], order (B,).

    Each is a blend, clamp(f * image + (1 - f) * other, 0, 1), with other = 0 for brightness, the image's mean grey for
    contrast and each pixel's grey for saturation. Which of the three a sample is at differs, so every one of the three
    passes computes f * image + g * grey + m * mean(grey), where g or m or both are 0.
    """
    orders = torch.tensor(JITTER_ORDERS, device=images.device)[order]
    images = to_float(images).clone(memory_format=torch.contiguous_format)
    for turn in range(3):
        kind = orders[:, turn, None]
        factor = factors.gather(1, kind)[:, :, None, None]
        of_grey, of_mean = ((1 - factor) * (kind == k)[:, :, None, None] for k in (2, 1))
        other = grey(images)
        other = other * of_grey + other.mean((2, 3), keepdim=True) * of_mean
        images.mul_(factor).add_(other).clamp_(0, 1)
    return images


def normalize(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """(images - mean) / std; mean and std (1 or C,)."""
    return (to_float(images) - mean[:, None, None]).div_(std[:, None, None])


# Erasing: whole rectangles.


def boxes_mask(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, 1, H, W) bool, true inside `boxes`, (B, 4) int64: top, left, height, width; 0 high or wide means none."""
    top, left, tall, wide = (side[:, None, None, None] for side in boxes.unbind(1))
    y = torch.arange(height, device=boxes.device)[:, None]
    x = torch.arange(width, device=boxes.device)
    return ((y >= top) & (y < top + tall)) & ((x >= left) & (x < left + wide))


def erase(images: torch.Tensor, boxes: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Overwrite `boxes`, (B, 4), with `value`, which broadcasts against (B, C, H, W)."""
    return torch.where(boxes_mask(boxes, *images.shape[2:]), value, to_float(images))


def erasing_boxes(words: Words, scale: tuple[float, float], ratio: tuple[float, float], size: tuple[int, int]):
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
    attempts = torch.arange(fits.shape[1], device=fits.device)
    first = torch.where(fits, attempts, fits.shape[1] - 1).amin(1, keepdim=True)
    top, left = below(words[2], height - tall + 1), below(words[3], width - wide + 1)
    chosen = torch.stack([side.gather(1, first)[:, 0] for side in (top, left, tall, wide)], dim=1)
    return chosen * fits.any(1, keepdim=True)


def erasing_noise(draws: Draws, shape: torch.Size) -> torch.Tensor:
    """Standard normal noise, float32 of `shape` (B, C, H, W)."""
    count, channels, height, width = shape
    groups = math.ceil(channels / 4)
    group = torch.arange(height * width * groups, device=draws.index.device)
    noise = normals(philox4x32(draws.seed, draws.index[:, None], draws.epoch, int(Stream.ERASING_NOISE), group))
    return noise.view(count, height, width, groups * 4)[..., :channels].permute(0, 3, 1, 2)


# Draws: words into parameters.


def _random_crop(images: torch.Tensor, transform: p.RandomCrop, draws: Draws) -> torch.Tensor:
    padded = pad(images, transform.padding, transform.padding_mode)
    return _crop_at_random(padded, (transform.size, transform.size), draws.words(Stream.CROP))


def _translate(images: torch.Tensor, transform: p.Translate, draws: Draws) -> torch.Tensor:
    padded = pad(images, transform.pixels, transform.padding_mode)
    return _crop_at_random(padded, tuple(images.shape[2:]), draws.words(Stream.TRANSLATE))


def _crop_at_random(images: torch.Tensor, size: tuple[int, int], words: Words) -> torch.Tensor:
    top, left = (below(word, have - need + 1) for word, have, need in zip(words, images.shape[2:], size, strict=False))
    return crop(images, top, left, size)


def _random_flip(images: torch.Tensor, transform: p.RandomHorizontalFlip, draws: Draws) -> torch.Tensor:
    return flip(images, uniform(draws.words(Stream.FLIP)[0]) < transform.p)


def _alternating_flip(images: torch.Tensor, transform: p.AlternatingFlip, draws: Draws) -> torch.Tensor:
    coin = draws.words(Stream.ALTERNATING_FLIP)[0] >> 31
    return flip(images, (coin + draws.epoch) % 2 == 1)


def _color_jitter(images: torch.Tensor, transform: p.ColorJitter, draws: Draws) -> torch.Tensor:
    *factor_words, order_word = draws.words(Stream.JITTER)
    factors = [_between(word, *bounds) for word, bounds in zip(factor_words, transform.bounds(), strict=True)]
    return jitter(images, torch.stack(factors, dim=1).float(), below(order_word, len(JITTER_ORDERS)))


def _random_rotation(images: torch.Tensor, transform: p.RandomRotation, draws: Draws) -> torch.Tensor:
    return rotate(images, _between(draws.words(Stream.ROTATION)[0], *transform.bounds()))


def _normalize(images: torch.Tensor, transform: p.Normalize, draws: Draws) -> torch.Tensor:
    return normalize(images, *(_per_channel(value, images) for value in (transform.mean, transform.std)))


def _random_erasing(images: torch.Tensor, transform: p.RandomErasing, draws: Draws) -> torch.Tensor:
    attempts = draws.words(Stream.ERASING_ATTEMPT, ERASING_ATTEMPTS)
    boxes = erasing_boxes(attempts, transform.scale, transform.ratio, tuple(images.shape[2:]))
    boxes = boxes * (uniform(draws.words(Stream.ERASING)[0]) < transform.p)[:, None]
    if transform.value == "random":
        return erase(images, boxes, erasing_noise(draws, images.shape))
    return erase(images, boxes, _per_channel(transform.value, images)[:, None, None])


def _cutout(images: torch.Tensor, transform: p.Cutout, draws: Draws) -> torch.Tensor:
    top, left = (
        below(word, size) - transform.size // 2
        for word, size in zip(draws.words(Stream.CUTOUT), images.shape[2:], strict=False)
    )
    side = torch.full_like(top, transform.size)
    return erase(images, torch.stack([top, left, side, side], dim=1), torch.zeros((), device=images.device))


def _between(word: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """A word as a float64 in [low, high)."""
    return low + (high - low) * uniform(word).double()


def _per_channel(value: float | tuple[float, ...], images: torch.Tensor) -> torch.Tensor:
    values = value if isinstance(value, tuple) else (value,)
    return torch.tensor(values, dtype=torch.float32, device=images.device)


def _reflected(size: int, pixels: int, device: torch.device) -> torch.Tensor:
    """Rows (or columns) of an image of `size` that stand in its padded version."""
    inside = torch.arange(-pixels, size + pixels, device=device).abs()
    return (size - 1) - ((size - 1) - inside).abs()


APPLY = {
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
