"""The transforms as device functions: a policy as the kernel's constants, an image's parameters, a pixel's value.

A transform either moves pixels (crop, flip, rotation) or changes their values (jitter, normalisation, erasing), so the value
of a pixel is found by asking the last transform, which asks the one before it for a pixel elsewhere, and so on down to the
uint8 image:

    value(k, y, x) = transform_k(value(k - 1, place_k(y, x)))      value(0, y, x) = image[y, x] / 255

`value` is that recursion. It is unrolled when a kernel is compiled for a policy, so that a transform that is absent costs
nothing. Only ColorJitter's contrast needs more than one pixel, the mean grey of the image, which a first pass over the image
takes (`_mean_grey`); what it read is then in the cache.

POLICY is `encode(policy, ...)`: one row of numbers for each transform, which begins with its kind and the height and width
of the images it is given. Three channels are worked on together as (red, green, blue); any other number one by one, with
red = green = blue, of which the compiler keeps one.
"""

import math

import triton
import triton.language as tl

from fastcifar.augment import kernels as device
from fastcifar.augment import policy as p
from fastcifar.augment.philox import Stream
from fastcifar.augment.reference import FIXED_POINT, GREY

CROP, FLIP, ALTERNATING_FLIP, JITTER, ROTATION, NORMALIZE, ERASING, CUTOUT = (tl.constexpr(kind) for kind in range(8))

FLIP_STREAM, JITTER_STREAM = tl.constexpr(int(Stream.FLIP)), tl.constexpr(int(Stream.JITTER))
ROTATION_STREAM, CUTOUT_STREAM = tl.constexpr(int(Stream.ROTATION)), tl.constexpr(int(Stream.CUTOUT))
MIX_STREAM, MIX_BOX_STREAM = tl.constexpr(int(Stream.MIX)), tl.constexpr(int(Stream.MIX_BOX))
SHIFT, ONE = tl.constexpr(FIXED_POINT), tl.constexpr(1 << FIXED_POINT)
RED, GREEN, BLUE = (tl.constexpr(weight) for weight in GREY)
EIGHT = tl.constexpr(0x41000000)
"""The bits of 8.0. A float32 in [8, 9) is these plus its fraction in units of 2**-20."""


# A policy as constants.


def encode(policy: p.Policy, height: int, width: int, channels: int) -> tuple[tuple[float, ...], ...]:
    """The policy as the kernel's constant: for each transform its kind, the height and width it is given, its numbers."""
    rows = []
    for transform in policy.per_image:
        rows.append(_ENCODE[type(transform)](transform, height, width, channels))
        if isinstance(transform, p.RandomCrop | p.Translate):
            height, width = transform.output_size(height, width)
    return tuple(rows)


def _crop(stream: Stream, h: int, w: int, out: tuple[int, int], padding: int, mode: str) -> tuple[float, ...]:
    """Stream, numbers of tops and lefts, padding, and whether it is mirrored."""
    tops, lefts = h + 2 * padding - out[0] + 1, w + 2 * padding - out[1] + 1
    return CROP.value, h, w, int(stream), tops, lefts, padding, int(mode == "reflect")


def _erasing(t: p.RandomErasing, h: int, w: int, channels: int) -> tuple[float, ...]:
    """Probability, bounds of area and of log ratio, whether by noise, and the value of each channel."""
    noise = t.value == "random"
    values = p.per_channel(0.0 if noise else t.value, channels)
    return ERASING.value, h, w, t.p, *map(float, t.scale), *map(math.log, t.ratio), int(noise), *values


_ENCODE = {
    p.RandomCrop: lambda t, h, w, c: _crop(Stream.CROP, h, w, (t.size, t.size), t.padding, t.padding_mode),
    p.Translate: lambda t, h, w, c: _crop(Stream.TRANSLATE, h, w, (h, w), t.pixels, t.padding_mode),
    p.RandomHorizontalFlip: lambda t, h, w, c: (FLIP.value, h, w, float(t.p)),
    p.AlternatingFlip: lambda t, h, w, c: (ALTERNATING_FLIP.value, h, w),
    p.ColorJitter: lambda t, h, w, c: (JITTER.value, h, w, *(float(bound) for pair in t.bounds() for bound in pair)),
    p.RandomRotation: lambda t, h, w, c: (ROTATION.value, h, w, *map(float, t.bounds())),
    p.Normalize: lambda t, h, w, c: (
        NORMALIZE.value, h, w, *p.per_channel(t.mean, c), *(1 / std for std in p.per_channel(t.std, c)),
    ),
    p.RandomErasing: _erasing,
    p.Cutout: lambda t, h, w, c: (CUTOUT.value, h, w, t.size),
}  # fmt: skip


# Arithmetic on pixels.


