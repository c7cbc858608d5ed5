"""A fault of oneDNN on CPUs with AVX2 and without AVX-512, and the models that it strikes.

Seen with oneDNN 3.12.0 and 3.13.3 (torch 2.13 and 2.15): the float32 backward pass of a 1x1 convolution in channels-last
memory writes beyond its buffers where it has 2 to 7 input channels, a stride that divides height and width, and a batch of two
or more. The process crashes or gradients are wrong. The kernels for AVX and for AVX-512, those for bf16 and for contiguous
memory were found to be right.
"""

import functools
import subprocess
import sys

import torch
from torch import nn

from fastcifar.errors import UserError

PROBE = """
import torch
import torch.nn.functional as F

images = torch.randn(16, 4, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
weight, ahead = torch.randn(8, 4, 1, 1).requires_grad_(), torch.randn(16, 8, 8, 8).to(memory_format=torch.channels_last)
first = None
for _ in range(20):
    found = torch.autograd.grad(F.conv2d(images, weight, stride=2), (images, weight), ahead)
    first = first or found
    assert all(map(torch.equal, found, first))
"""


@functools.cache
def strided_1x1_works() -> bool:
    """Whether this PyTorch, on this CPU, computes the gradients of a strided 1x1 convolution of few channels.

    It is tried in a process of its own, since where it does not work it corrupts memory.
    """
    return subprocess.run([sys.executable, "-c", PROBE], capture_output=True, check=False).returncode == 0


def check_convolutions(model: nn.Module) -> None:
    """Refuse a model that this CPU cannot train in float32.

    Raises:
        UserError: it has a convolution that the fault strikes, and this PyTorch on this CPU has the fault.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and _struck(layer) and not strided_1x1_works():
            raise UserError(
                f"{name}: on this CPU, oneDNN in torch {torch.__version__} corrupts memory where it trains a strided 1x1 "
                f"convolution of {layer.in_channels} channels; make it 8 or more, as --set train.pad_widths=8 does, or set "
                "the environment variable ONEDNN_MAX_CPU_ISA=AVX"
            )


def _struck(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and max(layer.stride) > 1 and 1 < layer.in_channels // layer.groups < 8
