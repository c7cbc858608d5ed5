"""A whole policy in one Triton kernel: from indices into the resident data set to the training batch.

One program makes one image. It draws its parameters, and for 32x32 pixels in bf16 reads 3,072 bytes and writes 6,144. The code
of each transform is in its own file in `transforms/`. MixUp and CutMix are part of the same pass: reading another uint8 image
costs 3,072 bytes, a second pass over the finished batch would cost 18,432.

Legend: B images per batch, N in the data set, H x W pixels in, h x w out, C channels.
"""

import math
from functools import cache

import torch
import triton
import triton.language as tl

from fastcifar.augment import triton_functions
from fastcifar.augment.batch import IGNORE, refuse_mixing
from fastcifar.augment.constants import Constants, policy_constants
from fastcifar.augment.policy import Policy

DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@triton.jit
def _output(P: tl.constexpr, own, partner, drawn, y, x, mask, c: tl.constexpr):
    """Compute (red, green, blue) float32 of an output pixel; `own` and `partner` are images as in `triton_functions.value`."""
    LAST: tl.constexpr = P.last
    MIXING: tl.constexpr = P.mixing
    red, green, blue = triton_functions.value(LAST, own, y, x, mask, c)
    if MIXING is None:
        return red, green, blue
    else:
        r, g, b = triton_functions.value(LAST, partner, y, x, mask, c)
        return MIXING.kernel_mix(MIXING, drawn, y, x, red, green, blue, r, g, b)


@triton.jit
def _pack(low, high, DTYPE: tl.constexpr):
    """Pack two 16-bit numbers into one word."""
    low = low.to(DTYPE).to(tl.uint16, bitcast=True).to(tl.uint32)
    high = high.to(DTYPE).to(tl.uint16, bitcast=True).to(tl.uint32)
    return low | (high << 16)


@triton.jit
def _store_triples(out_ptr, n, a, b, c, mask, BLOCK: tl.constexpr):
    """Store a, b, c of every n next to each other, through one tile, so that a warp writes whole sectors."""
    tile = tl.reshape(tl.join(tl.join(a, c), tl.join(b, c)), (BLOCK, 4))
    k = tl.arange(0, 4)
    tl.store(out_ptr + n[:, None] * 3 + k[None, :], tile, mask=mask[:, None] & (k[None, :] < 3))


