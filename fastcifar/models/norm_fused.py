"""BatchNorm in training, the sum with a residual, and ReLU: two Triton launches forward, two backward.

    moments     forward: mean and sum of squared deviations of every channel, over each of `parts` parts of the rows
    normalize   y = ReLU((x - mean) rstd weight + bias + residual); running statistics, and the count of batches
    reduce      backward, with g = dy where y > 0, else 0: sums of g and of g (x - mean) over each part; dresidual = g
    apply       dx = weight rstd (g - mean(g) - xhat mean(g xhat)), xhat = (x - mean) rstd; dweight, dbias

Between two launches lie the sums, which every program needs of all others: each program of the first kernel writes those of
its part, and each of the second adds those of its channels, always in the same order. There are no atomic additions, so a
result does not depend on which program ended first.

Variances are computed from deviations, never as E[x^2] - E[x]^2, which loses all digits where the mean is large: each element
of a program's tile follows its own mean by Welford's update over the program's tiles; groups of rows are then merged by the
corrected two-pass algorithm (Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, 1983). Shifting by a
channel's first value would be cheaper, but that may be an outlier.

ReLU's mask is not stored. Without residual, `reduce` and `apply` compute y again, from the x that they read anyway and with
the forward pass's own arithmetic. With one they would have to read the residual; `reduce` reads y instead, which the next
convolution keeps, and `apply` reads dresidual.

Floor, in passes over the activation of B C H W elements; all else is below 1 % of a pass for the layers of ResNets:

    forward                   reads x twice, writes y                            3 passes, 4 with a residual
    backward                  reads x and dy twice, writes dx                    5
    backward, ReLU(.. + r)    reads x twice, dy, y, dresidual; writes two        7

The second reading comes from the L2 cache where the activation fits (50 MB; 6 MB in the seed's largest layer), so that device
memory moves 2, 3, 3 and 5 passes.

Values are float32 between reading and writing, so y is rounded once, where PyTorch rounds the output of BatchNorm, of the sum
and of ReLU.

Legend: M = B H W rows of C channels, row-major, which is what channels-last memory is. A program takes BLOCK_C channels and
every PARTS-th tile of BLOCK_M rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl

MULTIPROCESSORS = 132
"""Of an H100 and an H200."""
WARPS = 16 * MULTIPROCESSORS
"""Most warps of a launch: all run at once, with up to 128 registers a thread."""
MOST_PARTS = 128
"""Most parts of the rows: every program of the second kernel reads the sums of all of them."""
TILES = 4096, 2048, 1024
"""Elements of a tile; the first that gives every multiprocessor two."""
CHANNELS = 16, 32
"""Channels of a tile: 32 bytes at least, which is a sector; few, since the sums that a program adds are of that width."""
DTYPES = torch.float32, torch.bfloat16, torch.float16


@triton.jit
def _places(tile, M: tl.constexpr, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Place of the tile's first row in memory, places from there, (BLOCK_M, BLOCK_C), and whether they are in the matrix."""
    row = tl.arange(0, BLOCK_M)[:, None]
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    top = tile * BLOCK_M
    return tl.cast(top, tl.int64) * C, row * C + channel, (row < M - top) & (channel < C)


