"""The streaming loader: the resident loader's batches, pixel for pixel, of a split too large for the device.

FFCV reads raw pixels from the file in our order, ahead of use. Labels and order stay on the device, 16 bytes a sample, and
behind them comes the resident loader's own augmentation.

Shapes: N images in the split, B images a batch, H x W pixels, C channels.
"""

import os
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastcifar.augment import Policy, epoch_order
from fastcifar.augment.batch import refuse_mixing
from fastcifar.data.batches import Batches
from fastcifar.data.beton import read_beton
from fastcifar.data.dataset import Dataset
from fastcifar.data.memory import free_memory
from fastcifar.data.resident import ResidentLoader
from fastcifar.data.shard import WHOLE, Shard
from fastcifar.errors import UserError

if TYPE_CHECKING:
    from fastcifar.data.ffcv_reader import Reader

LOADERS = "resident", "streaming"
RESIDENT_SHARE = 0.8
"""Of the free memory, what a resident split may take; the rest is for the model and its activations."""

COPIES = 2
"""Batches on the device: one in use, one on its way."""


class StreamingLoader(Batches):
    """Batches of a split that stays on disk, through FFCV: `ResidentLoader`'s interface and its batches, bit for bit.

    Batches are read ahead in order, by a thread, from the first one asked for (resuming at step k reads nothing before it)
    to the epoch's last, the end of an iteration (a `break` is one), `set_epoch`, `close` or the loader's deletion. A batch
    asked for out of order is right too, but reading begins anew there.

    Args:
        path: a .beton.
        policy: the transforms of a batch; `policy.evaluation()` for evaluation. It must not mix images.
        batch_size: B of all ranks together.
        seed: 64-bit seed of the order and of every augmentation draw.
        device: where the batches are made.
        shuffle: training (True) or evaluation (False).
        num_classes: K; by default one more than the largest label.
        shard: this process's part of every training batch, or of an evaluation's images; B above is then its share.

    Attributes:
        batch_size: images of this rank in a batch.
        labels: (N,) int64 on the device.
        order: this rank's samples of the epoch, int64 on the device.
        augment: "fused" (the Triton kernel, on CUDA) or "reference" (PyTorch), and `augment_reason` why.

    Raises:
        UserError: FFCV is missing, the file is missing or damaged, the policy mixes images or does not fit them, or training
            with a batch larger than the split, or one that the ranks cannot share equally.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        policy: Policy,
        *,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        shuffle: bool = True,
        num_classes: int | None = None,
        shard: Shard = WHOLE,
    ) -> None:
        refuse_mixing(policy)
        contents = read_beton(path)  # FFCV itself believes what a file says
        super().__init__(
            contents.labels,
            contents.image_shape,
            policy,
            batch_size=batch_size,
            seed=seed,
            device=device,
            shuffle=shuffle,
            num_classes=num_classes,
            shard=shard,
        )
        reader = _open_reader(path, *contents.fields, self.batch_size)
        feed = DeviceFeed(reader, self.labels.device) if self.labels.is_cuda else HostFeed(reader)
        self._feed = feed
        self._next: int | None = None
        """The batch that the feed gives next; None where it gives none."""
        weakref.finalize(self, feed.stop)
        stored = torch.arange(len(contents.labels))
        self._take_order(stored.to(device), stored)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.close()
        self.epoch = epoch
        self.state[1].fill_(epoch)
        if self.shuffle:
            self._take_order(*self._feed.epoch_order(self.seed, epoch, len(self.labels)))

    def batch(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Batch number `position` of the selected epoch, 0 to `len(self) - 1`."""
        if not 0 <= position < len(self):
            raise IndexError(f"batch {position} of {len(self)}")
        if position != self._next:
            self._feed.start(self._from(position))
        self._next = None  # whatever fails below, the next batch begins anew
        self.state[2].fill_(position)
        with self._feed.rows() as images:
            batch = self._load_batch(
                images,
                self.labels,
                self.order,
                self.state,
                batch_size=self.batch_size,
                policy=self.policy,
                num_classes=self.num_classes,
                streamed=True,
            )
        self._next = position + 1
        return batch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        try:
            for position in range(len(self)):
                yield self.batch(position)
        finally:
            self.close()

    def close(self) -> None:
        """End the thread that reads, if there is one. The loader stays of use: the next batch begins to read anew."""
        self._next = None
        self._feed.stop()

    def _take_order(self, *orders: torch.Tensor) -> None:
        """Keep this rank's part of an order, given on the device and on the host."""
        if self.shuffle:
            self.order, samples = (self.shard.of_training(order, self.global_batch_size) for order in orders)
        else:
            self.order, samples = (self.shard.of_evaluation(order) for order in orders)
        self._samples = samples.numpy()

    def _from(self, position: int) -> np.ndarray:
        """The samples from batch `position` to the epoch's end, filled up with sample 0 to whole batches."""
        samples = self._samples[position * self.batch_size : len(self) * self.batch_size]
        return np.pad(samples, (0, -len(samples) % self.batch_size))


