"""Random erasing as a module that replaces torchvision's: one Triton kernel and its PyTorch twin.

    import fastcifar as fc

    erase = fc.RandomErasing(p=0.5, scale=(0.02, 0.2), mean=0.5, std=0.5)
    images = erase(images)  # (B, 3, 32, 32) uint8 -> normalised, erased, bfloat16

The rule is torchvision's, for each image of a batch: with probability p, up to ten attempts at an area uniform in `scale` and
a ratio height / width log-uniform in `ratio`; the first box smaller than the image is overwritten
(`transforms.erasing.erasing_boxes`).
Zhong et al., Random Erasing Data Augmentation, 2017 (https://arxiv.org/abs/1708.04896).

Box k of an image is drawn from Philox with the module's seed and the counter (position in the batch, call, stream, k).

Shapes: images (B, C, H, W). The kernel sees a contiguous batch as B * C planes of H rows of W elements, and one in
channels-last memory as B planes of H rows of W * C elements.
"""

import math
from collections.abc import Sequence
from functools import cache
from numbers import Number

import torch
import triton
import triton.language as tl

from fastcifar.augment import device, philox, transforms
from fastcifar.augment.constants import Constants, transform_constants
from fastcifar.augment.philox import MASK, philox4x32
from fastcifar.augment.transforms.base import to_float
from fastcifar.augment.transforms.erasing import NOISE_STREAM, erasing_boxes

DTYPES = torch.float32, torch.float16, torch.bfloat16

TILE = 1024
"""Elements that one warp copies at a time: enough loads in flight to hide the memory's latency."""
BAND = 8192
"""Least number of elements of an image per warp; larger images are shared by several warps."""
FILL_ROWS, FILL_COLUMNS = 8, 16
"""Pixels of a box filled at a time; most boxes of 32 x 32 images are smaller than two such tiles."""