@triton.jit(do_not_specialize=["length", "count"])
def _augment_kernel(
    images_ptr, labels_ptr, order_ptr, state_ptr, out_ptr, targets_ptr, length, count,
    P: tl.constexpr, STREAMED: tl.constexpr,
):  # fmt: skip
    """images_ptr (N, H, W, C) uint8, order_ptr (length,) int64, state_ptr: seed, epoch, step -> out_ptr (B, h, w, C).

    If STREAMED, images_ptr is (B, H, W, C), the batch's own. P: see `specialize`.
    """
    BLOCK: tl.constexpr = P.block
    PIXELS: tl.constexpr = P.height * P.width
    C: tl.constexpr = P.channels
    LAST: tl.constexpr = P.last
    MIXING: tl.constexpr = P.mixing
    row = tl.program_id(0)
    seed, epoch, step = tl.load(state_ptr), tl.load(state_ptr + 1), tl.load(state_ptr + 2)
    position = step * tl.num_programs(0) + row
    present = position < length
    sample = tl.load(order_ptr + position, mask=present, other=0)
    label = tl.where(present, tl.load(labels_ptr + sample), P.ignored)
    lane, words = triton_functions.draw_words(seed, sample, epoch, 0)
    image = row.to(tl.int64) if STREAMED else sample
    key, image_ptr = (seed, sample, epoch), images_ptr + image * P.image_bytes
    own = (image_ptr, key, triton_functions.parameters(LAST, image_ptr, key, lane, words))

    if MIXING is None:
        partner, drawn = own, ()
        tl.store(targets_ptr + row, label)
    else:
        other = tl.umulhi(triton_functions.pick(lane, words[0], MIXING.stream), count.to(tl.uint32)).to(tl.int64)
        other_lane, other_words = triton_functions.draw_words(seed, other, epoch, 0)
        other_key, other_ptr = (seed, other, epoch), images_ptr + other * P.image_bytes
        partner = (other_ptr, other_key, triton_functions.parameters(LAST, other_ptr, other_key, other_lane, other_words))
        weight, drawn = MIXING.kernel_draw(MIXING, own, lane, words)
        classes = tl.arange(0, P.class_block)
        target = tl.where(classes == label, weight, 0.0) + tl.where(classes == tl.load(labels_ptr + other), 1.0 - weight, 0.0)
        tl.store(targets_ptr + row.to(tl.int64) * P.classes + classes, target, mask=classes < P.classes)

    if P.packed:
        out_ptr += row.to(tl.int64) * (PIXELS * C // 2)
        for start in range(0, PIXELS // 2, BLOCK // 2):
            pair = start + tl.arange(0, BLOCK // 2)
            mask = pair < PIXELS // 2
            y0, x0, y1, x1 = pair * 2 // P.width, pair * 2 % P.width, (pair * 2 + 1) // P.width, (pair * 2 + 1) % P.width
            r0, g0, b0 = _output(P, own, partner, drawn, y0, x0, mask, 0)
            r1, g1, b1 = _output(P, own, partner, drawn, y1, x1, mask, 0)
            if C == 3:
                first, second, third = _pack(r0, g0, P.dtype), _pack(b0, r1, P.dtype), _pack(g1, b1, P.dtype)
                _store_triples(out_ptr, pair, first, second, third, mask, BLOCK // 2)
            else:
                tl.store(out_ptr + pair, _pack(r0, r1, P.dtype), mask=mask)
    else:
        out_ptr += row.to(tl.int64) * (PIXELS * C)
        for start in range(0, PIXELS, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            mask = pixel < PIXELS
            for c in tl.static_range(0, C, 3 if C == 3 else 1):
                red, green, blue = _output(P, own, partner, drawn, pixel // P.width, pixel % P.width, mask, c)
                if C == 3:
                    _store_triples(out_ptr, pixel, red.to(P.dtype), green.to(P.dtype), blue.to(P.dtype), mask, BLOCK)
                else:
                    tl.store(out_ptr + pixel * C + c, red.to(P.dtype), mask=mask)


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
    """Make batch number `step` of an order, augmented, in one launch; same arguments and results as `batch.load_batch`.

    Safe in CUDA graph capture: shapes are static, nothing synchronises, and the kernel reads seed, epoch and step.
    """
    if streamed:
        refuse_mixing(policy)
    constants, warps = specialize(policy, tuple(images_NHWC.shape[1:]), batch_size, num_classes, dtype)
    size = batch_size, constants.height, constants.width, constants.channels
    images = torch.empty(size, dtype=dtype, device=images_NHWC.device)
    if policy.mixing:
        targets = torch.empty(batch_size, num_classes, dtype=torch.float32, device=images.device)
    else:
        targets = torch.empty(batch_size, dtype=torch.int64, device=images.device)
    out = images.view(-1).view(torch.int32) if constants.packed else images
    with torch.cuda.device_of(images):
        _augment_kernel[(batch_size,)](
            images_NHWC, labels, order, state, out, targets, len(order), len(labels),
            P=constants, STREAMED=streamed, num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
    return images.permute(0, 3, 1, 2), targets


@cache
def specialize(
    policy: Policy, image_shape: tuple[int, int, int], batch_size: int, num_classes: int, dtype: torch.dtype = torch.float32
) -> tuple[Constants, int]:
    """Return the kernel's constants and warps for batches of `policy` from images of `image_shape` (H, W, C)."""
    channels = image_shape[2]
    height, width = policy.output_size(*image_shape)
    pixels = height * width
    warps = warps_per_image(batch_size)
    block = min(triton.next_power_of_2(max(pixels, 2)), 256 * warps)
    last, mixing = policy_constants(policy, *image_shape, block)
    constants = Constants(
        "Policy",
        last=last,
        mixing=mixing,
        image_bytes=math.prod(image_shape),
        height=height,  # of the output
        width=width,
        channels=channels,
        classes=num_classes if mixing else 1,
        class_block=triton.next_power_of_2(num_classes) if mixing else 1,
        ignored=IGNORE,
        dtype=DTYPES[dtype],
        packed=channels in (1, 3) and dtype != torch.float32 and pixels * channels % 2 == 0,
        block=block,
    )
    return constants, warps


def warps_per_image(batch_size: int) -> int:
    """Choose the warps per image; they change the time only.

    Every warp of an image repeats the work that is needed once per image, so one warp is the least work, and at 4,096 images
    fills a GPU of 132 multiprocessors with 32 programs each. A smaller batch takes more warps to use the whole GPU.
    """
    return 1 if batch_size >= 4096 else 4 if batch_size > 1024 else 8
