"""A batch from indices into a resident data set, in PyTorch: the specification of `fused.load_batch`.

Shapes: B images per batch, N in the data set, H x W pixels in, h x w out, C channels, K classes.
"""

import torch

from fastcifar.augment.philox import Draws, below
from fastcifar.augment.policy import Policy
from fastcifar.augment.reference import augment
from fastcifar.runtime.errors import UserError

IGNORE = -100
"""Label of an image that pads a batch; `torch.nn.functional.cross_entropy` ignores it by default."""


def load_batch(
    images_NHWC: torch.Tensor,
    labels: torch.Tensor,
    order: torch.Tensor,
    state: torch.Tensor,
    *,
    batch_size: int,
    policy: Policy,
    num_classes: int,
    dtype: torch.dtype = torch.float32,
    streamed: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make batch number `step` of an order, augmented.

    Args:
        images_NHWC: (N, H, W, C) uint8, contiguous; if `streamed`, only those of the batch, (B, H, W, C) in its order.
        labels: (N,) int64.
        order: int64 indices in 0 .. N - 1; the batch is order[step * B : (step + 1) * B], and if that is too short, it
            is padded with sample 0, labelled IGNORE.
        state: (3,) int64: seed, epoch, step. It is on the device, so that a captured graph reads the current values.
        batch_size: B.
        num_classes: K.
        dtype: of the output: float32, float16 or bfloat16.
        streamed: the images are not all on the device. Labels and order are.

    Returns:
        Images (B, C, h, w) in channels-last memory and `dtype`. Targets: labels (B,) int64, or, if the policy
        mixes images, class probabilities (B, K) float32.

    Raises:
        UserError: the policy does not fit images of this size or number of channels, or mixes them although `streamed`.
    """
    if streamed:
        refuse_mixing(policy)
    seed, epoch, step = state
    position = step * batch_size + torch.arange(batch_size, device=order.device)
    present = position < len(order)
    index = torch.where(present, order[position.clamp(max=len(order) - 1)], 0)
    label = torch.where(present, labels[index], IGNORE)
    if not policy.mixing:
        pixels = images_NHWC if streamed else images_NHWC.index_select(0, index)
        return augment(pixels, index, epoch=epoch, seed=seed, policy=policy, dtype=dtype), label

    draws = Draws(seed, epoch, index, policy.mixing.streams)
    partner = below(draws.words(policy.mixing.streams[0])[0], len(labels))
    per_image = Policy(policy.per_image)
    own, other = (
        augment(images_NHWC.index_select(0, rows), rows, epoch=epoch, seed=seed, policy=per_image) for rows in (index, partner)
    )
    mixed, weight = policy.mixing.mix(own, other, draws)
    weight, classes = weight.float()[:, None], torch.arange(num_classes, device=order.device)
    targets = weight * (label[:, None] == classes) + (1 - weight) * (labels[partner][:, None] == classes)
    return mixed.to(dtype).contiguous(memory_format=torch.channels_last), targets


def refuse_mixing(policy: Policy) -> None:
    """Raise UserError if `policy` mixes images, which is impossible in a streamed batch."""
    if policy.mixing:
        raise UserError(
            f"{type(policy.mixing).__name__} takes partners from the whole data set, which a streamed batch has not; "
            "leave it out, or use `loader=resident`"
        )
