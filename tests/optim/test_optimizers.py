"""The fused optimizers with a tensor learning rate do what torch's plain ones do with a number."""

import copy

import pytest
import torch

from fastcifar.optim.optimizers import OptimizerConfig, build_optimizer
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
