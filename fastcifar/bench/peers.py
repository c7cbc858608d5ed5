"""A policy in the transforms of each peer, set up as the peer's own documentation does it.

A peer that is not installed or lacks a transform raises `Unavailable`. Training needs nothing from here.
"""

import dataclasses
import importlib
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable
from multiprocessing.context import BaseContext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torchvision.transforms
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fastcifar.augment import Policy, RandomCrop, RandomErasing
from fastcifar.augment.transforms.base import Transform, per_channel
from fastcifar.bench.setting import SHAPE
from fastcifar.data.dataset import Split

EXTRAS = {"kornia": "peers", "timm": "peers", "ffcv": "ffcv"}
"""The extra of fastcifar that installs each peer."""
AFTER_TENSOR = "Normalize", "RandomErasing"
"""torchvision's transforms that need a tensor, not a PIL image."""
ONE_DRAW = "one draw for a whole batch, which is less work than one per image; a batch that is not changed is not copied"
TIMEOUT_S = 120
"""Time after which a worker that has not answered counts as dead."""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

Batches = Callable[[torch.Tensor], torch.Tensor]
"""(B, C, H, W) uint8 to the same, augmented."""


class Unavailable(Exception):
    """An implementation cannot run here; the message says in one line why, and what to install if that helps."""


def require(package: str) -> ModuleType:
    """Import a module of a peer, as in "kornia.augmentation"."""
    name = package.partition(".")[0]
    try:
        with warnings.catch_warnings(action="ignore"):
            return importlib.import_module(package)
    except Exception as error:  # FFCV's compiled part raises many kinds of errors
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            why = f"{name} is not installed; get it with: pip install 'fastcifar[{EXTRAS[name]}]'"
        else:
            why = f"{name} cannot be imported: {' '.join(str(error).split())}"
        raise Unavailable(why) from None


def torchvision_policy(policy: Policy, library: ModuleType, first: list[Any], last: list[Any]) -> Callable[[Any], Any]:
    """Build the policy from torchvision's `transforms` or `transforms.v2`, which have the same names and parameters.

    Args:
        first: converts to float; placed before the transforms that need it.
        last: makes the output.
    """
    steps, after = [], []
    for transform in policy.transforms:
        (after if after or type(transform).__name__ in AFTER_TENSOR else steps).append(_torchvision(transform, library))
    return library.Compose([*steps, *first, *after, *last])


def _torchvision(transform: Transform, library: ModuleType) -> Any:
    name, parameters = type(transform).__name__, dataclasses.asdict(transform)
    if not hasattr(library, name) or name in ("MixUp", "CutMix"):
        raise Unavailable(f"torchvision has no {name} of an image")
    if name == "Normalize":
        parameters = {key: per_channel(value, 3) for key, value in parameters.items()}
    if name == "RandomCrop":
        parameters["size"] = _window(transform)
    return getattr(library, name)(**parameters)


def pil_policy(policy: Policy) -> Callable[[Image.Image], torch.Tensor]:
    """Build torchvision's transforms of one PIL image; the result is float32."""
    return torchvision_policy(policy, torchvision.transforms, [torchvision.transforms.ToTensor()], [])


def v2_policy(policy: Policy, dtype: torch.dtype) -> Batches:
    """Build torchvision's v2 for a whole batch, which shares one draw; that is less work than a draw per image."""
    return torchvision_policy(policy, v2, [v2.ToDtype(torch.float32, scale=True)], [v2.ToDtype(dtype)])