@triton.jit
def _rows_of(part, M: tl.constexpr, BLOCK_M: tl.constexpr, PARTS: tl.constexpr):
    """Number of rows of a part."""
    LAST: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M - 1
    whole = ((LAST - part) // PARTS + 1) * BLOCK_M
    return whole - tl.where(part == LAST % PARTS, (LAST + 1) * BLOCK_M - M, 0)


@triton.jit
def _merged(mean, squares, count, total):
    """Mean and sum of squared deviations of `total` rows, from those of groups, (groups, channels), of `count` rows each."""
    about = tl.sum(mean * count, 0) / total
    deviation = mean - about[None, :]
    rest = tl.sum(deviation * count, 0)
    return about + rest / total, tl.sum(squares + deviation * deviation * count, 0) - rest * (rest / total)


@triton.jit
def _activation(x, mean, scale, bias):
    """(x - mean) scale + bias, equal to the last bit in every kernel: a compiler cannot contract it otherwise."""
    return tl.fma(x - mean[None, :], tl.broadcast_to(scale[None, :], x.shape), tl.broadcast_to(bias[None, :], x.shape))


@triton.jit
def _moments_kernel(
    x_ptr, parts_ptr, M: tl.constexpr, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """Means and sums of squared deviations of a part: parts (2, PARTS, C)."""
    LAST: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M - 1
    part = tl.program_id(1)
    mean = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for tile in range(part, LAST + 1, PARTS):
        base, lanes, inside = _places(tile, M, C, BLOCK_M, BLOCK_C)
        x = tl.load(x_ptr + base + lanes, inside, other=0.0).to(tl.float32)
        delta = tl.where(inside, x - mean, 0.0)
        mean += delta * (1.0 / ((tile - part) // PARTS + 1))
        squares += delta * (x - mean)
    row = tl.arange(0, BLOCK_M)[:, None]
    missing = (part == LAST % PARTS) & (row >= M - LAST * BLOCK_M)
    count = (LAST - part) // PARTS + 1 - missing.to(tl.int32)
    mean, squares = _merged(mean, squares, count.to(tl.float32), _rows_of(part, M, BLOCK_M, PARTS).to(tl.float32))
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    tl.store(parts_ptr + part * C + channel, mean, channel < C)
    tl.store(parts_ptr + (PARTS + part) * C + channel, squares, channel < C)


@triton.jit
def _normalize_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, parts_ptr, y_ptr, mean_ptr, rstd_ptr,
    running_mean_ptr, running_var_ptr, batches_ptr, EPS: tl.constexpr, MOMENTUM: tl.constexpr, RELU: tl.constexpr,
    M: tl.constexpr, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr,
):  # fmt: skip
    """Finish the statistics and write the output; programs of the first part also write the statistics."""
    first = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    part = tl.arange(0, BLOCK_PARTS)[:, None]
    place, given = part * C + channel[None, :], (part < PARTS) & real[None, :]
    count = tl.where(part < PARTS, _rows_of(part, M, BLOCK_M, PARTS), 0).to(tl.float32)
    means = tl.load(parts_ptr + place, given, other=0.0)
    mean, squares = _merged(means, tl.load(parts_ptr + PARTS * C + place, given, other=0.0), count, M)
    rstd = 1.0 / tl.sqrt(squares / M + EPS)
    if first == 0:
        tl.store(mean_ptr + channel, mean, real)
        tl.store(rstd_ptr + channel, rstd, real)
        running_mean = tl.load(running_mean_ptr + channel, real, other=0.0)
        tl.store(running_mean_ptr + channel, running_mean * (1.0 - MOMENTUM) + mean * MOMENTUM, real)
        running_var = tl.load(running_var_ptr + channel, real, other=0.0)
        tl.store(running_var_ptr + channel, running_var * (1.0 - MOMENTUM) + squares / (M - 1) * MOMENTUM, real)
        if tl.program_id(0) == 0:
            tl.store(batches_ptr, tl.load(batches_ptr) + 1)
    scale = tl.load(weight_ptr + channel, real, other=0.0) * rstd
    bias = tl.load(bias_ptr + channel, real, other=0.0)
    for tile in range(first, (M + BLOCK_M - 1) // BLOCK_M, PARTS):
        base, lanes, inside = _places(tile, M, C, BLOCK_M, BLOCK_C)
        y = _activation(tl.load(x_ptr + base + lanes, inside, other=0.0).to(tl.float32), mean, scale, bias)
        if residual_ptr is not None:
            y += tl.load(residual_ptr + base + lanes, inside, other=0.0).to(tl.float32)
        if RELU:
            y = tl.where(y <= 0, 0.0, y)  # NaN stays NaN, as in PyTorch
        tl.store(y_ptr + base + lanes, y.to(y_ptr.dtype.element_ty), inside)


@triton.jit
def _reduce_kernel(
    dy_ptr, x_ptr, y_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, parts_ptr, dresidual_ptr, RECOMPUTE: tl.constexpr,
    M: tl.constexpr, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Sums of g and of g (x - mean) of a part: parts (2, PARTS, C). The mask comes from y, or from x (RECOMPUTE), or is 1."""
    part = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    mean = tl.load(mean_ptr + channel, real, other=0.0)
    if RECOMPUTE:
        scale = tl.load(weight_ptr + channel, real, other=0.0) * tl.load(rstd_ptr + channel, real, other=0.0)
        bias = tl.load(bias_ptr + channel, real, other=0.0)
    sums = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    products = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for tile in range(part, (M + BLOCK_M - 1) // BLOCK_M, PARTS):
        base, lanes, inside = _places(tile, M, C, BLOCK_M, BLOCK_C)
        gradient = tl.load(dy_ptr + base + lanes, inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + base + lanes, inside, other=0.0).to(tl.float32)
        if RECOMPUTE:
            gradient = tl.where(_activation(x, mean, scale, bias).to(x_ptr.dtype.element_ty) <= 0, 0.0, gradient)
        if y_ptr is not None:
            gradient = tl.where(tl.load(y_ptr + base + lanes, inside, other=0.0).to(tl.float32) <= 0, 0.0, gradient)
            tl.store(dresidual_ptr + base + lanes, gradient.to(dresidual_ptr.dtype.element_ty), inside)
        sums += gradient
        products += gradient * (x - mean[None, :])
    tl.store(parts_ptr + part * C + channel, tl.sum(sums, 0), real)
    tl.store(parts_ptr + (PARTS + part) * C + channel, tl.sum(products, 0), real)


@triton.jit
def _apply_kernel(
    gradient_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, parts_ptr, dx_ptr, dweight_ptr, dbias_ptr,
    RECOMPUTE: tl.constexpr, M: tl.constexpr, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr,
):  # fmt: skip
    """Finish the sums and write dx; programs of the first part also write dweight and dbias. `gradient_ptr`: g, or dy."""
    first = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    part = tl.arange(0, BLOCK_PARTS)[:, None]
    place, given = part * C + channel[None, :], (part < PARTS) & real[None, :]
    mean = tl.load(mean_ptr + channel, real, other=0.0)
    rstd = tl.load(rstd_ptr + channel, real, other=0.0)
    scale = tl.load(weight_ptr + channel, real, other=0.0) * rstd
    bias = tl.load(bias_ptr + channel, real, other=0.0)
    dbias = tl.sum(tl.load(parts_ptr + place, given, other=0.0), 0)
    dweight = tl.sum(tl.load(parts_ptr + PARTS * C + place, given, other=0.0), 0) * rstd
    if first == 0:
        tl.store(dweight_ptr + channel, dweight, real)
        tl.store(dbias_ptr + channel, dbias, real)
    shift, slope = dbias / M, dweight * rstd / M
    for tile in range(first, (M + BLOCK_M - 1) // BLOCK_M, PARTS):
        base, lanes, inside = _places(tile, M, C, BLOCK_M, BLOCK_C)
        gradient = tl.load(gradient_ptr + base + lanes, inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + base + lanes, inside, other=0.0).to(tl.float32)
        if RECOMPUTE:
            gradient = tl.where(_activation(x, mean, scale, bias).to(x_ptr.dtype.element_ty) <= 0, 0.0, gradient)
        dx = scale[None, :] * (gradient - shift[None, :] - (x - mean[None, :]) * slope[None, :])
        tl.store(dx_ptr + base + lanes, dx.to(dx_ptr.dtype.element_ty), inside)


def geometry(rows: int, channels: int) -> dict[str, int]:
    """Choose BLOCK_M, BLOCK_C, PARTS and warps for a matrix of rows x channels.

    >>> geometry(64 * 32 * 32, 48)  # the seed's stem: 3 x 86 programs of 3 tiles
    {'BLOCK_M': 256, 'BLOCK_C': 16, 'PARTS': 86, 'num_warps': 8}
    """
    block_c = min(CHANNELS, key=lambda block: (-channels % block, -block))
    block_c = min(block_c, triton.next_power_of_2(channels))
    columns = triton.cdiv(channels, block_c)
    for elements in TILES:
        block_m = min(elements // block_c, triton.next_power_of_2(rows))
        tiles = triton.cdiv(rows, block_m)
        if tiles * columns >= 2 * MULTIPROCESSORS:
            break
    warps = 8 if elements == TILES[0] else 4
    turns = triton.cdiv(tiles, min(MOST_PARTS, max(1, WARPS // warps // columns)))
    return {"BLOCK_M": block_m, "BLOCK_C": block_c, "PARTS": triton.cdiv(tiles, turns), "num_warps": warps}


def wrap_triton(kernel: Any) -> Any:
    """Let torch.compile see a launch; not the interpreter's, which cannot be traced.

    It has the name of PyTorch's own, by which torch.compile finds the kernels of an operator, for the key of its cache.
    """
    return torch.library.wrap_triton(kernel) if isinstance(kernel, triton.JITFunction) else kernel


def _launch(kernel: Any, activation: torch.Tensor, *others: torch.Tensor | None, sums: bool = False, **constants: Any) -> None:
    """Launch a kernel on an activation and other tensors; `sums`: it adds those of all parts."""
    batch, channels, height, width = activation.shape
    sizes = geometry(batch * height * width, channels)
    if sums:
        constants["BLOCK_PARTS"] = triton.next_power_of_2(sizes["PARTS"])
    grid = triton.cdiv(channels, sizes["BLOCK_C"]), sizes["PARTS"]
    with torch.cuda.device_of(activation):  # Triton launches on the current device
        kernel[grid](activation, *others, M=batch * height * width, C=channels, **sizes, **constants)


def _sums(activation: torch.Tensor) -> torch.Tensor:
    """Return an empty buffer for two sums of each part and channel."""
    batch, channels, height, width = activation.shape
    parts = geometry(batch * height * width, channels)["PARTS"]
    return torch.empty(2, parts, channels, device=activation.device)


@torch.library.triton_op("fastcifar::batch_norm_act", mutates_args=("running_mean", "running_var", "num_batches_tracked"))
def batch_norm_act_forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    num_batches_tracked: torch.Tensor,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, and mean and 1 / standard deviation of each channel; x and the residual are in channels-last memory."""
    parts, y, mean, rstd = _sums(x), torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    _launch(wrap_triton(_moments_kernel), x, parts)
    _launch(
        wrap_triton(_normalize_kernel),
        *(x, residual, weight, bias, parts, y, mean, rstd, running_mean, running_var, num_batches_tracked),
        EPS=eps, MOMENTUM=momentum, RELU=relu, sums=True,
    )  # fmt: skip
    return y, mean, rstd


@torch.library.triton_op("fastcifar::batch_norm_act_backward", mutates_args=())
def batch_norm_act_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return dx, dresidual (empty without y), dweight and dbias.

    `y` is given for a ReLU of a sum; dy, x and y are in channels-last memory.
    """
    parts, dx, dweight, dbias = _sums(x), torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    recompute = relu and y is None
    dresidual = None if y is None else torch.empty_like(x)
    statistics = weight, bias, mean, rstd
    _launch(wrap_triton(_reduce_kernel), dy, x, y, *statistics, parts, dresidual, RECOMPUTE=recompute)
    gradient = dy if dresidual is None else dresidual
    _launch(wrap_triton(_apply_kernel), gradient, x, *statistics, parts, dx, dweight, dbias, RECOMPUTE=recompute, sums=True)
    return dx, dx.new_empty(0) if dresidual is None else dresidual, dweight, dbias


class _BatchNormAct(torch.autograd.Function):
    """The two operators as one function; PyTorch registers no gradient for an operator that updates statistics in place."""

    @staticmethod
    def forward(ctx, x, residual, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps, relu):
        ctx.relu, ctx.added = relu, residual is not None
        y, mean, rstd = batch_norm_act_forward(
            x, residual, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps, relu
        )
        ctx.save_for_backward(x, y if relu and ctx.added else None, weight, bias, mean, rstd)
        return y

    @staticmethod
    def backward(ctx, dy):
        dy = dy.contiguous(memory_format=torch.channels_last)
        x, y, *statistics = ctx.saved_tensors
        dx, dresidual, dweight, dbias = batch_norm_act_backward(dy, x, y, *statistics, ctx.relu)
        dresidual = (dresidual if ctx.relu else dy) if ctx.added else None
        return dx, dresidual, dweight, dbias, None, None, None, None, None, None


def batch_norm_act(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    num_batches_tracked: torch.Tensor,
    momentum: float,
    eps: float,
    relu: bool,
) -> torch.Tensor:
    """Do the work of `norm.batch_norm_act` in training, in two launches, and two more in the backward pass.

    Activations in another order than channels-last are copied first.

    Raises:
        TypeError: activations that are not float32, bfloat16 or float16, a residual of another dtype than x, or weights and
            statistics that are not float32.
    """
    if x.dtype not in DTYPES or (residual is not None and residual.dtype != x.dtype):
        raise TypeError(
            f"x of {x.dtype}, residual of {residual if residual is None else residual.dtype}: must be of one dtype"
        )
    if {tensor.dtype for tensor in (weight, bias, running_mean, running_var)} != {torch.float32}:
        raise TypeError("weight, bias and running statistics must be float32")
    x = x.contiguous(memory_format=torch.channels_last)
    residual = residual if residual is None else residual.contiguous(memory_format=torch.channels_last)
    tensors = x, residual, weight, bias, running_mean, running_var, num_batches_tracked
    return _BatchNormAct.apply(*tensors, momentum, eps, relu)
