"""Shared by all tests: a recipe and a data set so small that a run takes a second, skipped tests, and time limits."""

import os
import sys
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fastcifar.data.dataset import Dataset, Manifest, Split
from fastcifar.recipe import Recipe, load_recipe

ROOT = str(Path(__file__).parents[1])
# For the processes that tests start: the package need not be installed.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))


TIME_LIMIT_S = {"quick": 120, "slow": 600}
"""Time limit of a test, if pytest-timeout is installed."""


def pytest_collection_modifyitems(config, items):
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            limit = TIME_LIMIT_S["slow" if item.get_closest_marker("slow") else "quick"]
            item.add_marker(pytest.mark.timeout(limit, method="thread"))  # it ends what hangs in C++ too
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    for item in gpu_tests:
        why = None if torch.cuda.is_available() else "needs a CUDA device, PyTorch sees none"
        if "softcuda" in sys.modules:
            from not_judged import reason

            why = reason(item.nodeid)
        if why:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture
def needs_sgd():
    """Return a function that skips the test if this PyTorch's SGD on a CPU is wrong for weights of a precision."""

    def check(precision):
        import torch

        from fastcifar.optim.optimizers import fused_sgd_works
        from fastcifar.runtime.precision import PRECISIONS

        dtype = PRECISIONS[precision].weights
        if dtype != torch.float32 and not fused_sgd_works(dtype):
            pytest.skip(f"fused SGD of {dtype} on a CPU is wrong in torch {torch.__version__} (pytorch issue 191763)")

    return check


@pytest.fixture
def without_waiting():
    """Return a context in which it is an error to make the host wait for a CUDA device."""

    @contextmanager
    def context():
        import torch

        try:
            with warnings.catch_warnings(action="ignore"):  # that this is a prototype
                torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return context


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep compiled code of the tests out of the user's cache folder, with a folder for each instruction set.

    torch.compile's own cache does not check the instruction set: code compiled for AVX2 crashed where AVX-512 is used.
    """
    import torch

    os.environ["FASTCIFAR_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    capability = torch.backends.cpu.get_cpu_capability().replace(" ", "")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), f"fastcifar-tests-{os.getuid()}-{capability}")


@pytest.fixture(scope="session")
def cifar10_source() -> Path:
    """The folder cifar-10-batches-py of the real CIFAR-10."""
    source = os.environ.get("FASTCIFAR_SOURCE")
    if not source:
        pytest.skip("needs real CIFAR-10: set FASTCIFAR_SOURCE to a cifar-10-batches-py folder")
    return Path(source)


@pytest.fixture
def one_thread():
    """Use one thread: at the sizes of tests, two threads on a busy machine of two cores took four times as long."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def betons(tmp_path_factory) -> Path:
    """The synthetic data set, as the command line prepares it; tests only read it."""
    from helpers import fastcifar

    out = tmp_path_factory.mktemp("synthetic") / "betons"
    done = fastcifar("prep", "synthetic", "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def here(tmp_path, monkeypatch, capfd):
    """A function that runs the command line in this process and in a folder of its own: (exit code, stdout, stderr)."""

    from fastcifar.cli import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastcifar", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capfd.readouterr()

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(
        "seed",
        [
            "augment.transforms=[{name='RandomCrop', size=16, padding=2}, {name='RandomHorizontalFlip'}, "
            "{name='Normalize', mean=0.5, std=0.5}]",
            "model.stem_channels=8",
            "model.channels=[8, 16]",
            "model.blocks=[1, 1]",
            "model.strides=[1, 2]",
            "model.num_classes=3",
            "optimizer.lr=0.05",
            "train.epochs=2",
            "train.batch_size=16",
            "train.precision=fp32",
            "evaluate.batch_size=32",
        ],
    )


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        labels = rng.integers(0, 3, count)
        images = rng.integers(0, 100, (count, 16, 16, 3))
        images[labels == 1] += 100
        images[labels == 2, :, :, 0] += 100
        return Split(images.astype(np.uint8), labels)

    splits = {"train": split(80), "val": split(20), "test": split(20)}
    manifest = Manifest(
        name="tiny",
        classes=("dark", "light", "red"),
        image_shape=(16, 16, 3),
        counts={name: len(part.labels) for name, part in splits.items()},
        split_seed=0,
        val_fraction=0.2,
        mean=(0.3, 0.3, 0.3),
        std=(0.2, 0.2, 0.2),
        sha256={name: "0" * 64 for name in splits},
        source="made by the test",
    )
    return Dataset(tmp_path, manifest, **splits)
