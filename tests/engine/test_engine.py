"""The engine: built once, used by many runs, compiled once."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from helpers import with_train

from fastcifar.engine.engine import Engine
from fastcifar.runtime.distributed import World, process_group
from fastcifar.runtime.precision import PRECISIONS


def state_of(engine):
    tensors = {**engine.model.state_dict(), **engine.scaler_state(), "losses": engine.step.losses}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor.nan_to_num(), other[name].nan_to_num()), name


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("precision", ["fp32", "pure_bf16", "fp16"])
@pytest.mark.parametrize(("optimizer", "pad"), [("sgd", 0), ("adamw", 8)])
def test_a_reset_engine_trains_as_a_new_one_of_that_seed(recipe, dataset, needs_sgd, precision, optimizer, pad, device):
    """Dropout included; on a GPU it takes deterministic kernels to be the same to the bit."""
    if (optimizer, device) == ("sgd", "cpu"):
        needs_sgd(precision)
    recipe = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, name=optimizer))
    recipe = with_train(recipe, pad_widths=pad, deterministic=True).with_precision(precision)
    with process_group(device) as world:
        used = Engine(recipe, dataset, world)
        used.step.run(7)
        used.reset(3)
        fresh = Engine(recipe.with_seed(3), dataset, world)
        assert_same(state_of(used), state_of(fresh))
        random_state = torch.get_rng_state()
        for engine in (used, fresh):
            torch.manual_seed(1) if device == "cuda" else torch.set_rng_state(random_state)
            engine.step.run(7)
        assert_same(state_of(used), state_of(fresh))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_trains_to_about_the_same_loss(recipe, dataset, needs_sgd, precision):
    needs_sgd(precision)
    losses = {}
    for name in ("fp32", precision):
        with process_group("cpu") as world:
            engine = Engine(recipe.with_precision(name), dataset, world)
            engine.step.run(10)
            losses[name] = engine.step.losses
    torch.testing.assert_close(losses[precision], losses["fp32"], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.float32), ("pure_bf16", torch.bfloat16), ("pure_fp16", torch.float16)]
)
def test_pure_precisions_keep_all_weights_but_batchnorms_in_16_bits(recipe, dataset, needs_sgd, precision, dtype):
    needs_sgd(precision)
    with process_group("cpu") as world:
        engine = Engine(recipe.with_precision(precision), dataset, world)
    dtypes = {name: parameter.dtype for name, parameter in engine.model.named_parameters()}
    assert {kind for name, kind in dtypes.items() if ".norm." in name} == {torch.float32}
    assert {kind for name, kind in dtypes.items() if ".norm." not in name} == {dtype}


def test_a_step_whose_gradients_overflow_is_skipped_and_the_scale_halved(recipe, dataset):
    with process_group("cpu") as world:
        engine = Engine(recipe.with_precision("fp16"), dataset, world)
        scale = engine.scaler_state()["scaler_scale"]
        engine.step.run(1)
        scale.fill_(2.0**40)
        before = [parameter.clone() for parameter in engine.model.parameters()]
        engine.step.run(1)
    assert scale.item() == 2.0**39
    for parameter, old in zip(engine.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_evaluation_that_cannot_be_compiled_is_eager_and_says_why(recipe, dataset, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no kernel")

    monkeypatch.setattr("fastcifar.engine.step.compile_static", lambda function: function)
    monkeypatch.setattr("fastcifar.engine.evaluate.compile_static", lambda function: refuse)
    with process_group("cpu") as world:
        engine, eager = (Engine(recipe, dataset, world, backend=name) for name in ("compiled", "eager"))
        engine.warm_up()
        assert engine.backend == "compiled"
        assert engine.backend_reason == "as asked; evaluation is eager: no kernel"
        scores = []
        for one in (engine, eager):
            one.evaluator("val").run()
            scores.append(one.evaluator("val").score())
    assert torch.equal(scores[0].confusion, scores[1].confusion)


def test_evaluation_that_fails_with_the_options_asked_for_is_compiled_with_plain_ones(recipe, dataset, monkeypatch):
    from torch._inductor import config

    def fail_if_tuned(function):
        def compiled(*arguments):
            if config.max_autotune:
                raise RuntimeError("no valid triton configs")
            return function(*arguments)

        return compiled

    monkeypatch.setattr("fastcifar.engine.step.compile_static", lambda function: function)
    monkeypatch.setattr("fastcifar.engine.evaluate.compile_static", fail_if_tuned)
    with process_group("cpu") as world, Engine(recipe, dataset, world, backend="compiled") as engine:
        with config.patch(max_autotune=True):
            engine.warm_up()
        expected = "as asked; evaluation is compiled with plain options: no valid triton configs"
        assert engine.backend_reason == expected
        engine.evaluator("val").run()
        assert engine.evaluator("val").score().images == 20


@pytest.mark.gpu
def test_validation_and_test_are_captured_in_the_warm_up(recipe, dataset):
    with process_group("cuda") as world:
        engine = Engine(recipe, dataset, world, backend="captured")
        engine.warm_up()
        assert all(engine.evaluator(split).replay for split in ("val", "test"))


@pytest.mark.gpu
def test_evaluation_that_cannot_be_compiled_is_captured_in_the_warm_up_too(recipe, dataset, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no kernel")

    monkeypatch.setattr("fastcifar.engine.evaluate.compile_static", lambda function: refuse)
    with process_group("cuda") as world:
        engine = Engine(recipe, dataset, world, backend="captured")
        engine.warm_up()
        assert engine.backend_reason == "as asked; evaluation is eager: no kernel"
        assert all(engine._evaluators[split].replay for split in ("val", "test"))


def test_an_engine_on_a_cpu_keeps_what_it_frees(recipe, dataset, monkeypatch):
    told = []
    monkeypatch.setattr("fastcifar.engine.engine.keep_freed_memory", lambda: told.append(True))
    Engine(recipe, dataset, World(torch.device("cpu")))
    assert told


COUNT = """
import json, sys, torch
from fastcifar.runtime.distributed import World, process_group
from fastcifar.engine.engine import Engine
from torch._dynamo.utils import counters

case = torch.load(sys.argv[1], weights_only=False)
with process_group(sys.argv[2]) as world:
    engine = Engine(case["recipe"], case["dataset"], world, backend=sys.argv[3])
    engine.warm_up()
    counts = [counters["stats"]["unique_graphs"]]
    for seed in range(2):
        if seed:
            engine.reset(seed)
        for epoch in range(2):
            engine.step.run(len(engine.loader))
            for split in ("val", "test"):
                engine.evaluator(split).run()
        counts.append(counters["stats"]["unique_graphs"])
print(json.dumps([engine.backend, *counts]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "backend"),
    [("cpu", "compiled"), *(pytest.param("cuda", name, marks=pytest.mark.gpu) for name in ("compiled", "captured"))],
)
def test_nothing_is_compiled_after_the_warm_up_not_by_a_second_run_either(recipe, dataset, tmp_path, device, backend):
    """In a process of its own, which has compiled nothing before."""
    torch.save({"recipe": recipe, "dataset": dataset}, tmp_path / "case.pt")
    command = [sys.executable, "-W", "ignore", "-c", COUNT, str(tmp_path / "case.pt"), device, backend]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    used, warm, first, second = json.loads(done.stdout.splitlines()[-1])
    assert used == backend
    assert 0 < warm == first == second
