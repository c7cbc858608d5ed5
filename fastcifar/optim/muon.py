"""Muon: SGD whose update of each convolution's filters is orthogonalised.

Keller Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024 (https://kellerjordan.github.io/posts/muon).
Filters (O, I, h, w) are matrices (O, I * h * w). All of them are padded with zeros to one shape and orthogonalised as one
batch, so that the number of launches does not depend on the number of layers. Zeros stay zeros, because the iteration is an
odd polynomial in the matrix.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.sgd import sgd

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


class Muon(torch.optim.Optimizer):
    """Muon for the parameter groups with `newton_schulz_steps` above 0, fused SGD for the others.

    A Muon group holds convolution filters. Before each update, a bank of O filters is scaled to norm sqrt(O), so that the
    learning rate alone decides how far it turns. It has no weight decay.

    Args:
        groups: parameter groups with lr (a scalar tensor), momentum, nesterov, weight_decay and newton_schulz_steps.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self._batches: dict[int, tuple[torch.Tensor, list[torch.Tensor]]] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], None] | None = None) -> None:
        """Update all parameters, each of which must have a gradient."""
        for group in self.param_groups:
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in group["params"]]
            gradients = [parameter.grad for parameter in group["params"]]
            if group["newton_schulz_steps"]:
                self._update_filters(group, gradients, buffers)
            else:
                sgd(
                    group["params"],
                    gradients,
                    buffers,
                    has_sparse_grad=False,
                    fused=True,
                    weight_decay=group["weight_decay"],
                    momentum=group["momentum"],
                    lr=group["lr"],
                    dampening=0.0,
                    nesterov=group["nesterov"],
                    maximize=False,
                )

    def _update_filters(self, group: dict[str, Any], gradients: list[torch.Tensor], buffers: list[torch.Tensor]) -> None:
        filters, momentum = group["params"], group["momentum"]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        updates = torch._foreach_add(gradients, buffers, alpha=momentum) if group["nesterov"] else buffers
        batch, places = self._batch_of(group)
        torch._foreach_copy_(places, [update.permute(0, 2, 3, 1) for update in updates])
        batch = orthogonalize(batch, group["newton_schulz_steps"]).float() * -group["lr"]
        norms = torch._foreach_norm(filters)
        torch._foreach_reciprocal_(norms)
        torch._foreach_mul_(norms, [math.sqrt(len(bank)) for bank in filters])
        torch._foreach_mul_(filters, norms)
        torch._foreach_add_(filters, [view.permute(0, 3, 1, 2) for view in _views(batch, filters)])

    def _batch_of(self, group: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The padded batch of a group's matrices, whose padding stays 0, and the filters' places in it."""
        filters = group["params"]
        if id(group) not in self._batches:
            rows, columns = max(map(len, filters)), max(bank.numel() // len(bank) for bank in filters)
            batch = torch.zeros(len(filters), rows, columns, dtype=DTYPE, device=filters[0].device)
            self._batches[id(group)] = batch, _views(batch, filters)
        return self._batches[id(group)]


def _views(batch: torch.Tensor, filters: list[torch.Tensor]) -> list[torch.Tensor]:
    """The part of a padded batch that belongs to each filter bank, as (O, h, w, I)."""
    views = []
    for matrix, bank in zip(batch, filters, strict=True):
        out, inputs, height, width = bank.shape
        views.append(matrix[:out, : inputs * height * width].unflatten(1, (height, width, inputs)))
    return views
