"""The recipe: every choice of a training run, as frozen dataclasses loaded from TOML.

The dataclass of a table is beside the code that reads it (`ResNetConfig`, `OptimizerConfig`, `Policy`, ...); this module
combines, checks, overrides and writes them. The `Annotated` type of a field gives its meaning and unit.
"""

import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import torch

from fastcifar.augment import Policy
from fastcifar.data.dataset import Manifest
from fastcifar.models import MODELS, ModelConfig
from fastcifar.optim.averaging import AverageConfig
from fastcifar.optim.optimizers import OptimizerConfig
from fastcifar.optim.schedules import ScheduleConfig
from fastcifar.runtime.errors import UserError, nearest
from fastcifar.runtime.precision import resolve_precision

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class ImageSize:
    """An entry of `train.image_sizes`."""

    pixels: Annotated[int, "height and width that the augmented images are resized to"]
    until: Annotated[float, "share of the run's epochs after which the next entry begins, above 0 to 1"]

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise UserError(f"pixels = {self.pixels}: must be at least 1")
        if not 0 < self.until <= 1:
            raise UserError(f"until = {self.until}: must be above 0 and at most 1")


@dataclass(frozen=True)
class TrainConfig:
    """The `[train]` table of a recipe: length, batch size, precision, logging and seed."""

    epochs: Annotated[int, "passes over the training split"] = 40
    batch_size: Annotated[int, "images per step, of all ranks"] = 64
    splits: Annotated[
        tuple[Literal["train", "val"], ...],
        "splits to train on; with both there is no validation, and the run is scored on the test split alone",
    ] = ("train",)
    image_sizes: Annotated[
        tuple[ImageSize, ...], "sizes of the images by share of the run; after the last entry they keep their own"
    ] = ()
    keep: Annotated[
        float,
        "share of the images in an epoch, above 0 to 1; below 1, those with at least the mean loss when last seen come first",
    ] = 1.0
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "pure_bf16", "pure_fp16", "tf32", "fp32"],
        "auto: bf16 where the device computes in it, fp16 on older GPUs with tensor cores, fp32 elsewhere; bf16, fp16: "
        "autocast over float32 weights, fp16 with loss scaling; pure_*: 16-bit weights too, except "
        "BatchNorm's; tf32: float32 with factors rounded to 10 bits of mantissa; fp32: float32",
    ] = "auto"
    pad_widths: Annotated[
        Literal[0, 8, 16, 32, 64],
        "pad channel counts to a multiple of this for tensor cores; it changes only the time; 0: no padding",
    ] = 0
    label_smoothing: Annotated[float, "share of the target spread over all classes, 0 to below 1"] = 0.0
    sync_batchnorm: Annotated[
        bool, "BatchNorm over the whole batch rather than over each rank's part; matters only with several ranks"
    ] = False
    deterministic: Annotated[bool, "the same seed on the same device gives bit-identical weights; slower"] = False
    log_every: Annotated[int, "steps per logged mean of the training loss"] = 100
    seed: Annotated[int, "64-bit seed of weights, order, augmentation and dropout"] = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: must be at least 1")
        if "train" not in self.splits or len(set(self.splits)) < len(self.splits):
            raise UserError(f"splits = {list(self.splits)}: must be ['train'] or ['train', 'val']")
        if self.batch_size == 1:
            raise UserError("batch_size = 1: must be at least 2, batch normalisation needs several images")
        if not 0 < self.keep <= 1:
            raise UserError(f"keep = {self.keep}: must be above 0 and at most 1")
        ends = [size.until for size in self.image_sizes]
        if ends != sorted(set(ends)):
            raise UserError(f"image_sizes: until = {', '.join(map(str, ends))}: must rise")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing = {self.label_smoothing}: must be at least 0 and below 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed = {self.seed}: must be at least 0 and below 2**63")

    def image_sides(self) -> list[int | None]:
        """Return, for each epoch, the height and width that its images are resized to; None: they keep their own."""
        ends = [(round(size.until * self.epochs), size.pixels) for size in self.image_sizes]
        return [next((pixels for end, pixels in ends if epoch < end), None) for epoch in range(self.epochs)]


