"""Several processes as one run: `torchrun --nproc-per-node N -m fastcifar train ...`, one process per GPU.

Each rank takes its rows of every global batch, so that N ranks see the same batches, draws and learning rates as one.
Between backward and update, one all-reduce of a flat buffer per dtype averages the gradients, not DistributedDataParallel:
- it is one copy and one collective with static addresses, which a CUDA graph can capture;
- no module is wrapped, so checkpoints, torch.compile and the step's back ends need no special case;
- with some 20 MB of gradients, overlapping with the backward pass gains little.

Decisions of the host (stop now? where is the run directory?) use a separate gloo group, so that they never wait for a GPU, and
a rank that died is noticed at once.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import nn

from fastcifar.runtime.device import choose_device
from fastcifar.runtime.errors import RepeatedError, UserError
from fastcifar.runtime.shard import Shard

TIMEOUT = timedelta(minutes=10)
"""Time limit to wait for other ranks; a first step may compile for minutes."""
ALIGNMENT = 128  # bytes; alignment of each gradient in the buffer, so that the optimizer's kernel uses vector loads
PATIENCE = timedelta(seconds=5)  # time limit to wait for rank 0's error, to compare it

T = TypeVar("T")
TensorT = TypeVar("TensorT", bound=torch.Tensor)


class LostProcess(UserError):
    """Another rank ended, or did not answer within `TIMEOUT`."""


class World:
    """The ranks of a run. This base class is a run of one process: rank 0 of 1, where collectives do nothing.

    Attributes:
        device: of this rank.
    """

    rank = 0
    size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def is_rank_0(self) -> bool:
        """True on the rank that writes files and prints."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        return Shard(self.rank, self.size)

    def all_reduce_sum(self, *tensors: torch.Tensor) -> None:
        """Replace each tensor by its sum over the ranks."""

    def all_reduce_mean(self, *tensors: torch.Tensor) -> None:
        """Replace each tensor by its mean over the ranks."""

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite the tensors with those of rank 0."""

    def any(self, flag: bool) -> bool:
        """Return True on all ranks if `flag` is true on any rank."""
        return flag

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in order."""
        return [value]

    def run_on_rank_0(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 and return its result, or raise its UserError, on every rank."""
        return make()

    def gradient_averager(self, model: nn.Module) -> Callable[[], None] | None:
        """Return the function to call between backward and the optimizer's step; None for one rank."""
        return None


class Group(World):
    """The processes that torchrun started."""

    def __init__(self, device: torch.device, store: Any, rank: int, size: int) -> None:
        import torch.distributed as dist

        super().__init__(device)
        self.rank, self.size, self.dist = rank, size, dist
        backend = "nccl" if device.type == "cuda" else "gloo"
        with _lost_process(self):
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
            self.host = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def all_reduce_sum(self, *tensors: torch.Tensor) -> None:
        with _lost_process(self):
            for tensor in tensors:
                self.dist.all_reduce(tensor)

    def all_reduce_mean(self, *tensors: torch.Tensor) -> None:
        with _lost_process(self):
            for tensor in tensors:
                if tensor.is_cuda:
                    self.dist.all_reduce(tensor, op=self.dist.ReduceOp.AVG)
                else:  # gloo has no AVG
                    self.dist.all_reduce(tensor)
                    tensor /= self.size

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        for group in _by_dtype(tensors).values():
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
            with _lost_process(self):
                self.dist.broadcast(flat, src=0)
            with torch.no_grad():
                parts = flat.split([tensor.numel() for tensor in group])
                torch._foreach_copy_(group, [part.view(tensor.shape) for part, tensor in zip(parts, group, strict=True)])

    def any(self, flag: bool) -> bool:
        result = torch.tensor(int(flag))
        with _lost_process(self):
            self.dist.all_reduce(result, op=self.dist.ReduceOp.MAX, group=self.host)
        return bool(result)

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        with _lost_process(self):
            self.dist.all_gather_object(values, value, group=self.host)
        return values

    def run_on_rank_0(self, make: Callable[[], T]) -> T:
        outcome: list[Any] = [None, None]
        if self.is_rank_0:
            try:
                outcome[0] = make()
            except UserError as error:
                outcome[1] = str(error)
        with _lost_process(self):
            self.dist.broadcast_object_list(outcome, src=0, group=self.host)
        result, error = outcome
        if error is not None:
            raise UserError(error)
        return result

    def gradient_averager(self, model: nn.Module) -> Callable[[], None]:
        return FlatGradients(model.parameters(), self.all_reduce_mean)


class FlatGradients:
    """Average gradients over the ranks, with one flat buffer and one all-reduce per dtype.

    Called between backward and the optimizer's step, it copies every `.grad` into the buffer, averages the buffer, and sets
    `.grad` to the buffer's views for the optimizer: one copy, not two. It allocates nothing and does not wait for the device,
    so a CUDA graph can capture it; run one step before, so that NCCL connects.

    Args:
        parameters: those without `requires_grad` are left out; each of the others must have a gradient when this is called.
        mean: see `World.all_reduce_mean`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], mean: Callable[..., None]) -> None:
        self.mean = mean
        self.parameters: list[nn.Parameter] = []
        self.buffers, self.views = [], []
        for dtype, group in _by_dtype(p for p in parameters if p.requires_grad).items():
            unit = ALIGNMENT // dtype.itemsize
            lengths = [-(-parameter.numel() // unit) * unit for parameter in group]
            buffer = torch.zeros(sum(lengths), dtype=dtype, device=group[0].device)
            for part, parameter in zip(buffer.split(lengths), group, strict=True):
                self.views.append(part.as_strided(parameter.size(), parameter.stride()))
            self.parameters += group
            self.buffers.append(buffer)

    @torch.no_grad()
    def __call__(self) -> None:
        torch._foreach_copy_(self.views, [parameter.grad for parameter in self.parameters])
        self.mean(*self.buffers)
        for parameter, view in zip(self.parameters, self.views, strict=True):
            parameter.grad = view


def synchronise_batchnorm(model: nn.Module, world: World) -> nn.Module:
    """Convert BatchNorm to torch.nn.SyncBatchNorm, over the whole global batch; with one rank, return the model unchanged.

    Parameters and their names stay the same, and so do checkpoints.

    Raises:
        UserError: on CPUs, where PyTorch has no SyncBatchNorm.
    """
    if world.size == 1:
        return model
    if world.device.type != "cuda":
        raise UserError("train.sync_batchnorm = true: PyTorch supports it only on CUDA; set it to false, or use one process")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


_current: Group | None = None
_times = itertools.count()  # numbers this process's groups; each gets its own part of the store


@contextmanager
def process_group(device: str = "auto") -> Iterator[World]:
    """Form a process group of the ranks that torchrun started; without torchrun, yield a world of one rank.

    A nested call yields the same world. A UserError that rank 0 raises too becomes a `RepeatedError` on the other ranks, so
    that it is printed once.

    Args:
        device: see `choose_device`; with torchrun, "auto" and "cuda" are the GPU numbered LOCAL_RANK.
    """
    global _current
    if _current or not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield _current or World(choose_device(device))
        return
    import torch.distributed as dist

    with _lost_process():
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    store, orderly = dist.PrefixStore(f"fastcifar {next(_times)}", store), False
    try:
        _current = Group(_rank_device(device), dist.PrefixStore("group", store), rank, size)
        yield _current
        orderly = True
    except UserError as error:
        if _is_reported(error, dist.PrefixStore("errors", store), rank, size):
            raise RepeatedError(str(error)) from None
        raise
    finally:
        # After an error NCCL may wait for a dead rank; the group then ends with the process.
        if dist.is_initialized() and (orderly or dist.get_backend() == "gloo"):
            dist.destroy_process_group()
        _current = None


def _rank_device(asked: str) -> torch.device:
    """Return the device of this rank, after making it the current one."""
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if asked.startswith("cuda:"):
        raise UserError(f"`device={asked}`: torchrun gives each process its own GPU; use `device=cuda`")
    device, local = choose_device(asked), int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise UserError(
            f"torchrun started a process for GPU {local}, counted from 0, but there are {torch.cuda.device_count()} GPUs; "
            f"use --nproc-per-node {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


@contextmanager
def _lost_process(group: Group | None = None) -> Iterator[None]:
    """Turn the error of a failed collective into one line."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or (
            torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        ):
            raise
        who = f"rank {group.rank}" if group else "a rank"
        reason = " ".join(str(error).split())
        raise LostProcess(f"{who} lost the other ranks of the run; one of them ended or hangs: {reason}") from error


def _is_reported(error: UserError, store: Any, rank: int, size: int) -> bool:
    """Publish this rank's error to the others; return True if another rank reports it.

    For a `LostProcess` that is any error of another rank, otherwise the same error on rank 0.
    """
    try:
        if isinstance(error, LostProcess):
            return any(store.check([str(other)]) for other in range(size))
        store.set(str(rank), str(error))
        if rank == 0:
            return False
        store.wait(["0"], PATIENCE)
        return store.get("0").decode() == str(error)
    except RuntimeError:  # rank 0 published nothing in time, or its store ended with it
        return False


def _by_dtype(tensors: Iterable[TensorT]) -> dict[torch.dtype, list[TensorT]]:
    groups: dict[torch.dtype, list[TensorT]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return groups