def kornia_policy(policy: Policy, dtype: torch.dtype) -> Batches:
    """Build kornia's modules for a whole batch, with a draw per image."""
    kornia = require("kornia.augmentation")
    make = {
        "RandomCrop": lambda t: kornia.RandomCrop(_window(t), padding=t.padding, padding_mode=t.padding_mode),
        "RandomHorizontalFlip": lambda t: kornia.RandomHorizontalFlip(t.p),
        "ColorJitter": lambda t: kornia.ColorJitter(t.brightness, t.contrast, t.saturation),
        "RandomRotation": lambda t: kornia.RandomRotation(t.degrees, resample="nearest", p=1.0),
        "Normalize": lambda t: kornia.Normalize(per_channel(t.mean, 3), per_channel(t.std, 3)),
        "RandomErasing": lambda t: kornia.RandomErasing(t.scale, t.ratio, _number(t), p=t.p),
    }
    for transform in policy.transforms:
        if type(transform).__name__ not in make:
            raise Unavailable(f"there is no kornia way here for {type(transform).__name__}")
    steps = nn.Sequential(*(make[type(transform).__name__](transform) for transform in policy.transforms))
    return lambda images: steps(images.float().div_(255)).to(dtype)


def _window(transform: RandomCrop) -> tuple[int, int]:
    """Return height and width of the crop; torchvision and kornia do not default to the size of the image."""
    return transform.window(*SHAPE[:2])[:2]


def _number(transform: RandomErasing) -> float:
    if not isinstance(transform.value, int | float):
        raise Unavailable(f"kornia's RandomErasing writes one number, not {transform.value}")
    return float(transform.value)


def workers() -> BaseContext:
    """Return a context whose processes fork from one with torch imported: quick to start, without our threads and CUDA."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class Pictures(Dataset):
    """Data set of plain PyTorch: one PIL image at a time.

    Args:
        path: an .npy file (N, H, W, C) uint8; every worker maps it itself.
        labels: (N,) int64.
        transform: of a PIL image.
    """

    def __init__(self, path: Path, labels: np.ndarray, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.path, self.labels, self.transform = path, labels, transform
        self.images: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.images is None:
            self.images = np.load(self.path, mmap_mode="r")
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def data_loader(
    split: Split, folder: Path, policy: Policy, batch: int, device: torch.device, *, shuffle: bool = True
) -> DataLoader:
    """Build a plain `DataLoader` with torchvision's PIL transforms and a persistent worker per core."""
    path = folder / f"{'shuffled' if shuffle else 'ordered'}.npy"
    np.save(path, split.images)
    return DataLoader(
        Pictures(path, split.labels, pil_policy(policy)),
        batch,
        shuffle=shuffle,
        drop_last=shuffle,
        num_workers=CORES,
        timeout=TIMEOUT_S,
        pin_memory=device.type == "cuda",
        persistent_workers=True,
        multiprocessing_context=workers(),
    )


def ffcv_loader(path: Path, batch: int, device: torch.device, dtype: torch.dtype) -> Iterable[tuple[torch.Tensor, ...]]:
    """Build FFCV's own loader with the transforms of its CIFAR-10 example, without Cutout: flip, shift by up to 4, normalise.

    As FFCV recommends, a PyTorch module normalises on a GPU, and FFCV's own compiled transform on a CPU.
    """
    loader, decoders, ops = (require(f"ffcv.{name}") for name in ("loader", "fields.decoders", "transforms"))
    image = [decoders.SimpleRGBImageDecoder(), ops.RandomHorizontalFlip(), ops.RandomTranslate(padding=4)]
    middle = (127.5,) * 3
    if device.type == "cuda":
        copy = [ops.ToDevice(device)]
        normalize = torchvision.transforms.Normalize(middle, middle)
        image += [ops.ToTensor(), *copy, ops.ToTorchImage(), ops.Convert(dtype), normalize]
    else:
        copy = []
        normalize = ops.NormalizeImage(np.array(middle), np.array(middle), np.dtype("float32"))
        image += [normalize, ops.ToTensor(), ops.ToTorchImage(), ops.Convert(dtype)]
    return loader.Loader(
        str(path),
        batch_size=batch,
        num_workers=CORES,
        order=loader.OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": image, "label": [decoders.IntDecoder(), ops.ToTensor(), *copy, ops.Squeeze()]},
    )
