"""augment: throughput of a policy, beside torchvision and kornia.

"fastcifar" is the loader's own path: batches by random indices into a resident data set. torchvision's v2 and kornia get
batches that are already gathered. On CUDA "fastcifar captured" replays a CUDA graph of our path, so only the device's time
counts, and the pixels it reads fill the L2 cache four times. On a CPU torchvision's PIL pipeline runs in one process per core.
"basic" is crop, flip, normalisation and erasing.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from fastcifar import augment as p
from fastcifar.augment import Policy
from fastcifar.bench import peers
from fastcifar.bench.bounds import policy_roofline
from fastcifar.bench.interleaved import Case, Implementation, Work, throughput_case
from fastcifar.bench.setting import IMAGE_BYTES, Setting, random_split, whole_batches
from fastcifar.bench.timing import REPLAYS, captured, past_the_cache
from fastcifar.data.resident import ResidentLoader


def cases(setting: Setting) -> list[Case]:
    """List each policy at each batch size."""
    crop, flip, normalize = p.RandomCrop(32, padding=4), p.RandomHorizontalFlip(), p.Normalize(0.5, 0.5)
    basic = Policy((crop, flip, normalize, p.RandomErasing(p=0.5, scale=(0.02, 0.2))))
    policies = {f"{setting.recipe.name} policy": setting.recipe.augment, "basic policy": basic}
    return [_case(setting, name, policy, batch) for name, policy in policies.items() for batch in setting.batches]


def _case(setting: Setting, name: str, policy: Policy, batch: int) -> Case:
    device, dtype, size = setting.device, setting.dtype, setting.size
    count = max(past_the_cache(batch * IMAGE_BYTES, device), whole_batches(size.images, batch))
    slow = whole_batches(size.slow_images, batch)
    many, few = (policy, batch, count, device, dtype), (policy, batch, slow, device, dtype)
    implementations = [Implementation("fastcifar", functools.partial(ours, *many), ours=True)]
    if device.type == "cuda":
        implementations.append(Implementation("fastcifar captured", functools.partial(graph, *many), ours=True))
    implementations += [
        Implementation("torchvision v2", functools.partial(v2, *few)),
        Implementation("kornia", functools.partial(kornia, *few)),
    ]
    if device.type == "cpu":
        implementations.append(Implementation("torchvision PIL", functools.partial(pil, policy, size.slow_images)))
    return throughput_case(setting, "augment", name, batch, lambda: policy_roofline(policy, dtype, device), implementations)


def ours(policy: Policy, batch: int, count: int, device: torch.device, dtype: torch.dtype) -> Work:
    loader, run = _loader(policy, batch, count, device, dtype)
    return Work(run, count * batch, note=lambda: f"{loader.augment} augmentation")


def graph(policy: Policy, batch: int, count: int, device: torch.device, dtype: torch.dtype) -> Work:
    """Capture the kernel alone: each batch has its own state, so the graph does not advance the loader's position."""
    loader, _ = _loader(policy, batch, count, device, dtype)
    states = [loader.state.clone() for _ in range(count)]
    for position, state in enumerate(states):
        state[2] = position

    def run() -> list[torch.Tensor]:
        images = []
        for loader.state in states:
            images.append(loader.load()[0])
        return images

    return Work(captured(run), REPLAYS * count * batch)


def _loader(
    policy: Policy, batch: int, count: int, device: torch.device, dtype: torch.dtype
) -> tuple[ResidentLoader, Callable[[], list[torch.Tensor]]]:
    """Build a loader of `count` batches, and a function that makes and keeps them all: freed memory would be in the cache."""
    loader = ResidentLoader(random_split(count * batch), policy, batch_size=batch, device=device, dtype=dtype)
    return loader, lambda: [loader.batch(position)[0] for position in range(count)]


def v2(policy: Policy, batch: int, count: int, device: torch.device, dtype: torch.dtype) -> Work:
    return _batched(peers.v2_policy(policy, dtype), batch, count, device, note=peers.ONE_DRAW)


def kornia(policy: Policy, batch: int, count: int, device: torch.device, dtype: torch.dtype) -> Work:
    return _batched(peers.kornia_policy(policy, dtype), batch, count, device)


def _batched(apply: peers.Batches, batch: int, count: int, device: torch.device, note: str = "") -> Work:
    """Make the work of a peer that takes batches (B, 3, H, W) uint8 in channels-last memory on the device."""
    images = torch.from_numpy(random_split(count * batch).images).to(device)
    batches = images.permute(0, 3, 1, 2).split(batch)
    return Work(lambda: [apply(part) for part in batches], count * batch, note=lambda: note)


@contextmanager
def pil(policy: Policy, count: int) -> Iterator[Work]:
    share = -(-count // peers.CORES)
    peers.pil_policy(policy)  # fails here if unsupported: the pool would restart a failing worker without end
    with peers.workers().Pool(peers.CORES, _start_worker, [policy]) as pool:
        shares = [share] * peers.CORES

        def run() -> None:
            pool.map_async(_work, shares, chunksize=1).get(peers.TIMEOUT_S)

        yield Work(run, sum(shares), note=lambda: f"{peers.CORES} processes")


def _start_worker(policy: Policy) -> None:
    global pipeline, pictures
    torch.set_num_threads(1)
    pipeline = peers.pil_policy(policy)
    pictures = [Image.fromarray(np.ascontiguousarray(pixels)) for pixels in random_split(500).images]


def _work(count: int) -> None:
    for number in range(count):
        pipeline(pictures[number % len(pictures)])
