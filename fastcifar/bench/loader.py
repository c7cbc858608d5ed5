"""loader: throughput from a data set to augmented batches on the device, beside DataLoader and FFCV.

A round is one epoch in a new order, from wherever the loader keeps the data set. "crop+flip" is limited to what FFCV's own
transforms can do: crop with padding 4, flip, normalise.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fastcifar import augment as p
from fastcifar.augment import Policy
from fastcifar.bench import peers
from fastcifar.bench.bounds import policy_roofline
from fastcifar.bench.interleaved import Case, Implementation, Work, throughput_case
from fastcifar.bench.setting import Setting, random_split, whole_batches
from fastcifar.data.beton import write_beton
from fastcifar.data.resident import ResidentLoader
from fastcifar.data.streaming import StreamingLoader


def cases(setting: Setting) -> list[Case]:
    """List each policy at each batch size."""
    crop_flip = Policy((p.RandomCrop(32, padding=4), p.RandomHorizontalFlip(), p.Normalize(0.5, 0.5)))
    policies = {"crop+flip": crop_flip, f"{setting.recipe.name} policy": setting.recipe.augment}
    return [_case(setting, name, policy, batch) for name, policy in policies.items() for batch in setting.batches]


def _case(setting: Setting, name: str, policy: Policy, batch: int) -> Case:
    device, dtype, size = setting.device, setting.dtype, setting.size
    count, slow = (whole_batches(images, batch) * batch for images in (size.images, size.slow_images))
    implementations = [
        Implementation("fastcifar", functools.partial(resident, policy, batch, count, device, dtype), ours=True),
        Implementation("fastcifar streaming", functools.partial(streaming, policy, batch, count, device, dtype), ours=True),
        Implementation("DataLoader, torchvision PIL", functools.partial(pil, policy, batch, slow, device)),
    ]
    if name == "crop+flip":
        implementations.append(Implementation("FFCV", functools.partial(ffcv, batch, count, device, dtype)))
    return throughput_case(setting, "loader", name, batch, lambda: policy_roofline(policy, dtype, device), implementations)


def resident(policy: Policy, batch: int, count: int, device: torch.device, dtype: torch.dtype) -> Work:
    return _epochs(ResidentLoader(random_split(count), policy, batch_size=batch, device=device, dtype=dtype))


@contextmanager
def streaming(policy: Policy, batch: int, count: int, device: torch.device, dtype: torch.dtype) -> Iterator[Work]:
    peers.require("ffcv")
    if policy.mixing:
        raise peers.Unavailable(f"{type(policy.mixing).__name__} needs a resident data set")
    with _beton(count) as path:
        loader = StreamingLoader(path, policy, batch_size=batch, device=device, dtype=dtype)
        yield _epochs(loader)
        loader.close()


def _epochs(loader: ResidentLoader | StreamingLoader) -> Work:
    epochs = itertools.count()

    def run() -> None:
        loader.set_epoch(next(epochs))
        _exhaust(loader)

    return Work(run, len(loader) * loader.batch_size, note=lambda: f"{loader.augment} augmentation")


@contextmanager
def pil(policy: Policy, batch: int, count: int, device: torch.device) -> Iterator[Work]:
    with TemporaryDirectory() as folder:
        loader = peers.data_loader(random_split(count), Path(folder), policy, batch, device)

        def run() -> None:
            for images, labels in loader:
                images.to(device, non_blocking=True)
                labels.to(device, non_blocking=True)

        yield Work(run, count, note=lambda: f"{peers.CORES} workers")


@contextmanager
def ffcv(batch: int, count: int, device: torch.device, dtype: torch.dtype) -> Iterator[Work]:
    with _beton(count) as path:
        loader = peers.ffcv_loader(path, batch, device, dtype)
        yield Work(lambda: _exhaust(loader), count, note=lambda: f"{peers.CORES} workers")


@contextmanager
def _beton(count: int) -> Iterator[Path]:
    """Write a temporary file of random images."""
    with TemporaryDirectory() as folder:
        split, path = random_split(count), Path(folder, "random.beton")
        write_beton(path, split.images, split.labels)
        yield path


def _exhaust(batches: Iterable[object]) -> None:
    for _ in batches:
        pass
