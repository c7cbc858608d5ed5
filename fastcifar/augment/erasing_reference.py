"""Random erasing of a batch in PyTorch: the specification of `erasing_fused.erase_batch`.

The rule is torchvision's, for each image of a batch: with probability p, up to ten attempts at an area uniform in `scale` and
a ratio height / width log-uniform in `ratio`; the first box smaller than the image is overwritten
(`transforms.erasing.erasing_boxes`).
Zhong et al., Random Erasing Data Augmentation, 2017 (https://arxiv.org/abs/1708.04896).

Box k of an image is drawn from Philox with the seed and the counter (position in the batch, call, stream, k).
"""

import math
from dataclasses import dataclass

import torch

from fastcifar.augment.philox import normals, philox4x32, uniform
from fastcifar.augment.transforms import RandomErasing
from fastcifar.augment.transforms.base import to_float
from fastcifar.augment.transforms.erasing import NOISE_STREAM, erasing_boxes, inside_boxes


@dataclass(frozen=True)
class Parameters:
    """Parameters of `erase_batch`.

    Attributes:
        p: probability of a box.
        scale: bounds of its area as a share of the image's.
        ratio: bounds of its height / width.
        value: one number or one for each channel; empty for standard normal noise.
        count: boxes per image, each drawn with probability p.
        mean, std: one number or one for each channel; empty for no normalisation. uint8 is divided by 255 first.
    """

    p: float
    scale: tuple[float, float]
    ratio: tuple[float, float]
    value: tuple[float, ...] = (0.0,)
    count: int = 1
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def erase_batch(images: torch.Tensor, out: torch.Tensor, state: torch.Tensor, parameters: Parameters) -> None:
    """Normalise and erase `images` into `out`; in place, without normalising, if both are the same tensor. It synchronises.

    Args:
        images: (B, C, H, W) uint8, float32, float16 or bfloat16.
        out: (B, C, H, W) float32, float16 or bfloat16.
        state: (2,) int64 on the device: seed, call.
    """
    device, shape = images.device, images.shape
    if images is not out:
        pixels = images
        if parameters.mean:
            mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (parameters.mean, parameters.std))
            pixels = (to_float(images).float() - mean) / std
        out.copy_(pixels)
    seed, call = state.tolist()
    sample, y, x = erased_pixels(draw_boxes(seed, call, shape, parameters, device), shape).nonzero(as_tuple=True)
    if parameters.value:
        fill = torch.tensor(parameters.value, device=device)
    else:
        channels, width = shape[1], shape[3]
        groups = math.ceil(channels / 4)
        group = (y * width + x)[:, None] * groups + torch.arange(groups, device=device)
        words = philox4x32(seed, sample[:, None], call, NOISE_STREAM, group)
        fill = normals(words).flatten(1)[:, :channels]
    out[sample, :, y, x] = fill.to(out.dtype)


def draw_boxes(
    seed: int, call: int, shape: torch.Size, parameters: Parameters, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Draw the boxes of a batch of `shape` (B, C, H, W): (B, count, 4) int64, top, left, height, width; all 0 for none."""
    count, scale, ratio = parameters.count, parameters.scale, parameters.ratio
    index, box = torch.arange(shape[0], device=device)[:, None, None], torch.arange(count, device=device)[:, None]
    streams = torch.tensor(RandomErasing.streams, device=device)
    whether, *_ = words = philox4x32(seed, index, call, streams, box)  # (B, count, 1 + attempts)
    boxes = erasing_boxes([word[..., 1:].flatten(0, 1) for word in words], scale, ratio, tuple(shape[2:]))
    return boxes.view(-1, count, 4) * (uniform(whether[..., :1]) < parameters.p)


def erased_pixels(boxes: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Mask the pixels in any of an image's `boxes` (B, count, 4), for images of `shape` (B, C, H, W): (B, H, W) bool."""
    return inside_boxes(boxes.flatten(0, 1), shape).unflatten(0, boxes.shape[:2]).any((1, 2))
