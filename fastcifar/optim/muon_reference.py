"""Muon's update of convolution filters in PyTorch: the specification of `muon_fused.update_filters`.

Keller Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024 (https://kellerjordan.github.io/posts/muon).
Filters (O, I, h, w) are matrices (O, I * h * w). All of them are padded with zeros to one shape and orthogonalised as one
batch, so that the number of launches does not depend on the number of layers. Zeros stay zeros, because the iteration is an
odd polynomial in the matrix.
"""

import math

import torch

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the quintic iteration: in five steps it maps singular values in (0, 1] to between 0.7 and 1.2."""
EPSILON = 1e-7
DTYPE = torch.bfloat16
"""Of the iteration, which needs no precision: its result is only near orthogonal."""


def orthogonalize(matrices: torch.Tensor, steps: int) -> torch.Tensor:
    """Move the singular values of each matrix towards 1 by the Newton-Schulz iteration.

    One step is X <- a X + (b A + c A A) X with A = X X^T: three batched matrix products.

    Args:
        matrices: (N, R, C); R at most C is cheapest.
        steps: of the iteration.

    Returns:
        (N, R, C), of the same dtype.
    """
    a, b, c = COEFFICIENTS
    x = matrices / (torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True) + EPSILON)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def update_filters(
    filters: list[torch.Tensor],
    gradients: list[torch.Tensor],
    buffers: list[torch.Tensor],
    *,
    lr: torch.Tensor,
    momentum: float,
    nesterov: bool,
    steps: int,
    grad_scale: torch.Tensor | None = None,
    found_inf: torch.Tensor | None = None,
    dtype: torch.dtype = DTYPE,
) -> None:
    """Update filters and momentum in place, without waiting for the device.

    With gradient G, momentum M and weights W of a bank of O filters, M <- m M + G, U is G + m M with Nesterov's momentum and
    else M, and W <- sqrt(O) W / |W| - lr orthogonalize(U).

    Args:
        filters, gradients, buffers: (O, I, h, w) each; the buffers hold the momentum.
        lr: () float32 on their device.
        steps: of the iteration.
        grad_scale: () float32, by which the gradients are divided first.
        found_inf: () float32; unless it is 0 nothing changes.
        dtype: of the iteration.
    """
    before = [] if found_inf is None else [tensor.clone() for tensor in (*filters, *buffers)]
    if grad_scale is not None:
        gradients = [gradient.float() / grad_scale for gradient in gradients]
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, gradients)
    updates = torch._foreach_add(gradients, buffers, alpha=momentum) if nesterov else buffers
    rows, columns = max(map(len, filters)), max(bank.numel() // len(bank) for bank in filters)
    batch = torch.zeros(len(filters), rows, columns, dtype=dtype, device=filters[0].device)
    torch._foreach_copy_(_views(batch, filters), updates)
    moves = orthogonalize(batch, steps).float() * -lr
    norms = torch._foreach_norm(filters, dtype=torch.float32)
    torch._foreach_reciprocal_(norms)
    torch._foreach_mul_(norms, [math.sqrt(len(bank)) for bank in filters])
    torch._foreach_mul_(filters, norms)
    torch._foreach_add_(filters, _views(moves, filters))
    for tensor, old in zip((*filters, *buffers), before, strict=False):
        tensor.copy_(torch.where(found_inf == 0, tensor, old))


def _views(batch: torch.Tensor, filters: list[torch.Tensor]) -> list[torch.Tensor]:
    """The part of a padded batch that belongs to each filter bank, as (O, I, h, w) in channels-last order."""
    views = []
    for matrix, bank in zip(batch, filters, strict=True):
        out, inputs, height, width = bank.shape
        views.append(matrix[:out, : inputs * height * width].unflatten(1, (height, width, inputs)).permute(0, 3, 1, 2))
    return views