@triton.jit
def _luma(red, green, blue, C: tl.constexpr):
    if C == 3:
        return red * RED + green * GREEN + blue * BLUE
    else:
        return red


@triton.jit
def _blend(red, green, blue, factor, of_grey, other, C: tl.constexpr):
    """One turn of a jitter: clamp(factor * pixel + (of_grey * grey + other), 0, 1)."""
    other = _luma(red, green, blue, C) * of_grey + other
    red = tl.minimum(tl.maximum(red * factor + other, 0.0), 1.0)
    green = tl.minimum(tl.maximum(green * factor + other, 0.0), 1.0)
    blue = tl.minimum(tl.maximum(blue * factor + other, 0.0), 1.0)
    return red, green, blue


@triton.jit
def choose(condition, red, green, blue, other_red, other_green, other_blue):
    return tl.where(condition, red, other_red), tl.where(condition, green, other_green), tl.where(condition, blue, other_blue)


@triton.jit
def _mirror(place, SIZE: tl.constexpr):
    """A row or column outside the image, mirrored into it without repeating the border."""
    return (SIZE - 1) - tl.abs((SIZE - 1) - tl.abs(place))


@triton.jit
def value(
    image_ptr, key, params, y, x, mask, POLICY: tl.constexpr, k: tl.constexpr,
    W: tl.constexpr, C: tl.constexpr, c: tl.constexpr,
):  # fmt: skip
    """(red, green, blue) float32 of pixel (y, x) after the first k transforms; nothing is read where not `mask`.

    `params[i]`: what `parameters` gives for transform i; `key`: (seed, sample, epoch); `c`: the first channel.
    """
    if k == 0:
        place = image_ptr + (y * W + x) * C + c
        red = tl.load(place, mask, other=0).to(tl.float32) * (1.0 / 255.0)
        if C == 3:
            green = tl.load(place + 1, mask, other=0).to(tl.float32) * (1.0 / 255.0)
            blue = tl.load(place + 2, mask, other=0).to(tl.float32) * (1.0 / 255.0)
            return red, green, blue
        else:
            return red, red, red
    elif POLICY[k - 1][0] == CROP:
        y, x = y + params[k - 1][0], x + params[k - 1][1]
        if POLICY[k - 1][7] == 1:
            y, x = _mirror(y, POLICY[k - 1][1]), _mirror(x, POLICY[k - 1][2])
            return value(image_ptr, key, params, y, x, mask, POLICY, k - 1, W, C, c)
        else:
            inside = (y >= 0) & (y < POLICY[k - 1][1]) & (x >= 0) & (x < POLICY[k - 1][2])
            red, green, blue = value(image_ptr, key, params, y, x, mask & inside, POLICY, k - 1, W, C, c)
            return choose(inside, red, green, blue, 0.0, 0.0, 0.0)
    elif (POLICY[k - 1][0] == FLIP) | (POLICY[k - 1][0] == ALTERNATING_FLIP):
        x = tl.where(params[k - 1][0], POLICY[k - 1][2] - 1 - x, x)
        return value(image_ptr, key, params, y, x, mask, POLICY, k - 1, W, C, c)
    elif POLICY[k - 1][0] == ROTATION:
        a, b, first_column, d, e, first_row = params[k - 1]
        column = ((a * x + (b * y + first_column)) >> SHIFT) - 1
        row = ((d * x + (e * y + first_row)) >> SHIFT) - 1
        inside = (row >= 0) & (row < POLICY[k - 1][1]) & (column >= 0) & (column < POLICY[k - 1][2])
        red, green, blue = value(image_ptr, key, params, row, column, mask & inside, POLICY, k - 1, W, C, c)
        return choose(inside, red, green, blue, 0.0, 0.0, 0.0)
    else:
        red, green, blue = value(image_ptr, key, params, y, x, mask, POLICY, k - 1, W, C, c)
        if POLICY[k - 1][0] == JITTER:
            f0, g0, o0, f1, g1, o1, f2, g2, o2 = params[k - 1]
            red, green, blue = _blend(red, green, blue, f0, g0, o0, C)
            red, green, blue = _blend(red, green, blue, f1, g1, o1, C)
            return _blend(red, green, blue, f2, g2, o2, C)
        elif POLICY[k - 1][0] == NORMALIZE:
            red = (red - POLICY[k - 1][3 + c]) * POLICY[k - 1][3 + C + c]
            if C == 3:
                green = (green - POLICY[k - 1][4]) * POLICY[k - 1][7]
                blue = (blue - POLICY[k - 1][5]) * POLICY[k - 1][8]
                return red, green, blue
            else:
                return red, red, red
        else:
            top, left, tall, wide = params[k - 1]
            erased = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
            if POLICY[k - 1][0] == CUTOUT:
                return choose(erased, 0.0, 0.0, 0.0, red, green, blue)
            elif POLICY[k - 1][8] == 1:
                if tl.max(erased.to(tl.int32)) > 0:
                    n0, n1, n2 = _noise(key, y * POLICY[k - 1][2] + x, C, c)
                    red, green, blue = choose(erased, n0, n1, n2, red, green, blue)
                return red, green, blue
            elif C == 3:
                v: tl.constexpr = POLICY[k - 1]
                return choose(erased, v[9], v[10], v[11], red, green, blue)
            else:
                red = tl.where(erased, POLICY[k - 1][9 + c], red)
                return red, red, red


