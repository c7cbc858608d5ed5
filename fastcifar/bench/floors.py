"""What the ceilings of this device allow, measured in the same run."""

import functools
import math
from dataclasses import dataclass

import torch

from fastcifar.augment import Policy
from fastcifar.bench.setting import SHAPE
from fastcifar.runtime.precision import PRECISIONS, arithmetic
from fastcifar.runtime.roofline import FLOPS_PER_MAC, Ceilings, measure_ceilings

FLOPS_PER_FORWARD_MAC = 2


@dataclass(frozen=True)
class Floor:
    """The best that can be reached.

    Attributes:
        value: in the unit of the case.
        of: the work, and the ceiling that it is divided by.
    """

    value: float
    of: str


@functools.cache
def ceilings(device: torch.device, precision: str = "fp32") -> Ceilings:
    """The ceilings of a device; measured once in a process."""
    with arithmetic(precision):
        return measure_ceilings(device, PRECISIONS[precision].compute)


def copy_floor(read: int, written: int, device: torch.device) -> Floor:
    """Images/s, of work that reads and writes so many bytes an image."""
    rate = ceilings(device).bytes_per_s
    return Floor(rate / (read + written), f"{read:,} B read + {written:,} B written an image, copied at {rate / 1e9:.3g} GB/s")


def policy_floor(policy: Policy, dtype: torch.dtype, device: torch.device) -> Floor:
    """Images/s, of reading uint8 images (and where they are mixed, their partners) and writing them as `policy` says."""
    height, width, channels = SHAPE
    written = math.prod(policy.output_size(*SHAPE)) * channels * dtype.itemsize
    return copy_floor(height * width * channels * (2 if policy.mixing else 1), written, device)


def step_floor(macs: int, batch: int, device: torch.device, precision: str) -> Floor:
    """Steps/s, of a model with so many multiply-accumulates an image, forward."""
    rate = ceilings(device, precision).flops_per_s
    flops = FLOPS_PER_MAC * macs
    return Floor(rate / (flops * batch), f"{_giga(flops)} an image, {_product(rate, precision)}")


def run_floor(macs: int, trained: int, scored: int, device: torch.device, precision: str) -> Floor:
    """Seconds, of training on `trained` images and a forward pass of `scored`."""
    rate = ceilings(device, precision).flops_per_s
    train, score = FLOPS_PER_MAC * macs, FLOPS_PER_FORWARD_MAC * macs
    work = f"{_giga(train)} for each of {trained:,} images and {_giga(score)} for each of {scored:,} scored"
    return Floor((train * trained + score * scored) / rate, f"{work}, {_product(rate, precision)}")


def _giga(flops: int) -> str:
    return f"{flops / 1e9:.3g} GFLOP"


def _product(rate: float, precision: str) -> str:
    return f"at the {rate / 1e12:.3g} TFLOP/s of a {precision} matrix product"
