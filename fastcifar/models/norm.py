"""BatchNorm, the sum with a residual, and ReLU as one layer, which Triton kernels can compute in training.

A model is built of `nn.BatchNorm2d` and `nn.ReLU`. `fuse_norms` then replaces them, where the kernels can run: a separate
transformation, like padding, which changes neither what is computed nor the names in `state_dict()`.
"""

import os
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.runtime.compiler import BF16_CAPABILITY, missing_for_kernels
from fastcifar.runtime.errors import UserError

VARIABLE = "FASTCIFAR_NORM"


class BatchNormAct(nn.BatchNorm2d):
    """ReLU(BatchNorm(x) + residual); without residual or `relu`, without them.

    Parameters, buffers and their names are those of `nn.BatchNorm2d`. A new one computes in PyTorch; see `use`. In evaluation
    it always does. torch's `convert_sync_batchnorm` would drop the ReLU: convert before `fuse_norms`, which keeps
    SyncBatchNorm.

    Args:
        relu: whether ReLU follows.

    Attributes:
        implementation: in training, "fused" (`norm_fused`) or "reference" (PyTorch).
        implementation_reason: why it is that one.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, *, relu: bool = True) -> None:
        super().__init__(num_features, eps, momentum)
        self.relu = relu
        self.use("reference", "no other was asked for")

    @classmethod
    def of(cls, norm: nn.BatchNorm2d, *, relu: bool) -> "BatchNormAct":
        """Make one with the parameters and buffers of `norm` themselves, not copies."""
        made = cls(0, norm.eps, norm.momentum, relu=relu)
        made.num_features, made.training = norm.num_features, norm.training
        made._parameters.update(norm._parameters)
        made._buffers.update(norm._buffers)
        return made

    def use(self, implementation: str, reason: str) -> None:
        """Compute with "fused" or "reference" from now on."""
        self.implementation, self.implementation_reason = implementation, reason

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Map x (B, C, H, W), and a residual of the same shape, to the same shape.

        Raises:
            ValueError: x has other dimensions, or in training fewer than two values for each channel; the residual has
                another shape and the kernels are used.
        """
        if not self.training or self.implementation == "reference":
            y = super().forward(x)
            y = y if residual is None else y + residual
            return F.relu(y, inplace=True) if self.relu else y
        from fastcifar.models import norm_fused  # not at the top: Triton may not be installed

        self._check_input_dim(x)
        if x.numel() < 2 * self.num_features:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
        if x.shape[1] != self.num_features or (residual is not None and residual.shape != x.shape):
            shapes = f"x {tuple(x.shape)}" + ("" if residual is None else f", residual {tuple(residual.shape)}")
            raise ValueError(f"{shapes}: must have {self.num_features} channels and be equal")
        statistics = self.running_mean, self.running_var, self.num_batches_tracked
        return norm_fused.batch_norm_act(x, residual, self.weight, self.bias, *statistics, self.momentum, self.eps, self.relu)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, relu={self.relu}, {self.implementation}: {self.implementation_reason}"


def choose_norms(model: nn.Module, device: torch.device) -> tuple[str, str]:
    """Choose ("fused" or "reference", reason) for `fuse_norms`.

    The kernels are chosen on CUDA if $FASTCIFAR_NORM is "fused" and they know all BatchNorms of `model`.

    Raises:
        UserError: $FASTCIFAR_NORM is neither "fused" nor "reference".
    """
    if device.type != "cuda":
        return "reference", "Triton kernels need CUDA"
    asked = os.environ.get(VARIABLE, "reference")
    if asked not in ("fused", "reference"):
        raise UserError(f"{VARIABLE}={asked}: must be fused or reference")
    if asked == "reference":
        return "reference", f"the kernels were never timed; {VARIABLE}=fused tries them"
    if missing := missing_for_kernels(device, capability=BF16_CAPABILITY):
        return "reference", missing
    if not any(hasattr(module, "fuse_norms") for module in model.modules()):
        return "reference", f"{type(model).__name__} does not use them"
    if unknown := next(filter(None, map(_unknown, model.modules())), ""):
        return "reference", unknown
    return "fused", "the fewest launches"


def _unknown(module: nn.Module) -> str:
    """Say why the kernels cannot compute this BatchNorm; "" if they can, or if it is none."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return ""
    if type(module) is not nn.BatchNorm2d:
        return f"the kernels do not compute {type(module).__name__}"
    if module.weight is None or module.running_mean is None or module.momentum is None:
        return "the kernels need BatchNorm with weight, bias, running statistics and a momentum"
    return ""


def fuse_norms(model: nn.Module, implementation: str, reason: str) -> nn.Module:
    """Replace BatchNorm, with the sum and the ReLU that follow it, by `BatchNormAct`, in place; returns `model`.

    With "reference", leave the model as it is. Call it once, after SyncBatchNorm's conversion. A ReLU is known to follow where
    both stand side by side in an `nn.Sequential`; a module in which it follows otherwise says so by a method `fuse_norms()`,
    called when its BatchNorms are replaced. An `nn.Identity` takes a ReLU's place, so that no layer's name changes.
    """
    if implementation == "reference":
        return model
    modules = list(model.modules())
    for module in modules:
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, BatchNormAct.of(child, relu=False))
                module.get_submodule(name).use(implementation, reason)
    for module in modules:
        if isinstance(module, nn.Sequential):
            for index, (layer, following) in enumerate(pairwise(list(module))):
                if isinstance(following, nn.ReLU) and (norm := last_norm(layer)):
                    norm.relu, module[index + 1] = True, nn.Identity()
        if hasattr(module, "fuse_norms"):
            module.fuse_norms()
    return model


def last_norm(layer: nn.Module) -> BatchNormAct | None:
    """Return the `BatchNormAct` that makes the output of `layer`, itself one or an `nn.Sequential`; None if none does."""
    while isinstance(layer, nn.Sequential) and len(layer):
        layer = layer[-1]
    return layer if isinstance(layer, BatchNormAct) else None
