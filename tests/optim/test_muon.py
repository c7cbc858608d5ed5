"""Muon as an optimizer: its groups, loss scaling, CUDA graphs, and the choice of its implementation."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from helpers import make_step, with_train

from fastcifar.optim import muon_reference
from fastcifar.optim.muon import Muon, choose_update
from fastcifar.optim.optimizers import OptimizerConfig
from fastcifar.runtime import compiler as compiler_of_triton

SHAPES = [(8, 3, 3, 3), (16, 8, 3, 3), (8, 16, 1, 1)]


def group(parameters, lr=0.1, **changes):
    lr = torch.tensor(lr, device=parameters[0].device)
    settings = {"lr": lr, "momentum": 0.6, "nesterov": True, "weight_decay": 0.01, "newton_schulz_steps": 3}
    return {"params": parameters} | settings | changes


def build(device="cpu", dtype=torch.float32):
    """Parameters, those of the filters first, and their optimizer, one group of each kind."""
    torch.manual_seed(0)
    filters = [torch.randn(shape).to(memory_format=torch.channels_last) for shape in SHAPES]
    parameters = [torch.nn.Parameter(tensor.to(device, dtype)) for tensor in (*filters, torch.randn(5), torch.randn(2, 3))]
    groups = group(parameters[: len(SHAPES)]), group(parameters[len(SHAPES) :], newton_schulz_steps=0)
    return parameters, Muon(list(groups))


def set_gradients(parameters, step, scale=1.0):
    torch.manual_seed(step)
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape).to(parameter, memory_format=torch.preserve_format)


def state(optimizer):
    """Copies of all weights, then of all momentum."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    momentum = [optimizer.state[parameter]["momentum_buffer"] for parameter in parameters]
    return [tensor.detach().clone() for tensor in (*parameters, *momentum)]


def test_a_group_with_iteration_is_updated_as_the_reference_says():
    parameters, optimizer = build()
    filters = [parameter.detach().clone() for parameter in parameters[: len(SHAPES)]]
    momentum = [torch.zeros_like(bank) for bank in filters]
    for step in range(3):
        set_gradients(parameters, step)
        gradients = [parameter.grad for parameter in parameters[: len(SHAPES)]]
        options = {"lr": torch.tensor(0.1), "momentum": 0.6, "nesterov": True, "steps": 3}
        muon_reference.update_filters(filters, gradients, momentum, **options)
        optimizer.step()
    for ours, theirs in zip(parameters, filters, strict=False):
        assert torch.equal(ours, theirs)


def test_groups_without_iteration_are_sgds():
    parameters, optimizer = build()
    ours = parameters[len(SHAPES) :]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    plain = torch.optim.SGD(theirs, lr=0.1, momentum=0.6, nesterov=True, weight_decay=0.01)
    for step in range(3):
        set_gradients(parameters, step)
        for one, other in zip(ours, theirs, strict=True):
            other.grad = one.grad.clone()
        optimizer.step()
        plain.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.float32),
        pytest.param("cuda", torch.float32, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.float16, marks=pytest.mark.gpu),  # on a CPU, fused SGD of PyTorch 2.14 is wrong
    ],
)
def test_loss_scaling_changes_nothing_but_skips_steps_that_overflow_without_waiting(device, dtype, without_waiting):
    (ours, scaled), (theirs, plain) = build(device, dtype), build(device, dtype)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    scaler.scale(torch.zeros((), device=device))
    for step in range(3):
        set_gradients(ours, step, 2.0**10 if step < 2 else 2.0**9)
        set_gradients(theirs, step)
        overflows = step == 1
        if overflows:
            ours[-1].grad[0] = float("inf")
        before = state(scaled)
        with without_waiting() if device == "cuda" else nullcontext():
            scaler.step(scaled)
            scaler.update()
        if overflows:
            assert all(map(torch.equal, before, state(scaled)))
        else:
            plain.step()
    assert scaler.get_scale() == 2.0**9
    tolerance = {} if dtype == torch.float32 else {"rtol": 2**-9, "atol": 2**-9}  # the reference rounds scaled gradients later
    torch.testing.assert_close(state(scaled), state(plain), **tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_training_is_captured_and_equals_eager_training(recipe, dataset, precision):
    recipe = with_train(recipe, precision=precision)
    optimizer = OptimizerConfig("muon", lr=0.05, momentum=0.6, nesterov=True)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dropout=0.0), optimizer=optimizer)
    losses = {}
    for backend in ("eager", "captured"):
        _, step = make_step(recipe, dataset, backend, "cuda")
        step.run(6)
        assert step.backend == backend, step.failure
        losses[backend] = step.losses[:6].cpu()
    torch.testing.assert_close(losses["captured"], losses["eager"], rtol=1e-3 if precision == "fp32" else 2e-2, atol=0)


@pytest.mark.gpu
def test_a_captured_step_under_loss_scaling_is_the_eager_one():
    (ours, captured), (theirs, eager) = build("cuda"), build("cuda")
    scalers = [torch.amp.GradScaler("cuda", init_scale=2.0**10) for _ in range(2)]
    for scaler in scalers:
        scaler.scale(torch.zeros((), device="cuda"))
    set_gradients(theirs, 0)
    scalers[1].step(eager)  # compiles
    scalers[1].update()
    (theirs, eager), graph = build("cuda"), torch.cuda.CUDAGraph()
    set_gradients(ours, 0)
    with torch.cuda.graph(graph):
        scalers[0].step(captured)
        scalers[0].update()
    for step, bad in enumerate((0.0, float("inf"), 0.0)):
        set_gradients(theirs, step, 2.0**10)
        theirs[0].grad[0] += bad
        for one, other in zip(ours, theirs, strict=True):
            one.grad.copy_(other.grad)  # where the graph reads it
        graph.replay()
        scalers[1].step(eager)
        scalers[1].update()
        assert all(map(torch.equal, state(captured), state(eager)))
    assert scalers[0].get_scale() == 2.0**9


def test_the_kernels_serve_gpus_that_multiply_bf16_and_the_reference_the_rest(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(compiler_of_triton, "missing_compiler", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert choose_update(cuda) == ("fused", "the fewest launches")
    assert choose_update(torch.device("cpu")) == ("reference", "Triton kernels need CUDA")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_update(cuda) == ("reference", "the kernels need compute capability 8.0")
    monkeypatch.setattr(compiler_of_triton, "missing_compiler", lambda: "a C compiler")
    assert choose_update(cuda) == ("reference", "Triton needs a C compiler")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_update(cuda)[0] == "reference" and choose_update(cuda)[1].startswith("TRITON_INTERPRET=1: ")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_update(cuda) == ("reference", "Triton is not installed")


def test_the_optimizer_says_which_implementation_it_has_and_why():
    _, optimizer = build()
    assert (optimizer.implementation, optimizer.implementation_reason) == choose_update(torch.device("cpu"))
