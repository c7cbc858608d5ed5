"""Every source gives the images that it holds, in order, or one line that says what is wrong with it."""

import functools
import hashlib
import io
import os
import pickle
import sys
import tarfile
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import no_progress

from data_prep import sources
from data_prep.sources import LAYOUTS, find_source, read_cifar, unpickle
from fastcifar.runtime.errors import UserError

LAYOUT = {layout.folder: layout for layout in LAYOUTS}
PER_FILE = 3


def planes(file, count=PER_FILE):
    """The rows of file number `file`: the image's red, green and blue plane."""
    return np.random.default_rng(file).integers(0, 256, (count, 3072), np.uint8)


def content_of(layout, name):
    """A small file of that layout; the label of an image is its number plus the number of its file, modulo the classes."""
    number = layout.files.index(name)
    labels = [(number + image) % 10 for image in range(PER_FILE)]
    if layout.classes is None:
        if name == layout.meta:
            return "\n".join(f"class{i}" for i in range(10)).encode() + b"\n\n"
        coarse = [bytes([9])] if layout.label else []
        rows = planes(number)
        return b"".join(b"".join([*coarse, bytes([label]), row.tobytes()]) for label, row in zip(labels, rows, strict=True))
    if name == layout.meta:
        return pickle.dumps({layout.classes: [b"class%d" % i for i in range(10)]}, protocol=4)
    return pickle.dumps({b"data": planes(number), layout.label: labels}, protocol=4)


@pytest.fixture
def small(monkeypatch):
    """The published layouts with files of 3 images: of the same form, with their own sums and counts."""
    layouts = []
    for layout in LAYOUTS:
        sums = {name: hashlib.md5(content_of(layout, name)).hexdigest() for name in layout.md5}
        counts = PER_FILE * len(layout.train), PER_FILE * len(layout.test)
        layouts.append(replace(layout, md5=sums, counts=counts))
    monkeypatch.setattr(sources, "LAYOUTS", tuple(layouts))
    return {layout.folder: layout for layout in layouts}


def write_folder(root, layout):
    folder = root / layout.folder
    folder.mkdir(parents=True)
    for name in layout.files:
        (folder / name).write_bytes(content_of(layout, name))
    return folder


def write_archive(root, layout, prefix=""):
    with tarfile.open(root / layout.archive, "w:gz") as archive:
        for name in layout.files:
            entry = tarfile.TarInfo(f"{prefix}{layout.folder}/{name}")
            content = content_of(layout, name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return root / layout.archive


def assert_holds(source, layout):
    images = source.read(no_progress)
    assert source.name == layout.name
    assert images.classes == tuple(f"class{i}" for i in range(10))
    assert images.val is None
    for (pixels, labels), names in ((images.train, layout.train), (images.test, layout.test)):
        numbers = [layout.files.index(name) for name in names]
        expected = np.concatenate([planes(number) for number in numbers]).reshape(-1, 3, 32, 32)
        np.testing.assert_array_equal(pixels.transpose(0, 3, 1, 2), expected)
        assert labels.tolist() == [(number + image) % 10 for number in numbers for image in range(PER_FILE)]
        assert pixels.dtype == np.uint8
        assert labels.dtype == np.int64


def refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("folder", LAYOUT)
def test_a_published_folder_its_parent_and_its_archive_hold_the_same(tmp_path, small, folder):
    layout = small[folder]
    (tmp_path / "elsewhere").mkdir()
    assert_holds(find_source(write_folder(tmp_path, layout)), layout)
    assert_holds(find_source(tmp_path), layout)
    assert_holds(find_source(write_archive(tmp_path / "elsewhere", layout)), layout)
    assert_holds(find_source(tmp_path / "elsewhere"), layout)
    assert_holds(find_source(write_archive(tmp_path, layout, prefix="./")), layout)


def test_progress_rises_to_1(tmp_path, small):
    told = []
    find_source(write_folder(tmp_path, small["cifar-10-batches-py"])).read(lambda stage, share: told.append(share))
    assert told == sorted(told)
    assert told[-1] == 1


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "cifar-100-python"])
def test_one_changed_byte_in_a_published_file_is_refused(tmp_path, small, folder):
    layout = small[folder]
    for name in layout.files:
        path = write_folder(tmp_path / name, layout) / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert f"{name} is not the published file (its MD5 sum differs)" in refusal(find_source(path.parent).read, no_progress)


def test_a_missing_file_is_named(tmp_path, small):
    folder = write_folder(tmp_path, small["cifar-10-batches-py"])
    (folder / "data_batch_4").unlink()
    assert f"{folder}: data_batch_4 is missing" in refusal(find_source, folder)
    assert f"{folder}: data_batch_4 is missing" in refusal(find_source, tmp_path)


@pytest.mark.parametrize("cut", [1, 3073])
def test_a_truncated_binary_file_is_refused(tmp_path, small, cut):
    folder = write_folder(tmp_path, small["cifar-10-batches-bin"])
    with (folder / "data_batch_2.bin").open("r+b") as file:
        file.truncate(3 * 3073 - cut)
    message = refusal(find_source(folder).read, no_progress)
    assert "data_batch_2.bin" in message
    assert ("not a multiple of 3073" if cut == 1 else "14 images") in message


def test_a_label_of_no_class_is_refused(tmp_path, small):
    folder = write_folder(tmp_path, small["cifar-10-batches-bin"])
    with (folder / "test_batch.bin").open("r+b") as file:
        file.write(bytes([10]))
    assert "labels to 10" in refusal(find_source(folder).read, no_progress)


