"""Reading traces: made by hand, where every duration is known, and by the profiler."""

import gzip
import json

import pytest
import torch

from fastcifar.profiling import trace
from fastcifar.profiling.trace import Work, busy_seconds, group_of, parse, phases_by_order


def event(category, name, begin, duration, tid=1, **args):
    return {"ph": "X", "cat": category, "name": name, "ts": begin * 1e6, "dur": duration * 1e6, "tid": tid, "args": args}


def marks(*times):
    names = ("begin", *trace.PHASES)
    return [event("user_annotation", f"fastcifar:{name}", time, 0) for name, time in zip(names, times, strict=True)]


def test_an_operators_own_time_is_without_what_it_calls_and_its_phase_that_of_the_next_mark():
    operators = [
        event("cpu_op", "aten::conv2d", 2.0, 1.0),
        event("cpu_op", "aten::mkldnn_convolution", 2.1, 0.8),
        event("cpu_op", "aten::empty", 2.2, 0.1),
        event("cpu_op", "aten::copy_", 0.1, 0.5),
        event("cpu_op", "aten::native_batch_norm_backward", 4.2, 0.5, tid=2),
        event("cpu_op", "aten::mm", 9.0, 0.5),
    ]
    read = parse([*operators, *marks(0, 1, 3.5, 4, 5, 6)])
    found = {one.name: (round(one.seconds, 9), one.phase, one.group) for one in read.work}
    assert found["aten::conv2d"] == (0.2, "forward", "convolution and matrix product")
    assert found["aten::mkldnn_convolution"] == (0.7, "forward", "convolution and matrix product")
    assert found["aten::copy_"] == (0.5, "augment", "augmentation")
    assert found["aten::native_batch_norm_backward"] == (0.5, "backward", "normalisation")
    assert found["aten::mm"][1] == ""
    assert read.host_s == {"augment": 1, "forward": 2.5, "loss": 0.5, "backward": 1, "optimizer": 1}
    assert read.on_cpu


def test_a_kernels_phase_is_that_in_which_the_host_launched_it():
    events = [
        *marks(0, 1, 2, 3, 4, 5),
        event("cuda_runtime", "cudaLaunchKernel", 0.5, 0.1, correlation=7),
        event("kernel", "_augment_kernel", 3.5, 0.2, correlation=7),
        event("cuda_runtime", "cudaLaunchKernel", 1.5, 0.1, correlation=8),
        event("kernel", "sm90_xmma_fprop_implicit_gemm_bf16", 3.7, 0.4, correlation=8),
        event("gpu_memcpy", "Memcpy DtoD", 4.2, 0.1, correlation=9),
        event("cpu_op", "aten::conv2d", 1.4, 0.3),
        event("cuda_runtime", "cudaStreamSynchronize", 3.9, 0.5, correlation=11),
        event("cuda_runtime", "cudaDeviceSynchronize", 8.0, 0.5, correlation=12),
    ]
    read = parse(events)
    assert [(one.phase, one.group) for one in read.work[:2]] == [
        ("augment", "augmentation"),
        ("forward", "convolution and matrix product"),
    ]
    assert len(read.work) == 3
    assert read.waits == ("cudaStreamSynchronize",)
    assert not read.on_cpu


def test_kernels_of_a_graph_are_told_from_those_launched_beside_it():
    events = [
        event("cuda_runtime", "cudaLaunchKernel", 0.1, 0.1, correlation=6),
        event("kernel", "fill", 0.2, 0.1, correlation=6),
        event("cuda_runtime", "cudaGraphLaunch", 0.5, 0.1, correlation=7),
        event("kernel", "a", 1.0, 0.2, correlation=7),
        event("kernel", "b", 1.2, 0.2, correlation=7),
    ]
    assert [(one.name, one.replayed) for one in parse(events).work] == [("fill", False), ("a", True), ("b", True)]


