"""Augmentation in PyTorch for a whole batch: the specification of the kernels.

Each transform is in its own file in `transforms/`: it turns words of its streams into parameters, one set per sample, for the
whole batch at once, and then applies them to each image.

Shapes: B images, C channels, H x W pixels in, h x w out. Images are planar (B, C, H, W) inside: uint8 until a transform
needs float32, whose scale is 0 .. 1. Nothing here synchronises, and no shape depends on the data.

A sample is the same to the last bit in every batch. Hence every product is rounded before it is added (addcmul fuses the two
in its vector loop, but not in its remainder), and sums are in float64, where their order does not change the rounded result.
"""

import torch

from fastcifar.augment.philox import Draws
from fastcifar.augment.policy import Policy
from fastcifar.augment.transforms.base import to_float

CPU_CHUNK = 128
"""Images per chunk on a CPU: few enough that freed memory is reused; with 2,048, fresh pages took a third of the time."""


def augment(
    images_NHWC: torch.Tensor,
    index: torch.Tensor,
    *,
    epoch: torch.Tensor | int,
    seed: torch.Tensor | int,
    policy: Policy,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Apply `policy` to a batch.

    Args:
        images_NHWC: (B, H, W, C) uint8; C is 1 or 3 if the policy jitters colours, otherwise any number.
        index: (B,) int64, the samples' indices in the data set, which select their draws.
        epoch: selects the epoch's draws, an int or a () int64 tensor on the images' device.
        seed: the run's 64-bit seed, an int or a () int64 tensor.

    Returns:
        (B, C, h, w) in channels-last memory and `dtype`.

    Raises:
        UserError: the policy does not fit images of this size or number of channels.
    """
    height, width, channels = images_NHWC.shape[1:]
    size = policy.output_size(height, width, channels)
    draws, steps = Draws(seed, epoch, index, policy.streams()), []
    for transform in policy.per_image:
        steps.append(transform.draw(draws, (channels, height, width)))
        height, width = transform.output_size(height, width)

    out = torch.empty(
        (len(index), channels, *size),
        dtype=dtype,
        device=images_NHWC.device,
        memory_format=torch.channels_last,
    )
    chunk = CPU_CHUNK if images_NHWC.device.type == "cpu" else len(index)
    for rows in (slice(start, start + chunk) for start in range(0, len(index), chunk)):
        images = images_NHWC[rows].permute(0, 3, 1, 2).contiguous()
        for apply, *parameters in steps:
            images = apply(images, *(values[rows] for values in parameters))
        out[rows] = to_float(images).to(out.dtype)  # cast first: casting and changing the layout at once took twice the time
    return out
