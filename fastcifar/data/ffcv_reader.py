"""FFCV's `Loader` as a reader of raw batches: an order of ours goes in, uint8 pixels come out. Importing this needs FFCV.

Of FFCV serve its file reader, its memory map, its compiled decoder, its buffers (pinned where there is CUDA) and its thread.
The loop that the thread runs is ours, for FFCV's own never ends once it is abandoned (ffcv #345), lets its user wait forever
when it fails, records CUDA events from a second thread, which a graph being captured does not survive, overwrites a buffer
that may still be copied to the device, and waits for the disk at every image that is not in memory.
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
"""Batches in host memory: some wait to be taken, some are taken and being copied, one is being read."""

READ_AHEAD = 4
"""Batches asked of the disk before they are read."""

_posix_fadvise = ctypes.CDLL(None).posix_fadvise
_posix_fadvise.argtypes = ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int
_posix_fadvise.restype = ctypes.c_int


class GivenOrder(TraversalOrder):
    """Whatever order it is given.

    Attributes:
        samples: int64 indices of samples.
    """

    def __init__(self) -> None:
        self.samples = np.zeros(0, np.int64)

    def __call__(self, loader: Loader) -> "GivenOrder":
        """FFCV wants an instance, and calls it as if it were the class."""
        return self

    def sample_order(self, epoch: int) -> np.ndarray:
        return self.samples


class FileMap(OSCacheManager):
    """FFCV's memory map of a file, without the Python sets of every sample and every page that FFCV makes for its own orders.

    They take 5 microseconds and up to 570 bytes a sample, a fifth of the pixels of CIFAR-10.
    """

    def __init__(self, reader: FileReader) -> None:
        self.reader, self.context = reader, OSCacheContext(self)
        places = reader.alloc_table["ptr"]
        order = np.argsort(places)
        self.ptrs, self.sizes = places[order], reader.alloc_table["size"][order]  # for FFCV's compiled search


@contextmanager
def _our_file_map() -> Iterator[None]:
    """FFCV's loader takes the class of its map from its module and from nowhere else."""
    theirs, loader_module.OSCacheManager = loader_module.OSCacheManager, FileMap
    try:
        yield
    finally:
        loader_module.OSCacheManager = theirs


@numba.njit("void(int64, uint64[:], int64)", nogil=True)
def _will_need(file: int, places: np.ndarray, size: int) -> None:
    """Have the system read `size` bytes of a file from each place on into memory, and do not wait for them.

    Compiled, since Python would take its lock anew for every call, from a thread that is busy giving work to a GPU.
    """
    for place in places:
        _posix_fadvise(file, place, size, os.POSIX_FADV_WILLNEED)


class Reader(Loader):
    """Batches of pixels in any order, one reading at a time; `buffers` of them are in memory at once.

    The constructor compiles the decoder, which takes a second or two.

    Args:
        path: a sound .beton with raw images of one size.
        image_field, label_field: names of its fields.
        batch_size: B.
        buffers: at least 2.
    """

    def __init__(self, path: str, image_field: str, label_field: str, batch_size: int, buffers: int = BUFFERS) -> None:
        with _our_file_map():
            super().__init__(
                path,
                batch_size,
                num_workers=1,  # reads 1,000,000 images/s of 32x32 from cached pages (a core of an EPYC), and flatly: no pool
                os_cache=True,
                order=GivenOrder(),
                seed=0,  # else FFCV takes one from NumPy's global generator
                pipelines={image_field: [SimpleRGBImageDecoder()], label_field: None},
                batches_ahead=buffers - 2,  # FFCV adds two
            )
        images = self.reader.metadata[f"f{self.field_name_to_f_ix[image_field]}"]
        self._places, self._image_bytes = images["data_ptr"], int(images["height"][0]) * int(images["width"][0]) * 3
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        memory = self.graph.allocate_memory(batch_size, buffers)
        self.graph.allocate_memory = lambda *_: memory  # every reading uses the same
        self.reading: Reading | None = None
        self.start(np.zeros(batch_size, np.int64))
        self.take()
        self.stop()

    def __iter__(self) -> "Reading":
        return Reading(self, self.next_traversal_order())

    def start(self, samples: np.ndarray) -> None:
        """Begin to read `samples`, int64 indices, a multiple of B of them; an earlier reading ends."""
        self.stop()
        self.traversal_order.samples = samples
        self.reading = iter(self)

    def take(self) -> np.ndarray:
        """The next batch, (B, H, W, 3) uint8, in a buffer that is the caller's until `give_back`; waits for it.

        Raises:
            Exception: what went wrong in reading.
        """
        taken = self.reading.ready.get()
        if isinstance(taken, Exception):
            raise taken
        return taken

    def give_back(self) -> None:
        """The buffer taken first of those not yet given back may be overwritten."""
        self.reading.free.release()

    def ask_for(self, samples: np.ndarray) -> None:
        """Have the disk read these samples while others are worked on.

        Else each would be waited for on its own when its turn comes, and 128 kB be read for it: no 3 kB are followed by the
        next in a random order.
        """
        _will_need(self._file, self._places[samples], self._image_bytes)

    def stop(self) -> None:
        """End the reading and its thread, after the batch at hand. All buffers may be overwritten."""
        if self.reading:
            self.reading.close()
            self.reading = None


class Reading(EpochIterator):
    """FFCV's thread with a loop of our own.

    Attributes:
        ready: batches read, in order; last of all an exception where one ended the reading.
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
        self.free.release()  # it may be waiting for one
        self.join()

    def __del__(self) -> None:
        """FFCV's would close here, at times from this very thread, which cannot wait for itself."""
