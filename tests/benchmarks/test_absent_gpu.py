"""What torch.compile makes of the seed step on an H200 is what docs/decisions.md says, counted without one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
COUNT = Path(__file__).parents[2] / "benchmarks" / "absent_gpu" / "count.py"
LAUNCHES = {version: {"forward and loss": 96, "backward": 93} for version in ("2.14", "2.15")}
"""Version of torch -> Triton launches of each graph of the seed step. For any other version, 2.15's are a limit."""


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    return count(tmp_path_factory.mktemp("count"), "reference")


def count(folder, norm, *options):
    """The counts of the seed step with one implementation of BatchNorm."""
    if shutil.which("c++") is None or torch.version.cuda is None:
        pytest.skip("needs a C++ compiler and PyTorch's CUDA build")
    path = folder / "count.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "TORCHINDUCTOR_"))}
    environment["FASTCIFAR_NORM"] = norm
    command = [sys.executable, COUNT, "seed", *options, "--json", path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(path.read_text())


def test_every_convolution_is_one_library_call_forward_and_one_backward(counted):
    assert counted["forward and loss"]["calls"]["convolution"] == 18
    assert counted["backward"]["calls"]["convolution_backward"] == 18


def test_the_seed_step_has_no_more_launches_than_it_had(counted):
    version = ".".join(torch.__version__.split(".")[:2])
    launches = {name: found["launches"] for name, found in counted.items()}
    if version in LAUNCHES:
        assert launches == LAUNCHES[version]
    else:
        more = {name: count for name, count in launches.items() if count > LAUNCHES["2.15"].get(name, 0)}
        assert not more, f"torch {version} has more launches than 2.15: if it cannot have fewer, add to LAUNCHES: {launches}"


def test_the_bytes_of_the_normalisation_are_at_least_its_activations(counted):
    """Inductor counts them; forward, each of 18 normalised tensors is read and written in bf16."""
    pixels = {48: 32 * 32, 196: 16 * 16, 192: 8 * 8, 384: 4 * 4}
    convolutions = {48: 5, 196: 5, 192: 5, 384: 3}
    activations = sum(64 * 2 * width * pixels[width] * count for width, count in convolutions.items())
    assert counted["forward and loss"]["kinds"]["normalisation"]["bytes"] >= 2 * activations


def test_our_kernels_normalise_in_two_launches_each_way(tmp_path):
    """18 BatchNorms, with the sums and ReLUs after them; the rest of docs/decisions.md's 127 launches are copies and sums."""
    found = count(tmp_path, "fused", "--set", "train.pad_widths=16")
    assert [graph["kinds"]["normalisation"]["launches"] for graph in found.values()] == [36, 36]
    assert sum(graph["launches"] for graph in found.values()) <= 127
