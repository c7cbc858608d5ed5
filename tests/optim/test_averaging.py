"""Averages of the weights: EMA against torch's AveragedModel, Lookahead against its paper's loop."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastcifar.optim.averaging import AverageConfig, build_average, update_tables
from fastcifar.runtime.errors import UserError


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))


def change(model, generator):
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor += torch.randn(tensor.shape, generator=generator)


def test_ema_is_torchs_at_the_steps_where_it_is_due():
    model, generator = small_model(), torch.Generator().manual_seed(1)
    average = build_average(model, AverageConfig("ema", decay=0.9, every=3), 10)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.n_averaged += 1  # its first update copies the weights, of which it has a copy already
    for step in range(10):
        change(model, generator)
        average.update(torch.tensor([step]))
        if step % 3 == 2:
            theirs.update_parameters(model)
    for (name, tensor), other in zip(average.model.state_dict().items(), theirs.module.state_dict().values(), strict=True):
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, other, msg=name)
            assert not torch.equal(tensor, model.state_dict()[name])


def test_lookahead_is_its_papers_loop():
    """Slow weights move by alpha to the fast ones, which then start from them; the last step takes the slow ones."""
    model, generator = small_model(), torch.Generator().manual_seed(1)
    fast, loop_generator = small_model(), torch.Generator().manual_seed(1)
    slow = {name: tensor.clone() for name, tensor in fast.state_dict().items()}
    average = build_average(model, AverageConfig("lookahead", decay=0.8, every=2), 7)
    for step in range(7):
        change(model, generator)
        average.update(torch.tensor([step]))
        change(fast, loop_generator)
        if step % 2 == 1 or step == 6:
            for name, tensor in fast.state_dict().items():
                if step < 6:
                    slow[name] = slow[name] + 0.2 * (tensor - slow[name]) if tensor.is_floating_point() else tensor
                tensor.copy_(slow[name])
        for (name, tensor), other in zip(model.state_dict().items(), fast.state_dict().values(), strict=True):
            torch.testing.assert_close(tensor, other, msg=f"step {step}: {name}")


def test_the_decay_rises_with_the_power():
    moves, jumps = update_tables(AverageConfig("lookahead", decay=0.9, power=3.0, every=2), 8)
    torch.testing.assert_close(1 - moves[[1, 3, 5]], 0.9 * torch.tensor([2 / 8, 4 / 8, 6 / 8]) ** 3)
    assert moves.tolist()[::2] == [0, 0, 0, 0]
    assert jumps.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert moves[-1] == 0


def test_the_average_starts_again_from_the_weights():
    model = small_model()
    average = build_average(model, AverageConfig("ema"), 10)
    change(model, torch.Generator().manual_seed(1))
    average.reset()
    for name, tensor in average.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize("keys", [{"decay": 1.0}, {"decay": -0.1}, {"power": -1.0}, {"every": 0}])
def test_impossible_values_are_refused(keys):
    (key,) = keys
    with pytest.raises(UserError, match=key):
        AverageConfig("ema", **keys)