def test_damaged_and_foreign_archives_are_refused(tmp_path, small):
    path = write_archive(tmp_path, small["cifar-10-batches-py"])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged archive" in refusal(lambda: find_source(path).read(no_progress))
    path.write_bytes(whole[:1000] + bytes(1000) + whole[2000:])
    assert str(path) in refusal(lambda: find_source(path).read(no_progress))
    path.write_bytes(b"no archive")
    assert "not a readable .tar.gz" in refusal(find_source, path)
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-pi/data_batch_1"))
    assert "holds none of cifar-10-batches-py" in refusal(find_source, path)
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-py/data_batch_1"))
    assert "batches.meta is missing" in refusal(find_source(path).read, no_progress)


class Attack:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", [(os.mkdir, ("hit",)), (eval, ("1",)), (functools.partial, (print,)), (np.load, ("x",))])
def test_a_pickle_cannot_run_code(tmp_path, monkeypatch, call, protocol):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({b"data": Attack(*call)}, protocol=protocol)
    assert "batch: not CIFAR's: it asks for" in refusal(unpickle, content, "batch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", b"\x80\x04]q\x00."[:-1], b"0", b"("])
def test_a_damaged_pickle_is_refused(content):
    assert "batch: not CIFAR's" in refusal(unpickle, content, "batch")


def test_a_file_that_is_cifars_in_form_but_too_short_is_refused():
    layout = replace(LAYOUT["cifar-10-batches-py"], md5={})
    read = functools.partial(content_of, layout)
    assert "15 images with labels to 7; CIFAR has 50000" in refusal(read_cifar, layout, read, "here", no_progress)


def test_resize_is_only_for_image_folders(tmp_path, small):
    assert "`resize=16`: only for" in refusal(find_source, write_folder(tmp_path, small["cifar-10-batches-py"]), 16)
    assert "`resize=16`: only for" in refusal(find_source, "synthetic", 16)


def test_the_synthetic_source_has_two_splits_and_is_new_when_the_code_that_draws_it_is(monkeypatch, tmp_path):
    source = find_source("synthetic")
    images = source.read(no_progress)
    assert images.train[0].shape == (10_000, 32, 32, 3)
    assert images.test[0].shape == (2_000, 32, 32, 3)
    assert images.val is None
    assert len(images.classes) == 10
    (tmp_path / "synthetic.py").touch()
    monkeypatch.setattr(sources.synthetic, "__file__", str(tmp_path / "synthetic.py"))
    assert find_source("synthetic").fingerprint() != source.fingerprint()


def test_what_is_no_source_is_refused(tmp_path):
    assert "no such folder or archive; nor is it cifar10, cifar100 or synthetic" in refusal(find_source, "nowhere")
    assert f"{tmp_path}: holds neither" in refusal(find_source, tmp_path)


def test_where_no_source_is_named_the_environment_comes_before_data_and_data_before_the_download(tmp_path, small, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTCIFAR_SOURCE", raising=False)
    monkeypatch.setattr(sources, "_downloaded", lambda name: write_folder(Path("downloaded"), small["cifar-100-python"]))
    (tmp_path / "data" / "other things").mkdir(parents=True)
    assert find_source(None).name == "cifar100"
    write_folder(tmp_path / "data", small["cifar-10-batches-bin"])
    assert find_source(None).files[0].parent == Path("data/cifar-10-batches-bin")
    monkeypatch.setenv("FASTCIFAR_SOURCE", "synthetic")
    assert find_source(None).name == "synthetic"


def torchvision_that(behaves):
    datasets = types.SimpleNamespace(CIFAR10=behaves, CIFAR100=behaves)
    return types.SimpleNamespace(datasets=datasets)


def test_no_network_is_one_line_with_the_ways_out(tmp_path, monkeypatch):
    def fails(root, download):
        raise OSError("<urlopen error\n no route>")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision_that(fails))
    message = refusal(find_source, "cifar10")
    for way in ("no route", "cifar-10-batches-py", ".tar.gz", "./data", "FASTCIFAR_SOURCE", "fastcifar prep synthetic"):
        assert way in message
    assert list(tmp_path.iterdir()) == []


def test_a_download_cut_midway_leaves_nothing_behind(tmp_path, monkeypatch):
    def is_cut(root, download):
        (Path(root) / "cifar-10-python.tar.gz").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision_that(is_cut))
    with pytest.raises(KeyboardInterrupt):
        find_source("cifar10")
    assert list(tmp_path.iterdir()) == []


def test_what_was_downloaded_is_read_and_not_downloaded_again(tmp_path, small, monkeypatch):
    calls = []

    def downloads(root, download):
        calls.append(root)
        write_folder(Path(root), small["cifar-10-batches-py"])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision_that(downloads))
    for _ in range(2):
        assert_holds(find_source("cifar10"), small["cifar-10-batches-py"])
    assert len(calls) == 1
    assert [path.name for path in Path("data").iterdir()] == ["cifar-10-batches-py"]


def test_the_sums_are_torchvisions():
    from torchvision import datasets

    for folder, cifar in (("cifar-10-batches-py", datasets.CIFAR10), ("cifar-100-python", datasets.CIFAR100)):
        expected = dict([*cifar.train_list, *cifar.test_list, [cifar.meta["filename"], cifar.meta["md5"]]])
        assert LAYOUT[folder].md5 == expected
        assert LAYOUT[folder].archive == cifar.filename


def test_real_cifar10_is_what_torchvision_reads(cifar10_source):
    from torchvision import datasets

    images = find_source(cifar10_source).read(no_progress)
    for train, (pixels, labels) in ((True, images.train), (False, images.test)):
        theirs = datasets.CIFAR10(cifar10_source.parent, train=train)
        np.testing.assert_array_equal(pixels, theirs.data)
        assert labels.tolist() == theirs.targets
        assert images.classes == tuple(theirs.classes)
