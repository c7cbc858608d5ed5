"""Random erasing of a batch in one Triton kernel; `erasing_reference.erase_batch` is its specification.

One warp draws the boxes of an image, normalises and copies a band of its rows, and fills its part of the boxes.

Shapes: images (B, C, H, W). The kernel sees a contiguous batch as B * C planes of H rows of W elements, and one in
channels-last memory as B planes of H rows of W * C elements.
"""

from functools import cache

import torch
import triton
import triton.language as tl

from fastcifar.augment import transforms, triton_functions
from fastcifar.augment.constants import Constants, transform_constants
from fastcifar.augment.erasing_reference import Parameters

TILE = 1024
"""Elements that one warp copies at a time: enough loads in flight to hide the memory's latency."""
BAND = 8192
"""Least number of elements of an image per warp; larger images are shared by several warps."""
FILL_ROWS, FILL_COLUMNS = 8, 16
"""Pixels of a box filled at a time; most boxes of 32 x 32 images are smaller than two such tiles."""


@triton.jit
def _of_channel(VALUES: tl.constexpr, channel):
    """Select VALUES[channel], float32 of the shape of `channel`; a single value is for all channels."""
    value = tl.zeros_like(channel).to(tl.float32) + VALUES[0]
    for c in tl.static_range(1, len(VALUES)):
        value = tl.where(channel == c, VALUES[c], value)
    return value


@triton.jit
def _copy(images_ptr, out_ptr, sample, top_row, end_row, boxes, E: tl.constexpr):
    """Copy a band of a dense image in memory order: normalise, cast, and select a constant inside the boxes."""
    FILL: tl.constexpr = E.fill
    MEAN: tl.constexpr = E.mean
    INVERSE_STD: tl.constexpr = E.inverse_std
    INTERLEAVED: tl.constexpr = E.channels // E.planes
    WIDTH: tl.constexpr = E.width * INTERLEAVED
    rows, columns = tl.arange(0, E.block_rows)[:, None], tl.arange(0, E.block_columns)[None, :]
    for plane in range(E.planes):
        first_row = (sample.to(tl.int64) * E.planes + plane) * E.height
        for row in range(top_row, end_row, E.block_rows):
            for column in range(0, WIDTH, E.block_columns):
                y, x = row + rows, (column + columns) // INTERLEAVED
                channel = (column + columns) % E.channels if E.planes == 1 else tl.zeros_like(columns) + plane
                offsets = ((first_row + row) * WIDTH + column) + (rows * WIDTH + columns)
                mask = (y < E.height) & (column + columns < WIDTH)
                pixels = tl.load(images_ptr + offsets, mask)
                if E.normalizes:
                    pixels = pixels.to(tl.float32) * E.unit - _of_channel(MEAN, channel)
                    pixels = pixels * _of_channel(INVERSE_STD, channel)
                pixels = pixels.to(out_ptr.dtype.element_ty)
                if not E.noise:
                    fill = _of_channel(FILL, channel).to(pixels.dtype)
                    for k in tl.static_range(len(boxes)):
                        top, left, height, width = boxes[k]
                        inside = ((y >= top) & (y < top + height)) & ((x >= left) & (x < left + width))  # rows x columns
                        pixels = tl.where(inside, fill, pixels)
                tl.store(out_ptr + offsets, pixels, mask)


@triton.jit
def _fill(
    out_ptr, channel_stride, row_stride, column_stride, sample, seed, call, top, left, bottom, right, E: tl.constexpr
):  # fmt: skip
    """Fill rows `top` to `bottom` - 1 and columns `left` to `right` - 1 of the image at `out_ptr`."""
    FILL: tl.constexpr = E.fill
    GROUPS: tl.constexpr = (E.channels + 3) // 4
    rows, columns = tl.arange(0, E.fill_rows)[:, None], tl.arange(0, E.fill_columns)[None, :]
    for row in range(top, bottom, E.fill_rows):
        for column in range(left, right, E.fill_columns):
            y, x = row + rows, column + columns
            mask = (y < bottom) & (x < right)
            pixel_ptr = out_ptr + (y.to(tl.int64) * row_stride + x.to(tl.int64) * column_stride)
            for group in range(GROUPS):
                if E.noise:
                    number = (y * E.width + x) * GROUPS + group
                    zero = tl.zeros_like(number)
                    words = tl.philox(seed, zero + sample, zero + call.to(tl.int32), zero + E.box.noise_stream, number)
                    noise = triton_functions.normals(words[0], words[1], words[2], words[3])
                for j in tl.static_range(4):
                    channel = group * 4 + j
                    if channel < E.channels:
                        fill = noise[j] if E.noise else _of_channel(FILL, tl.zeros_like(mask.to(tl.int32)) + channel)
                        fill = fill.to(out_ptr.dtype.element_ty)
                        tl.store(pixel_ptr + tl.cast(channel, tl.int64) * channel_stride, fill, mask)