@dataclass(frozen=True)
class EvaluateConfig:
    """The `[evaluate]` table of a recipe."""

    batch_size: Annotated[int, "images per forward pass, of all ranks; changes the result only by rounding"] = 1000
    every: Annotated[int, "epochs from one validation to the next; the last epoch is always validated"] = 1
    tta: Annotated[
        Literal["none", "flip", "multi_crop"],
        "test-time augmentation: flip averages the logits of an image and its mirror; multi_crop also those of two views "
        "moved by one pixel, diagonally",
    ] = "none"
    tta_share: Annotated[
        float, "share of each batch that gets test-time augmentation, above 0 to 1: the images that the model is least sure of"
    ] = 1.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: must be at least 1")
        if not 0 < self.tta_share <= 1:
            raise UserError(f"tta_share = {self.tta_share}: must be above 0 and at most 1")
        if self.tta_share < 1 and self.tta == "none":
            raise UserError(f"tta_share = {self.tta_share} and tta = 'none': there is no augmentation to share; set tta")


@dataclass(frozen=True)
class Recipe:
    """One complete training run. `load_recipe` reads it from TOML; `dataclasses.replace` changes it."""

    name: str
    description: str
    augment: Policy
    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    average: AverageConfig

    def __post_init__(self) -> None:
        if self.average.name != "none" and self.train.precision.startswith("pure_"):
            raise UserError(
                f"average.name = {self.average.name!r} and train.precision = {self.train.precision!r}: 16-bit weights are too "
                "coarse to average; use 'bf16' or 'fp16', whose weights are float32"
            )

    def fitted_to(self, manifest: Manifest) -> "Recipe":
        """This recipe for a data set: its classes and channels, and where `Normalize` has none, its mean and deviation."""
        model = replace(self.model, num_classes=len(manifest.classes), in_channels=manifest.image_shape[2])
        return replace(self, model=model, augment=self.augment.fitted_to(manifest.mean, manifest.std))

    def at_one_size(self) -> "Recipe":
        """Return this recipe without `train.image_sizes`, so that all its steps do the same work."""
        return replace(self, train=replace(self.train, image_sizes=()))

    def without_data(self) -> "Recipe":
        """Return this recipe for three channels of some mean and deviation, which change neither size nor work."""
        return replace(self, augment=self.augment.fitted_to((0.5,) * 3, (0.25,) * 3))

    def with_precision(self, precision: str) -> "Recipe":
        """Return this recipe in another precision."""
        return replace(self, train=replace(self.train, precision=precision))

    def resolved(self, device: torch.device) -> tuple["Recipe", str]:
        """Return this recipe with "auto" precision resolved for `device`, and the reason; any other precision stays."""
        precision, reason = resolve_precision(self.train.precision, device)
        return self.with_precision(precision), reason

    def with_seed(self, seed: int) -> "Recipe":
        """Return this recipe with another seed."""
        return replace(self, train=replace(self.train, seed=seed))


def recipe_names() -> list[str]:
    """List the names of the recipes that come with fastcifar."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(recipe: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Load a recipe by name ("seed") or path ("mine.toml"), then apply `overrides` such as "optimizer.lr=0.1".

    Raises:
        UserError: no such recipe, not TOML, an unknown key, a wrong type or an invalid value; the message names the
            file, the key, the value and the nearest valid key.
    """
    path = _find(recipe)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        _override(tables, override)
    return _recipe(tables, str(path))


def dump_recipe(recipe: Recipe) -> str:
    """Write the recipe as TOML text, from which `load_recipe` reads an equal recipe."""
    lines = [f"{key} = {_toml(getattr(recipe, key))}" for key in ("name", "description")]
    for field in fields(Recipe)[2:]:
        value = getattr(recipe, field.name)
        table = value.to_config() if isinstance(value, Policy) else asdict(value)
        lines += ["", f"[{field.name}]", *(f"{key} = {_toml(item)}" for key, item in table.items())]
    return "\n".join(lines) + "\n"


def explain(recipe: Recipe) -> list[tuple[str, Any, str]]:
    """List (key, value, meaning) for every key of the recipe's tables, in the order of the file."""
    rows = [("augment.transforms", [t["name"] for t in recipe.augment.to_config()["transforms"]], "in this order")]
    for table in (field.name for field in fields(recipe)[3:]):
        config = getattr(recipe, table)
        hints = get_type_hints(type(config), include_extras=True)
        for field in fields(config):
            meaning = next(iter(getattr(hints[field.name], "__metadata__", ())), "")
            value = getattr(config, field.name)
            if isinstance(value, tuple) and value and is_dataclass(value[0]):
                value = [{key: item for key, item in asdict(one).items() if item is not None} for one in value]
            rows.append((f"{table}.{field.name}", value, meaning))
    return rows


