"""Device functions shared by the Triton kernels: one image's draws, and what is made of them.

An image's draws are made by one warp at once: lane s computes the four words of stream s, so that all streams of
`philox.Stream` below 32 cost one Philox. A draw is then picked from its lane.

Arithmetic that decides a pixel's place is done in integers or in float64, as in `reference.py`, so that both find the same
place. Cosines and sines are our own because those of CUDA's library keep a table in local memory.
"""

import triton
import triton.language as tl

from fastcifar.augment.philox import ERASING_ATTEMPTS, Stream

LANES = tl.constexpr(32)
ALTERNATING_FLIP = tl.constexpr(int(Stream.ALTERNATING_FLIP))
ERASING = tl.constexpr(int(Stream.ERASING))
FIRST_ATTEMPT = tl.constexpr(int(Stream.ERASING_ATTEMPT))
LAST_ATTEMPT = tl.constexpr(Stream.ERASING_ATTEMPT + ERASING_ATTEMPTS - 1)
ERASING_NOISE = tl.constexpr(int(Stream.ERASING_NOISE))

TO_INTEGER = tl.constexpr(1.5 * 2**52)
"""A float64 of at most 2**51 plus this has no room for a fraction: it is rounded to an integer, ties to even."""


@triton.jit
def draw_words(seed, sample, epoch, group):
    """(lane, words): lanes 0 to 31, and the four words of stream = lane, uint32 each."""
    lane = tl.arange(0, LANES)
    epochs = tl.where(lane == ALTERNATING_FLIP, 0, epoch.to(tl.int32))
    samples = tl.zeros_like(lane) + sample.to(tl.int32)
    return lane, tl.philox(seed, samples, epochs, lane, tl.zeros_like(lane) + group)


@triton.jit
def pick(lane, values, chosen):
    """The value in lane `chosen`, a scalar; 0 where there is no such lane."""
    return tl.sum(tl.where(lane == chosen, values, tl.zeros_like(values)))


@triton.jit
def uniform(word):
    """A word as a float32 in [0, 1)."""
    return (word >> 8).to(tl.int32).to(tl.float32) * (1.0 / 16777216.0)


@triton.jit
def between(word, low: tl.constexpr, high: tl.constexpr):
    """A word as a float64 in [low, high)."""
    return uniform(word).to(tl.float64) * (high - low) + low


@triton.jit
def below(word, bound):
    """A word as an int32 in 0 .. bound - 1."""
    return tl.umulhi(word, tl.zeros_like(word) + bound).to(tl.int32)


@triton.jit
def round_to_even(x):
    """A float64 rounded to the nearest integer, ties to even, as int32."""
    return ((x + TO_INTEGER) - TO_INTEGER).to(tl.int32)


@triton.jit
def cos_sin(turns):
    """Cosine and sine of an angle in turns, float32 or float64: Taylor's series within an eighth of a turn of an axis."""
    quarters = tl.floor(turns * 4.0 + 0.5)
    x = (turns * 4.0 - quarters) * 1.5707963267948966
    z = x * x
    sin = 1.0 - z * (1.0 / 210) * (1.0 - z * (1.0 / 272))
    sin = 1.0 - z * (1.0 / 110) * (1.0 - z * (1.0 / 156) * sin)
    sin = x * (1.0 - z * (1.0 / 6) * (1.0 - z * (1.0 / 20) * (1.0 - z * (1.0 / 42) * (1.0 - z * (1.0 / 72) * sin))))
    cos = 1.0 - z * (1.0 / 182) * (1.0 - z * (1.0 / 240))
    cos = 1.0 - z * (1.0 / 90) * (1.0 - z * (1.0 / 132) * cos)
    cos = 1.0 - z * (1.0 / 2) * (1.0 - z * (1.0 / 12) * (1.0 - z * (1.0 / 30) * (1.0 - z * (1.0 / 56) * cos)))
    quarter = quarters.to(tl.int32) & 3
    swapped = (quarter & 1) == 1
    across, along = tl.where(swapped, sin, cos), tl.where(swapped, cos, sin)
    return tl.where((quarter == 1) | (quarter == 2), -across, across), tl.where(quarter >= 2, -along, along)


@triton.jit
def normals(w0, w1, w2, w3):
    """Four standard normals from four words, by the Box-Muller transform, in float32."""
    first, second = tl.sqrt(-2.0 * tl.log(1.0 - uniform(w0))), tl.sqrt(-2.0 * tl.log(1.0 - uniform(w2)))
    cos, sin = cos_sin(uniform(w1))
    other_cos, other_sin = cos_sin(uniform(w3))
    return first * cos, first * sin, second * other_cos, second * other_sin


@triton.jit
def erasing_box(
    lane, words, P: tl.constexpr, AREA_LOW: tl.constexpr, AREA_HIGH: tl.constexpr,
    LOG_LOW: tl.constexpr, LOG_HIGH: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Top, left, height and width of a random erasing's box, int32 scalars; all 0 where nothing is erased.

    One lane an attempt; the first whose box fits is taken. See `reference.erasing_boxes`.
    """
    w0, w1, w2, w3 = words
    area = between(w0, AREA_LOW, AREA_HIGH) * (H * W)
    aspect = tl.exp(between(w1, LOG_LOW, LOG_HIGH))
    tall, wide = round_to_even(tl.sqrt(area * aspect)), round_to_even(tl.sqrt(area / aspect))
    attempt = (lane >= FIRST_ATTEMPT) & (lane <= LAST_ATTEMPT)
    first = tl.min(tl.where(attempt & (tall < H) & (wide < W), lane, LANES))
    whether = uniform(pick(lane, w0, ERASING)) < P
    first = tl.where(whether, first, LANES)
    tall, wide = pick(lane, tall, first), pick(lane, wide, first)
    top = below(pick(lane, w2, first), H + 1 - tall)
    left = below(pick(lane, w3, first), W + 1 - wide)
    return top, left, tall, wide
