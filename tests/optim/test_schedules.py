"""Schedules as tables: equal to torch.optim.lr_scheduler where it has the same schedule."""

import pytest
import torch

from fastcifar.optim.schedules import ScheduleConfig, group_lr_table, lr_table
from fastcifar.runtime.errors import UserError


def torch_table(make, epochs, steps, per_step):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = make(optimizer)
    table = []
    for _ in range(epochs):
        for _ in range(steps):
            table.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if per_step is True or (per_step and len(table) < epochs * steps):
                scheduler.step()
        if not per_step:
            scheduler.step()
    return torch.tensor(table)


def test_step_equals_torch_steplr():
    ours = lr_table(ScheduleConfig("step", step_epochs=3, gamma=0.1), 0.3, 10, 4)
    theirs = torch_table(lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.1), 10, 4, per_step=False)
    torch.testing.assert_close(ours, theirs)


def test_cosine_equals_torch_cosineannealinglr():
    ours = lr_table(ScheduleConfig("cosine", final_factor=0.1), 0.3, 5, 4)
    theirs = torch_table(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20, eta_min=0.03), 5, 4, per_step=True)
    torch.testing.assert_close(ours, theirs)


def test_linear_equals_torch_linearlr():
    ours = lr_table(ScheduleConfig("linear", final_factor=0.2), 0.3, 5, 4)
    theirs = torch_table(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.2, 20), 5, 4, per_step=True)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("name", "strategy"), [("one_cycle", "cos"), ("triangular", "linear")])
def test_a_cycle_equals_torch_onecyclelr(name, strategy):
    config = ScheduleConfig(name, warmup_epochs=1.5, initial_factor=0.2, final_factor=0.01)
    how = {"pct_start": 0.3, "anneal_strategy": strategy, "div_factor": 5, "final_div_factor": 20, "cycle_momentum": False}
    theirs = torch_table(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, 20, **how), 5, 4, per_step="not the last")
    torch.testing.assert_close(lr_table(config, 0.3, 5, 4), theirs)


def test_a_cycle_without_a_rise_starts_at_its_peak():
    table = lr_table(ScheduleConfig("triangular", final_factor=0.5), 1.0, 1, 5)
    torch.testing.assert_close(table, torch.tensor([1.0, 0.875, 0.75, 0.625, 0.5]))


def test_the_warm_up_rises_evenly_to_the_peak():
    table = lr_table(ScheduleConfig("constant", warmup_epochs=1.5), 0.8, 3, 2)
    torch.testing.assert_close(table, torch.tensor([0.2, 0.4, 0.6, 0.8, 0.8, 0.8]))


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match=r"warmup_epochs = 5.0: must be below train.epochs = 5"):
        lr_table(ScheduleConfig(warmup_epochs=5.0), 0.1, 5, 10)


def test_a_group_with_epochs_of_its_own_falls_to_0_within_them():
    groups = [{"peak_lr": 0.3, "epochs": None}, {"peak_lr": 2.0, "epochs": 1.5}]
    table = group_lr_table(ScheduleConfig("linear"), groups, 3, 4)
    assert torch.equal(table[:, 0], lr_table(ScheduleConfig("linear"), 0.3, 3, 4))
    torch.testing.assert_close(table[:, 1], 2.0 * torch.tensor([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0, 0, 0, 0, 0, 0]))