def _find(recipe: str | Path) -> Path:
    path = Path(recipe)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UserError(f"{path}: no such recipe file")
        return path
    if str(recipe) not in recipe_names():
        raise UserError(f"no recipe {str(recipe)!r}{nearest(str(recipe), recipe_names())}; or give a path to a .toml file")
    return RECIPES / f"{recipe}.toml"


def _recipe(tables: Mapping[str, Any], where: str) -> Recipe:
    _check_keys(tables, [field.name for field in fields(Recipe)], where, "")
    model = tables.get("model", {})
    kind = model.get("name", "resnet") if isinstance(model, Mapping) else "resnet"
    if not isinstance(kind, str) or kind not in MODELS:
        raise UserError(f"{where}: model.name = {kind!r} is not a model{nearest(str(kind), MODELS)}")
    return Recipe(
        name=str(tables.get("name", Path(where).stem)),
        description=str(tables.get("description", "")),
        augment=_policy(tables.get("augment", {}), where),
        model=_config(MODELS[kind][0], model, where, "model"),
        optimizer=_config(OptimizerConfig, tables.get("optimizer", {}), where, "optimizer"),
        schedule=_config(ScheduleConfig, tables.get("schedule", {}), where, "schedule"),
        train=_config(TrainConfig, tables.get("train", {}), where, "train"),
        evaluate=_config(EvaluateConfig, tables.get("evaluate", {}), where, "evaluate"),
        average=_config(AverageConfig, tables.get("average", {}), where, "average"),
    )


def _policy(table: Any, where: str) -> Policy:
    _check_keys(table, ["transforms"], where, "augment.")
    try:
        return Policy.from_config(table)
    except UserError as error:
        raise UserError(f"{where}: augment.transforms: {error}") from None


def _config(cls: type, table: Any, where: str, section: str) -> Any:
    hints = get_type_hints(cls, include_extras=False)
    _check_keys(table, list(hints), where, f"{section}.")
    for field in fields(cls):
        if field.name not in table and field.default is MISSING:
            raise UserError(f"{where}: {section}.{field.name} is missing")
    values = {key: _typed(value, hints[key], f"{where}: {section}.{key}") for key, value in table.items()}
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{where}: {section}.{error}") from None


def _typed(value: Any, hint: Any, what: str) -> Any:
    """Check or convert `value` to the type `hint`: int, float, str, bool, Literal or homogeneous tuple."""
    if get_origin(hint) is Literal:
        if (type(value), value) not in [(type(choice), choice) for choice in get_args(hint)]:  # as False == 0 and 8.0 == 8
            choices = [str(choice) for choice in get_args(hint)]
            raise UserError(f"{what} = {value!r}: must be one of {', '.join(choices)}")
        return value
    if get_origin(hint) is tuple and is_dataclass(get_args(hint)[0]) and isinstance(value, list):
        return tuple(_config(get_args(hint)[0], item, *what.rsplit(": ", 1)) for item in value)
    if get_origin(hint) is UnionType:  # a type or None; TOML has no None, so a key that is left out
        return _typed(value, get_args(hint)[0], what)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_typed(item, get_args(hint)[0], f"{what}[{i}]") for i, item in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is float and not math.isfinite(value):
        raise UserError(f"{what} = {value}: must be finite")
    if type(value) is not hint:
        expected = "a list" if get_origin(hint) is tuple else f"of type {getattr(hint, '__name__', hint)}"
        raise UserError(f"{what} = {value!r}: must be {expected}")
    return value


def _check_keys(table: Any, valid: Iterable[str], where: str, prefix: str) -> None:
    if not isinstance(table, Mapping):
        raise UserError(f"{where}: {prefix.rstrip('.')} = {table!r}: must be a table")
    for key in table:
        if key not in valid:
            raise UserError(f"{where}: unknown key {prefix}{key} = {table[key]!r}{nearest(key, valid)}")


def _override(tables: dict[str, Any], override: str) -> None:
    """Apply "section.key=value" to the parsed tables; the value is read as TOML, or as a string if it is not valid TOML."""
    key, equals, text = override.partition("=")
    section, _, name = key.strip().rpartition(".")
    if not equals or not name:
        raise UserError(f"override {override!r}: must read SECTION.KEY=VALUE, as in optimizer.lr=0.1")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = tables.setdefault(section, {}) if section else tables
    if not isinstance(table, dict):
        raise UserError(f"override {override!r}: {section} is not a table")
    table[name] = value


def _toml(value: Any) -> str:
    """Format a TOML value. JSON's strings, numbers, booleans and arrays are valid TOML; only inline tables differ."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items() if item is not None) + " }"
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return "[\n" + "".join(f"  {_toml(item)},\n" for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
