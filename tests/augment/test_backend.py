import pytest
import torch

from fastcifar.augment import backend, batch
from fastcifar.runtime.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("FASTCIFAR_AUGMENT", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_the_kernel_serves_cuda_and_the_reference_the_rest():
    assert backend.choose_augment(CUDA)[0] == "fused"
    assert backend.choose_augment(CPU) == ("reference", "Triton kernels need CUDA")


def test_without_triton_the_reference_serves_cuda_and_says_why(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert backend.choose_augment(CUDA) == ("reference", "Triton is not installed")


def test_the_variable_forces_one(monkeypatch):
    monkeypatch.setenv("FASTCIFAR_AUGMENT", "reference")
    assert backend.choose_augment(CUDA) == ("reference", "FASTCIFAR_AUGMENT says so")
    monkeypatch.setenv("FASTCIFAR_AUGMENT", "fused")
    assert backend.choose_augment(CUDA)[0] == "fused"
    with pytest.raises(UserError, match="FASTCIFAR_AUGMENT=fused: Triton kernels need CUDA"):
        backend.choose_augment(CPU)
    monkeypatch.setenv("FASTCIFAR_AUGMENT", "fast")
    with pytest.raises(UserError, match="FASTCIFAR_AUGMENT=fast: must be fused or reference"):
        backend.choose_augment(CUDA)


def test_the_reference_is_the_reference():
    assert backend.batch_loader("reference") is batch.load_batch
