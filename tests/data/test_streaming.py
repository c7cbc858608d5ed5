"""The streaming loader: the resident loader's batches, with memory and threads that stay flat."""

import ctypes
import gc
import mmap
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.sources import find_source
from fastcifar.augment import CutMix, MixUp, Normalize, Policy, RandomCrop, RandomHorizontalFlip
from fastcifar.data.beton import read_beton, write_beton
from fastcifar.data.dataset import Manifest, Split, file_sha256
from fastcifar.data.resident import ResidentLoader
from fastcifar.data.streaming import StreamingLoader
from fastcifar.recipe import load_recipe
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.shard import Shard

try:
    threads = torch.get_num_threads()
    with warnings.catch_warnings(action="ignore"):
        import ffcv  # noqa: F401
except Exception as error:  # its compiled part fails in many ways
    FFCV_MISSING = f"FFCV cannot be imported ({error}); see `make setup`"
else:
    FFCV_MISSING = ""
finally:
    torch.set_num_threads(threads)

needs_ffcv = pytest.mark.skipif(bool(FFCV_MISSING), reason=FFCV_MISSING)
POLICY = Policy((RandomCrop(8, padding=2), RandomHorizontalFlip(), Normalize(0.5, 0.5)))


def write_split(path, count=50, height=8, width=9):
    rng = np.random.default_rng(0)
    write_beton(path, rng.integers(0, 256, (count, height, width, 3), np.uint8), np.arange(count), page_size=2**21)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("betons") / "train.beton")


@pytest.fixture(scope="module")
def loader(path):
    """A loader with ten images per batch, for tests that do not change it."""
    made = StreamingLoader(path, POLICY, batch_size=10, seed=7)
    yield made
    made.close()


def resident(path, policy=POLICY, **options):
    read = read_beton(path)
    return ResidentLoader(Split(read.images, read.labels), policy, **options)


def check_same(streaming, resident, epochs=(0, 1, 5)):
    assert len(streaming) == len(resident)
    for epoch in epochs:
        streaming.set_epoch(epoch)
        resident.set_epoch(epoch)
        assert torch.equal(streaming.order, resident.order)
        for ours, theirs in zip(streaming, resident, strict=True):
            check_batch(ours, theirs)


def check_batch(ours, theirs):
    assert ours[0].dtype == theirs[0].dtype
    assert ours[0].stride() == theirs[0].stride()
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def readers():
    """The reading threads of all loaders."""
    return [thread for thread in threading.enumerate() if type(thread).__name__ == "Reading"]


@needs_ffcv
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 16, 50])
def test_batches_are_those_of_the_resident_loader(path, shuffle, batch_size):
    options = dict(batch_size=batch_size, seed=2**40 + 3, shuffle=shuffle)
    check_same(StreamingLoader(path, POLICY, **options), resident(path, **options))


@needs_ffcv
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_of_cifar10_under_the_seed_recipe_are_those_of_the_resident_loader(cifar10_source, tmp_path, shuffle):
    """1,000 real images."""
    images, labels = find_source(cifar10_source).read(lambda stage, share: None).train
    write_beton(tmp_path / "train.beton", images[:1000], labels[:1000])
    policy = load_recipe("seed", ["train.precision=bf16"]).augment
    policy = policy if shuffle else policy.evaluation()
    options = dict(batch_size=64, seed=3, shuffle=shuffle)
    check_same(
        StreamingLoader(tmp_path / "train.beton", policy, **options), resident(tmp_path / "train.beton", policy, **options)
    )


@needs_ffcv
def test_an_evaluation_batch_larger_than_the_split_is_padded_as_in_the_resident_loader(path):
    options = dict(batch_size=64, shuffle=False, num_classes=60)
    streaming = StreamingLoader(path, POLICY, **options)
    check_same(streaming, resident(path, **options), epochs=[0])
    assert streaming.num_classes == 60


@needs_ffcv
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_gets_the_batches_that_the_resident_loader_gives_it(path, shuffle, rank):
    options = dict(batch_size=12, shuffle=shuffle, shard=Shard(rank, 2))
    check_same(StreamingLoader(path, POLICY, **options), resident(path, **options), epochs=[0, 3])


@needs_ffcv
def test_a_policy_without_transforms_gives_copies_not_ffcvs_buffers(path):
    policy = Policy(())
    streaming = StreamingLoader(path, policy, batch_size=2)
    batches = list(streaming)  # all kept, through more batches than there are buffers
    for ours, theirs in zip(batches, resident(path, policy, batch_size=2), strict=True):
        check_batch(ours, theirs)


