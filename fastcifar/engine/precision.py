"""Arithmetic of a run: which dtype the forward pass computes in."""

from contextlib import AbstractContextManager

import torch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context of a forward pass: bf16 autocasts over float32 weights, fp32 does nothing."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")
