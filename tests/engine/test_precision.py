"""Precision: what autocast does, and whether bf16 is worth it."""

import pytest
import torch

from fastcifar.engine.precision import (
    PRECISIONS,
    arithmetic,
    autocast,
    gradient_scaler,
    has_bf16,
    scaler_state,
    to_weights_dtype,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("pure_bf16", torch.bfloat16),
        ("pure_fp16", torch.float16),
        ("tf32", torch.float32),
        ("fp32", torch.float32),
    ],
)
def test_a_forward_pass_computes_in_the_precisions_dtype(precision, dtype):
    model = to_weights_dtype(torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1), torch.nn.BatchNorm2d(2)), precision)
    assert PRECISIONS[precision].compute == dtype
    with autocast(CPU, precision):
        assert model(torch.ones(1, 2, 2, 2, dtype=dtype)).dtype == dtype
    assert model[1].weight.dtype == torch.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_are_scaled_in_fp16_alone(precision):
    scaler = gradient_scaler(CPU, precision)
    assert scaler.scale(torch.ones(())).item() == (2**16 if "fp16" in precision else 1)
    assert bool(scaler_state(scaler)) == ("fp16" in precision)


def test_a_runs_switches_are_set_and_put_back():
    def switches():
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        return cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, torch.are_deterministic_algorithms_enabled()

    before = switches()
    with arithmetic("tf32"):
        assert switches() == (True, True, True, False)
        with arithmetic("fp32", deterministic=True):
            assert switches() == (False, False, False, True)
    assert switches() == before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True), ("asimd i8mm bf16", True), ("avx2 f16c", False)],
)
def test_a_cpus_flags_say_whether_it_has_bf16(tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags} sse\n")
    assert has_bf16(CPU, tmp_path / "cpuinfo") is expected
    assert has_bf16(CPU, tmp_path / "none")
