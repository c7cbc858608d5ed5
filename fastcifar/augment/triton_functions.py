"""Functions that the Triton kernels share: an image's draws, a pixel after each transform, and arithmetic for both.

One warp makes all draws of an image: lane s computes the four words of stream s, so all streams below 32 cost one Philox.
A draw is then picked from its lane.

A transform either moves pixels (crop, flip, rotation) or changes their values (jitter, normalisation, erasing). So an output
pixel is computed recursively, from the last transform back to the uint8 image:

    value(t, y, x) = color_t(value(t - 1, place_t(y, x)))      value(0, y, x) = image[y, x] / 255

The recursion is unrolled when a kernel is compiled for a policy, so an absent transform costs nothing. T are the constants of
a transform; see `constants.policy_constants`. Only ColorJitter's contrast needs more than one pixel, the mean grey of the
image: a first pass over the image computes it, and leaves the image in the cache.

Arithmetic that decides a pixel's position is in integers or in float64, as in the reference, so that both find the same
position. Cosine and sine are computed here because those of CUDA's library keep a table in local memory.
"""

import triton
import triton.language as tl

from fastcifar.augment.philox import Stream

LANES = tl.constexpr(32)
ALTERNATING_FLIP = tl.constexpr(int(Stream.ALTERNATING_FLIP))


@triton.jit
def parameters(T: tl.constexpr, image_ptr, key, lane, words):
    """Draw for an image and all transforms up to T: a tuple of tuples of scalars; `key`: (seed, sample, epoch)."""
    if T.index == 0:
        return ()
    else:
        BEFORE: tl.constexpr = T.before
        before = parameters(BEFORE, image_ptr, key, lane, words)
        if T.kernel_draw is None:
            return before + ((),)  # noqa: RUF005 (Triton)
        else:
            return before + (T.kernel_draw(T, (image_ptr, key, before), lane, words),)  # noqa: RUF005


@triton.jit
def value(T: tl.constexpr, image, y, x, mask, c: tl.constexpr):
    """Compute (red, green, blue) float32 of pixel (y, x) after T; nothing is read outside of `mask`.

    `image`: (image_ptr, key, result of `parameters`); `c`: the first channel.
    """
    if T.index == 0:
        place = image[0] + (y * T.width + x) * T.channels + c
        red = tl.load(place, mask, other=0).to(tl.float32) * (1.0 / 255.0)
        if T.channels == 3:
            green = tl.load(place + 1, mask, other=0).to(tl.float32) * (1.0 / 255.0)
            blue = tl.load(place + 2, mask, other=0).to(tl.float32) * (1.0 / 255.0)
            return red, green, blue
        else:
            return red, red, red
    else:
        BEFORE: tl.constexpr = T.before
        drawn = image[2][T.index - 1]
        if T.kernel_place is not None:
            y, x = T.kernel_place(T, drawn, y, x)
        if T.black_outside:
            inside_image = (y >= 0) & (y < T.height) & (x >= 0) & (x < T.width)
            red, green, blue = value(BEFORE, image, y, x, mask & inside_image, c)
            red, green, blue = choose(inside_image, red, green, blue, 0.0, 0.0, 0.0)
        else:
            red, green, blue = value(BEFORE, image, y, x, mask, c)
        if T.kernel_color is None:
            return red, green, blue
        else:
            return T.kernel_color(T, drawn, image, y, x, red, green, blue, c)


@triton.jit
def choose(condition, red, green, blue, other_red, other_green, other_blue):
    return tl.where(condition, red, other_red), tl.where(condition, green, other_green), tl.where(condition, blue, other_blue)


@triton.jit
def inside(box, y, x):
    """Mask the pixels (y, x) in a box: top, left, height, width."""
    top, left, height, width = box
    return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)


@triton.jit
def draw_words(seed, sample, epoch, group):
    """Compute (lane, words): lanes 0 to 31, and the four words of stream = lane, uint32 each."""
    lane = tl.arange(0, LANES)
    epochs = tl.where(lane == ALTERNATING_FLIP, 0, epoch.to(tl.int32))
    samples = tl.zeros_like(lane) + sample.to(tl.int32)
    return lane, tl.philox(seed, samples, epochs, lane, tl.zeros_like(lane) + group)


@triton.jit
def pick(lane, values, chosen):
    """Return the value in lane `chosen`, a scalar; 0 if there is no such lane."""
    return tl.sum(tl.where(lane == chosen, values, tl.zeros_like(values)))


@triton.jit
def uniform(word):
    """Map a word to a float32 in [0, 1)."""
    return (word >> 8).to(tl.int32).to(tl.float32) * (1.0 / 16777216.0)


@triton.jit
def between(word, low: tl.constexpr, high: tl.constexpr):
    """Map a word to a float64 in [low, high)."""
    return uniform(word).to(tl.float64) * (high - low) + low


@triton.jit
def below(word, bound):
    """Map a word to an int32 in 0 .. bound - 1."""
    return tl.umulhi(word, tl.zeros_like(word) + bound).to(tl.int32)


@triton.jit
def round_to_even(x):
    """Round a float64 to the nearest integer, ties to even, as int32: the sum with 1.5 * 2**52 has no bits for a fraction."""
    return ((x + 6755399441055744.0) - 6755399441055744.0).to(tl.int32)


@triton.jit
def cos_sin(turns):
    """Compute cosine and sine of an angle in turns, float32 or float64, by Taylor's series near the closest axis."""
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
    """Make four standard normals from four words, by the Box-Muller transform, in float32."""
    first, second = tl.sqrt(-2.0 * tl.log(1.0 - uniform(w0))), tl.sqrt(-2.0 * tl.log(1.0 - uniform(w2)))
    cos, sin = cos_sin(uniform(w1))
    other_cos, other_sin = cos_sin(uniform(w3))
    return first * cos, first * sin, second * other_cos, second * other_sin
