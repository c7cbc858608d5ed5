"""A whole policy in one Triton kernel: from indices into the resident data set to the training batch.

One program makes one image. It draws its parameters, reads 3,072 bytes and writes 6,144, for 32x32 pixels in bf16; what a
transform does is in `transforms.py`. MixUp and CutMix are part of the same pass: a second look at another uint8 image is
3,072 bytes, a second pass over the finished batch would be 18,432.

Legend: B images a batch, N in the data set, H x W pixels in, OUT_H x OUT_W out, C channels.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from fastcifar.augment import kernels as device
from fastcifar.augment import policy as p
from fastcifar.augment import transforms
from fastcifar.augment.batch import IGNORE, refuse_mixing

MIX_UP, CUT_MIX = tl.constexpr(1), tl.constexpr(2)
MIX_STREAM = transforms.MIX_STREAM
IGNORED = tl.constexpr(IGNORE)


@triton.jit
def _output(
    own, partner, weight, box, y, x, mask, POLICY: tl.constexpr, MIX: tl.constexpr,
    W: tl.constexpr, C: tl.constexpr, c: tl.constexpr,
):  # fmt: skip
    """(red, green, blue) float32 of an output pixel; `own` and `partner` are (image_ptr, key, params)."""
    red, green, blue = transforms.value(own[0], own[1], own[2], y, x, mask, POLICY, len(POLICY), W, C, c)
    if MIX == 0:
        return red, green, blue
    else:
        r, g, b = transforms.value(partner[0], partner[1], partner[2], y, x, mask, POLICY, len(POLICY), W, C, c)
        if MIX == MIX_UP:
            return r + weight * (red - r), g + weight * (green - g), b + weight * (blue - b)
        else:
            top, left, tall, wide = box
            inside = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
            return transforms.choose(inside, r, g, b, red, green, blue)


@triton.jit
def _pack(low, high, DTYPE: tl.constexpr):
    """Two numbers of 16 bits in one word."""
    low = low.to(DTYPE).to(tl.uint16, bitcast=True).to(tl.uint32)
    high = high.to(DTYPE).to(tl.uint16, bitcast=True).to(tl.uint32)
    return low | (high << 16)


@triton.jit
def _store_triples(out_ptr, n, a, b, c, mask, BLOCK: tl.constexpr):
    """Store a, b, c of every n side by side, through one tile, so that a warp writes whole sectors."""
    tile = tl.reshape(tl.join(tl.join(a, c), tl.join(b, c)), (BLOCK, 4))
    k = tl.arange(0, 4)
    tl.store(out_ptr + n[:, None] * 3 + k[None, :], tile, mask=mask[:, None] & (k[None, :] < 3))


@triton.jit(do_not_specialize=["length", "count"])
def _augment_kernel(
    images_ptr, labels_ptr, order_ptr, state_ptr, out_ptr, targets_ptr, length, count,
    POLICY: tl.constexpr, MIX: tl.constexpr, ALPHA: tl.constexpr, CLASSES: tl.constexpr, CLASS_BLOCK: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr,
    DTYPE: tl.constexpr, PACKED: tl.constexpr, BLOCK: tl.constexpr, STREAMED: tl.constexpr,
):  # fmt: skip
    """images_ptr (N, H, W, C) uint8, order_ptr (length,) int64, state_ptr: seed, epoch, step -> out_ptr (B, h, w, C).

    If STREAMED, images_ptr is (B, H, W, C), the batch's own.
    """
    row = tl.program_id(0)
    seed, epoch, step = tl.load(state_ptr), tl.load(state_ptr + 1), tl.load(state_ptr + 2)
    position = step * tl.num_programs(0) + row
    present = position < length
    sample = tl.load(order_ptr + position, mask=present, other=0)
    label = tl.where(present, tl.load(labels_ptr + sample), IGNORED)
    lane, words = device.draw_words(seed, sample, epoch, 0)
    image = row.to(tl.int64) if STREAMED else sample
    key, image_ptr = (seed, sample, epoch), images_ptr + image * (H * W * C)
    own = (image_ptr, key, transforms.parameters(image_ptr, key, lane, words, POLICY, len(POLICY), W, C, BLOCK))

    if MIX == 0:
        partner, weight, box = own, 1.0, (0, 0, 0, 0)
        tl.store(targets_ptr + row, label)
    else:
        other = (tl.umulhi(device.pick(lane, words[0], MIX_STREAM), count.to(tl.uint32))).to(tl.int64)
        other_lane, other_words = device.draw_words(seed, other, epoch, 0)
        key, image_ptr = (seed, other, epoch), images_ptr + other * (H * W * C)
        partner = (
            image_ptr,
            key,
            transforms.parameters(image_ptr, key, other_lane, other_words, POLICY, len(POLICY), W, C, BLOCK),
        )
        exact_weight = transforms.mix_weight(lane, words, ALPHA)
        box = transforms.mix_box(lane, words, exact_weight, OUT_H, OUT_W)
        if MIX == CUT_MIX:
            exact_weight = 1.0 - (box[2] * box[3]).to(tl.float64) * (1.0 / (OUT_H * OUT_W))
        weight = exact_weight.to(tl.float32)
        classes = tl.arange(0, CLASS_BLOCK)
        target = tl.where(classes == label, weight, 0.0) + tl.where(classes == tl.load(labels_ptr + other), 1.0 - weight, 0.0)
        tl.store(targets_ptr + row.to(tl.int64) * CLASSES + classes, target, mask=classes < CLASSES)

    PIXELS: tl.constexpr = OUT_H * OUT_W
    STEP: tl.constexpr = 3 if C == 3 else 1
    if PACKED:
        out_ptr += row.to(tl.int64) * (PIXELS * C // 2)
        for start in range(0, PIXELS // 2, BLOCK // 2):
            pair = start + tl.arange(0, BLOCK // 2)
            mask = pair < PIXELS // 2
            y0, x0, y1, x1 = pair * 2 // OUT_W, pair * 2 % OUT_W, (pair * 2 + 1) // OUT_W, (pair * 2 + 1) % OUT_W
            r0, g0, b0 = _output(own, partner, weight, box, y0, x0, mask, POLICY, MIX, W, C, 0)
            r1, g1, b1 = _output(own, partner, weight, box, y1, x1, mask, POLICY, MIX, W, C, 0)
            if C == 3:
                first, second, third = _pack(r0, g0, DTYPE), _pack(b0, r1, DTYPE), _pack(g1, b1, DTYPE)
                _store_triples(out_ptr, pair, first, second, third, mask, BLOCK // 2)
            else:
                tl.store(out_ptr + pair, _pack(r0, r1, DTYPE), mask=mask)
    else:
        out_ptr += row.to(tl.int64) * (PIXELS * C)
        for start in range(0, PIXELS, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            mask = pixel < PIXELS
            for c in tl.static_range(0, C, STEP):
                red, green, blue = _output(
                    own, partner, weight, box, pixel // OUT_W, pixel % OUT_W, mask, POLICY, MIX, W, C, c
                )
                if C == 3:
                    _store_triples(out_ptr, pixel, red.to(DTYPE), green.to(DTYPE), blue.to(DTYPE), mask, BLOCK)
                else:
                    tl.store(out_ptr + pixel * C + c, red.to(DTYPE), mask=mask)


def load_batch(
    images_NHWC: torch.Tensor,
    labels: torch.Tensor,
    order: torch.Tensor,
    state: torch.Tensor,
    *,
    batch_size: int,
    policy: p.Policy,
    num_classes: int,
    streamed: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch number `step` of an order, augmented, in one launch; arguments and results are those of `batch.load_batch`.

    Safe inside CUDA graph capture: shapes are static, nothing waits for the device, and seed, epoch and step are read there.
    """
    if streamed:
        refuse_mixing(policy)
    constants, options = specialize(policy, tuple(images_NHWC.shape[1:]), batch_size, num_classes)
    images = torch.empty(
        (batch_size, constants["OUT_H"], constants["OUT_W"], constants["C"]),
        dtype=getattr(torch, policy.dtype),
        device=images_NHWC.device,
    )
    if policy.mixing:
        targets = torch.empty(batch_size, num_classes, dtype=torch.float32, device=images.device)
    else:
        targets = torch.empty(batch_size, dtype=torch.int64, device=images.device)
    out = images.view(-1).view(torch.int32) if constants["PACKED"] else images
    with torch.cuda.device_of(images):
        _augment_kernel[(batch_size,)](
            images_NHWC, labels, order, state, out, targets, len(order), len(labels), STREAMED=streamed, **constants, **options
        )
    return images.permute(0, 3, 1, 2), targets


