"""Muon's iteration against the SVD and torch.optim.Muon, and an update against one matrix at a time."""

import math

import pytest
import torch

from fastcifar.optim.muon_reference import COEFFICIENTS, orthogonalize, update_filters

SHAPES = [(8, 3, 3, 3), (16, 8, 3, 3), (8, 16, 1, 1), (4, 2, 5, 5)]
NESTEROV = pytest.mark.parametrize("nesterov", [True, False])


def one_by_one(matrix, steps):
    """Jordan's iteration for one matrix, the shorter side in front, as published."""
    a, b, c = COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    x = x.T if len(matrix) > matrix.shape[1] else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if len(matrix) > matrix.shape[1] else x


def banks(seed, shapes=SHAPES):
    torch.manual_seed(seed)
    return [torch.randn(shape).to(memory_format=torch.channels_last) for shape in shapes]


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


@NESTEROV
def test_three_updates_are_those_of_one_filter_bank_at_a_time(nesterov):
    ours, theirs, buffers = banks(0), banks(0), [torch.zeros(shape) for shape in SHAPES]
    momenta = [torch.zeros_like(bank) for bank in ours]
    for step in range(3):
        gradients = banks(step + 1)
        options = {"momentum": 0.6, "nesterov": nesterov, "steps": 3, "dtype": torch.float32}
        update_filters(ours, gradients, momenta, lr=torch.tensor(0.1), **options)
        for bank, gradient, buffer in zip(theirs, gradients, buffers, strict=True):
            buffer.mul_(0.6).add_(gradient)
            update = gradient + 0.6 * buffer if nesterov else buffer
            bank *= math.sqrt(len(bank)) / bank.norm()
            bank -= 0.1 * one_by_one(update.flatten(1), 3).view_as(bank)
    for one, other in zip((*ours, *momenta), (*theirs, *buffers), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@NESTEROV
def test_three_updates_of_matrices_are_those_of_torchs_muon_on_scaled_weights(nesterov):
    """Its momentum is a mean, here it is a sum, which orthogonalising does not see."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    [ours], [theirs] = banks(0, [(8, 30, 1, 1)]), banks(0, [(8, 30, 1, 1)])
    theirs = torch.nn.Parameter(theirs[:, :, 0, 0])  # not more rows than columns, or torch's would have a larger learning rate
    momentum = torch.zeros_like(ours)
    muon = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, momentum=0.6, nesterov=nesterov, ns_steps=3)
    for step in range(3):
        [gradient] = banks(step + 1, [(8, 30, 1, 1)])
        update_filters([ours], [gradient], [momentum], lr=torch.tensor(0.1), momentum=0.6, nesterov=nesterov, steps=3)
        theirs.data *= math.sqrt(len(theirs)) / theirs.data.norm()
        theirs.grad = gradient[:, :, 0, 0]
        muon.step()
    torch.testing.assert_close(ours[:, :, 0, 0], theirs.data, rtol=0, atol=0.1 * 2**-5)  # both iterate in bf16
