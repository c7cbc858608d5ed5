"""Sharpness-aware minimisation: the gradient is taken where the loss is highest near the weights.

Foret et al., 2021 (https://arxiv.org/abs/2010.01412).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

EPSILON = 1e-12


class SharpnessAware:
    """Moves a model's weights by `rho` along their gradient for a second pass, and restores them.

    Args:
        rho: length of the move, the norm over all weights.
    """

    def __init__(self, model: nn.Module, rho: float) -> None:
        self.rho = rho
        self.weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        tensors = [*self.weights, *model.buffers()]
        self.kept = [[tensor for tensor in tensors if tensor.dtype == dtype] for dtype in {t.dtype for t in tensors}]
        self.copies = [[torch.empty_like(tensor) for tensor in group] for group in self.kept]

    @contextmanager
    def ascended(self) -> Iterator[None]:
        """Move the weights by rho * g / |g| and discard the gradients g; afterwards restore weights and BatchNorm statistics.

        The gradients may carry a loss scale. If one is infinite, the second pass gives NaN, and loss scaling skips the step.
        """
        with torch.no_grad():
            for copies, tensors in zip(self.copies, self.kept, strict=True):
                torch._foreach_copy_(copies, tensors)
            gradients = [weight.grad for weight in self.weights]
            length = torch.nn.utils.get_total_norm(gradients) + EPSILON
            torch._foreach_add_(self.weights, torch._foreach_mul(gradients, self.rho / length))
        for weight in self.weights:
            weight.grad = None
        try:
            yield
        finally:
            with torch.no_grad():
                for copies, tensors in zip(self.copies, self.kept, strict=True):
                    torch._foreach_copy_(tensors, copies)