@needs_ffcv
def test_it_begins_in_the_middle_of_an_epoch(loader, path):
    loader.set_epoch(4)
    expected = resident(path, batch_size=10, seed=7)
    expected.set_epoch(4)
    for position in (3, 4):
        check_batch(loader.batch(position), expected.batch(position))


@needs_ffcv
def test_a_reseeded_loader_gives_the_batches_of_a_resident_one_of_that_seed(path):
    streaming = StreamingLoader(path, POLICY, batch_size=16, seed=1)
    next(iter(streaming))
    streaming.reseed(5)
    beton = read_beton(path)
    resident = ResidentLoader(Split(beton.images, beton.labels), POLICY, batch_size=16, seed=5)
    for one, other in zip(streaming, resident, strict=True):
        assert all(map(torch.equal, one, other))


@needs_ffcv
def test_batches_out_of_order_are_right(loader, path):
    loader.set_epoch(2)
    expected = resident(path, batch_size=10, seed=7)
    expected.set_epoch(2)
    for position in (0, 0, 3, 1, 4, 0):
        check_batch(loader.batch(position), expected.batch(position))
    for position in (-1, 5):
        with pytest.raises(IndexError, match=f"batch {position} of 5"):
            loader.batch(position)


@needs_ffcv
def test_no_thread_outlives_an_abandoned_epoch(tmp_path):
    """An epoch of 40 batches, abandoned in different ways."""
    loader = StreamingLoader(write_split(tmp_path / "a.beton", 400), POLICY, batch_size=10)
    assert not readers()
    for epoch in range(3):
        loader.set_epoch(epoch)
        for position, _ in enumerate(loader):
            assert len(readers()) == 1
            if position == 2:
                break
        assert not readers()
    for epoch in range(3):
        loader.set_epoch(epoch)
        loader.batch(0)
        loader.batch(20)
        assert len(readers()) == 1
    loader.set_epoch(0)
    assert not readers()
    loader.batch(0)
    loader.close()
    assert not readers()
    loader.batch(0)
    del loader
    gc.collect()
    assert not readers()


@needs_ffcv
def test_the_thread_ends_with_the_epoch(loader):
    loader.set_epoch(0)
    for position in range(len(loader)):
        loader.batch(position)
    deadline = time.monotonic() + 10
    while readers() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not readers()


@needs_ffcv
def test_memory_and_threads_stay_flat_over_20_epochs(tmp_path):
    """A third of the epochs is abandoned. A leak of one batch (300 kB) per epoch would be 6 MB."""

    def used():
        gc.collect()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmRSS"].split()[0]), len(os.listdir("/proc/self/task"))

    loader = StreamingLoader(write_split(tmp_path / "a.beton", 2000, 32, 32), Policy(()), batch_size=100)

    def epochs(numbers):
        for epoch in numbers:
            loader.set_epoch(epoch)
            for position, _ in enumerate(loader):
                if epoch % 3 == 0 and position == 10:
                    break

    epochs(range(1, 6))
    (memory, tasks), python_threads = used(), threading.active_count()
    epochs(range(20))
    memory_after, tasks_after = used()
    assert tasks_after == tasks
    assert threading.active_count() == python_threads
    assert memory_after - memory < 4 * 1024, f"grew from {memory} to {memory_after} kB"


@pytest.mark.slow
@needs_ffcv
def test_a_data_set_that_memory_does_not_hold_is_streamed(tmp_path):
    """A process limited to 160 MiB loads every batch of 288 MiB of pixels, which it could not hold."""
    images = np.broadcast_to(np.arange(24 * 64 * 64 * 3, dtype=np.uint8).reshape(24, 1, 64, 64, 3), (24, 1000, 64, 64, 3))
    write_beton(tmp_path / "train.beton", images.reshape(-1, 64, 64, 3), np.arange(24_000) % 2)
    manifest = Manifest(
        name="large",
        classes=("even", "odd"),
        image_shape=(64, 64, 3),
        counts={"train": 24_000},
        split_seed=0,
        val_fraction=0.0,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        sha256={"train": file_sha256(tmp_path / "train.beton")},
        source="none",
    )
    (tmp_path / "dataset.json").write_text(manifest.to_json())
    command = [sys.executable, Path(__file__).with_name("limited_memory.py"), tmp_path, str(160 * 2**20)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.getcwd()}  # CUDA reserves far more for itself
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["24000 images streamed", "no memory for all at once"], done.stderr


