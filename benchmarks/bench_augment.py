"""How fast is a policy, against torchvision and kornia?

    pytest benchmarks/bench_augment.py --benchmark-only --benchmark-json=augment.json
    python benchmarks/bench_augment.py augment.json augment.png     # a picture of it

Batches of 3 x 32 x 32 for two policies: `seed` is the seed recipe's, `basic` crop, flip, normalisation and erasing.
`fastcifar` is the loader's own path: a batch by random indices into a resident data set. On CUDA (events, a data set four
times the L2 cache) `captured` replays a CUDA graph of it and so times the device alone; `share_of_copy` is 3,072 bytes read
and 6,144 written an image, as a share of what `Tensor.copy_` moves in the same run. torchvision's v2 and kornia are given a
batch that is gathered already; v2 draws once for a whole batch, which is less work. On the CPU torchvision's PIL pipeline
runs in a process for each core, in turns with ours.
"""

import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timing import CUDA, DEVICE, ROUNDS, captured, past_the_cache, seconds
from torchvision import transforms
from torchvision.transforms import v2

from fastcifar.augment import Policy
from fastcifar.config import load_recipe
from fastcifar.data.dataset import Split
from fastcifar.data.resident import ResidentLoader

BYTES = 3 * 32 * 32 * (1 + 2)  # uint8 in, bf16 out
SEED = load_recipe("seed").augment
POLICIES = {"seed": SEED, "basic": Policy((*SEED.transforms[:2], *SEED.transforms[4:]))}
BATCHES = (64, 256, 1024, 4096, 8192, 16384) if CUDA else (64, 512, 2048)


def make_loader(policy, batch, count):
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, count))
    return ResidentLoader(split, POLICIES[policy], batch_size=batch, device=DEVICE)


def torchvision_of(policy, library, first, last):
    """The policy in torchvision's `transforms` or `v2`, between what makes its input and what makes its output."""
    jitter = [library.ColorJitter(0.2, 0.2, 0.2), library.RandomRotation(15)] if policy == "seed" else []
    normalize, erase = library.Normalize((0.5,) * 3, (0.5,) * 3), library.RandomErasing(p=0.5, scale=(0.02, 0.2))
    steps = [library.RandomCrop(32, padding=4), library.RandomHorizontalFlip(), *jitter, *first, normalize, erase, *last]
    return library.Compose(steps)


def v2_batches(policy):
    return torchvision_of(policy, v2, [v2.ToDtype(torch.float32, scale=True)], [v2.ToDtype(torch.bfloat16)])


def kornia_batches(policy):
    k = pytest.importorskip("kornia.augmentation", reason="kornia is not installed")
    jitter = [k.ColorJitter(0.2, 0.2, 0.2), k.RandomRotation(15.0, resample="nearest")] if policy == "seed" else []
    normalize, erase = k.Normalize(0.5, 0.5), k.RandomErasing(p=0.5, scale=(0.02, 0.2), ratio=(0.3, 3.3))
    steps = torch.nn.Sequential(k.RandomCrop((32, 32), padding=4), k.RandomHorizontalFlip(), *jitter, normalize, erase)
    return lambda images: steps(images.float().div_(255)).bfloat16()


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device, PyTorch sees none")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("subject", ["fastcifar captured", "fastcifar", "torchvision v2", "kornia"])
def test_cuda(benchmark, copy_bandwidth, subject, policy, batch):
    benchmark.group = f"{policy} on CUDA, batch {batch}"
    count = past_the_cache(batch * BYTES)
    loader, times = make_loader(policy, batch, count * batch), []
    if subject.startswith("fastcifar"):

        def run():
            return [loader.batch(position) for position in range(count)]
    else:
        apply = {"torchvision v2": v2_batches, "kornia": kornia_batches}[subject](policy)
        batches = list(loader.images.permute(0, 3, 1, 2).split(batch))

        def run():
            return [apply(images) for images in batches]

    run = captured(run) if subject == "fastcifar captured" else run
    benchmark.pedantic(lambda: times.append(seconds(run) / count), rounds=ROUNDS, warmup_rounds=2)
    rate = batch / statistics.median(times[-ROUNDS:])
    benchmark.extra_info |= {"images_per_s": rate, "seconds_a_batch": times[-ROUNDS:]}
    benchmark.extra_info |= {"bytes_per_s": rate * BYTES, "share_of_copy": rate * BYTES / copy_bandwidth}


PIL_IMAGES = 2000  # a round


def start_worker(policy):
    """In a process for one core."""
    global pipeline, pictures
    torch.set_num_threads(1)
    pipeline = torchvision_of(policy, transforms, [transforms.ToTensor()], [])
    pixels = np.random.default_rng(0).integers(0, 256, (500, 32, 32, 3), dtype=np.uint8)
    pictures = [Image.fromarray(picture) for picture in pixels]


def work(count):
    for number in range(count):
        pipeline(pictures[number % len(pictures)])


@pytest.mark.skipif(CUDA, reason="measures the CPU where there is no GPU")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("policy", POLICIES)
def test_cpu(benchmark, policy, batch):
    benchmark.group = f"{policy} on the CPU, batch {batch}"
    loader, cores = make_loader(policy, batch, 8192), os.cpu_count()
    ours, pil, batched = [], [], []
    apply, images = v2_batches(policy), loader.images.permute(0, 3, 1, 2)

    def clock(times, count, run):
        begun = time.perf_counter()
        run()
        times.append(count / (time.perf_counter() - begun))

    with multiprocessing.get_context("spawn").Pool(cores, start_worker, [policy]) as pool:

        def peers():
            clock(pil, PIL_IMAGES, lambda: pool.map(work, [PIL_IMAGES // cores] * cores, chunksize=1))
            clock(batched, 8192, lambda: [apply(part) for part in images.split(batch)])

        def run():
            clock(ours, 8192, lambda: [loader.batch(position) for position in range(len(loader))])

        benchmark.pedantic(run, setup=peers, rounds=ROUNDS, warmup_rounds=1)
    rates = {"fastcifar": ours, "torchvision PIL": pil, "torchvision v2": batched}
    for name, values in rates.items():
        benchmark.extra_info[f"images_per_s, {name}"] = statistics.median(values[-ROUNDS:])
        ratios = [one / other for one, other in zip(ours[-ROUNDS:], values[-ROUNDS:], strict=True)]
        if name != "fastcifar":
            benchmark.extra_info[f"times {name}"] = statistics.median(ratios)


def plot(results, picture):
    """Images a second against the batch size, a line for each subject, a panel for each policy."""
    from matplotlib.figure import Figure

    lines = {}
    for entry in json.loads(Path(results).read_text())["benchmarks"]:
        policy, batch = entry["params"]["policy"], entry["params"]["batch"]
        for key, rate in entry["extra_info"].items():
            if key.startswith("images_per_s"):
                subject = entry["params"].get("subject") or key.removeprefix("images_per_s, ")
                lines.setdefault((policy, subject), []).append((batch, rate))
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, policy in zip(figure.subplots(1, 2, sharey=True), POLICIES, strict=True):
        for (of, subject), points in lines.items():
            if of == policy:
                axes.loglog(*zip(*sorted(points), strict=True), "o-", label=subject)
        axes.set(title=f"policy {policy}", xlabel="batch size", ylabel="images/s")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    plot(*sys.argv[1:])
