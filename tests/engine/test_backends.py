"""The back end of a step: the first that is possible, and why."""

import pytest
import torch

from fastcifar.engine.backends import choose_backend
from fastcifar.runtime.errors import UserError


def test_an_unknown_back_end_is_refused():
    with pytest.raises(UserError, match="`backend=captive`: must be auto or one of captured, compiled, eager"):
        choose_backend("captive", torch.device("cpu"))


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr("fastcifar.runtime.compiler.shutil.which", lambda name: None)
    missing = "torch.compile needs a C compiler, and none is installed (Debian: build-essential)"
    for asked in ("auto", "captured", "compiled"):
        assert choose_backend(asked, torch.device("cuda")) == ("eager", missing)


@pytest.mark.parametrize(
    ("asked", "device", "streaming", "expected"),
    [
        ("auto", "cpu", False, ("eager", "torch.compile is no gain on a CPU")),
        ("auto", "cuda", False, ("captured", "the fewest launches")),
        ("auto", "cuda", True, ("compiled", "streamed batches come from the host, which a CUDA graph cannot wait for")),
        ("captured", "cuda", False, ("captured", "as asked")),
        ("captured", "cpu", False, ("compiled", "a CUDA graph needs a CUDA device, this is cpu")),
        ("compiled", "cpu", True, ("compiled", "as asked")),
        ("eager", "cuda", False, ("eager", "as asked")),
    ],
)
def test_the_back_end_is_the_first_that_can_be_had_and_says_why(asked, device, streaming, expected):
    assert choose_backend(asked, torch.device(device), streaming=streaming) == expected