@needs_ffcv
def test_opening_a_file_costs_a_fraction_of_its_pixels(tmp_path):
    """FFCV's own memory map takes 500 bytes per sample, in Python objects."""
    from ffcv.reader import Reader as FileReader

    from fastcifar.data.ffcv_reader import FileMap

    file = FileReader(str(write_split(tmp_path / "a.beton", 20_000, 2, 2)))
    tracemalloc.start()
    try:
        FileMap(file)
        assert tracemalloc.get_traced_memory()[1] < 50 * 20_000
    finally:
        tracemalloc.stop()


@needs_ffcv
def test_ffcvs_own_loaders_keep_their_memory_map(loader):
    from ffcv.loader import loader as module
    from ffcv.memory_managers import OSCacheManager

    from fastcifar.data.ffcv_reader import FileMap

    assert isinstance(loader._feed.reader.memory_manager, FileMap)
    assert module.OSCacheManager is OSCacheManager


@needs_ffcv
@pytest.mark.parametrize("first", [0, 2])
def test_every_sample_is_asked_for_once_and_before_it_is_read(path, monkeypatch, first):
    from fastcifar.data.ffcv_reader import READ_AHEAD, Reader, Reading

    streaming, events = StreamingLoader(path, POLICY, batch_size=5), []
    ask_for, run_pipeline = Reader.ask_for, Reading.run_pipeline

    def asking(reader, samples):
        events.append(("asked", samples.tolist()))
        ask_for(reader, samples)

    def reading(thread, number, samples, *rest):
        events.append(("read", samples.tolist()))
        return run_pipeline(thread, number, samples, *rest)

    monkeypatch.setattr(Reader, "ask_for", asking)
    monkeypatch.setattr(Reading, "run_pipeline", reading)
    for position in range(first, len(streaming)):
        streaming.batch(position)
    order = streaming.order[first * 5 :].tolist()
    seen = {"asked": [], "read": []}
    for what, samples in events:
        seen[what] += samples
        assert seen["asked"][: len(seen["read"])] == seen["read"]
        assert len(seen["asked"]) <= len(seen["read"]) + (1 + READ_AHEAD) * 5
    assert seen == {"asked": order, "read": order}


