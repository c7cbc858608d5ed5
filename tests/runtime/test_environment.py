"""The device asked for, or one line why not."""

import json

import pytest
import torch

from fastcifar.runtime.device import choose_device
from fastcifar.runtime.environment import environment
from fastcifar.runtime.errors import UserError


def test_auto_takes_cuda_where_there_is_one():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("asked", ["gpu", "mps", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(asked):
    with pytest.raises(UserError, match=f"`device={asked}`"):
        choose_device(asked)


def test_the_environment_is_json_and_names_the_device():
    described = environment(torch.device("cpu"))
    assert json.loads(json.dumps(described)) == described
    assert described["device_name"].endswith("threads")
