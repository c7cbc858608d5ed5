"""Peak rates are measured, and the floor of a run follows from them."""

import time

import pytest
import torch

from fastcifar.runtime.roofline import Ceilings, floor_seconds, measure_ceilings, sustained_flops_per_s


def test_the_floor_of_the_seed_run_on_the_measured_ceiling_of_an_h200():
    ceilings = Ceilings(flops_per_s=790e12, bytes_per_s=4.3e12)
    assert floor_seconds(496_697_088, 1_600_000, ceilings) == pytest.approx(6.04, abs=0.01)


def test_measured_ceilings_are_plausible():
    ceilings = measure_ceilings(torch.device("cpu"), torch.float32)
    assert 1e9 < ceilings.flops_per_s < 1e14
    assert 1e8 < ceilings.bytes_per_s < 1e13


def test_the_sustained_rate_is_measured_over_the_requested_time():
    began = time.perf_counter()
    rate = sustained_flops_per_s(torch.device("cpu"), torch.float32, seconds=0.5)
    assert 1e9 < rate < 1e14
    assert time.perf_counter() - began > 0.2


@pytest.mark.gpu
def test_a_gpu_reaches_more_in_bf16_than_in_float32():
    device = torch.device("cuda")
    assert measure_ceilings(device, torch.bfloat16).flops_per_s > measure_ceilings(device, torch.float32).flops_per_s