@triton.jit
def _of_channel(VALUES: tl.constexpr, channel):
    """VALUES[channel], float32 of the shape of `channel`; a single value is for all channels."""
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
                    noise = device.normals(words[0], words[1], words[2], words[3])
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
    """One warp for each band of rows of each image: copies it (E.copies), then erases its part of the boxes.

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
        lane, words = device.draw_words(seed, sample, call, k)
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
def specialize(
    shape: tuple[int, int, int],
    planes: int,
    p: float,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    value: tuple[float, ...],
    count: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    unit: float,
    copies: bool,
) -> Constants:
    """Return the kernel's constants for images of `shape` (C, H, W) and the arguments of `launch`."""
    channels, height, width = shape
    row = width * channels // planes
    widest = row & -row  # the largest power of two that divides a row: blocks of that width waste no lane
    block_columns = min(widest, TILE) if widest >= 16 else min(triton.next_power_of_2(row), 32)
    block_rows = min(triton.next_power_of_2(height), TILE // block_columns)
    return Constants(
        "Erasing",
        box=transform_constants(transforms.RandomErasing(p, scale, ratio), height, width, channels),
        count=count,
        channels=channels,
        height=height,
        width=width,
        planes=planes,
        noise=not value,
        fill=value or (0.0,),
        copies=copies,
        normalizes=bool(mean),
        unit=unit,
        mean=mean or (0.0,),
        inverse_std=tuple(1 / s for s in std) or (1.0,),
        band_rows=block_rows * max(1, BAND // (block_rows * row * planes)),
        block_rows=block_rows,
        block_columns=block_columns,
        fill_rows=FILL_ROWS,
        fill_columns=FILL_COLUMNS,
    )


def launch(
    images: torch.Tensor,
    out: torch.Tensor,
    state: torch.Tensor,
    p: float,
    scale: Sequence[float],
    ratio: Sequence[float],
    value: Sequence[float],
    count: int,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> None:
    """Normalise and erase `images` into `out` with the kernel; in place if both are the same tensor.

    Args:
        images: (B, C, H, W) uint8, float32, float16 or bfloat16; contiguous or channels-last unless it is `out`.
        out: (B, C, H, W) float32, float16 or bfloat16, in the memory order of `images`.
        state: (2,) int64 on the device: seed, call.
        value: one number or one for each channel; empty for standard normal noise.
        count: boxes per image.
        mean, std: one number or one for each channel; empty for no normalisation. uint8 is divided by 255 first.
    """
    batch, channels, height, width = images.shape
    if not images.numel():
        return
    planes = channels if out.is_contiguous() else 1
    box = p, tuple(scale), tuple(ratio), tuple(value), count
    unit = 1 / 255 if images.dtype == torch.uint8 else 1.0
    constants = specialize((channels, height, width), planes, *box, tuple(mean), tuple(std), unit, images is not out)
    with torch.cuda.device_of(images):  # Triton launches on the current device
        _erasing_kernel[(batch, triton.cdiv(height, constants.band_rows))](
            images, out, state, *out.stride(), E=constants,
            num_warps=1, enable_fp_fusion=False,  # fused, a side could round to another pixel than in the twin
        )  # fmt: skip


def twin(
    images: torch.Tensor,
    out: torch.Tensor,
    state: torch.Tensor,
    p: float,
    scale: Sequence[float],
    ratio: Sequence[float],
    value: Sequence[float],
    count: int,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> None:
    """Do the work of `launch` in PyTorch, for images of any strides. It synchronises."""
    if images is not out:
        pixels = images
        if mean:
            mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, std))
            pixels = (to_float(images).float() - mean) / std
        out.copy_(pixels)
    seed, call = state.tolist()
    call &= MASK
    boxes = draw_boxes(seed, call, images.shape, p, scale, ratio, count, images.device)
    sample, y, x = _inside(boxes, images.shape).nonzero(as_tuple=True)
    if value:
        fill = torch.tensor(value, device=images.device)
    else:
        channels, width = images.shape[1], images.shape[3]
        groups = math.ceil(channels / 4)
        group = (y * width + x)[:, None] * groups + torch.arange(groups, device=images.device)
        words = philox4x32(seed, sample[:, None], call, NOISE_STREAM, group)
        fill = philox.normals(words).flatten(1)[:, :channels]
    out[sample, :, y, x] = fill.to(out.dtype)


def draw_boxes(
    seed: int,
    call: int,
    shape: torch.Size,
    p: float,
    scale: Sequence[float],
    ratio: Sequence[float],
    count: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Draw the boxes of a batch of `shape` (B, C, H, W): (B, count, 4) int64, top, left, height, width; all 0 for none."""
    index, box = torch.arange(shape[0], device=device)[:, None, None], torch.arange(count, device=device)[:, None]
    streams = torch.tensor(transforms.RandomErasing.streams, device=device)
    whether, *_ = words = philox4x32(seed, index, call, streams, box)  # (B, count, 1 + attempts)
    boxes = erasing_boxes([word[..., 1:].flatten(0, 1) for word in words], scale, ratio, tuple(shape[2:]))
    return boxes.view(-1, count, 4) * (philox.uniform(whether[..., :1]) < p)


def _inside(boxes: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Mask of the pixels in any of an image's boxes: (B, H, W) bool."""
    top, left, height, width = boxes[..., None].unbind(2)
    y, x = (torch.arange(size, device=boxes.device) for size in shape[2:])
    rows, columns = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
    return (rows[..., None] & columns[:, :, None]).any(1)


def _erase(images: torch.Tensor, out: torch.Tensor, state: torch.Tensor, *parameters) -> None:
    if images.is_cuda:
        return launch(images, out, state, *parameters)
    worker = torch.utils.data.get_worker_info()
    if worker is not None:  # every DataLoader worker has a copy of the module, and from torch a new seed every epoch
        state = state ^ torch.tensor([worker.seed & MASK, 0])
    return twin(images, out, state, *parameters)


def _memory_format(images: torch.Tensor) -> torch.memory_format:
    """Channels-last for images that are only that, contiguous for all others."""
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


@torch.library.custom_op("fastcifar::random_erasing", mutates_args=())
def _random_erasing(
    images: torch.Tensor,
    state: torch.Tensor,
    p: float,
    scale: Sequence[float],
    ratio: Sequence[float],
    value: Sequence[float],
    count: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> torch.Tensor:
    layout = _memory_format(images)
    out = torch.empty_like(images, dtype=dtype, memory_format=layout)
    _erase(images.contiguous(memory_format=layout), out, state, p, scale, ratio, value, count, mean, std)
    return out


@_random_erasing.register_fake
def _(images, state, p, scale, ratio, value, count, mean, std, dtype):
    return torch.empty_like(images, dtype=dtype, memory_format=_memory_format(images))


@torch.library.custom_op("fastcifar::random_erasing_", mutates_args=("images",))
def _random_erasing_(
    images: torch.Tensor,
    state: torch.Tensor,
    p: float,
    scale: Sequence[float],
    ratio: Sequence[float],
    value: Sequence[float],
    count: int,
) -> None:
    _erase(images, images, state, p, scale, ratio, value, count)


class BatchRandomErasing(torch.nn.Module):
    """torchvision's RandomErasing for a whole batch, each image with its own draws, both in training and in evaluation.

    Its seed and the number of calls are a buffer, which moves to the device of the images, so that nothing synchronises
    and a captured CUDA graph makes new draws at every replay (call it once before the capture). The buffer is persistent: a
    resumed run continues where it stopped. Gradients do not pass.

    Args:
        p: probability that a box is drawn.
        scale: bounds of a box's area as a share of the image's, within 0 .. 1.
        ratio: bounds of a box's height / width, above 0.
        value: a number, one for each channel, or "random" for standard normal noise in every pixel and channel; it is not
            normalised.
        inplace: write to the images given, and only to what is erased.
        count: boxes in an image, each drawn with probability p.
        mean, std: a number or one for each channel: images become (x - mean) / std before, x in 0 .. 1 where they are uint8.
        dtype: of what is returned: float32, float16 or bfloat16. Default: the images', or bfloat16 where they are uint8.
        seed: any integer of 64 bits. Default: drawn from torch's global generator.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its bounds, or `inplace` with another option that must make a copy.
    """

    def __init__(
        self,
        p: float = 0.5,
        scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3),
        value: float | Sequence[float] | str = 0,
        inplace: bool = False,
        count: int = 1,
        *,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.p, self.scale, self.ratio, self.value, self.inplace, self.count = p, scale, ratio, value, inplace, count
        self.mean, self.std, self.dtype = mean, std, dtype
        _check(self)
        seed = torch.randint(2**63 - 1, ()).item() if seed is None else (seed + 2**63) % 2**64 - 2**63
        self.register_buffer("state", torch.tensor([seed, 0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Erase, with other draws at every call; see `erase`."""
        erased = self.erase(images)
        self.state[1] += 1
        return erased

    def erase(self, images: torch.Tensor) -> torch.Tensor:
        """Erase, with the draws of the next call of the module, which stay the next ones.

        Args:
            images: (B, C, H, W), or (C, H, W) for one image; float32, float16 or bfloat16, or uint8 where the module
                normalises; contiguous, channels-last or, more slowly, of any strides.

        Returns:
            The same shape; contiguous or channels-last as the images; the images themselves with `inplace`.

        Raises:
            TypeError: no tensor, or one of another dtype.
            ValueError: another shape, or a number of channels that `value`, `mean` or `std` does not fit.
        """
        value, mean, std = (_numbers(v) for v in (self.value, self.mean, self.std))
        _check_images(images, value=value, mean=mean, std=std)
        if self.state.device != images.device:
            self.state = self.state.to(images.device)
        batch = images if images.ndim == 4 else images[None]
        parameters = (float(self.p), [float(x) for x in self.scale], [float(x) for x in self.ratio], value, self.count)
        if self.inplace:
            _random_erasing_(batch, self.state, *parameters)
        else:
            dtype = self.dtype or (torch.bfloat16 if images.dtype == torch.uint8 else images.dtype)
            batch = _random_erasing(batch, self.state, *parameters, mean, std, dtype)
        return images if self.inplace else batch.view_as(images)

    def extra_repr(self) -> str:
        names = "p", "scale", "ratio", "value", "inplace", "count", "mean", "std", "dtype"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _numbers(value: float | Sequence[float] | str | None) -> list[float]:
    """One number or one for each channel as a list, which is empty for "random" and None."""
    if value is None or isinstance(value, str):
        return []
    return [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]


NUMBER, NUMBERS = Number, Number | tuple | list
KINDS = {
    "p": (NUMBER, "a number"),
    "scale": (Sequence, "a sequence of two numbers"),
    "ratio": (Sequence, "a sequence of two numbers"),
    "value": (NUMBERS | str, 'a number, a sequence or "random"'),
    "count": (int, "a whole number"),
    "mean": (NUMBERS | None, "a number, a sequence or None"),
    "std": (NUMBERS | None, "a number, a sequence or None"),
}


def _check(module: BatchRandomErasing) -> None:
    """Wrong types are refused as by torchvision, impossible values as in a policy."""
    for name, (kind, words) in KINDS.items():
        argument = getattr(module, name)
        if not isinstance(argument, kind):
            raise TypeError(f"RandomErasing: {name} = {argument!r}: must be {words}")
    if module.dtype not in (None, *DTYPES):
        raise TypeError(f"RandomErasing: dtype = {module.dtype}: must be one of {', '.join(map(str, DTYPES))}")
    value, mean, std = (tuple(v) if isinstance(v, list) else v for v in (module.value, module.mean, module.std))
    transforms.RandomErasing(module.p, tuple(module.scale), tuple(module.ratio), value)
    if value == ():
        raise ValueError("RandomErasing: value = (): must hold a number")
    if module.count < 1:
        raise ValueError(f"RandomErasing: count = {module.count}: must be at least 1")
    if (mean is None) != (std is None):
        raise ValueError(f"RandomErasing: mean = {mean}, std = {std}: must be given both or neither")
    if mean is not None:
        transforms.Normalize(mean, std)
    if module.inplace and (mean is not None or module.dtype is not None):
        raise ValueError("RandomErasing: inplace = True: must come without mean, std and dtype, which make a copy")


def _check_images(images: torch.Tensor, **values: list[float]) -> None:
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"RandomErasing: images must be a tensor, not {type(images).__name__}")
    if images.dtype not in DTYPES and not (images.dtype == torch.uint8 and values["mean"]):
        valid = ", ".join(map(str, DTYPES))
        raise TypeError(f"RandomErasing: images of {images.dtype}: must be of {valid}, or uint8 with mean and std")
    if images.ndim not in (3, 4):
        raise ValueError(f"RandomErasing: images of shape {tuple(images.shape)}: must be (B, C, H, W) or (C, H, W)")
    channels = images.shape[-3]
    for name, numbers in values.items():
        if len(numbers) > 1 and len(numbers) != channels:
            raise ValueError(f"RandomErasing: {name} = {numbers}: has {len(numbers)} values for images of {channels} channels")


RandomErasing = BatchRandomErasing
"""`fastcifar.RandomErasing`, torchvision's by name and arguments; the one of policies is `fastcifar.augment.RandomErasing`."""
