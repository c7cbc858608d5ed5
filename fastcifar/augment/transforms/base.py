"""Base class of the transforms, validation of their parameters, and Triton code that is compiled on first use."""

import math
from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from sys import modules
from types import FunctionType
from typing import Any, ClassVar

import torch

from fastcifar.augment.philox import Draws, constant
from fastcifar.runtime.errors import UserError

Shape = tuple[int, int, int]
"""Channels, height and width of a transform's input."""

Step = tuple[Any, ...]
"""A function of (images, *parameters), which may work in place, and the parameters, a tensor (B, ...) each."""


class Transform:
    """Base of all transforms, which are frozen dataclasses: parameters, validation, PyTorch reference and Triton code.

    The reference is `draw`, the specification. The Triton code is up to three functions marked with `triton_code`. Their T
    is from `constants.transform_constants`; `image` is (image_ptr, (seed, sample, epoch), draws of the earlier transforms):

        kernel_draw(T, image, lane, words)                          the image's parameters, a tuple of scalars; default: ()
        kernel_place(T, drawn, y, x)                                (y, x): the pixel that this one is taken from
        kernel_color(T, drawn, image, y, x, red, green, blue, c)    (red, green, blue): a pixel's new value

    Pixels are blocks of coordinates and of float32 in 0 .. 1. Three channels are processed together; any other number one by
    one, as red = green = blue, and the compiler keeps one of them. In both cases red is channel c, green c + T.green and blue
    c + T.blue. Use an attribute of T in an expression, or name it by `X: tl.constexpr = T.x`; a plain name would be a tensor.
    """

    streams: ClassVar[tuple[int, ...]] = ()
    """Streams of draws that it uses; the first is T.stream. See `philox.Stream`."""

    kernel_draw: ClassVar["triton_code | None"] = None
    kernel_place: ClassVar["triton_code | None"] = None
    kernel_color: ClassVar["triton_code | None"] = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # as in TOML; a tuple can be compared and hashed
                object.__setattr__(self, field.name, tuple(value))
        self.check()

    def check(self) -> None:
        """Raise UserError if a parameter is impossible."""

    def fitted_to(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Transform":
        """Return this transform for a data set with that mean and standard deviation of each channel, pixels in 0 .. 1."""
        return self

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the output; raise UserError if it cannot process images of that size."""
        return height, width

    def check_channels(self, channels: int) -> None:
        """Raise UserError if it cannot process images of that number of channels."""

    def draw(self, draws: Draws, shape: Shape) -> Step:
        """Draw the parameters of a batch; return a function that applies them as torchvision does, and the parameters."""
        raise NotImplementedError

    def kernel_constants(self, height: int, width: int, channels: int) -> dict[str, Any]:
        """Return the constants that T has besides the transform's fields and those of `constants.transform_constants`.

        A kernel cannot read `T.value`, because Triton's constants have an attribute of that name: choose another one. With
        `black_outside`, pixels that `kernel_place` takes from outside of the image are black.
        """
        return {}

    # Validation.

    def require(self, valid: bool, name: str, bound: str) -> None:
        """Raise UserError with the parameter, its value and its bound unless `valid`."""
        if not valid:
            raise UserError(f"{type(self).__name__}: {name} = {plain(getattr(self, name))!r}: {bound}")

    def require_integer(self, name: str, least: int) -> None:
        value = getattr(self, name)
        self.require(type(value) is int and value >= least, name, f"must be a whole number of at least {least}")

    def require_choice(self, name: str, choices: tuple[str, ...]) -> None:
        self.require(getattr(self, name) in choices, name, f"must be one of {', '.join(choices)}")

    def require_probability(self, name: str) -> None:
        value = getattr(self, name)
        self.require(is_number(value) and 0 <= value <= 1, name, "must be between 0 and 1")

    def require_pair(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        pair = isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value))
        self.require(pair, name, "must be a pair of numbers")
        bound = f"must be (low, high) with {least:g} <= low <= high <= {most:g}"
        self.require(least <= value[0] <= value[1] <= most, name, bound)

    def require_number_or_pair(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if isinstance(value, tuple):
            self.require_pair(name, least, math.inf)
        else:
            self.require(is_number(value) and value >= 0, name, "must be at least 0, or a pair of bounds")

    def require_per_channel(self, name: str, channels: int) -> None:
        value = getattr(self, name)
        fits = not isinstance(value, tuple) or len(value) in (1, channels)
        self.require(fits, name, f"has {len(value) if not fits else ''} values for images of {channels} channels")


def is_number(value: Any) -> bool:
    """Check for a finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def plain(value: Any) -> Any:
    """Convert a value for TOML and JSON: a tuple to a list."""
    return list(value) if isinstance(value, tuple) else value


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Convert one value for all channels, or a tuple with one for each, to a tuple."""
    return value if isinstance(value, tuple) else (value,)


def per_channel(value: float | tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Convert a number, or one for each channel, to one for each channel."""
    values = tuple(map(float, as_tuple(value)))
    return values * channels if len(values) == 1 else values


# Tensors.


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 pixels to float32 in 0 .. 1; return float32 unchanged."""
    return torch.div(images, 255) if images.dtype == torch.uint8 else images


def channel_values(value: float | tuple[float, ...], shape: Shape, draws: Draws) -> torch.Tensor:
    """Convert a number, or one for each channel, to a tensor (C, 1, 1)."""
    return constant(per_channel(value, shape[0]), torch.float32, draws.index.device)[:, None, None]


def pixels_at(images: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Gather the pixels (B, C, h, w) of (B, C, H, W) at `source`, (B, h, w) int64 in 0 .. H * W - 1."""
    count, channels = images.shape[:2]
    flat = source.reshape(count, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, flat).view(count, channels, *source.shape[1:])


# Triton.


class triton_code:
    """Mark a function or method as Triton code, which becomes a `triton.jit` function when a kernel first needs it.

    Not earlier, because recipes are also read without Triton. Besides the names of its module, the function can use `tl`
    (triton.language) and `triton_functions` (fastcifar.augment.triton_functions); an import under `if TYPE_CHECKING:` tells
    the reader and ruff where they come from.
    """

    _namespaces: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    @cached_property
    def jitted(self) -> Callable[..., Any]:
        """The `triton.jit` function; Triton compiles or interprets it as it does those of `triton_functions`."""
        from fastcifar.augment import triton_functions

        return type(triton_functions.value)(FunctionType(self.function.__code__, self._namespace(self.function.__module__)))

    @classmethod
    def _namespace(cls, module: str) -> dict[str, Any]:
        if module not in cls._namespaces:
            import triton.language as tl

            from fastcifar.augment import triton_functions

            names = cls._namespaces[module] = {**vars(modules[module]), "tl": tl}
            names["triton_functions"] = triton_functions
            names.update((name, code.jitted) for name, code in names.copy().items() if isinstance(code, cls))
        return cls._namespaces[module]