@triton.jit
def _noise(key, pixel, C: tl.constexpr, c: tl.constexpr):
    """Standard normals for channel c and, of three channels, the two after it."""
    seed, sample, epoch = key
    group = pixel * ((C + 3) // 4) + c // 4
    zero = tl.zeros_like(group)
    stream = zero + device.ERASING_NOISE
    w0, w1, w2, w3 = tl.philox(seed, zero + sample.to(tl.int32), zero + epoch.to(tl.int32), stream, group)
    n0, n1, n2, n3 = device.normals(w0, w1, w2, w3)
    if C == 3:
        return n0, n1, n2
    elif c % 4 == 0:
        return n0, n0, n0
    elif c % 4 == 1:
        return n1, n1, n1
    elif c % 4 == 2:
        return n2, n2, n2
    else:
        return n3, n3, n3


# Draws: words into parameters.


@triton.jit
def parameters(
    image_ptr, key, lane, words, POLICY: tl.constexpr, k: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr
):
    """The parameters of the first k transforms, a tuple of tuples of scalars."""
    if k == 0:
        return ()
    else:
        before = parameters(image_ptr, key, lane, words, POLICY, k - 1, W, C, BLOCK)
        return before + (_draw(image_ptr, key, before, lane, words, POLICY, k - 1, W, C, BLOCK),)  # noqa: RUF005 (Triton)


@triton.jit
def _draw(
    image_ptr, key, before, lane, words, POLICY: tl.constexpr, i: tl.constexpr,
    W: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The parameters of transform i; `before` are those of the transforms before it."""
    if POLICY[i][0] == CROP:
        top = device.below(device.pick(lane, words[0], POLICY[i][3]), POLICY[i][4])
        left = device.below(device.pick(lane, words[1], POLICY[i][3]), POLICY[i][5])
        return top - POLICY[i][6], left - POLICY[i][6]
    elif POLICY[i][0] == FLIP:
        return (device.uniform(device.pick(lane, words[0], FLIP_STREAM)) < POLICY[i][3],)
    elif POLICY[i][0] == ALTERNATING_FLIP:
        coin = device.pick(lane, words[0], device.ALTERNATING_FLIP) >> 31
        return (((coin.to(tl.int64) + key[2]) & 1) == 1,)
    elif POLICY[i][0] == JITTER:
        return _jitter(image_ptr, key, before, lane, words, POLICY, i, W, C, BLOCK)
    elif POLICY[i][0] == ROTATION:
        cos, sin = device.cos_sin(
            device.between(device.pick(lane, words[0], ROTATION_STREAM), POLICY[i][3], POLICY[i][4]) * (1.0 / 360.0)
        )
        right, down = (1 - POLICY[i][2]) / 2, (1 - POLICY[i][1]) / 2
        column = cos * right - sin * down + (POLICY[i][2] / 2 + 1)
        row = sin * right + cos * down + (POLICY[i][1] / 2 + 1)
        return _fixed(cos), _fixed(-sin), _fixed(column), _fixed(sin), _fixed(cos), _fixed(row)
    elif POLICY[i][0] == ERASING:
        return device.erasing_box(
            lane, words, POLICY[i][3], POLICY[i][4], POLICY[i][5], POLICY[i][6], POLICY[i][7], POLICY[i][1], POLICY[i][2]
        )
    elif POLICY[i][0] == CUTOUT:
        row = device.below(device.pick(lane, words[0], CUTOUT_STREAM), POLICY[i][1])
        column = device.below(device.pick(lane, words[1], CUTOUT_STREAM), POLICY[i][2])
        side = tl.full((), POLICY[i][3], tl.int32)
        return row - POLICY[i][3] // 2, column - POLICY[i][3] // 2, side, side
    else:
        return ()


@triton.jit
def _fixed(x):
    return tl.floor(x * ONE + 0.5).to(tl.int32)


@triton.jit
def _jitter(
    image_ptr, key, before, lane, words, POLICY: tl.constexpr, i: tl.constexpr,
    W: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For each of three turns the factor of the pixel, that of its grey, and what is added; see `reference.jitter`."""
    w0, w1, w2, w3 = words
    brightness = device.between(device.pick(lane, w0, JITTER_STREAM), POLICY[i][3], POLICY[i][4]).to(tl.float32)
    contrast = device.between(device.pick(lane, w1, JITTER_STREAM), POLICY[i][5], POLICY[i][6]).to(tl.float32)
    saturation = device.between(device.pick(lane, w2, JITTER_STREAM), POLICY[i][7], POLICY[i][8]).to(tl.float32)
    order = device.below(device.pick(lane, w3, JITTER_STREAM), 6)
    first = order // 2  # the permutations of 0, 1, 2 in lexicographic order
    second = tl.where(order % 2 == 0, tl.where(first == 0, 1, 0), tl.where(first == 2, 1, 2))
    third = 3 - first - second
    f0 = tl.where(first == 0, brightness, tl.where(first == 1, contrast, saturation))
    f1 = tl.where(second == 0, brightness, tl.where(second == 1, contrast, saturation))
    f2 = tl.where(third == 0, brightness, tl.where(third == 1, contrast, saturation))
    g0, g1 = tl.where(first == 2, 1.0 - f0, 0.0), tl.where(second == 2, 1.0 - f1, 0.0)
    g2 = tl.where(third == 2, 1.0 - f2, 0.0)
    if (POLICY[i][5] == 1.0) & (POLICY[i][6] == 1.0):
        grey = 0.0
    else:
        turns = tl.where(first == 1, 0, tl.where(second == 1, 1, 2))
        grey = _mean_grey(image_ptr, key, before, turns, (f0, g0, f1, g1), POLICY, i, W, C, BLOCK)
    o0, o1 = tl.where(first == 1, (1.0 - f0) * grey, 0.0), tl.where(second == 1, (1.0 - f1) * grey, 0.0)
    o2 = tl.where(third == 1, (1.0 - f2) * grey, 0.0)
    return f0, g0, o0, f1, g1, o1, f2, g2, o2


@triton.jit
def _mean_grey(
    image_ptr, key, before, turns, factors, POLICY: tl.constexpr, i: tl.constexpr,
    W: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean grey, float32, of the image as it is after `turns` turns (0 to 2) of jitter i.

    Summed in units of 2**-20, in integers: no order of the sum shows, hence neither does the number of threads.
    """
    f0, g0, f1, g1 = factors
    PIXELS: tl.constexpr = POLICY[i][1] * POLICY[i][2]
    total = tl.zeros((), tl.int64)
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = pixel < PIXELS
        red, green, blue = value(image_ptr, key, before, pixel // POLICY[i][2], pixel % POLICY[i][2], mask, POLICY, i, W, C, 0)
        if turns > 0:
            red, green, blue = _blend(red, green, blue, f0, g0, 0.0, C)
        if turns > 1:
            red, green, blue = _blend(red, green, blue, f1, g1, 0.0, C)
        units = (_luma(red, green, blue, C) + 8.0).to(tl.int32, bitcast=True) - EIGHT
        total += tl.sum(tl.where(mask, units, 0)).to(tl.int64)
    return (total.to(tl.float64) * (1.0 / (PIXELS * 1048576.0))).to(tl.float32)


# Mixing with a partner.


@triton.jit
def mix_weight(lane, words, ALPHA: tl.constexpr):
    """A draw from Beta(ALPHA, ALPHA), float64; see `batch.symmetric_beta`."""
    u = device.uniform(device.pick(lane, words[1], MIX_STREAM)).to(tl.float64)
    cos, _ = device.cos_sin(device.uniform(device.pick(lane, words[2], MIX_STREAM)).to(tl.float64))
    spread = tl.exp(tl.log(1.0 - u) * (-1.0 / ALPHA)) - 1.0
    side = tl.where(cos < 0, -0.5, 0.5)
    return 0.5 + side / tl.sqrt(1.0 + 1.0 / (spread * cos * cos))


@triton.jit
def mix_box(lane, words, weight, H: tl.constexpr, W: tl.constexpr):
    """Top, left, height and width of the partner's rectangle, clipped to the image; see `batch.cut_mix_boxes`."""
    row = device.below(device.pick(lane, words[0], MIX_BOX_STREAM), H)
    column = device.below(device.pick(lane, words[1], MIX_BOX_STREAM), W)
    half = 0.5 * tl.sqrt(1.0 - weight)
    tall, wide = (half * H).to(tl.int32), (half * W).to(tl.int32)
    top, left = tl.maximum(row - tall, 0), tl.maximum(column - wide, 0)
    return top, left, tl.minimum(row + tall, H) - top, tl.minimum(column + wide, W) - left
