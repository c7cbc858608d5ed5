"""A model that oneDNN cannot train on this CPU is refused; one that it can train is not."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from torch import nn

from fastcifar.engine.engine import Engine
from fastcifar.runtime import onednn
from fastcifar.runtime.distributed import process_group
from fastcifar.runtime.errors import UserError

REFUSED_OR_RIGHT = """
import torch
import torch.nn.functional as F
from torch import nn
from fastcifar.runtime.onednn import check_convolutions
from fastcifar.runtime.errors import UserError

layer = nn.Conv2d(6, 16, 1, 2, bias=False).to(memory_format=torch.channels_last)
try:
    check_convolutions(layer)
except UserError as error:
    print("refused")
else:
    images = torch.randn(4, 6, 12, 12).to(memory_format=torch.channels_last).requires_grad_()
    double = images.detach().double().requires_grad_()
    for _ in range(20):
        layer(images).square().sum().backward()
        F.conv2d(double, layer.weight.detach().double(), stride=2).square().sum().backward()
    torch.testing.assert_close(images.grad.double(), double.grad, rtol=1e-4, atol=1e-4)
    print("right")
"""


def with_widths(recipe, stem, channels, **train):
    model = replace(recipe.model, stem_channels=stem, channels=channels)
    return replace(recipe, model=model, train=replace(recipe.train, **train))


@pytest.mark.parametrize("isa", ["AVX2", "ALL"])
def test_a_narrow_strided_convolution_is_refused_or_trained_right(isa):
    """On any CPU, with or without the fault; otherwise the process would end with a signal."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", REFUSED_OR_RIGHT], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("refused", "right")


def test_the_line_names_the_layer_and_what_to_do(recipe, dataset, monkeypatch):
    monkeypatch.setattr(onednn, "strided_1x1_works", lambda: False)
    words = r"stages.1.0.shortcut.conv: .* convolution of 4 channels; use 8 or more, as `train.pad_widths=8` does"
    with process_group("cpu") as world, pytest.raises(UserError, match=words):
        Engine(with_widths(recipe, 4, (4, 8)), dataset, world)


def test_what_the_line_recommends_is_taken(recipe, dataset, monkeypatch):
    monkeypatch.setattr(onednn, "strided_1x1_works", lambda: False)
    with process_group("cpu") as world:
        for better in (with_widths(recipe, 8, (8, 16)), with_widths(recipe, 4, (4, 8), pad_widths=8)):
            Engine(better, dataset, world)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 16, 1, 2),
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(4, 8, 3, 2),
        nn.Conv2d(1, 8, 1, 2),
        nn.Conv2d(16, 16, 1, 2, groups=16),
    ],
)
def test_other_convolutions_cost_no_trial(layer, monkeypatch):
    monkeypatch.setattr(onednn, "strided_1x1_works", lambda: pytest.fail("tried"))
    onednn.check_convolutions(layer)


def test_the_trial_ends_well_on_a_cpu_without_the_fault(monkeypatch):
    """AVX has kernels of its own."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX")
    assert onednn.strided_1x1_works.__wrapped__()


def test_a_trial_that_crashes_is_a_fault(monkeypatch):
    monkeypatch.setattr(onednn, "PROBE", "import os; os.abort()")
    assert not onednn.strided_1x1_works.__wrapped__()


def test_a_trial_that_hangs_is_a_fault(monkeypatch):
    monkeypatch.setattr(onednn, "PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(onednn, "PROBE_SECONDS", 0.5)
    assert not onednn.strided_1x1_works.__wrapped__()
