"""RandomCrop and Translate: a window at a random place of an image that is padded on all sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F

from fastcifar.augment.philox import Draws, below
from fastcifar.augment.transforms.base import Shape, Step, Transform, pixels_at, triton_code

if TYPE_CHECKING:
    import triton.language as tl

    from fastcifar.augment import triton_functions

PADDING_MODES = ("constant", "reflect")


class _Window(Transform):
    """Base of both. Words: top, left."""

    def window(self, height: int, width: int) -> tuple[int, int, int]:
        """Return height and width of the window, and the padding."""
        raise NotImplementedError

    def require_reflection(self, name: str, height: int, width: int) -> None:
        """Require padding smaller than the image: the border is mirrored once, without its own pixel."""
        most = min(height, width) - 1
        fits = self.padding_mode != "reflect" or getattr(self, name) <= most
        self.require(fits, name, f"must be at most {most} to reflect images of {height} x {width}")

    def draw(self, draws: Draws, shape: Shape) -> Step:
        *size, padding = self.window(*shape[1:])
        words = draws.words(self.streams[0])
        top, left = (
            below(word, have + 2 * padding - need + 1) for word, have, need in zip(words, shape[1:], size, strict=False)
        )
        return lambda images, top, left: crop(pad(images, padding, self.padding_mode), top, left, size), top, left

    def kernel_constants(self, height: int, width: int, channels: int) -> dict[str, Any]:
        window_height, window_width, padding = self.window(height, width)
        tops, lefts = height + 2 * padding - window_height + 1, width + 2 * padding - window_width + 1
        return {"tops": tops, "lefts": lefts, "offset": padding, "black_outside": self.padding_mode == "constant"}

    @triton_code
    def kernel_draw(T: tl.constexpr, image, lane, words):
        top = triton_functions.below(triton_functions.pick(lane, words[0], T.stream), T.tops)
        left = triton_functions.below(triton_functions.pick(lane, words[1], T.stream), T.lefts)
        return top - T.offset, left - T.offset

    @triton_code
    def kernel_place(T: tl.constexpr, drawn, y, x):
        y, x = y + drawn[0], x + drawn[1]
        if T.black_outside:
            return y, x
        else:
            return _mirror(y, T.height), _mirror(x, T.width)


@dataclass(frozen=True)
class RandomCrop(_Window):
    """A window of size x size pixels, by default as large as the image, at a random place of the image padded on all sides."""

    size: int | None = None
    padding: int = 0
    padding_mode: Literal["constant", "reflect"] = "constant"
    streams: ClassVar = (1,)

    def check(self) -> None:
        if self.size is not None:
            self.require_integer("size", 1)
        self.require_integer("padding", 0)
        self.require_choice("padding_mode", PADDING_MODES)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        self.require_reflection("padding", height, width)
        bound = min(height, width) + 2 * self.padding
        fits = self.size is None or self.size <= bound
        self.require(fits, "size", f"must be at most {bound} for padded images of {height} x {width}")
        return self.window(height, width)[:2]

    def window(self, height: int, width: int) -> tuple[int, int, int]:
        return self.size or height, self.size or width, self.padding


@dataclass(frozen=True)
class Translate(_Window):
    """A shift by up to `pixels` in each direction, whole pixels, as in airbench: pad by `pixels`, crop back."""

    pixels: int
    padding_mode: Literal["constant", "reflect"] = "reflect"
    streams: ClassVar = (6,)

    def check(self) -> None:
        self.require_integer("pixels", 0)
        self.require_choice("padding_mode", PADDING_MODES)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        self.require_reflection("pixels", height, width)
        return height, width

    def window(self, height: int, width: int) -> tuple[int, int, int]:
        return height, width, self.pixels


def pad(images: torch.Tensor, pixels: int, mode: str) -> torch.Tensor:
    """Pad images by `pixels` on every side: with 0 ("constant") or mirrored without repeating the border ("reflect")."""
    if mode == "constant" or not pixels:
        return F.pad(images, (pixels,) * 4)
    rows, columns = (_reflected(size, pixels, images.device) for size in images.shape[2:])
    return images[:, :, rows[:, None], columns]


def _reflected(size: int, pixels: int, device: torch.device) -> torch.Tensor:
    """Return the source rows (or columns) of the padded version of an image of `size`."""
    inside = torch.arange(-pixels, size + pixels, device=device).abs()
    return (size - 1) - ((size - 1) - inside).abs()


def crop(images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Cut out the window of `size` (h, w) at row `top` and column `left`, (B,) int64 each."""
    rows = top[:, None] + torch.arange(size[0], device=images.device)
    columns = left[:, None] + torch.arange(size[1], device=images.device)
    return pixels_at(images, rows[:, :, None] * images.shape[3] + columns[:, None])


@triton_code
def _mirror(place, SIZE: tl.constexpr):
    """Mirror a row or column outside the image into it, without repeating the border."""
    return (SIZE - 1) - tl.abs((SIZE - 1) - tl.abs(place))