@needs_ffcv
def test_what_is_asked_for_comes_into_memory_unread(tmp_path):
    path = write_split(tmp_path / "a.beton", 2000, 32, 32)
    reader = StreamingLoader(path, POLICY, batch_size=2)._feed.reader
    samples = np.array([1700, 400, 900])
    first, last = (place // mmap.PAGESIZE for place in (reader._places[samples], reader._places[samples] + 32 * 32 * 3 - 1))
    with path.open("rb") as file:
        os.fsync(file.fileno())  # what is not on the disk yet stays in memory
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if pages_in_memory(path)[[first, last]].any():
        pytest.skip("this file system keeps its files in memory")
    reader.ask_for(samples)
    deadline = time.monotonic() + 20
    while not pages_in_memory(path)[[first, last]].all() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert pages_in_memory(path)[[first, last]].all()


def pages_in_memory(path):
    """(pages,) bool, of a file."""
    data = np.memmap(path, mode="r")
    found = np.zeros(-(-len(data) // mmap.PAGESIZE), np.uint8)
    address, length = ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(len(data))
    assert ctypes.CDLL(None).mincore(address, length, ctypes.c_void_p(found.ctypes.data)) == 0
    return found % 2 == 1


@needs_ffcv
def test_threads_and_random_state_of_the_process_are_left_alone(path):
    before = torch.get_num_threads(), torch.get_rng_state(), np.random.get_state()[1:3]
    for _ in StreamingLoader(path, POLICY, batch_size=10):
        pass
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.array_equal(np.random.get_state()[1], before[2][0])


@needs_ffcv
def test_an_error_in_reading_is_raised_and_nothing_waits(loader, monkeypatch):
    from fastcifar.data.ffcv_reader import Reading

    def fail(*arguments):
        raise OSError("the disk is gone")

    loader.set_epoch(0)
    with monkeypatch.context() as patch:
        patch.setattr(Reading, "run_pipeline", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            loader.batch(0)
    assert len(list(loader)) == 5


@needs_ffcv
def test_the_order_of_the_fields_and_their_names_do_not_matter(tmp_path):
    """A file whose label comes first, made from ours by FFCV's own writer."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    rng = np.random.default_rng(1)
    samples = [(number, rng.integers(0, 256, (8, 9, 3), np.uint8)) for number in range(30)]
    with warnings.catch_warnings(action="ignore"):
        writer = DatasetWriter(str(tmp_path / "a.beton"), {"y": IntField(), "x": RGBImageField()}, 2**21, num_workers=1)
        writer.from_indexed_dataset(samples)
    check_same(StreamingLoader(tmp_path / "a.beton", POLICY, batch_size=10), resident(tmp_path / "a.beton", batch_size=10))


@pytest.mark.parametrize("mixing", [MixUp(0.4), CutMix(1.0)])
def test_mixing_is_refused(path, mixing):
    with pytest.raises(UserError, match=f"{type(mixing).__name__} takes partners from the whole data set"):
        StreamingLoader(path, Policy((*POLICY.transforms, mixing)), batch_size=10)


def test_a_batch_larger_than_the_split_and_a_policy_that_does_not_fit_are_refused(path):
    with pytest.raises(UserError, match="batch_size = 51: larger than the split of 50 images"):
        StreamingLoader(path, POLICY, batch_size=51)
    with pytest.raises(UserError, match="RandomCrop"):
        StreamingLoader(path, Policy((RandomCrop(30),)), batch_size=10)


def test_missing_and_damaged_files_are_refused_before_ffcv_sees_them(path, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        StreamingLoader(tmp_path / "none.beton", POLICY, batch_size=10)
    whole = path.read_bytes()
    for damaged, message in (
        (whole[:-8], "truncated"),
        (b"\0" + whole[1:], "not a .beton of version 2"),
        (whole[:2200] + b"\xff" * 8 + whole[2208:], "gives sample"),
    ):
        (tmp_path / "bad.beton").write_bytes(damaged)
        with pytest.raises(UserError, match=message):
            StreamingLoader(tmp_path / "bad.beton", POLICY, batch_size=10)


def test_without_ffcv_one_line_says_how_to_get_it(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv.fields.decoders", None)
    monkeypatch.delitem(sys.modules, "fastcifar.data.ffcv_reader", raising=False)
    with pytest.raises(UserError, match=r"streaming needs FFCV, which .*`make setup`, or with pip install") as error:
        StreamingLoader(path, POLICY, batch_size=10)
    assert "\n" not in str(error.value)


@pytest.mark.gpu
@pytest.mark.parametrize("busy", ["neither", "the device", "the host"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_on_cuda_are_the_resident_loaders_whichever_side_is_slow(tmp_path, shuffle, busy):
    """Buffers are reused many times while one side is far behind the other, with epochs abandoned in between."""
    path = write_split(tmp_path / "a.beton", 2000, 32, 32)
    options = dict(batch_size=32, seed=5, device="cuda", shuffle=shuffle)
    streaming, expected = StreamingLoader(path, Policy((Normalize(0.5, 0.5),)), **options), []
    for epoch, stop in ((0, 63), (1, 3), (1, 20), (2, 63)):
        streaming.set_epoch(epoch)
        for position in range(min(stop, len(streaming))):
            expected.append((epoch, position, *streaming.batch(position)))
            if busy == "the device":
                torch.cuda._sleep(10_000_000)
            elif busy == "the host":
                time.sleep(0.002)
    loader = resident(path, Policy((Normalize(0.5, 0.5),)), **options)
    for epoch, position, images, labels in expected:
        loader.set_epoch(epoch)
        check_batch((images, labels), loader.batch(position))


@needs_ffcv
@pytest.mark.gpu
def test_a_batch_on_cuda_waits_for_no_kernel(tmp_path, without_waiting):
    streaming = StreamingLoader(write_split(tmp_path / "a.beton", 2000, 32, 32), POLICY, batch_size=32, device="cuda")
    streaming.batch(0)  # compiles
    with without_waiting():
        for position in range(1, len(streaming)):
            streaming.batch(position)


@needs_ffcv
@pytest.mark.gpu
def test_the_first_copy_waits_for_what_its_memory_was_used_for(tmp_path):
    """The allocator reuses freed memory at once, although an earlier kernel may still write to it."""
    path = write_split(tmp_path / "a.beton", 64, 32, 32)
    options = dict(batch_size=32, seed=5, device="cuda")
    streaming, expected = StreamingLoader(path, POLICY, **options), resident(path, **options).batch(0)
    freed = [torch.empty(32, 32, 32, 3, dtype=torch.uint8, device="cuda") for _ in range(8)]
    torch.cuda._sleep(10_000_000)
    torch._foreach_zero_(freed)
    del freed
    batch = streaming.batch(0)
    streaming._feed.stream.synchronize()  # without the wait, the copy finishes before the kernel above runs
    check_batch(batch, expected)
