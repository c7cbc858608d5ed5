"""The fused optimizers with a tensor learning rate do what torch's plain ones do with a number."""

import copy

import pytest
import torch

from fastcifar.models import SpeedNetConfig, build_model
from fastcifar.optim.optimizers import GroupConfig, OptimizerConfig, build_optimizer
from fastcifar.runtime.errors import UserError

CASES = {
    "sgd": (OptimizerConfig("sgd", nesterov=True), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (OptimizerConfig("adam"), torch.optim.Adam, {"betas": (0.9, 0.999)}),
    "adamw": (OptimizerConfig("adamw"), torch.optim.AdamW, {"betas": (0.9, 0.999)}),
}


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_equal_torch_with_a_changing_learning_rate(name):
    config, reference, arguments = CASES[name]
    torch.manual_seed(0)
    ours = torch.nn.Linear(6, 3)
    theirs = copy.deepcopy(ours)
    optimizer = build_optimizer(ours, config)
    plain = reference(theirs.parameters(), lr=config.lr, weight_decay=config.weight_decay, **arguments)
    for step in range(10):
        lr = 0.1 / (step + 1)
        optimizer.param_groups[0]["lr"].fill_(lr)
        plain.param_groups[0]["lr"] = lr
        inputs = torch.randn(4, 6)
        for model, optim in ((ours, optimizer), (theirs, plain)):
            optim.zero_grad()
            model(inputs).square().sum().backward()
            optim.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_sgd_of_16_bit_weights_is_refused_where_pytorch_corrupts_them(monkeypatch):
    monkeypatch.setattr("fastcifar.optim.optimizers.fused_sgd_works", lambda dtype: False)
    model = torch.nn.Linear(6, 3)
    build_optimizer(model, OptimizerConfig("sgd"))
    with pytest.raises(UserError, match=r"sgd on torch\.bfloat16 weights: .* corrupts them on a CPU"):
        build_optimizer(model.bfloat16(), OptimizerConfig("sgd"))
    build_optimizer(model, OptimizerConfig("adamw"))


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(UserError, match="nesterov"):
        OptimizerConfig("sgd", momentum=0.0, nesterov=True)


def test_a_first_step_that_is_skipped_leaves_no_momentum():
    """As an fp16 step is whose gradients overflow."""
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(model, OptimizerConfig("sgd"))
    scaler = torch.amp.GradScaler("cpu")
    (scaler.scale(model(torch.ones(1, 3)).sum()) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(not state["momentum_buffer"].any() for state in optimizer.state.values())


def test_parameters_go_to_the_first_group_that_matches_and_frozen_ones_to_none():
    model = build_model(SpeedNetConfig(widths=(8, 16)))
    groups = (GroupConfig("first", lr=0.5, epochs=3.0), GroupConfig("head", lr=0.7), GroupConfig("norms", weight_decay=0.0))
    optimizer = build_optimizer(model, OptimizerConfig("muon", lr=0.2, groups=groups))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sorted_ = {tuple(names[id(p)] for p in group["params"]): group for group in optimizer.param_groups}
    filters = tuple(name for name in names.values() if name.endswith(("conv1.weight", "conv2.weight")))
    norms = tuple(name for name in names.values() if "norm" in name and name.endswith("bias"))
    assert sorted_.keys() == {filters, ("first.bias",), ("head.weight",), norms}
    assert [group["peak_lr"] for group in optimizer.param_groups] == [0.2, 0.5, 0.7, 0.2]
    assert sorted_[filters]["newton_schulz_steps"] == 3
    assert {group["newton_schulz_steps"] for key, group in sorted_.items() if key != filters} == {0}
    assert sorted_[norms]["weight_decay"] == 0.0
    assert torch.equal(optimizer.lrs, torch.tensor([0.2, 0.5, 0.7, 0.2]))


def test_an_unknown_optimizer_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        OptimizerConfig("adamww")
