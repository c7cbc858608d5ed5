"""How fast does the seed model train, against the same model in plain PyTorch?

    pytest benchmarks/bench_train.py --benchmark-only

The group "step" times a training step at the same batch size, in one process: `plain` is eager float32 in PyTorch's default
memory layout on a batch that is ready; `fastcifar` is the engine's step, which reads and augments its own batch. The group
"augment" times the seed policy alone. `images_per_s` is in the extra information of each.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastcifar.config import load_recipe
from fastcifar.data.dataset import Split
from fastcifar.data.resident import ResidentLoader
from fastcifar.engine import step as steps
from fastcifar.engine.environment import choose_device
from fastcifar.models import build_model
from fastcifar.optim.optimizers import build_optimizer

DEVICE = choose_device("auto")
BATCH = 128
ROUNDS = 7


@pytest.fixture
def recipe():
    return load_recipe("seed", [f"train.batch_size={BATCH}"])


@pytest.fixture
def loader(recipe):
    rng = np.random.default_rng(0)
    count = 40 * BATCH
    split = Split(rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, count))
    return ResidentLoader(split, recipe.augment, batch_size=BATCH, device=DEVICE)


def measure(benchmark, run, images):
    def finished():
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(finished, rounds=ROUNDS, warmup_rounds=2)
    benchmark.extra_info["images_per_s"] = images / benchmark.stats.stats.median


@pytest.mark.benchmark(group="step")
def test_plain(benchmark, recipe):
    model = build_model(recipe.model).to(DEVICE)
    config = recipe.optimizer
    optimizer = torch.optim.SGD(model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    images, labels = torch.randn(BATCH, 3, 32, 32, device=DEVICE), torch.randint(0, 10, (BATCH,), device=DEVICE)

    def run():
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    measure(benchmark, run, BATCH)


@pytest.mark.benchmark(group="step")
def test_fastcifar(benchmark, recipe, loader):
    model = build_model(recipe.model).to(DEVICE, memory_format=torch.channels_last)
    backend, _ = steps.choose_backend("auto", DEVICE)
    step = steps.build(model, build_optimizer(model, recipe.optimizer), loader, recipe, backend)
    measure(benchmark, lambda: step.run(1), BATCH)


@pytest.mark.benchmark(group="augment")
def test_augment(benchmark, loader):
    measure(benchmark, lambda: [loader.batch(position) for position in range(8)], 8 * BATCH)
