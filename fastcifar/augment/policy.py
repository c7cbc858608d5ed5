"""What is done to an image: an ordered list of transforms, with torchvision's names, parameters and meanings.

This file holds no arithmetic: `reference.py` is the specification of what each transform computes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from fastcifar.augment.philox import ERASING_ATTEMPTS, Stream
from fastcifar.errors import UserError, nearest

DTYPES = ("bfloat16", "float16", "float32")
PADDING_MODES = ("constant", "reflect")


class Transform:
    """Base of all transforms: frozen dataclasses that say which streams of draws they use."""

    streams: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # as in TOML; a tuple can be compared and hashed
                object.__setattr__(self, field.name, tuple(value))
        self.check()

    def check(self) -> None:
        """Raise UserError where a parameter is impossible."""


@dataclass(frozen=True)
class RandomCrop(Transform):
    """A window of size x size pixels at a random place of the image padded on all sides."""

    size: int
    padding: int = 0
    padding_mode: Literal["constant", "reflect"] = "constant"
    streams: ClassVar = (Stream.CROP,)

    def check(self) -> None:
        _check_integer(self, "size", 1)
        _check_integer(self, "padding", 0)
        _check_choice(self, "padding_mode", PADDING_MODES)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the images given."""
        _check_reflection(self, "padding", height, width)
        bound = min(height, width) + 2 * self.padding
        if self.size > bound:
            raise UserError(_complaint(self, "size", f"must be at most {bound} for padded images of {height} x {width}"))
        return self.size, self.size


