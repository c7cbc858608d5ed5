"""Muon's update of all filters in 2 + 3 * steps Triton launches, whatever their number.

    pack      M <- m M + G; the batch of U = G + m M (Nesterov) or M; sums of squares of U and W
    multiply  in each step A = X X^T, P = b A + c A A, X <- a X + P X, beginning with X = U / |U|
    unpack    W <- sqrt(O) W / |W| - lr X

Products have a kernel here because torch.baddbmm first copies the matrix that it adds, and because cuBLAS may split a sum over
several programs and add their results in another launch.

A launch is given the addresses of all banks, as tuples of tensors, and each program selects those of its bank. A table of
addresses in device memory would need a copy from the host at every eager step, since gradients move, and a CUDA graph would
read the host's memory again at every replay; the arguments of a launch it keeps.

Legend: N banks of filters. A bank of O filters with K numbers each is a matrix (O, K) in memory, in whatever order the K are,
since orthogonalising does not depend on it. The batch is (N, R, C), zeros beyond O and K; R and C are whole tiles, so that
products need no masks.
"""

import math
from functools import cache

import torch
import triton
import triton.language as tl

from fastcifar.augment.constants import Constants
from fastcifar.optim.muon_reference import COEFFICIENTS, DTYPE, EPSILON

TILE = 64
"""Rows, columns and terms of a product that a program takes at a time."""
LARGE_TILE = 128
"""Rows and columns where there are enough tiles of that size."""
MULTIPROCESSORS = 132
"""Of an H100; products have at least one tile for each where possible."""
BLOCK = 2048
"""Elements for each program of the other kernels; a divisor of TILE * TILE."""


@triton.jit
def _of_bank(values, bank):
    """values[bank], for a `bank` that is known only when the kernel runs."""
    value = values[0]
    for n in tl.static_range(1, len(values)):
        value = tl.where(bank == n, values[n], value)
    return value


@triton.jit
def _places(bank, found_inf_ptr, S: tl.constexpr):
    """This program's elements: places in the bank's memory, places in its padded matrix, and whether they are updated.

    They are taken as (vectors, S.vector) where a vector lies within one row: so many are loaded and stored at once.
    """
    FILTERS: tl.constexpr = S.filters
    WIDTHS: tl.constexpr = S.widths
    VECTORS: tl.constexpr = S.block // S.vector
    vector, lane = tl.program_id(0) * VECTORS + tl.arange(0, VECTORS), tl.arange(0, S.vector)[None, :]
    row, column = vector // (S.columns // S.vector), vector % (S.columns // S.vector)
    width = _of_bank(WIDTHS, bank) // S.vector
    updated = (row < _of_bank(FILTERS, bank)) & (column < width)
    if found_inf_ptr is not None:
        updated = tl.where(tl.load(found_inf_ptr) == 0, updated, False)
    return (row * width + column)[:, None] * S.vector + lane, vector[:, None] * S.vector + lane, updated[:, None]


@triton.jit
def _norm(squares_ptr, bank, which: tl.constexpr, S: tl.constexpr):
    """Norm of a bank's update (which = 0) or weights (1), from the sums of squares (N, 2, S.parts)."""
    part = tl.arange(0, S.part_block)
    return tl.sqrt(tl.sum(tl.load(squares_ptr + (bank * 2 + which) * S.parts + part, part < S.parts, other=0.0)))


