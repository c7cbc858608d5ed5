"""The fastest that this device could do a case's work: its bytes or FLOP at the peak rates measured in the same process."""

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
class Limit:
    """A roofline for a rate, a floor for a time.

    Attributes:
        value: in the unit of the case.
        of: the work, and the measured rate that it is divided by.
    """

    value: float
    of: str


@functools.cache
def ceilings(device: torch.device, precision: str = "fp32") -> Ceilings:
    """Measure a device's peak rates, once per process."""
    with arithmetic(precision):
        return measure_ceilings(device, PRECISIONS[precision].compute)


def copy_limit(read: int, written: int, device: torch.device) -> Limit:
    """Images/s of work that reads and writes that many bytes per image."""
    rate = ceilings(device).bytes_per_s
    return Limit(
        rate / (read + written), f"{read:,} B read + {written:,} B written per image, copied at {rate / 1e9:.3g} GB/s"
    )


def policy_limit(policy: Policy, dtype: torch.dtype, device: torch.device) -> Limit:
    """Images/s of reading uint8 images (and their partners, if they are mixed) and writing the output of `policy`."""
    height, width, channels = SHAPE
    written = math.prod(policy.output_size(*SHAPE)) * channels * dtype.itemsize
    return copy_limit(height * width * channels * (2 if policy.mixing else 1), written, device)


def step_limit(macs: int, batch: int, device: torch.device, precision: str) -> Limit:
    """Steps/s of a model with `macs` multiply-accumulates per image in the forward pass."""
    rate = ceilings(device, precision).flops_per_s
    flops = FLOPS_PER_MAC * macs
    return Limit(rate / (flops * batch), f"{_giga(flops)} per image, {_product(rate, precision)}")


def run_limit(macs: int, trained: int, scored: int, device: torch.device, precision: str) -> Limit:
    """Seconds to train on `trained` images and run a forward pass on `scored` images."""
    rate = ceilings(device, precision).flops_per_s
    train, score = FLOPS_PER_MAC * macs, FLOPS_PER_FORWARD_MAC * macs
    work = f"{_giga(train)} for each of {trained:,} images and {_giga(score)} for each of {scored:,} scored"
    return Limit((train * trained + score * scored) / rate, f"{work}, {_product(rate, precision)}")


def _giga(flops: int) -> str:
    return f"{flops / 1e9:.3g} GFLOP"


def _product(rate: float, precision: str) -> str:
    return f"at the {rate / 1e12:.3g} TFLOP/s of a {precision} matrix product"
