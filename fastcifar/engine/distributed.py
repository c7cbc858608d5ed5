"""Several processes as one run: `torchrun --nproc-per-node N -m fastcifar train ...`, one process a GPU.

Each rank takes its rows of every global batch, so that N processes see the batches, draws and learning rates of one. Gradients
are averaged in one flat buffer, between backward and update. That, and not DistributedDataParallel, because it is one kernel
and one collective of static addresses, which a CUDA graph captures as they are; because no module is wrapped, so that
checkpoints, torch.compile and the step's back ends do not know of it; and because at some 20 MB of gradients there is little
to hide behind the backward pass.

What the host has to agree on (stop now? where is the run directory?) goes over a gloo group of its own, so that asking never
waits for a GPU, and a process that died is noticed there at once.
"""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import nn

from fastcifar.data.shard import Shard
from fastcifar.engine.environment import choose_device
from fastcifar.errors import RepeatedError, UserError

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others; a first step may compile for minutes."""
ALIGNMENT = 128  # bytes; where a gradient begins in its buffer, so that the optimizer's kernel reads it in vectors
PATIENCE = timedelta(seconds=5)  # what a rank waits to hear whether rank 0 has the same error

T = TypeVar("T")
TensorT = TypeVar("TensorT", bound=torch.Tensor)


class LostProcess(UserError):
    """Another process of the run ended, or did not answer for `TIMEOUT`."""


class World:
    """The processes of a run. This one is alone: rank 0 of 1, with nobody to tell or to wait for.

    Attributes:
        device: where this process computes.
    """

    rank = 0
    size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        return Shard(self.rank, self.size)

    def sum(self, *tensors: torch.Tensor) -> None:
        """Replace each tensor by its sum over the ranks."""

    def mean(self, *tensors: torch.Tensor) -> None:
        """Replace each tensor by its mean over the ranks."""

    def copy_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite the tensors with those of rank 0."""

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        return flag

    def gather(self, value: T) -> list[T]:
        """The values of all ranks."""
        return [value]

    def first(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 and return its result, or raise its UserError, on every rank."""
        return make()

    def gradients(self, model: nn.Module) -> Callable[[], None] | None:
        """What to call between backward and the optimizer's step; None where there is nothing to do."""
        return None


class Group(World):
    """The processes that torchrun started."""

    def __init__(self, device: torch.device, store: Any, rank: int, size: int) -> None:
        import torch.distributed as dist

        super().__init__(device)
        self.rank, self.size, self.dist = rank, size, dist
        backend = "nccl" if device.type == "cuda" else "gloo"
        with _losing(self):
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
            self.host = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def sum(self, *tensors: torch.Tensor) -> None:
        with _losing(self):
            for tensor in tensors:
                self.dist.all_reduce(tensor)

    def mean(self, *tensors: torch.Tensor) -> None:
        with _losing(self):
            for tensor in tensors:
                if tensor.is_cuda:
                    self.dist.all_reduce(tensor, op=self.dist.ReduceOp.AVG)
                else:  # gloo has no AVG
                    self.dist.all_reduce(tensor)
                    tensor /= self.size

    def copy_first(self, tensors: Iterable[torch.Tensor]) -> None:
        for group in _by_dtype(tensors).values():
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
            with _losing(self):
                self.dist.broadcast(flat, src=0)
            with torch.no_grad():
                parts = flat.split([tensor.numel() for tensor in group])
                torch._foreach_copy_(group, [part.view(tensor.shape) for part, tensor in zip(parts, group, strict=True)])

    def any(self, flag: bool) -> bool:
        told = torch.tensor(int(flag))
        with _losing(self):
            self.dist.all_reduce(told, op=self.dist.ReduceOp.MAX, group=self.host)
        return bool(told)

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        with _losing(self):
            self.dist.all_gather_object(values, value, group=self.host)
        return values

    def first(self, make: Callable[[], T]) -> T:
        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome[0] = make()
            except UserError as error:
                outcome[1] = str(error)
        with _losing(self):
            self.dist.broadcast_object_list(outcome, src=0, group=self.host)
        result, error = outcome
        if error is not None:
            raise UserError(error)
        return result

    def gradients(self, model: nn.Module) -> Callable[[], None]:
        return FlatGradients(model.parameters(), self.mean)


class FlatGradients:
    """Averages gradients over the ranks: all of a dtype side by side in one buffer, one collective each.

    Called between backward and the optimizer's step, it copies every `.grad` into the buffer, averages that, and leaves the
    buffer's views as the `.grad` that the optimizer reads: one copy, not two. Nothing is allocated and nothing waits for the
    host, so that it can be captured in a CUDA graph; run one step before, for NCCL to connect.

    Args:
        parameters: those that need no gradient are left out; each of the others must have one when this is called.
        mean: see `World.mean`.
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
    """The model with BatchNorm over the whole global batch (torch.nn.SyncBatchNorm); itself, where the process is alone.

    Parameters and names stay, so its checkpoints are those of the model as it was.

    Raises:
        UserError: on CPUs, where PyTorch has no such layer.
    """
    if world.size == 1:
        return model
    if world.device.type != "cuda":
        raise UserError("train.sync_batchnorm = true: PyTorch has it on CUDA only; set it to false, or train on one process")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def seed_rank(seed: int, world: World, step: int = 0) -> None:
    """Give a rank other than 0 the random state that its dropout draws from: a function of (seed, rank, global step).

    Rank 0 keeps the state that it has, which is that of a run of one process.
    """
    if world.leads:
        return
    digest = hashlib.sha256(f"{seed} {world.rank} {step}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def gather_random_state(state: Mapping[str, torch.Tensor], world: World) -> dict[str, torch.Tensor]:
    """The random states of all ranks, for a checkpoint: rank 0's under their own names, rank r's with ".r" behind."""
    gathered = enumerate(world.gather(dict(state)))
    return {f"{key}.{rank}" if rank else key: tensor for rank, part in gathered for key, tensor in part.items()}


def own_random_state(state: Mapping[str, torch.Tensor], world: World) -> dict[str, torch.Tensor]:
    """This rank's part of `gather_random_state`; empty where the run had fewer ranks then."""
    if world.leads:
        return {key: tensor for key, tensor in state.items() if key.startswith("rng_") and "." not in key}
    suffix = f".{world.rank}"
    return {key.removesuffix(suffix): tensor for key, tensor in state.items() if key.endswith(suffix)}


_joined: Group | None = None
_times = itertools.count()  # how often this process joined; what one left in the store is not for the next


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started, for as long as the context lasts; without torchrun, be alone.

    Joining again inside gives the same world. A UserError that leaves the context is compared with rank 0's: one that rank 0
    has too becomes a `RepeatedError`, for rank 0 alone to print.

    Args:
        device: see `choose_device`; with torchrun, "auto" and "cuda" are the GPU numbered LOCAL_RANK.
    """
    global _joined
    if _joined or not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield _joined or World(choose_device(device))
        return
    import torch.distributed as dist

    with _losing():
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    store, orderly = dist.PrefixStore(f"fastcifar {next(_times)}", store), False
    try:
        _joined = Group(_rank_device(device), dist.PrefixStore("group", store), rank, size)
        yield _joined
        orderly = True
    except UserError as error:
        if _is_told(error, dist.PrefixStore("errors", store), rank, size):
            raise RepeatedError(str(error)) from None
        raise
    finally:
        # NCCL may wait for a rank that is dead; the end of the process ends the group too.
        if dist.is_initialized() and (orderly or dist.get_backend() == "gloo"):
            dist.destroy_process_group()
        _joined = None


def _rank_device(asked: str) -> torch.device:
    """The device of this rank, made the current one."""
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if asked.startswith("cuda:"):
        raise UserError(f"--device {asked}: torchrun gives every process a GPU of its own; use --device cuda")
    device, local = choose_device(asked), int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise UserError(
            f"torchrun started a process for GPU {local}, counted from 0, but there are {torch.cuda.device_count()}; use "
            f"--nproc-per-node {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


@contextmanager
def _losing(group: Group | None = None) -> Iterator[None]:
    """Turn what a failed collective raises into one line."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or (
            torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        ):
            raise
        who = f"rank {group.rank}" if group else "a rank"
        reason = " ".join(str(error).split())
        raise LostProcess(f"{who} lost the other processes of the run, one of them ended or hangs: {reason}") from error


def _is_told(error: UserError, store: Any, rank: int, size: int) -> bool:
    """Tell the other ranks of this one's error; true where another has said already what there is to say.

    For a lost process that is any error at all, otherwise the same error on rank 0.
    """
    try:
        if isinstance(error, LostProcess):
            return any(store.check([str(other)]) for other in range(size))
        store.set(str(rank), str(error))
        if rank == 0:
            return False
        store.wait(["0"], PATIENCE)
        return store.get("0").decode() == str(error)
    except RuntimeError:  # rank 0 said nothing in time, or the store went away with it
        return False


def _by_dtype(tensors: Iterable[TensorT]) -> dict[torch.dtype, list[TensorT]]:
    groups: dict[torch.dtype, list[TensorT]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return groups