@triton.jit
def _pack_kernel(
    filters, gradients, buffers, batch_ptr, squares_ptr, grad_scale_ptr, found_inf_ptr,
    momentum, NESTEROV: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Update the momentum, and write the batch of updates and this program's sums of squares. S: see `specialize`."""
    bank = tl.program_id(1)
    place, padded, updated = _places(bank, found_inf_ptr, S)
    gradient = tl.load(_of_bank(gradients, bank) + place, updated, other=0.0).to(tl.float32)
    if grad_scale_ptr is not None:
        gradient = gradient / tl.load(grad_scale_ptr)
    buffer_ptr = _of_bank(buffers, bank) + place
    buffer = tl.load(buffer_ptr, updated, other=0.0).to(tl.float32) * momentum + gradient
    tl.store(buffer_ptr, buffer, updated)
    update = gradient + buffer * momentum if NESTEROV else buffer
    tl.store(batch_ptr + bank.to(tl.int64) * (S.rows * S.columns) + padded, update)
    weight = tl.load(_of_bank(filters, bank) + place, updated, other=0.0).to(tl.float32)
    squares_ptr += bank * 2 * S.parts + tl.program_id(0)
    tl.store(squares_ptr, tl.sum(update * update))
    tl.store(squares_ptr + S.parts, tl.sum(weight * weight))


@triton.jit
def _multiply_kernel(
    a_ptr, b_ptr, c_ptr, out_ptr, squares_ptr, alpha, beta, b_row_stride, b_column_stride,
    EPSILON: tl.constexpr, POWER: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """A tile of out = (alpha a b + beta c) / |U|^POWER, for a (banks, M, K) and b (banks, K, N); c may be None."""
    bank, tile = tl.program_id(1).to(tl.int64), tl.program_id(0)
    row, column = tile // (N // TILE) * TILE + tl.arange(0, TILE), tile % (N // TILE) * TILE + tl.arange(0, TILE)
    term = tl.arange(0, STEP)
    a_ptr += bank * (M * K) + (row[:, None] * K + term[None, :])
    b_ptr += bank * (K * N) + (term[:, None] * b_row_stride + column[None, :] * b_column_stride)
    total = tl.zeros((TILE, TILE), tl.float32)
    for _ in range(0, K, STEP):
        total = tl.dot(tl.load(a_ptr), tl.load(b_ptr), total, input_precision="ieee")  # float32, of tests, not as TF32
        a_ptr += STEP
        b_ptr += STEP * b_row_stride
    total *= alpha
    place = bank * (M * N) + (row[:, None] * N + column[None, :])
    if c_ptr is not None:
        total += beta * tl.load(c_ptr + place).to(tl.float32)
    if POWER > 0:
        norm = _norm(squares_ptr, bank, 0, S) + EPSILON
        total = total / norm if POWER == 1 else total / norm / norm
    tl.store(out_ptr + place, total)


@triton.jit
def _unpack_kernel(filters, batch_ptr, squares_ptr, lr_ptr, found_inf_ptr, S: tl.constexpr):
    """Scale the weights to norm sqrt(O) and subtract the batch times the learning rate."""
    ROOTS: tl.constexpr = S.roots
    bank = tl.program_id(1)
    place, padded, updated = _places(bank, found_inf_ptr, S)
    update = tl.load(batch_ptr + bank.to(tl.int64) * (S.rows * S.columns) + padded, updated).to(tl.float32)
    filter_ptr = _of_bank(filters, bank) + place
    scale = _of_bank(ROOTS, bank) / _norm(squares_ptr, bank, 1, S)
    tl.store(filter_ptr, tl.load(filter_ptr, updated).to(tl.float32) * scale - update * tl.load(lr_ptr), updated)


@cache
def specialize(sizes: tuple[tuple[int, int], ...]) -> Constants:
    """Return the kernels' constants for banks of (O, K)."""
    filters, widths = zip(*sizes, strict=True)
    rows, columns = (triton.cdiv(max(lengths), TILE) * TILE for lengths in (filters, widths))
    parts = rows * columns // BLOCK
    return Constants(
        "Muon",
        filters=filters,
        widths=widths,
        roots=tuple(map(math.sqrt, filters)),
        rows=rows,
        columns=columns,
        vector=math.gcd(8, *widths),  # 16 bytes of the batch
        block=BLOCK,
        parts=parts,
        part_block=triton.next_power_of_2(parts),
    )


def update_filters(
    filters: list[torch.Tensor],
    gradients: list[torch.Tensor],
    buffers: list[torch.Tensor],
    *,
    lr: torch.Tensor,
    momentum: float,
    nesterov: bool,
    steps: int,
    grad_scale: torch.Tensor | None = None,
    found_inf: torch.Tensor | None = None,
    dtype: torch.dtype = DTYPE,
) -> None:
    """Do the work of `muon_reference.update_filters`, for filters that are dense, in contiguous or channels-last memory."""
    gradients = [_in_order_of(bank, gradient) for bank, gradient in zip(filters, gradients, strict=True)]
    sizes = tuple((len(bank), bank.numel() // len(bank)) for bank in filters)
    assert all(out == 1 or bank.stride(0) == width for bank, (out, width) in zip(filters, sizes, strict=True)), "not dense"
    S = specialize(sizes)
    x = torch.empty(len(filters), S.rows, S.columns, dtype=dtype, device=filters[0].device)
    squares = torch.empty(len(filters), 2, S.parts, device=x.device)
    filters, grid = tuple(filters), (S.parts, len(filters))
    a, b, c = COEFFICIENTS
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _pack_kernel[grid](
            filters, tuple(gradients), tuple(buffers), x, squares, grad_scale, found_inf, momentum, NESTEROV=nesterov, S=S
        )
        for step in range(steps):
            first = int(step == 0)  # x is U, not yet divided by its norm
            gram = _multiply(x, x.mT, None, 1.0, 0.0, squares, 2 * first, S)
            polynomial = _multiply(gram, gram, gram, c, b, squares, 0, S)
            x = _multiply(polynomial, x, x, 1.0, a, squares, first, S)
        _unpack_kernel[grid](filters, x, squares, lr, found_inf, S=S)


def _in_order_of(bank: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient in the memory order of `bank`: itself, if autograd made it."""
    strides = zip(bank.shape, bank.stride(), gradient.stride(), strict=True)
    if all(size == 1 or own == other for size, own, other in strides):
        return gradient
    return torch.empty_like(bank).copy_(gradient)


def _multiply(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor | None,
    alpha: float,
    beta: float,
    squares: torch.Tensor,
    power: int,
    constants: Constants,
) -> torch.Tensor:
    """Return (alpha a b + beta c) / |U|^power for a (N, R, K), contiguous, and b (N, K, C)."""
    count, rows, terms = a.shape
    columns = b.shape[2]
    tile = LARGE_TILE
    if rows % tile or columns % tile or count * rows * columns < MULTIPROCESSORS * tile**2:
        tile = TILE
    step = min(TILE, terms // 2)  # two at least: a loop of one is not pipelined, and spilled registers on sm_100
    out = torch.empty(count, rows, columns, dtype=a.dtype, device=a.device)
    _multiply_kernel[(rows * columns // tile**2, count)](
        a, b, c, out, squares, alpha, beta, *b.stride()[1:],
        EPSILON=EPSILON, POWER=power, M=rows, N=columns, K=terms, TILE=tile, STEP=step, S=constants,
        num_warps=4 if tile == TILE else 8, num_stages=4 if tile == TILE else 3,
    )  # fmt: skip
    return out