@pytest.mark.parametrize(
    ("name", "phase", "group"),
    [
        ("triton_red_fused__native_batch_norm_legit_functional_relu_3", "forward", "normalisation"),
        ("void cudnn::bn_fw_tr_1C11_singleread_specialized", "forward", "normalisation"),
        ("nvjet_hsh_128x256_64x4_1x2", "forward", "convolution and matrix product"),
        ("cutlass_tensorop_bf16_s16816wgrad_optimized", "backward", "convolution and matrix product"),
        ("Memcpy HtoD (Pinned -> Device)", "augment", "copies"),
        ("void at::native::(anonymous)::multi_tensor_apply_kernel<FusedSgdMathFunctor>", "optimizer", "optimizer"),
        ("triton_poi_fused_add_relu_7", "forward", "elementwise and reductions"),
        ("aten::threshold_backward", "backward", "elementwise and reductions"),
    ],
)
def test_kernels_are_grouped_by_name(name, phase, group):
    assert group_of(name, phase) == group


def work(name, begin=0.0, end=1.0, phase=""):
    return Work(name, begin, end, end - begin, phase, "")


def test_replayed_kernels_get_the_phases_of_the_same_ones_launched_one_by_one():
    body = [work("a", phase="augment"), work("conv", phase="forward"), work("conv", phase="backward")]
    replayed, found = phases_by_order([work(name) for name in ("a", "conv", "conv") * 3], body, 3)
    assert [one.phase for one in replayed] == ["augment", "forward", "backward"] * 3
    assert found == {"by position": 9}


@pytest.mark.parametrize("steps", [1, 3])
def test_a_kernel_of_two_phases_is_told_apart_where_some_kernels_are_others(steps):
    """The graph has one kernel more (x), one less (add), and one whose place is another (a)."""
    phases = {"a": "augment", "conv": "forward", "add": "forward", "loss": "loss"}
    body = [work(name, phase=phase) for name, phase in phases.items()]
    body += [work("conv", phase="backward"), work("sgd", phase="optimizer")]
    replayed, found = phases_by_order([work(name) for name in ("conv", "x", "loss", "conv", "sgd", "a") * steps], body, steps)
    assert [one.phase for one in replayed] == ["forward", "", "loss", "backward", "optimizer", "augment"] * steps
    assert found == {"by alignment": 4 * steps, "unknown": steps, "by name": steps}


def test_steps_with_a_kernel_between_two_of_them_are_aligned_as_a_whole():
    body = [work("conv", phase="forward"), work("conv", phase="backward"), work("sgd", phase="optimizer")]
    step = ["conv", "conv", "sgd"]
    replayed, found = phases_by_order([work(name) for name in (*step, "x", *step)], body, 2)
    assert [one.phase for one in replayed] == ["forward", "backward", "optimizer", "", "forward", "backward", "optimizer"]
    assert found == {"by alignment": 6, "unknown": 1}


def test_no_kernels_have_no_phases():
    assert phases_by_order([], [], 2) == ([], {})


def test_a_kernel_is_of_the_step_in_which_the_host_launched_it():
    launches = [event("cuda_runtime", "cudaLaunchKernel", time, 0.1, correlation=time) for time in (0.5, 10.5)]
    kernels = [event("kernel", name, 20 + time, 0.1, correlation=time) for time, name in ((0.5, "first"), (10.5, "second"))]
    read = parse([*marks(0, 1, 2, 3, 4, 5), *marks(10, 11, 12, 13, 14, 15), *launches, *kernels])
    assert [(one.name, one.step) for one in read.work] == [("first", 1), ("second", 2)]


def test_time_in_which_several_work_counts_once():
    assert busy_seconds([work("a", 0, 2), work("b", 1, 3), work("c", 5, 6), work("d", 5.2, 5.8)]) == pytest.approx(4)
    assert busy_seconds([]) == 0


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_trace_of_the_profiler_is_read(tmp_path, name):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recording:
        trace.mark("begin")
        torch.randn(300, 300) @ torch.randn(300, 300)
        trace.mark("augment")
        torch.randn(300, 300) @ torch.randn(300, 300)
        trace.mark("forward")
    recording.export_chrome_trace(str(tmp_path / name))
    read = trace.read_trace(tmp_path / name)
    products = [one for one in read.work if one.name == "aten::mm"]
    assert [one.phase for one in products] == ["augment", "forward"]
    assert set(read.host_s) == {"augment", "forward"}


def test_a_compressed_trace_is_json_for_perfetto(tmp_path):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recording:
        torch.ones(3)
    recording.export_chrome_trace(str(tmp_path / "trace.json.gz"))
    assert json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
