"""A policy as the constants that a Triton kernel is compiled for."""

import hashlib
from dataclasses import fields
from typing import Any

from fastcifar.augment.policy import Policy
from fastcifar.augment.transforms.base import Transform


class Constants:
    """Constants as the attributes of one argument, which Triton compares by identity.

    One argument, because Triton hashes every argument at each launch. Its repr is part of the key of Triton's cache on disk,
    so it is a digest of the values that includes the source of functions; Triton's own repr of a function is only its name.
    """

    def __init__(self, name: str, **values: Any) -> None:
        vars(self).update(values)
        contents = [(key, getattr(value, "cache_key", None) or repr(value)) for key, value in sorted(values.items())]
        self._printed = f"{name}_{hashlib.sha256(repr(contents).encode()).hexdigest()[:16]}"

    def __repr__(self) -> str:
        return self._printed


def transform_constants(transform: Transform, height: int, width: int, channels: int, **more: Any) -> Constants:
    """Build T of a transform for images of height x width pixels; see `Transform`."""
    kind = type(transform)
    codes = {name: getattr(kind, name) for name in dir(kind) if name.startswith("kernel_") and name != "kernel_constants"}
    if not any(codes.values()):  # the kernel would silently skip the transform
        raise NotImplementedError(f"{kind.__name__} has no Triton code: mark some with triton_code")
    values = {field.name: getattr(transform, field.name) for field in fields(transform)}
    values |= {name: code and code.jitted for name, code in codes.items()}
    values |= {"streams": kind.streams, "stream": kind.streams[0] if kind.streams else None, "black_outside": False}
    values |= _size(height, width, channels) | transform.kernel_constants(height, width, channels) | more
    return Constants(kind.__name__, **values)


def policy_constants(policy: Policy, height: int, width: int, channels: int, block: int) -> tuple[Constants, Constants | None]:
    """Build T of the last transform of an image, and T of the mixing or None.

    T.before is T of the transform before, down to that of the uint8 images, of height x width pixels; T.index counts from
    there; T.block is the number of pixels that a program works on at once.
    """
    last = Constants("Source", index=0, block=block, **_size(height, width, channels))
    for index, transform in enumerate(policy.per_image, 1):
        last = transform_constants(transform, height, width, channels, index=index, before=last, block=block)
        height, width = transform.output_size(height, width)
    return last, policy.mixing and transform_constants(policy.mixing, height, width, channels)


def _size(height: int, width: int, channels: int) -> dict[str, int]:
    """Return the constants of a size, and the offsets of green and blue from red's channel."""
    green, blue = (1, 2) if channels == 3 else (0, 0)
    return {"height": height, "width": width, "channels": channels, "green": green, "blue": blue}
