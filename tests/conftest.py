"""Shared by all tests: what needs a GPU or real data says so when it is skipped."""

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, PyTorch sees none"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Compiled code of the tests stays out of the user's cache folder."""
    os.environ["FASTCIFAR_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def cifar10_source() -> Path:
    """The folder cifar-10-batches-py of the real CIFAR-10."""
    source = os.environ.get("FASTCIFAR_SOURCE")
    if not source:
        pytest.skip("needs real CIFAR-10: set FASTCIFAR_SOURCE to a cifar-10-batches-py folder")
    return Path(source)