@triton.jit
def _erasing_kernel(
    images_ptr, out_ptr, state_ptr, sample_stride, channel_stride, row_stride, column_stride, E: tl.constexpr
):  # fmt: skip
    """Copy a band of rows of an image (if E.copies) and erase its part of the boxes, with one warp.

    A copy of dense images writes a constant in the same pass. Noise, and everything in place, is written to the boxes only, by
    the strides of `out_ptr`. E: see `specialize`.
    """
    sample, top_row = tl.program_id(0), tl.program_id(1) * E.band_rows
    end_row = tl.minimum(top_row + E.band_rows, E.height)
    seed, call = tl.load(state_ptr), tl.load(state_ptr + 1)
    BOX: tl.constexpr = E.box
    COUNT: tl.constexpr = E.count
    boxes = ()
    for k in tl.static_range(COUNT):
        lane, words = triton_functions.draw_words(seed, sample, call, k)
        boxes = boxes + (BOX.kernel_draw(BOX, (), lane, words),)  # noqa: RUF005 (Triton)
    if E.copies:
        _copy(images_ptr, out_ptr, sample, top_row, end_row, boxes, E)
    if E.noise or not E.copies:
        if E.copies:
            tl.debug_barrier()  # a thread overwrites pixels that others have copied
        image_ptr = out_ptr + sample.to(tl.int64) * sample_stride
        for k in tl.static_range(COUNT):
            top, left, height, width = boxes[k]
            first, last = tl.maximum(top, top_row), tl.minimum(top + height, end_row)
            _fill(
                image_ptr, channel_stride, row_stride, column_stride, sample, seed, call,
                first, left, last, left + width, E,
            )  # fmt: skip


@cache
def specialize(shape: tuple[int, int, int], planes: int, parameters: Parameters, unit: float, copies: bool) -> Constants:
    """Return the kernel's constants for images of `shape` (C, H, W), whose pixels are first multiplied by `unit`."""
    channels, height, width = shape
    row = width * channels // planes
    widest = row & -row  # the largest power of two that divides a row: blocks of that width waste no lane
    block_columns = min(widest, TILE) if widest >= 16 else min(triton.next_power_of_2(row), 32)
    block_rows = min(triton.next_power_of_2(height), TILE // block_columns)
    box = transforms.RandomErasing(parameters.p, parameters.scale, parameters.ratio)
    return Constants(
        "Erasing",
        box=transform_constants(box, height, width, channels),
        count=parameters.count,
        channels=channels,
        height=height,
        width=width,
        planes=planes,
        noise=not parameters.value,
        fill=parameters.value or (0.0,),
        copies=copies,
        normalizes=bool(parameters.mean),
        unit=unit,
        mean=parameters.mean or (0.0,),
        inverse_std=tuple(1 / std for std in parameters.std) or (1.0,),
        band_rows=block_rows * max(1, BAND // (block_rows * row * planes)),
        block_rows=block_rows,
        block_columns=block_columns,
        fill_rows=FILL_ROWS,
        fill_columns=FILL_COLUMNS,
    )


def erase_batch(images: torch.Tensor, out: torch.Tensor, state: torch.Tensor, parameters: Parameters) -> None:
    """Normalise and erase `images` into `out` in one launch; same arguments as `erasing_reference.erase_batch`.

    Unless they are the same tensor, `images` are contiguous or in channels-last memory, and `out` is in the same order.
    """
    batch, channels, height, width = images.shape
    if not images.numel():
        return
    planes = channels if out.is_contiguous() else 1
    unit = 1 / 255 if images.dtype == torch.uint8 else 1.0
    constants = specialize((channels, height, width), planes, parameters, unit, images is not out)
    with torch.cuda.device_of(images):  # Triton launches on the current device
        _erasing_kernel[(batch, triton.cdiv(height, constants.band_rows))](
            images, out, state, *out.stride(), E=constants,
            num_warps=1, enable_fp_fusion=False,  # fused, a side could round to another pixel than in the reference
        )  # fmt: skip