@dataclass(frozen=True)
class Translate(Transform):
    """A shift by up to `pixels` in each direction, whole pixels, as in airbench: pad by `pixels`, crop back."""

    pixels: int
    padding_mode: Literal["constant", "reflect"] = "reflect"
    streams: ClassVar = (Stream.TRANSLATE,)

    def check(self) -> None:
        _check_integer(self, "pixels", 0)
        _check_choice(self, "padding_mode", PADDING_MODES)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the images given."""
        _check_reflection(self, "pixels", height, width)
        return height, width


@dataclass(frozen=True)
class RandomHorizontalFlip(Transform):
    """A mirror image with probability p."""

    p: float = 0.5
    streams: ClassVar = (Stream.FLIP,)

    def check(self) -> None:
        _check_probability(self)


@dataclass(frozen=True)
class AlternatingFlip(Transform):
    """A mirror image every other epoch, half of the images beginning with it.

    Jordan, 94 % on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024 (https://arxiv.org/abs/2404.00498), section 3.6.
    """

    streams: ClassVar = (Stream.ALTERNATING_FLIP,)


@dataclass(frozen=True)
class ColorJitter(Transform):
    """Brightness, contrast and saturation, each by a random factor, in a random order.

    A number x means a factor between max(0, 1 - x) and 1 + x; a pair means its two bounds.
    """

    brightness: float | tuple[float, float] = 0.0
    contrast: float | tuple[float, float] = 0.0
    saturation: float | tuple[float, float] = 0.0
    streams: ClassVar = (Stream.JITTER,)

    def check(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                _check_pair(self, field.name, 0.0, math.inf)
            elif not _is_number(value) or value < 0:
                raise UserError(_complaint(self, field.name, "must be at least 0, or a pair of bounds"))

    def bounds(self) -> tuple[tuple[float, float], ...]:
        """The bounds of the three factors."""
        values = (self.brightness, self.contrast, self.saturation)
        return tuple(v if isinstance(v, tuple) else (max(0.0, 1.0 - v), 1.0 + v) for v in values)


@dataclass(frozen=True)
class RandomRotation(Transform):
    """A rotation about the centre by a random angle, nearest neighbour, 0 outside; x means -x to x degrees."""

    degrees: float | tuple[float, float]
    streams: ClassVar = (Stream.ROTATION,)

    def check(self) -> None:
        if isinstance(self.degrees, tuple):
            _check_pair(self, "degrees", -math.inf, math.inf)
        elif not _is_number(self.degrees) or self.degrees < 0:
            raise UserError(_complaint(self, "degrees", "must be at least 0, or a pair of bounds"))

    def bounds(self) -> tuple[float, float]:
        """The bounds of the angle in degrees, counter-clockwise."""
        return self.degrees if isinstance(self.degrees, tuple) else (-self.degrees, self.degrees)


@dataclass(frozen=True)
class Normalize(Transform):
    """(x - mean) / std, one number for all channels or one for each; x is in 0 .. 1."""

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    def check(self) -> None:
        for name in ("mean", "std"):
            values = _channels(getattr(self, name))
            if not values or not all(map(_is_number, values)):
                raise UserError(_complaint(self, name, "must be a number or one for each channel"))
        if min(_channels(self.std)) <= 0:
            raise UserError(_complaint(self, "std", "must be above 0"))


@dataclass(frozen=True)
class RandomErasing(Transform):
    """A rectangle overwritten with probability p: up to ten attempts at an area and a log-uniform aspect ratio.

    `value`: a number, one for each channel, or "random" for standard normal noise in every pixel and channel.
    Zhong et al., Random Erasing Data Augmentation, 2017 (https://arxiv.org/abs/1708.04896).
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float | tuple[float, ...] | Literal["random"] = 0.0
    streams: ClassVar = (Stream.ERASING, *range(Stream.ERASING_ATTEMPT, Stream.ERASING_ATTEMPT + ERASING_ATTEMPTS))

    def check(self) -> None:
        _check_probability(self)
        _check_pair(self, "scale", 0.0, 1.0)
        _check_pair(self, "ratio", 0.0, math.inf)
        if self.ratio[0] == 0:
            raise UserError(_complaint(self, "ratio", "must be above 0"))
        if self.value != "random" and not all(map(_is_number, _channels(self.value))):
            raise UserError(_complaint(self, "value", 'must be a number, one for each channel, or "random"'))


@dataclass(frozen=True)
class Cutout(Transform):
    """A square of size x size pixels, centred on a random pixel and clipped at the borders, set to 0.

    DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017
    (https://arxiv.org/abs/1708.04552).
    """

    size: int
    streams: ClassVar = (Stream.CUTOUT,)

    def check(self) -> None:
        _check_integer(self, "size", 1)


@dataclass(frozen=True)
class _Mixing(Transform):
    """Base of the transforms that mix an image and its label with those of a partner.

    The partner is any sample of the data set, augmented by its own draws of the epoch, and both it and the weight, drawn
    from Beta(alpha, alpha), are functions of (seed, epoch, sample) as all draws are: a batch mixes alike whatever its size.
    """

    alpha: float = 1.0
    streams: ClassVar = (Stream.MIX, Stream.MIX_BOX)

    def check(self) -> None:
        if not _is_number(self.alpha) or self.alpha <= 0:
            raise UserError(_complaint(self, "alpha", "must be above 0"))


@dataclass(frozen=True)
class MixUp(_Mixing):
    """weight * image + (1 - weight) * partner.

    Zhang et al., mixup: Beyond Empirical Risk Minimization, 2017 (https://arxiv.org/abs/1710.09412).
    """


@dataclass(frozen=True)
class CutMix(_Mixing):
    """A rectangle of 1 - weight of the area, centred on a random pixel and clipped, is the partner's.

    The labels are mixed by the areas that show. Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with
    Localizable Features, 2019 (https://arxiv.org/abs/1905.04899).
    """


TRANSFORMS: dict[str, type[Transform]] = {
    cls.__name__: cls
    for cls in (
        RandomCrop,
        Translate,
        RandomHorizontalFlip,
        AlternatingFlip,
        ColorJitter,
        RandomRotation,
        Normalize,
        RandomErasing,
        Cutout,
        MixUp,
        CutMix,
    )
}


@dataclass(frozen=True)
class Policy:
    """Transforms in order, each kind at most once, and the dtype of the images they give.

    Pixels enter as uint8 and are float32 in 0 .. 1 in between, without rounding to uint8 after each transform as PIL
    does. `ColorJitter` works on 0 .. 1 and so comes before `Normalize`.
    """

    transforms: tuple[Transform, ...] = ()
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        object.__setattr__(self, "transforms", tuple(self.transforms))
        names = [type(t).__name__ for t in self.transforms]
        for name, transform in zip(names, self.transforms, strict=True):
            if type(transform) is not TRANSFORMS.get(name):
                raise UserError(f"transforms: {transform!r} is no transform; valid are {', '.join(TRANSFORMS)}")
            if names.count(name) > 1:
                raise UserError(f"{name}: stands {names.count(name)} times in the policy; once is the most")
        if "ColorJitter" in names and "Normalize" in names[: names.index("ColorJitter")]:
            raise UserError("ColorJitter: stands after Normalize; it works on values in 0 .. 1, so put it before")
        if any(isinstance(transform, _Mixing) for transform in self.transforms[:-1]):
            raise UserError("MixUp and CutMix: mix whole images, so one of them at most, and last")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype = {self.dtype!r}: must be one of {', '.join(DTYPES)}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Policy":
        """The policy of `{"transforms": [{"name": "RandomCrop", "size": 32, ...}, ...], "dtype": ...}`.

        Raises:
            UserError: an unknown transform, an unknown or missing parameter, or an impossible value.
        """
        _check_keys("augment", config, [field.name for field in fields(cls)])
        transforms = config.get("transforms", [])
        if not isinstance(transforms, list | tuple):
            raise UserError(f"transforms = {transforms!r}: must be a list of tables with a name each")
        return cls(tuple(_transform(table) for table in transforms), config.get("dtype", "bfloat16"))

    def to_config(self) -> dict[str, Any]:
        """Plain values, from which `from_config` makes an equal policy."""
        return {
            "transforms": [
                {"name": type(t).__name__, **{f.name: _plain(getattr(t, f.name)) for f in fields(t)}} for t in self.transforms
            ],
            "dtype": self.dtype,
        }

    @property
    def mixing(self) -> _Mixing | None:
        """The transform that mixes two images, if there is one."""
        return self.transforms[-1] if self.transforms and isinstance(self.transforms[-1], _Mixing) else None

    @property
    def per_image(self) -> tuple[Transform, ...]:
        """The transforms of a single image: all but the mixing."""
        return self.transforms[:-1] if self.mixing else self.transforms

    def evaluation(self) -> "Policy":
        """The policy for images that are scored: `Normalize` alone."""
        return Policy(tuple(t for t in self.transforms if isinstance(t, Normalize)), self.dtype)

    def output_size(self, height: int, width: int, channels: int) -> tuple[int, int]:
        """Height and width of the images given, for images of `height` x `width` pixels and `channels` channels.

        Raises:
            UserError: a crop is larger than the padded image, an image has too few pixels to reflect or channels that
                cannot be jittered, or values are given for another number of channels.
        """
        for transform in self.transforms:
            if isinstance(transform, RandomCrop | Translate):
                height, width = transform.output_size(height, width)
            _check_channels(transform, channels)
        return height, width

    def streams(self) -> tuple[int, ...]:
        """The streams of draws that the transforms use."""
        return tuple(stream for transform in self.transforms for stream in transform.streams)


def _transform(table: Any) -> Transform:
    if not isinstance(table, Mapping) or "name" not in table:
        raise UserError(f"{table!r}: must be a table with a name, as in {{ name = 'RandomHorizontalFlip', p = 0.5 }}")
    name, arguments = table["name"], {key: value for key, value in table.items() if key != "name"}
    if not isinstance(name, str) or name not in TRANSFORMS:
        raise UserError(f"no transform {name!r}{nearest(str(name), TRANSFORMS)}")
    _check_keys(name, arguments, [field.name for field in fields(TRANSFORMS[name])])
    try:
        return TRANSFORMS[name](**arguments)
    except TypeError as error:  # a required argument is missing
        raise UserError(f"{name}: {str(error).split('__init__() ')[-1]}") from None


def _check_keys(where: str, table: Mapping[str, Any], valid: list[str]) -> None:
    for key, value in table.items():
        if key not in valid:
            raise UserError(f"{where}: unknown key {key} = {value!r}{nearest(key, valid)}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _channels(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def per_channel(value: float | tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A number, or one for each channel, as one for each channel."""
    return tuple(map(float, _channels(value))) * (1 if isinstance(value, tuple) and len(value) > 1 else channels)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _complaint(transform: Transform, name: str, bound: str) -> str:
    return f"{type(transform).__name__}: {name} = {_plain(getattr(transform, name))!r}: {bound}"


def _check_integer(transform: Transform, name: str, least: int) -> None:
    value = getattr(transform, name)
    if type(value) is not int or value < least:
        raise UserError(_complaint(transform, name, f"must be a whole number of at least {least}"))


def _check_choice(transform: Transform, name: str, choices: tuple[str, ...]) -> None:
    if getattr(transform, name) not in choices:
        raise UserError(_complaint(transform, name, f"must be one of {', '.join(choices)}"))


def _check_reflection(transform: RandomCrop | Translate, name: str, height: int, width: int) -> None:
    """A border can be mirrored once, without its own pixel: the padding must be smaller than the image."""
    least = min(height, width)
    if transform.padding_mode == "reflect" and getattr(transform, name) >= least:
        raise UserError(_complaint(transform, name, f"must be at most {least - 1} to reflect images of {height} x {width}"))


def _check_channels(transform: Transform, channels: int) -> None:
    if isinstance(transform, ColorJitter) and channels not in (1, 3):
        raise UserError(f"ColorJitter: images of {channels} channels: must be of 1 or 3")
    for name in ("mean", "std", "value"):
        value = getattr(transform, name, 0.0)
        if isinstance(value, tuple) and len(value) not in (1, channels):
            raise UserError(_complaint(transform, name, f"has {len(value)} values for images of {channels} channels"))


def _check_probability(transform: RandomHorizontalFlip | RandomErasing) -> None:
    if not _is_number(transform.p) or not 0 <= transform.p <= 1:
        raise UserError(_complaint(transform, "p", "must be between 0 and 1"))


def _check_pair(transform: Transform, name: str, least: float, most: float) -> None:
    value = getattr(transform, name)
    if not isinstance(value, tuple) or len(value) != 2 or not all(map(_is_number, value)):
        raise UserError(_complaint(transform, name, "must be a pair of numbers"))
    if not least <= value[0] <= value[1] <= most:
        raise UserError(_complaint(transform, name, f"must be (low, high) with {least:g} <= low <= high <= {most:g}"))
