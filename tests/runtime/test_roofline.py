"""Peak rates are measured, and the floor of a run follows from them."""

import time

import pytest
import torch

from fastcifar.runtime.roofline import measure_peaks, sustained_flops_per_s

CPU = torch.device("cpu")


def test_measured_peaks_are_plausible():
    peaks = measure_peaks(CPU, "fp32")
    assert 1e9 < peaks.flops_per_s < 1e14
    assert 1e8 < peaks.bytes_per_s < 1e13


def test_the_sustained_rate_is_measured_over_the_requested_time():
    began = time.perf_counter()
    rate = sustained_flops_per_s(CPU, "fp32", seconds=0.5)
    assert 1e9 < rate < 1e14
    assert time.perf_counter() - began > 0.2


@pytest.mark.parametrize("measure", [measure_peaks, sustained_flops_per_s])
@pytest.mark.parametrize(("precision", "expected"), [("tf32", True), ("fp32", False)])
def test_products_are_measured_with_the_switches_of_the_precision(measure, precision, expected, monkeypatch):
    """TF32 has the dtype of float32 and differs by PyTorch's switches alone."""
    seen, product = set(), torch.mm

    def mm(*matrices, out):
        seen.add(torch.backends.cuda.matmul.allow_tf32)
        return product(*matrices, out=out)

    monkeypatch.setattr(torch, "mm", mm)
    measure(CPU, precision)
    assert seen == {expected}


@pytest.mark.gpu
def test_a_gpu_reaches_more_in_bf16_than_in_tf32_and_float32():
    fp32, tf32, bf16 = (measure_peaks(torch.device("cuda"), name).flops_per_s for name in ("fp32", "tf32", "bf16"))
    assert fp32 < tf32 < bf16
