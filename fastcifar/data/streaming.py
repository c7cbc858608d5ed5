"""The streaming loader: the same batches as the resident loader, bit for bit, for a split too large for the device.

FFCV reads raw pixels from the file in our order, ahead of use. Labels and order stay on the device (16 bytes per sample); the
augmentation is that of the resident loader.

Shapes: N images in the split, B images per batch, H x W pixels, C channels.
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
from fastcifar.data.beton import read_beton
from fastcifar.data.loader import Batch, Loader
from fastcifar.runtime.errors import UserError

if TYPE_CHECKING:
    from fastcifar.data.ffcv_reader import Reader

COPIES = 2
"""Batches on the device: one in use, one being copied."""


class StreamingLoader(Loader):
    """Batches of a split that stays on disk, read by FFCV: `ResidentLoader`'s interface and its batches, bit for bit.

    A thread reads batches ahead, in order, from the first one requested (a run resumed at step k reads nothing before it). It
    ends with the epoch, the end of an iteration (a `break` too), `set_epoch`, `close` or the loader's deletion. A batch
    requested out of order is correct too, but restarts the reading there.

    Args:
        path: a .beton.
        policy, options: as of `Loader`: batch_size, seed, device, dtype, shuffle, num_classes, shard. The policy must not mix
            images.

    Raises:
        UserError: as `Loader`, or FFCV is missing, the file is missing or damaged, the policy mixes images, or `keep` is below
            1.
    """

    def __init__(self, path: str | os.PathLike[str], policy: Policy, **options: Any) -> None:
        refuse_mixing(policy)
        contents = read_beton(path)  # checks the file; FFCV does not
        super().__init__(contents.labels, contents.image_shape, policy, **options)
        if self.keep < 1:
            raise UserError(f"train.keep = {self.keep}: a streamed run cannot choose images by loss; use `loader=resident`")
        reader = _open_reader(path, *contents.fields, self.batch_size)
        feed = DeviceFeed(reader, self.labels.device) if self.labels.is_cuda else HostFeed(reader)
        self._feed = feed
        self._read_next: int | None = None
        """Position of the batch that the feed returns next; None if it is stopped."""
        weakref.finalize(self, feed.stop)
        stored = torch.arange(len(contents.labels))
        self._take_order(stored.to(self.labels.device), stored)
        self._select_epoch(0)

    def load(self) -> Batch:
        """Return the batch at the position; the position does not move."""
        if self.position != self._read_next:
            self._feed.start(self._from(self.position % len(self)))
        self._read_next = None  # if anything below fails, the next batch restarts the reading
        with self._feed.rows() as images:
            batch = self._make_batch(images, streamed=True)
        self._read_next = self.position + 1
        return batch

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from super().__iter__()
        finally:
            self.close()

    def close(self) -> None:
        """End the reading thread, if there is one. The loader can still be used: the next batch restarts the reading."""
        self._read_next = None
        self._feed.stop()

    def _select_epoch(self, epoch: int) -> None:
        self.close()
        if self.shuffle:
            self._take_order(*self._feed.epoch_order(self.seed, epoch, len(self.labels)))

    def _take_order(self, *orders: torch.Tensor) -> None:
        """Store this rank's part of an order, given on the device and on the host."""
        if self.shuffle:
            self.order, samples = (self.shard.of_training(order, self.global_batch_size) for order in orders)
        else:
            self.order, samples = (self.shard.of_evaluation(order) for order in orders)
        self._samples = samples.numpy()

    def _from(self, number: int) -> np.ndarray:
        """Return the samples from batch `number` to the epoch's end, padded with sample 0 to whole batches."""
        samples = self._samples[number * self.batch_size : len(self) * self.batch_size]
        return np.pad(samples, (0, -len(samples) % self.batch_size))


class HostFeed:
    """Pixels for the CPU, used in FFCV's buffers without a copy."""

    def __init__(self, reader: "Reader") -> None:
        self.reader = reader
        self.start, self.stop = reader.start, reader.stop

    def epoch_order(self, seed: int, epoch: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the order of an epoch on the device, and on the host."""
        order = epoch_order(seed, epoch, count)
        return order, order

    @contextmanager
    def rows(self) -> Iterator[torch.Tensor]:
        """Yield the next batch, (B, H, W, C) uint8 on the device, valid inside the context."""
        yield torch.from_numpy(self.reader.take())
        self.reader.release()


class DeviceFeed:
    """Pixels for CUDA: a separate stream copies one batch while another is in use.

    The host waits for the device in two cases only: when it would run ahead by more batches than there are buffers, and, when
    a reading ends, for the pending copies.
    """

    def __init__(self, reader: "Reader", device: torch.device) -> None:
        self.reader, self.device = reader, device
        self.stream = torch.cuda.Stream(device)
        self.used: list[torch.cuda.Event | None] = [None] * COPIES
        """Event after the last kernel that reads each device buffer."""
        self.rows_NHWC: list[torch.Tensor] = []
        self.ahead: deque[tuple[int, torch.cuda.Event]] = deque()
        """Device buffers sent and not yet used, each with the event of its copy."""
        self.copying: deque[torch.cuda.Event] = deque()
        """Copies from host buffers that are not released yet, oldest first."""
        self.sent = self.count = 0

    def epoch_order(self, seed: int, epoch: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the order of an epoch on the device, and on the host; does not wait for kernels of other streams."""
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
        self.stream.synchronize()  # a pending copy still reads a host buffer
        self.ahead.clear()
        self.copying.clear()
        self.sent = self.count = 0

    def _send(self) -> None:
        """Copy the next batch into the next device buffer."""
        self._release_copied()
        pixels = torch.from_numpy(self.reader.take())
        if not self.rows_NHWC:
            self.rows_NHWC = [torch.empty_like(pixels, device=self.device) for _ in range(COPIES)]
            self.stream.wait_stream(torch.cuda.current_stream(self.device))  # it may still use this memory, freed before
        buffer = self.sent % COPIES
        with torch.cuda.stream(self.stream):
            if self.used[buffer]:
                self.stream.wait_event(self.used[buffer])
            self.rows_NHWC[buffer].copy_(pixels, non_blocking=True)  # pinned by FFCV
        copied = self.stream.record_event()
        self.ahead.append((buffer, copied))
        self.copying.append(copied)
        self.sent += 1

    def _release_copied(self) -> None:
        """Release host buffers whose copy is done; wait for the oldest copy if the reader has only one free buffer."""
        while self.copying:
            if len(self.copying) >= self.reader.batches_ahead + 1:
                self.copying[0].synchronize()
            if not self.copying[0].query():
                return
            self.copying.popleft()
            self.reader.release()


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
