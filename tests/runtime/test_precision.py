"""Precision: what autocast does, and whether bf16 is worth it."""

import os
import subprocess
import sys

import pytest
import torch

from fastcifar.runtime.precision import (
    PRECISIONS,
    arithmetic,
    autocast,
    emulation_warning,
    gradient_scaler,
    has_bf16,
    has_fp16,
    resolve_precision,
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
def test_a_cpus_flags_say_whether_it_has_bf16(tmp_path, monkeypatch, flags, expected):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags} sse\n")
    assert has_bf16(CPU, tmp_path / "cpuinfo") is expected
    assert has_bf16(CPU, tmp_path / "none")


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("isa", "expected"), [("AVX2", False), ("avx512_core", False), ("AVX512_CORE_BF16", True), ("ALL", True)]
)
def test_bf16_that_onednn_was_told_not_to_use_is_none(tmp_path, monkeypatch, variable, isa, expected):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv(variable, isa)
    (tmp_path / "cpuinfo").write_text("flags : avx512_bf16\n")
    assert has_bf16(CPU, tmp_path / "cpuinfo") is expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")]
)
def test_auto_follows_the_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    precision, reason = resolve_precision("auto", torch.device("cuda", 0))
    assert precision == expected
    assert reason.startswith("auto: cuda:0 ")


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_follows_the_cpu(monkeypatch, bf16, expected):
    monkeypatch.setattr("fastcifar.runtime.precision.has_bf16", lambda device: bf16)
    assert resolve_precision("auto", CPU)[0] == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx512_bf16 f16c", False), ("avx512_bf16 avx512_fp16", True), ("amx_fp16", True), ("fphp asimdhp", True)],
)
def test_a_cpus_flags_say_whether_it_has_fp16(tmp_path, monkeypatch, flags, expected):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags} sse\n")
    assert has_fp16(CPU, tmp_path / "cpuinfo") is expected
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert not has_fp16(CPU, tmp_path / "cpuinfo")
    assert has_fp16(torch.device("cuda"), tmp_path / "cpuinfo")


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_what_was_asked_for_stays_and_a_warning_tells_that_it_is_emulated(monkeypatch, name):
    monkeypatch.setattr("fastcifar.runtime.precision.has_bf16", lambda device: name != "bf16")
    monkeypatch.setattr("fastcifar.runtime.precision.has_fp16", lambda device: name != "fp16")
    assert resolve_precision(name, CPU) == (name, "as asked")
    emulated = [precision for precision in PRECISIONS if emulation_warning(precision, CPU)]
    assert emulated == [name, f"pure_{name}"]
    assert f"cpu has no {name} arithmetic and emulates it" in emulation_warning(name, CPU)


@pytest.mark.parametrize(("chosen", "expected"), [({}, ":4096:8"), ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, ":16:8")])
def test_cublas_is_configured_before_cuda_starts(chosen, expected):
    """cuBLAS reads it when it starts; the user's own value stays."""
    name = "CUBLAS_WORKSPACE_CONFIG"
    code = f"import os, torch, fastcifar.runtime.precision; print(torch.cuda.is_initialized(), os.environ['{name}'])"
    environment = {key: value for key, value in os.environ.items() if key != name} | chosen
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", expected]
