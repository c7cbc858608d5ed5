"""FFCV's `Loader` as a reader of raw batches: it is given our order and returns uint8 pixels. Importing this needs FFCV.

It uses FFCV's file reader, memory map, compiled decoder, buffers (pinned with CUDA) and thread. The thread runs our own loop,
because FFCV's
- never ends if its epoch is abandoned (ffcv #345),
- hangs its user when it fails,
- records CUDA events from a second thread, which makes a CUDA graph capture fail,
- overwrites a buffer that may still be copied to the device,
- and waits for the disk at every image that is not in memory.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import numba
import numpy as np
from ffcv.fields.decoders import SimpleRGBImageDecoder
from ffcv.loader import Loader
from ffcv.loader import loader as loader_module
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.memory_managers.os_cache import OSCacheContext, OSCacheManager
from ffcv.reader import Reader as FileReader
from ffcv.traversal_order.base import TraversalOrder

BUFFERS = 6
"""Batches in host memory: some are ready, some are being copied to the device, one is being read."""

READ_AHEAD = 4
"""Batches requested from the disk before they are read."""

_posix_fadvise = ctypes.CDLL(None).posix_fadvise
_posix_fadvise.argtypes = ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int
_posix_fadvise.restype = ctypes.c_int


class GivenOrder(TraversalOrder):
    """A given order.

    Attributes:
        samples: int64 indices of samples.
    """

    def __init__(self) -> None:
        self.samples = np.zeros(0, np.int64)

    def __call__(self, loader: Loader) -> "GivenOrder":
        """Return the instance itself: FFCV expects a class and calls it."""
        return self

    def sample_order(self, epoch: int) -> np.ndarray:
        return self.samples


class FileMap(OSCacheManager):
    """FFCV's memory map of a file, without the Python sets of all samples and pages that FFCV builds for its own orders.

    These take 5 microseconds and up to 570 bytes per sample, a fifth of the pixels of CIFAR-10.
    """

    def __init__(self, reader: FileReader) -> None:
        self.reader, self.context = reader, OSCacheContext(self)
        places = reader.alloc_table["ptr"]
        order = np.argsort(places)
        self.ptrs, self.sizes = places[order], reader.alloc_table["size"][order]  # for FFCV's compiled search


@contextmanager
def _our_file_map() -> Iterator[None]:
    """Patch the class of the memory map in FFCV's loader module; FFCV has no option for it."""
    theirs, loader_module.OSCacheManager = loader_module.OSCacheManager, FileMap
    try:
        yield
    finally:
        loader_module.OSCacheManager = theirs


@numba.njit("void(int64, uint64[:], int64)", nogil=True)
def _will_need(file: int, places: np.ndarray, size: int) -> None:
    """Have the system read `size` bytes of a file from each place into memory; does not wait for them.

    Compiled, because Python would take the GIL for every call, from the thread that gives work to the GPU.
    """
    for place in places:
        _posix_fadvise(file, place, size, os.POSIX_FADV_WILLNEED)


class Reader(Loader):
    """Batches of pixels in any order, one reading at a time, with `buffers` batches in memory.

    The constructor compiles the decoder, which takes one or two seconds.

    Args:
        path: an undamaged .beton with raw images of one size.
        image_field, label_field: names of its fields.
        batch_size: B.
        buffers: at least 2.
    """

    def __init__(self, path: str, image_field: str, label_field: str, batch_size: int, buffers: int = BUFFERS) -> None:
        with _our_file_map():
            super().__init__(
                path,
                batch_size,
                num_workers=1,  # one core of an EPYC reads 1,000,000 images/s of 32x32 from cached pages: no pool
                os_cache=True,
                order=GivenOrder(),
                seed=0,  # otherwise FFCV draws one from NumPy's global generator
                pipelines={image_field: [SimpleRGBImageDecoder()], label_field: None},
                batches_ahead=buffers - 2,  # FFCV adds two
            )
        images = self.reader.metadata[f"f{self.field_name_to_f_ix[image_field]}"]
        self._places, self._image_bytes = images["data_ptr"], int(images["height"][0]) * int(images["width"][0]) * 3
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        memory = self.graph.allocate_memory(batch_size, buffers)
        self.graph.allocate_memory = lambda *_: memory  # all readings share these buffers
        self.reading: Reading | None = None
        self.start(np.zeros(batch_size, np.int64))
        self.take()
        self.stop()

    def __iter__(self) -> "Reading":
        return Reading(self, self.next_traversal_order())

    def start(self, samples: np.ndarray) -> None:
        """Start to read `samples`, int64 indices, a multiple of B of them; ends an earlier reading."""
        self.stop()
        self.traversal_order.samples = samples
        self.reading = iter(self)

    def take(self) -> np.ndarray:
        """Wait for the next batch, (B, H, W, 3) uint8; the caller may use its buffer until `release`.

        Raises:
            Exception: an error of the reading thread.
        """
        taken = self.reading.ready.get()
        if isinstance(taken, Exception):
            raise taken
        return taken

    def release(self) -> None:
        """Allow the oldest taken buffer to be overwritten."""
        self.reading.free.release()

    def ask_for(self, samples: np.ndarray) -> None:
        """Have the disk read these samples while others are processed.

        Otherwise the reader waits for each one in turn, and the system reads 128 kB for its 3 kB, useless in a random order.
        """
        _will_need(self._file, self._places[samples], self._image_bytes)

    def stop(self) -> None:
        """End the reading and its thread, after the current batch. All buffers may then be overwritten."""
        if self.reading:
            self.reading.close()
            self.reading = None


class Reading(EpochIterator):
    """FFCV's thread with our own loop.

    Attributes:
        ready: batches read, in order; the last entry is an exception if one ended the reading.
        free: counts the buffers that may be overwritten; they are filled in turn.
    """

    def __init__(self, loader: Reader, order: Sequence[int]) -> None:
        self.ready: SimpleQueue[Any] = SimpleQueue()
        self.free = threading.Semaphore(loader.batches_ahead + 2)
        super().__init__(loader, order)  # starts the thread

    def run(self) -> None:
        try:
            batch_size, asked = self.loader.batch_size, 0
            for number, samples in enumerate(self.iter_ixes):
                ahead = (number + 1 + READ_AHEAD) * batch_size
                self.loader.ask_for(self.order[asked:ahead])
                asked = ahead
                self.free.acquire()
                if self.terminate_event.is_set():
                    return
                (pixels,) = self.run_pipeline(number, samples, number % (self.loader.batches_ahead + 2), None)
                self.ready.put(pixels)
        except Exception as error:
            self.ready.put(error)

    def close(self) -> None:
        self.terminate_event.set()
        self.free.release()  # the thread may wait for a buffer
        self.join()

    def __del__(self) -> None:
        """Do nothing: FFCV's version calls `close`, sometimes from this thread itself, which cannot join itself."""
