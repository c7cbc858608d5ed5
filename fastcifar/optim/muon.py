"""Muon: SGD whose update of each convolution's filters is orthogonalised, on CUDA by Triton kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.sgd import sgd

from fastcifar.optim import muon_reference
from fastcifar.runtime.compiler import BF16_CAPABILITY, missing_for_kernels


class Muon(torch.optim.Optimizer):
    """Muon for the parameter groups with `newton_schulz_steps` above 0, fused SGD for the others.

    A Muon group holds convolution filters. Before each update, a bank of O filters is scaled to norm sqrt(O), so that the
    learning rate alone decides how far it turns. It has no weight decay.

    As in PyTorch's fused optimizers, `torch.amp.GradScaler` leaves it to the kernels to unscale the gradients and to skip a
    step that overflowed, so that nothing waits for the device.

    Args:
        groups: parameter groups with lr (a scalar tensor), momentum, nesterov, weight_decay and newton_schulz_steps.

    Attributes:
        implementation: of the update of filters, "fused" or "reference".
        implementation_reason: why it is that one.
    """

    _step_supports_amp_scaling = True  # read by GradScaler, which then sets `grad_scale` and `found_inf` during `step`

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self.implementation, self.implementation_reason = choose_update(self.param_groups[0]["params"][0].device)
        self._update_filters = filters_update(self.implementation)

    @torch.no_grad()
    def step(self, closure: Callable[[], None] | None = None) -> None:
        """Update all parameters, each of which must have a gradient."""
        scaling = {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}
        for group in self.param_groups:
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in group["params"]]
            gradients = [parameter.grad for parameter in group["params"]]
            options = {name: group[name] for name in ("lr", "momentum", "nesterov")} | scaling
            if group["newton_schulz_steps"]:
                self._update_filters(group["params"], gradients, buffers, steps=group["newton_schulz_steps"], **options)
            else:
                sgd(
                    group["params"],
                    gradients,
                    buffers,
                    has_sparse_grad=False,
                    fused=True,
                    weight_decay=group["weight_decay"],
                    dampening=0.0,
                    maximize=False,
                    **options,
                )


def choose_update(device: torch.device) -> tuple[str, str]:
    """Choose ("fused" or "reference", reason): the kernels where they can run, which is on CUDA."""
    if missing := missing_for_kernels(device, capability=BF16_CAPABILITY):
        return "reference", missing
    return "fused", "the fewest launches"


def filters_update(name: str) -> Callable[..., None]:
    """Return the `update_filters` of "fused" or "reference"."""
    if name == "reference":
        return muon_reference.update_filters
    from fastcifar.optim import muon_fused  # not at the top: Triton may not be installed

    return muon_fused.update_filters