@cache
def specialize(
    policy: p.Policy, image_shape: tuple[int, int, int], batch_size: int, num_classes: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The kernel's constants and launch options for batches of `policy` from images of `image_shape` (H, W, C)."""
    height, width, channels = image_shape
    out_height, out_width = policy.output_size(height, width, channels)
    pixels = out_height * out_width
    mixing = policy.mixing
    warps = warps_per_image(batch_size)
    constants = {
        "POLICY": transforms.encode(policy, height, width, channels),
        "MIX": {type(None): 0, p.MixUp: MIX_UP.value, p.CutMix: CUT_MIX.value}[type(mixing)],
        "ALPHA": float(mixing.alpha) if mixing else 1.0,
        "CLASSES": num_classes if mixing else 1,
        "CLASS_BLOCK": triton.next_power_of_2(num_classes) if mixing else 1,
        "H": height,
        "W": width,
        "C": channels,
        "OUT_H": out_height,
        "OUT_W": out_width,
        "DTYPE": {"bfloat16": tl.bfloat16, "float16": tl.float16, "float32": tl.float32}[policy.dtype],
        "PACKED": channels in (1, 3) and policy.dtype != "float32" and pixels * channels % 2 == 0,
        "BLOCK": min(triton.next_power_of_2(max(pixels, 2)), 256 * warps),
    }
    return constants, {"num_warps": warps, "enable_fp_fusion": True}


def warps_per_image(batch_size: int) -> int:
    """How many warps make an image. It shows in the time alone.

    What is made once for an image is made by each of its warps, so one is least work, and fills a GPU of 132 processors with
    32 programs each. A small batch takes more, to be done sooner.
    """
    return 1 if batch_size >= 4096 else 4 if batch_size > 1024 else 8