class HostFeed:
    """Pixels for a device that reads host memory: they are used where FFCV puts them."""

    def __init__(self, reader: "Reader") -> None:
        self.reader = reader
        self.start, self.stop = reader.start, reader.stop

    def epoch_order(self, seed: int, epoch: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The order of an epoch on the device, and on the host."""
        order = epoch_order(seed, epoch, count)
        return order, order

    @contextmanager
    def rows(self) -> Iterator[torch.Tensor]:
        """The next batch, (B, H, W, C) uint8 on the device, for the length of the block."""
        yield torch.from_numpy(self.reader.take())
        self.reader.give_back()


class DeviceFeed:
    """The same for CUDA: a stream of its own copies one batch while another is in use.

    The host waits for no kernel, with two exceptions: before it is more batches ahead of the device than there are buffers,
    and, when a reading ends, for the copies under way.
    """

    def __init__(self, reader: "Reader", device: torch.device) -> None:
        self.reader, self.device = reader, device
        self.stream = torch.cuda.Stream(device)
        self.used: list[torch.cuda.Event | None] = [None] * COPIES
        """When the last kernel that reads a device buffer is done."""
        self.rows_NHWC: list[torch.Tensor] = []
        self.ahead: deque[tuple[int, torch.cuda.Event]] = deque()
        """Device buffers sent and not yet used, each with the event of its copy."""
        self.copying: deque[torch.cuda.Event] = deque()
        """Copies out of host buffers not yet given back, oldest first."""
        self.sent = self.count = 0

    def epoch_order(self, seed: int, epoch: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The order of an epoch on the device, and on the host; waits for it alone, not for kernels of other streams."""
        with torch.cuda.stream(self.stream):
            order = epoch_order(seed, epoch, count, self.device)
            samples = order.cpu()
        order.record_stream(torch.cuda.current_stream(self.device))
        return order, samples

    def start(self, samples: np.ndarray) -> None:
        self.stop()
        self.reader.start(samples)
        self.sent, self.count = 0, len(samples) // self.reader.batch_size

    @contextmanager
    def rows(self) -> Iterator[torch.Tensor]:
        if not self.ahead:
            self._send()
        buffer, copied = self.ahead.popleft()
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(copied)
        try:
            yield self.rows_NHWC[buffer]
        finally:
            self.used[buffer] = stream.record_event()
        while self.sent < self.count and len(self.ahead) < COPIES - 1:
            self._send()

    def stop(self) -> None:
        self.reader.stop()
        self.stream.synchronize()  # a copy under way still reads a host buffer
        self.ahead.clear()
        self.copying.clear()
        self.sent = self.count = 0

    def _send(self) -> None:
        """Copy the next batch into the device buffer whose turn it is."""
        self._give_back()
        pixels = torch.from_numpy(self.reader.take())
        if not self.rows_NHWC:
            self.rows_NHWC = [torch.empty_like(pixels, device=self.device) for _ in range(COPIES)]
            self.stream.wait_stream(torch.cuda.current_stream(self.device))  # it may still use this memory for what it freed
        buffer = self.sent % COPIES
        with torch.cuda.stream(self.stream):
            if self.used[buffer]:
                self.stream.wait_event(self.used[buffer])
            self.rows_NHWC[buffer].copy_(pixels, non_blocking=True)  # pinned by FFCV
        copied = self.stream.record_event()
        self.ahead.append((buffer, copied))
        self.copying.append(copied)
        self.sent += 1

    def _give_back(self) -> None:
        """Give host buffers back whose copy is done; wait for the oldest where the reader would be left with one."""
        while self.copying:
            if len(self.copying) >= self.reader.batches_ahead + 1:
                self.copying[0].synchronize()
            if not self.copying[0].query():
                return
            self.copying.popleft()
            self.reader.give_back()


def choose_loader(asked: str, split_bytes: int, device: torch.device | str, free_bytes: int | None = None) -> tuple[str, str]:
    """("resident" or "streaming", reason) for "auto" or either.

    Args:
        asked: what `--loader` says.
        split_bytes: of the split's pixels.
        device: where the batches are made.
        free_bytes: of the device's memory; asked of the device where None.

    Raises:
        UserError: no such loader.
    """
    if asked not in ("auto", *LOADERS):
        raise UserError(f"--loader {asked}: must be auto or one of {', '.join(LOADERS)}")
    if asked != "auto":
        return asked, "as asked"
    device = torch.device(device)
    free = free_memory(device) if free_bytes is None else free_bytes
    if free is None:
        return "resident", f"free memory of {device} unknown"
    amount = f"{split_bytes / 2**20:,.0f} MiB of pixels, {free / 2**20:,.0f} MiB free on {device}"
    if split_bytes > RESIDENT_SHARE * free:
        return "streaming", f"{amount}, of which {RESIDENT_SHARE:.0%} may be taken"
    return "resident", amount


def open_loader(kind: str, dataset: Dataset, split: str, policy: Policy, **options: Any) -> ResidentLoader | StreamingLoader:
    """The loader that `choose_loader` chose, for the split of that name; `options` are those of `ResidentLoader`."""
    if kind == "streaming":
        return StreamingLoader(dataset.root / f"{split}.beton", policy, **options)
    return ResidentLoader(getattr(dataset, split), policy, **options)


def _open_reader(path: str | os.PathLike[str], image_field: str, label_field: str, batch_size: int) -> "Reader":
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings(action="ignore"):  # FFCV's and numba's
            try:
                from fastcifar.data.ffcv_reader import Reader
            except Exception as error:  # its compiled part fails in many ways
                why = " ".join(str(error).split())
                raise UserError(
                    f"streaming needs FFCV, which cannot be imported ({why}); get it with `make setup`, or with pip install "
                    "'fastcifar[ffcv]' where OpenCV, libturbojpeg and a C++ compiler are installed"
                ) from None
            return Reader(os.fspath(path), image_field, label_field, batch_size)
    finally:
        torch.set_num_threads(threads)  # FFCV sets it too
