"""erasing: throughput of random erasing, beside torchvision, kornia and timm.

p = 0.5 and otherwise each library's default arguments. "copy" leaves its input unchanged, "in place" writes only to the boxes,
"uint8" also normalises. Batches are in channels-last memory: uint8, or else float32 on a CPU and bfloat16 on CUDA, where ours
fill the L2 cache four times. "fastcifar captured" replays a CUDA graph, so only the device's time counts; peers draw on the
host, so a graph would repeat their boxes. torchvision's v2 draws one box for a whole batch, so on a CPU its module also runs
image by image.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision.transforms
from torchvision.transforms import v2

from fastcifar import augment as p
from fastcifar.augment import Policy
from fastcifar.augment.erasing import RandomErasing
from fastcifar.augment.erasing_reference import Parameters, draw_boxes
from fastcifar.bench import peers
from fastcifar.bench.bounds import Bound, copy_roofline, policy_roofline
from fastcifar.bench.interleaved import Case, Implementation, Work, throughput_case
from fastcifar.bench.setting import IMAGE_BYTES, SHAPE, Setting, random_split, whole_batches
from fastcifar.bench.timing import REPLAYS, captured, past_the_cache

SCALE, RATIO = (0.02, 0.33), (0.3, 3.3)
"""Bounds of a box: torchvision's defaults, which all of them share."""

Build = Callable[[], peers.Batches]


@dataclass(frozen=True)
class Mode:
    """A way to use random erasing.

    Attributes:
        given: dtype of the input batches.
        ours, theirs: build the modules; theirs by the peer's name.
        bound: see `Case`.
    """

    name: str
    given: torch.dtype
    ours: Build
    theirs: dict[str, Build]
    bound: Callable[[], Bound]


def cases(setting: Setting) -> list[Case]:
    """List each mode at each batch size."""
    modes = _copy(setting.device), _in_place(setting.device), _uint8(setting)
    return [_case(setting, mode, batch) for mode in modes for batch in setting.batches]


def _copy(device: torch.device) -> Mode:
    dtype = _float_dtype(device)
    size = IMAGE_BYTES * dtype.itemsize
    theirs = {**_torchvision(device), "kornia": _kornia}
    return Mode("copy", dtype, RandomErasing, theirs, lambda: copy_roofline(size, size, device))


def _in_place(device: torch.device) -> Mode:
    dtype = _float_dtype(device)
    ours = functools.partial(RandomErasing, inplace=True)
    theirs = {**_torchvision(device, inplace=True), "timm": lambda: _timm(device)}
    return Mode("in place", dtype, ours, theirs, lambda: boxes_roofline(dtype, device))


def _uint8(setting: Setting) -> Mode:
    policy, dtype = Policy((p.Normalize(0.5, 0.5), p.RandomErasing())), setting.dtype
    ours = functools.partial(RandomErasing, mean=0.5, std=0.5, dtype=dtype)
    theirs = {"torchvision v2": lambda: peers.v2_policy(policy, dtype), "kornia": lambda: peers.kornia_policy(policy, dtype)}
    return Mode("uint8", torch.uint8, ours, theirs, lambda: policy_roofline(policy, dtype, setting.device))


def _float_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _case(setting: Setting, mode: Mode, batch: int) -> Case:
    device, size = setting.device, setting.size
    least = past_the_cache(batch * IMAGE_BYTES * mode.given.itemsize, device)
    many, few = max(least, whole_batches(size.images, batch)), whole_batches(size.slow_images, batch)

    def implementation(name: str, build: Build, count: int, **options: bool) -> Implementation:
        ready = functools.partial(erase, build, lambda: _batches(mode.given, batch, count, device), **options)
        return Implementation(name, ready, ours=build is mode.ours)

    implementations = [implementation("fastcifar", mode.ours, many)]
    if device.type == "cuda":
        implementations.append(implementation("fastcifar captured", mode.ours, many, graph=True))
    implementations += [
        implementation(name, build, few, one_draw=name == "torchvision v2") for name, build in mode.theirs.items()
    ]
    return throughput_case(setting, "erasing", mode.name, batch, mode.bound, implementations)


def boxes_roofline(dtype: torch.dtype, device: torch.device) -> Bound:
    """Bound the images/s of writing the boxes only, by their mean area over 10,000 images."""
    shape = torch.Size((10_000, SHAPE[2], *SHAPE[:2]))
    boxes = draw_boxes(0, 0, shape, Parameters(0.5, SCALE, RATIO))
    area = boxes[..., 2].mul(boxes[..., 3]).double().mean().item()
    return copy_roofline(0, round(area * SHAPE[2] * dtype.itemsize), device)


def erase(
    build: Build, make_batches: Callable[[], tuple[torch.Tensor, ...]], *, graph: bool = False, one_draw: bool = False
) -> Work:
    """Make the work of erasing every batch; with `graph`, by replaying a CUDA graph of our kernel alone."""
    module, batches = build(), make_batches()
    module = module.erase if graph and isinstance(module, RandomErasing) else module

    def run() -> list[torch.Tensor]:
        return [module(images) for images in batches]

    images = sum(map(len, batches)) * (REPLAYS if graph else 1)
    return Work(captured(run) if graph else run, images, note=lambda: peers.ONE_DRAW if one_draw else "")


def _batches(dtype: torch.dtype, batch: int, count: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Make `count` batches (B, 3, H, W) in channels-last memory, in 0 .. 1 unless they are uint8."""
    pixels = torch.from_numpy(random_split(count * batch).images).to(device).permute(0, 3, 1, 2)
    return (pixels if dtype == torch.uint8 else pixels.to(dtype).div_(255)).split(batch)


def _torchvision(device: torch.device, *, inplace: bool = False) -> dict[str, Build]:
    builds: dict[str, Build] = {"torchvision v2": lambda: v2.RandomErasing(inplace=inplace)}
    return builds if device.type == "cuda" else builds | {"torchvision, image by image": lambda: _each(inplace)}


def _each(inplace: bool) -> peers.Batches:
    module = torchvision.transforms.RandomErasing(inplace=inplace)
    if inplace:
        return lambda images: [module(image) for image in images]
    return lambda images: torch.stack([module(image) for image in images])


def _kornia() -> peers.Batches:
    return peers.require("kornia.augmentation").RandomErasing(SCALE, RATIO, p=0.5)


def _timm(device: torch.device) -> peers.Batches:
    module = peers.require("timm.data.random_erasing")
    return module.RandomErasing(0.5, *SCALE, *RATIO, mode="const", device=device.type)
