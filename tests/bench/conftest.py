"""A setting so small that a case takes a second."""

import warnings

import pytest
import torch

from fastcifar.bench import TINY, bounds
from fastcifar.bench.setting import Setting
from fastcifar.recipe import Recipe, load_recipe
from fastcifar.runtime.roofline import Peaks


@pytest.fixture
def recipe() -> Recipe:
    """The seed recipe with a small model."""
    sizes = ["stem_channels=8", "channels=[8, 16]", "blocks=[1, 1]", "strides=[1, 2]"]
    return load_recipe("seed", ["train.precision=bf16", *(f"model.{size}" for size in sizes)])


@pytest.fixture
def setting(recipe) -> Setting:
    return Setting(torch.device("cpu"), recipe, TINY["step"])


@pytest.fixture
def peaks(monkeypatch) -> Peaks:
    """Peak rates of a device that make round numbers."""
    known = Peaks(flops_per_s=1e12, bytes_per_s=9216e6)
    monkeypatch.setattr(bounds, "peaks", lambda device, precision="fp32": known)
    return known


@pytest.fixture
def without_compiling(monkeypatch):
    """Run FFCV's transforms as Python; compiling them takes ten seconds."""
    with warnings.catch_warnings(action="ignore"):
        compiler = pytest.importorskip("ffcv.pipeline.compiler", reason="FFCV cannot be imported; see `make setup`")
    monkeypatch.setattr(compiler.Compiler, "is_enabled", False)
