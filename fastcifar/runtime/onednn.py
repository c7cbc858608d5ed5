"""A fault of oneDNN on CPUs with AVX2 and without AVX-512, and a check for the models that it affects.

Seen with oneDNN 3.12.0 and 3.13.3 (torch 2.13 and 2.15): the float32 backward pass of a 1x1 convolution in channels-last
memory writes beyond its buffers if it has 2 to 7 input channels, a stride that divides height and width, and a batch of two
or more. The process crashes or gradients are wrong. The kernels for AVX, for AVX-512, for bf16 and for contiguous memory were
found to be correct.
"""

import functools
import subprocess
import sys

import torch
from torch import nn

from fastcifar.runtime.errors import UserError

PROBE = """
import torch
import torch.nn.functional as F

images = torch.randn(16, 4, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
weight, upstream = torch.randn(8, 4, 1, 1).requires_grad_(), torch.randn(16, 8, 8, 8).to(memory_format=torch.channels_last)
first = None
for _ in range(20):
    found = torch.autograd.grad(F.conv2d(images, weight, stride=2), (images, weight), upstream)
    first = first or found
    assert all(map(torch.equal, found, first))
"""
PROBE_SECONDS = 60
"""After which the probe counts as hanging; it takes two, most of them for importing torch."""


@functools.cache
def strided_1x1_works() -> bool:
    """Return whether this PyTorch, on this CPU, computes the gradients of a strided 1x1 convolution of few channels.

    It is tried in a child process, because the fault corrupts memory, which may also make the process hang.
    """
    try:
        return subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=PROBE_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def check_convolutions(model: nn.Module) -> None:
    """Refuse a model that this CPU cannot train in float32.

    Raises:
        UserError: the fault affects one of its convolutions, and this PyTorch on this CPU has the fault.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and _affected(layer) and not strided_1x1_works():
            raise UserError(
                f"{name}: on this CPU, oneDNN in torch {torch.__version__} corrupts memory when it trains a strided 1x1 "
                f"convolution of {layer.in_channels} channels; use 8 or more, as `train.pad_widths=8` does, or set "
                "the environment variable ONEDNN_MAX_CPU_ISA=AVX"
            )


def _affected(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and max(layer.stride) > 1 and 1 < layer.in_channels // layer.groups < 8
