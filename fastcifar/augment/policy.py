"""Policy: an ordered list of transforms with torchvision's names, parameters and meanings."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastcifar.augment.transforms import TRANSFORMS, Normalize
from fastcifar.augment.transforms.base import Transform, plain
from fastcifar.augment.transforms.mixing import Mixing
from fastcifar.runtime.errors import UserError, nearest


@dataclass(frozen=True)
class Policy:
    """Transforms in order, each kind at most once.

    Pixels enter as uint8 and stay float32 in 0 .. 1 between transforms; PIL rounds to uint8 after each. `ColorJitter` works on
    0 .. 1 and so comes before `Normalize`.
    """

    transforms: tuple[Transform, ...] = ()

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
        if any(isinstance(transform, Mixing) for transform in self.transforms[:-1]):
            raise UserError("MixUp and CutMix: mix whole images, so one of them at most, and last")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Policy":
        """Build the policy of `{"transforms": [{"name": "RandomCrop", "size": 32, ...}, ...]}`.

        Raises:
            UserError: an unknown transform, an unknown or missing parameter, or an impossible value.
        """
        _check_keys("augment", config, [field.name for field in fields(cls)])
        transforms = config.get("transforms", [])
        if not isinstance(transforms, list | tuple):
            raise UserError(f"transforms = {transforms!r}: must be a list of tables with a name each")
        return cls(tuple(_transform(table) for table in transforms))

    def to_config(self) -> dict[str, Any]:
        """Convert to plain values, from which `from_config` makes an equal policy."""
        return {
            "transforms": [
                {"name": type(t).__name__, **{f.name: plain(getattr(t, f.name)) for f in fields(t)}} for t in self.transforms
            ]
        }

    @property
    def mixing(self) -> Mixing | None:
        """The transform that mixes two images, if there is one."""
        return self.transforms[-1] if self.transforms and isinstance(self.transforms[-1], Mixing) else None

    @property
    def per_image(self) -> tuple[Transform, ...]:
        """The transforms of a single image: all except the mixing."""
        return self.transforms[:-1] if self.mixing else self.transforms

    def evaluation(self) -> "Policy":
        """Policy for validation and test images: `Normalize` only."""
        return Policy(tuple(t for t in self.transforms if isinstance(t, Normalize)))

    def fitted_to(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Policy":
        """This policy for a data set with that mean and standard deviation of each channel, pixels in 0 .. 1."""
        return Policy(tuple(transform.fitted_to(mean, std) for transform in self.transforms))

    def output_size(self, height: int, width: int, channels: int) -> tuple[int, int]:
        """Height and width of the output for images of `height` x `width` pixels and `channels` channels.

        Raises:
            UserError: a crop is larger than the padded image, an image has too few pixels to reflect or channels that
                cannot be jittered, or values are given for another number of channels.
        """
        for transform in self.transforms:
            height, width = transform.output_size(height, width)
            transform.check_channels(channels)
        return height, width

    def streams(self) -> tuple[int, ...]:
        """Streams of draws that the transforms use."""
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
