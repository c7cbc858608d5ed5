"""Random draws as a pure function of (seed, epoch, sample index), by Philox 4x32-10.

Source: Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011
(https://doi.org/10.1145/2063384.2063405). PyTorch has no unsigned 32-bit arithmetic on every device, so a word is the
low half of an int64.
"""

from enum import IntEnum
from functools import cache

import torch

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF


class Stream(IntEnum):
    """The third counter word: each transform has its own streams, so that adding one changes the draws of no other.

    The numbers of a transform are in its `streams`; those here belong to no transform, or depend on the epoch differently.
    They define the meaning of a seed and never change; a new transform takes free ones (10 to 15, 27 to 31, 33 on). The
    kernels compute the streams below 32 together, one in each lane of a warp.
    """

    ORDER = 0  # sort key: high word, low word
    ALTERNATING_FLIP = 3  # drawn with epoch 0 in every epoch


Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox4x32(
    seed: torch.Tensor | int,
    sample: torch.Tensor,
    epoch: torch.Tensor | int,
    stream: torch.Tensor | int,
    group: torch.Tensor | int = 0,
) -> Words:
    """Compute four random words for each counter (sample, epoch, stream, group).

    Args:
        seed: the 64-bit key, its low half first; an int or a () int64 tensor.
        sample: int64, any shape, on any device; the other three broadcast against it.

    Returns:
        Four int64 tensors of the broadcast shape, each in 0 .. 2**32 - 1.
    """
    low, high = seed & MASK, seed >> 32 & MASK
    c0, c1, c2, c3 = sample & MASK, epoch & MASK, stream, group
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            _high(product1) ^ c1 ^ low,
            product1 & MASK,
            _high(product0) ^ c3 ^ high,
            product0 & MASK,
        )
        low, high = low + KEY_STEPS[0] & MASK, high + KEY_STEPS[1] & MASK
    return tuple(torch.broadcast_tensors(c0, *(torch.as_tensor(c, device=sample.device) for c in (c1, c2, c3))))


class Draws:
    """Words of a batch for several streams, from one call of Philox.

    Attributes:
        index: (B,) int64, the samples' indices in the data set.
        epoch: an int or a () int64 tensor.
    """

    def __init__(
        self, seed: torch.Tensor | int, epoch: torch.Tensor | int, index: torch.Tensor, streams: tuple[int, ...]
    ) -> None:
        self.seed, self.epoch, self.index = seed, epoch, index
        self.column = {stream: column for column, stream in enumerate(streams)}
        table = constant(streams, torch.int64, index.device)
        epochs = torch.where(table == Stream.ALTERNATING_FLIP, 0, epoch)
        self.table = philox4x32(seed, index[:, None], epochs, table) if streams else ()

    def words(self, stream: int, count: int = 1) -> Words:
        """The four words of `stream`, each (B,); with `count` those of that many streams from it on, each (B, count)."""
        first = self.column[stream]
        if count == 1:
            return tuple(words[:, first] for words in self.table)
        return tuple(words[:, first : first + count] for words in self.table)


@cache
def constant(values: tuple, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Make a tensor of constants once: the copy to a GPU synchronises, and is forbidden during graph capture."""
    return torch.tensor(values, dtype=dtype, device=device)


def uniform(word: torch.Tensor) -> torch.Tensor:
    """Map a word to a float32 in [0, 1): its upper 24 bits times 2**-24, which is exact."""
    return (word >> 8).float() * 2.0**-24


def between(word: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Map a word to a float64 in [low, high)."""
    return low + (high - low) * uniform(word).double()


def below(word: torch.Tensor, bound: torch.Tensor | int) -> torch.Tensor:
    """Map a word to an int64 in 0 .. bound - 1: the upper half of word * bound (bound below 2**31), in integers only.

    Lemire, Fast Random Integer Generation in an Interval, 2019, without the rejection: the bias is below bound / 2**32.
    """
    return word * bound >> 32


def normals(words: Words) -> torch.Tensor:
    """Make four standard normals, float32 in a new last dimension, from four words, by the Box-Muller transform."""
    pairs = []
    for radius_word, angle_word in (words[:2], words[2:]):
        radius = torch.sqrt(-2.0 * torch.log1p(-uniform(radius_word)))  # log(1 - u): u can be 0, not 1
        angle = uniform(angle_word) * (2 * torch.pi)
        pairs += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(pairs, dim=-1)


def epoch_order(seed: int, epoch: int, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Compute the order of an epoch: a permutation of 0 .. count - 1, int64 of shape (count,).

    Samples are sorted by 63 random bits each, so the order depends only on (seed, epoch, count).
    """
    high, low, _, _ = philox4x32(seed, torch.arange(count, device=device), epoch, Stream.ORDER)
    return torch.argsort((high >> 1 << 32) | low, stable=True)


def _high(product: torch.Tensor | int) -> torch.Tensor | int:
    """Bits 32 to 63 of a product of two words, which int64 may hold as a negative number."""
    return product >> 32 & MASK
