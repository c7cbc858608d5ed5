"""A batch from indices into a resident data set, in PyTorch: the specification of `fused.load_batch`.

Shapes: B images a batch, N in the data set, H x W pixels in, h x w out, C channels, K classes.
"""

from dataclasses import replace

import torch

from fastcifar.augment.philox import Stream, Words, below, philox4x32, uniform
from fastcifar.augment.policy import CutMix, Policy
from fastcifar.augment.reference import augment, inside_boxes
from fastcifar.errors import UserError

IGNORE = -100
"""Label of an image that only pads a batch; `torch.nn.functional.cross_entropy` ignores it by default."""


def load_batch(
    images_NHWC: torch.Tensor,
    labels: torch.Tensor,
    order: torch.Tensor,
    state: torch.Tensor,
    *,
    batch_size: int,
    policy: Policy,
    num_classes: int,
    streamed: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch number `step` of an order, augmented.

    Args:
        images_NHWC: (N, H, W, C) uint8, contiguous; where `streamed`, only the batch's own, (B, H, W, C) in its order.
        labels: (N,) int64.
        order: int64 indices in 0 .. N - 1; the batch is order[step * B : (step + 1) * B], and where that is too short, it
            is filled with sample 0, labelled IGNORE.
        state: (3,) int64: seed, epoch, step. It lies on the device, so that a captured graph reads what is newest.
        batch_size: B.
        num_classes: K.
        streamed: the images are not all on the device. Labels and order are.

    Returns:
        Images (B, C, h, w) in channels-last memory and the policy's dtype. Targets: labels (B,) int64, or where the policy
        mixes images their probabilities (B, K) float32.

    Raises:
        UserError: the policy does not fit images of this size or number of channels, or mixes them where `streamed`.
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
        return augment(pixels, index, epoch=epoch, seed=seed, policy=policy), label

    words = philox4x32(seed, index, epoch, int(Stream.MIX))
    partner = below(words[0], len(labels))
    plain = replace(policy, transforms=policy.per_image, dtype="float32")
    own, other = (augment(images_NHWC.index_select(0, i), i, epoch=epoch, seed=seed, policy=plain) for i in (index, partner))
    weight = symmetric_beta(words[1], words[2], policy.mixing.alpha)
    if isinstance(policy.mixing, CutMix):
        boxes = cut_mix_boxes(philox4x32(seed, index, epoch, int(Stream.MIX_BOX)), weight, tuple(own.shape[2:]))
        weight = 1 - (boxes[:, 2] * boxes[:, 3]).double() / (own.shape[2] * own.shape[3])
        mixed = torch.where(inside_boxes(boxes, own.shape), other, own)
    else:
        mixed = other + weight.float()[:, None, None, None] * (own - other)
    weight, classes = weight.float()[:, None], torch.arange(num_classes, device=order.device)
    targets = weight * (label[:, None] == classes) + (1 - weight) * (labels[partner][:, None] == classes)
    return mixed.to(getattr(torch, policy.dtype)).contiguous(memory_format=torch.channels_last), targets


def refuse_mixing(policy: Policy) -> None:
    """Raise UserError where `policy` mixes images, which a streamed batch cannot."""
    if policy.mixing:
        raise UserError(
            f"{type(policy.mixing).__name__} takes partners from the whole data set, which a streamed batch has not; "
            "leave it out, or use --loader resident"
        )


def symmetric_beta(radius: torch.Tensor, angle: torch.Tensor, alpha: float) -> torch.Tensor:
    """Draws from Beta(alpha, alpha), float64, from two words each; any alpha above 0, no rejection.

    t / sqrt(2 alpha + t**2) of Student's t with 2 alpha degrees of freedom, by Bailey's polar method. Devroye, Random Variate
    Generation in One Line of Code, 1996.
    """
    cos = torch.cos(uniform(angle).double() * (2 * torch.pi))
    spread = torch.exp(torch.log(1 - uniform(radius).double()) * (-1 / alpha)) - 1
    return 0.5 + torch.where(cos < 0, -0.5, 0.5) / torch.sqrt(1 + 1 / (spread * cos * cos))


def cut_mix_boxes(words: Words, weight: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The partner's rectangles, (B, 4) int64: top, left, height, width, clipped to the image, as torchvision's CutMix."""
    half = 0.5 * torch.sqrt(1 - weight)
    edges = []
    for word, length in zip(words[:2], size, strict=True):
        centre, reach = below(word, length), (half * length).long()
        edges.append(((centre - reach).clamp(min=0), (centre + reach).clamp(max=length)))
    (top, bottom), (left, right) = edges
    return torch.stack([top, left, bottom - top, right - left], dim=1)
