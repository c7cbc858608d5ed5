"""Rooflines and floors of the cases: their bytes or FLOP at the device's peak rates, measured in the same process."""

import functools
import math
from dataclasses import dataclass

import torch

from fastcifar.augment import Policy
from fastcifar.bench.setting import SHAPE
from fastcifar.runtime.roofline import FLOPS_PER_MAC, Peaks, measure_peaks

FLOPS_PER_FORWARD_MAC = 2


@dataclass(frozen=True)
class Bound:
    """The roofline of a throughput or the floor of a time.

    Attributes:
        value: in the unit of the case.
        of: the work, and the measured rate that it is divided by.
    """

    value: float
    of: str


@functools.cache
def peaks(device: torch.device, precision: str = "fp32") -> Peaks:
    """Measure a device's peak rates, once per process."""
    return measure_peaks(device, precision)


def copy_roofline(read: int, written: int, device: torch.device) -> Bound:
    """Bound the images/s of work that reads and writes that many bytes per image."""
    rate = peaks(device).bytes_per_s
    return Bound(
        rate / (read + written), f"{read:,} B read + {written:,} B written per image, copied at {rate / 1e9:.3g} GB/s"
    )


def policy_roofline(policy: Policy, dtype: torch.dtype, device: torch.device) -> Bound:
    """Bound the images/s of reading uint8 images (and partners, if `policy` mixes) and writing the output of `policy`."""
    height, width, channels = SHAPE
    written = math.prod(policy.output_size(*SHAPE)) * channels * dtype.itemsize
    return copy_roofline(height * width * channels * (2 if policy.mixing else 1), written, device)


def step_roofline(macs: int, batch: int, device: torch.device, precision: str) -> Bound:
    """Bound the training steps/s of a model with `macs` multiply-accumulates per image in the forward pass."""
    rate = peaks(device, precision).flops_per_s
    flops = FLOPS_PER_MAC * macs
    return Bound(rate / (flops * batch), f"{_giga(flops)} per image, {_product(rate, precision)}")


def run_floor(macs: int, trained: int, scored: int, device: torch.device, precision: str) -> Bound:
    """Bound the seconds to train on `trained` images and run a forward pass on `scored` images."""
    rate = peaks(device, precision).flops_per_s
    train, score = FLOPS_PER_MAC * macs, FLOPS_PER_FORWARD_MAC * macs
    work = f"{_giga(train)} for each of {trained:,} images and {_giga(score)} for each of {scored:,} scored"
    return Bound((train * trained + score * scored) / rate, f"{work}, {_product(rate, precision)}")


def _giga(flops: int) -> str:
    return f"{flops / 1e9:.3g} GFLOP"


def _product(rate: float, precision: str) -> str:
    return f"at the {rate / 1e12:.3g} TFLOP/s of a {precision} matrix product"
