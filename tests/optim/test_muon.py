"""Muon: its iteration against the SVD and torch.optim.Muon, and a step against one matrix at a time."""

import math

import pytest
import torch

from fastcifar.optim.muon import COEFFICIENTS, Muon, orthogonalize

SHAPES = [(8, 3, 3, 3), (16, 8, 3, 3), (8, 16, 1, 1), (4, 2, 5, 5)]


def one_by_one(matrix, steps):
    """Jordan's iteration for one matrix, the shorter side in front, as published."""
    a, b, c = COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    x = x.T if len(matrix) > matrix.shape[1] else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if len(matrix) > matrix.shape[1] else x


def filters(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, dtype=dtype).to(memory_format=torch.channels_last)) for shape in SHAPES]


def group(parameters, **changes):
    settings = {"lr": torch.tensor(0.1), "momentum": 0.6, "nesterov": True, "weight_decay": 0.0, "newton_schulz_steps": 3}
    return {"params": parameters} | settings | changes


def test_a_padded_batch_is_orthogonalised_as_each_matrix_alone():
    matrices = [torch.randn(6, 20, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)]
    batch = torch.zeros(2, 6, 20, dtype=torch.float64)
    for row, matrix in zip(batch, matrices, strict=True):
        row[: matrix.shape[0], : matrix.shape[1]] = matrix
    done = orthogonalize(batch, 5)
    for row, matrix in zip(done, matrices, strict=True):
        torch.testing.assert_close(row[: matrix.shape[0], : matrix.shape[1]], one_by_one(matrix, 5))
        assert not row[matrix.shape[0] :].any() and not row[:, matrix.shape[1] :].any()


def test_directions_are_kept_and_singular_values_come_near_1():
    matrix = torch.randn(1, 8, 30, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix[0], full_matrices=False)
    values = left.T @ orthogonalize(matrix, 5)[0] @ right.T
    torch.testing.assert_close(values, torch.diag(values.diagonal()))
    assert values.diagonal().min() > 0.6 and values.diagonal().max() < 1.25


def test_the_iteration_is_that_of_torchs_muon():
    muon = pytest.importorskip("torch.optim._muon", reason="this PyTorch has no Muon")
    matrix = torch.randn(8, 30)
    theirs = muon._zeropower_via_newtonschulz(matrix, COEFFICIENTS, 5, 1e-7).float()
    torch.testing.assert_close(orthogonalize(matrix[None], 5)[0], theirs, rtol=0, atol=0.05)  # theirs computes in bf16


def test_three_steps_are_those_of_one_filter_bank_at_a_time(monkeypatch):
    monkeypatch.setattr("fastcifar.optim.muon.DTYPE", torch.float32)
    ours, theirs = filters(), filters()
    optimizer, buffers = Muon([group(ours)]), [torch.zeros_like(bank) for bank in theirs]
    for step in range(3):
        torch.manual_seed(step)
        gradients = [torch.randn_like(bank) for bank in ours]
        for bank, gradient in zip(ours, gradients, strict=True):
            bank.grad = gradient.clone()
        optimizer.step()
        for bank, gradient, buffer in zip(theirs, gradients, buffers, strict=True):
            buffer.mul_(0.6).add_(gradient)
            update = one_by_one((gradient + 0.6 * buffer).flatten(1), 3).view_as(bank)
            bank.data *= math.sqrt(len(bank)) / bank.data.norm()
            bank.data -= 0.1 * update
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_groups_without_iteration_are_sgds():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Parameter(torch.randn(5)), torch.nn.Parameter(torch.randn(5))
    theirs.data.copy_(ours.data)
    optimizer = Muon([group([ours], newton_schulz_steps=0, weight_decay=0.01)])
    plain = torch.optim.SGD([theirs], lr=0.1, momentum=0.6, nesterov=True, weight_decay=0.01)
    for _ in range(3):
        ours.grad, theirs.grad = ours.detach() ** 2, theirs.detach() ** 2
        optimizer.step()
        plain.step()
    torch.testing.assert_close(ours, theirs)
