"""Which loader is chosen, and the reason that is given."""

import pytest
import torch

from fastcifar.data.choice import choose_loader
from fastcifar.runtime.errors import UserError


def test_auto_takes_four_fifths_of_the_free_memory():
    assert choose_loader("auto", 800, "cpu", 1000)[0] == "resident"
    assert choose_loader("auto", 801, "cpu", 1000)[0] == "streaming"
    reason = choose_loader("auto", 100 * 2**30, "cuda", 2**30)[1]
    assert reason == "102,400 MiB of pixels, 1,024 MiB free on cuda, a resident split may take 80% of it"


def test_a_loader_that_is_asked_for_is_chosen_and_no_other_exists():
    assert choose_loader("streaming", 1, "cpu", 1000) == ("streaming", "as asked")
    assert choose_loader("resident", 2000, "cpu", 1000) == ("resident", "as asked")
    with pytest.raises(UserError, match="`loader=disk`: must be auto or one of resident, streaming"):
        choose_loader("disk", 1, "cpu", 1000)


def test_free_memory_is_asked_of_the_system(monkeypatch):
    monkeypatch.setattr("fastcifar.data.choice.free_memory", {torch.device("cpu"): 1000}.get)
    assert choose_loader("auto", 800, "cpu")[0] == "resident"
    assert choose_loader("auto", 801, "cpu")[0] == "streaming"
    assert choose_loader("auto", 801, "meta") == ("resident", "free memory of meta unknown")
