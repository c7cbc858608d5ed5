"""Preparing a data set: the split, the manifest, and that the folder is always one complete set."""

import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_prep import convert, prepare
from data_prep.sources import find_source
from fastcifar.data.beton import read_beton
from fastcifar.data.dataset import load_dataset
from fastcifar.runtime.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """An image folder of 40 training and 10 test images, every one different."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for number in range(count):
            path = tmp_path / "source" / split / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "source"


def keys(split):
    """Every image with its label, as a set."""
    return {(image.tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True)}


def test_the_validation_split_is_drawn_from_the_training_images_by_seed(folder, tmp_path):
    everything = find_source(folder).read(lambda stage, share: None).train
    datasets = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare(folder, tmp_path / name, seed=seed)
        datasets[name] = load_dataset(tmp_path / name)
    train, val = keys(datasets["a"].train), keys(datasets["a"].val)
    assert len(train) == 32
    assert len(val) == 8
    assert train | val == {(image.tobytes(), int(label)) for image, label in zip(*everything, strict=True)}
    assert keys(datasets["b"].val) == val
    assert keys(datasets["c"].val) != val
    assert len(datasets["a"].test.labels) == 10


def test_no_validation_split_is_made_at_fraction_0(folder, tmp_path):
    prepare(folder, tmp_path / "out", val_fraction=0)
    assert load_dataset(tmp_path / "out").val is None
    assert not (tmp_path / "out" / "val.beton").exists()


def test_a_validation_split_of_the_sources_own_is_kept(folder, tmp_path):
    (folder / "test").rename(folder / "val")
    prepare(folder, tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert len(dataset.val.labels) == 10
    assert len(dataset.train.labels) == 40
    assert dataset.test is None


def test_the_manifest_describes_the_training_split(folder, tmp_path):
    manifest = prepare(folder, tmp_path / "out").manifest
    dataset = load_dataset(tmp_path / "out")
    pixels = dataset.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(manifest.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(manifest.std, pixels.std((0, 1, 2)), rtol=1e-9)
    assert manifest == dataset.manifest
    assert manifest.counts == {"train": 32, "val": 8, "test": 10}
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["classes"] == ["class0", "class1"]


def state(out):
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in out.iterdir()}


def test_a_second_run_does_nothing_unless_something_changed(folder, tmp_path):
    out = tmp_path / "out"
    assert prepare(folder, out).changed
    before = state(out)
    assert not prepare(folder, out).changed
    assert state(out) == before
    assert prepare(folder, out, val_fraction=0.5).changed
    assert prepare(folder, out, val_fraction=0.5, seed=1).changed
    Image.new("RGB", (8, 8)).save(folder / "train" / "class0" / "new.png")
    assert prepare(folder, out).changed
    (out / "val.beton").write_bytes(b"damaged")
    assert prepare(folder, out).changed
    load_dataset(out)


def test_an_error_leaves_the_old_set_and_nothing_else(folder, tmp_path):
    out = tmp_path / "out"
    prepare(folder, out)
    before = state(out)
    (folder / "train" / "class0" / "notes.txt").write_text("no image")
    with pytest.raises(UserError):
        prepare(folder, out)
    assert state(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


KILLED = """
import os, signal, sys
from data_prep import prepare

SOURCE, OUT, SEED, MOMENT = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
FILES = ("data_prep/convert.py", "data/beton.py", "fastcifar/files.py", "shutil.py", "pathlib.py", "pathlib/_local.py")
calls = 0

def count(frame, event, function):
    global calls
    if event == "c_call" and frame.f_code.co_filename.endswith(FILES):
        calls += 1
        if calls == MOMENT:
            os.kill(os.getpid(), signal.SIGKILL)

sys.setprofile(count)
prepare(SOURCE, OUT, seed=SEED)
sys.setprofile(None)
print(calls)
"""
"""Prepares, and kills itself at the n-th call of the system or of NumPy while it writes; prints the number of calls."""


def test_killed_at_any_moment_the_folder_is_the_old_set_or_the_new(folder, tmp_path):
    out = tmp_path / "out"

    def run(seed, moment):
        command = [sys.executable, "-c", KILLED, *map(str, (folder, out, seed, moment))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == (-signal.SIGKILL if moment else 0), done.stderr
        return done.stdout

    run(0, moment=0)
    calls = int(run(1, moment=0))
    found = 1  # the seed tells the sets apart
    replaced = []
    for seed, moment in enumerate([*range(1, calls - 30, calls // 8), *range(calls - 30, calls + 1, 3)], 2):
        run(seed, moment)
        before, found = found, load_dataset(out).manifest.split_seed  # load_dataset checks every file
        assert found in (before, seed)
        replaced.append(found == seed)
        for leftover in tmp_path.glob(".out.tmp-*"):  # to remove them would be more calls in the next run
            shutil.rmtree(leftover)
    assert sorted(replaced) == replaced, "the later it is killed, the newer the set"
    assert {False, True} == set(replaced)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"val_fraction": 1.0}, "`val_fraction=1.0`"),
        ({"val_fraction": -0.1}, "`val_fraction=-0.1`"),
        ({"val_fraction": 0.999}, "no image to train on"),
        ({"seed": -1}, "`seed=-1`"),
        ({"resize": 0}, "`resize=0`"),
    ],
)
def test_bad_arguments_are_refused(folder, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        prepare(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["thesis.tex", "train.beton", ".hidden"])
def test_a_folder_of_other_things_is_not_replaced(folder, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("years of work")
    with pytest.raises(UserError, match=f"holds {re.escape(name)}, which fastcifar did not write"):
        prepare(folder, tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "years of work"


def test_a_file_is_not_replaced(folder, tmp_path):
    (tmp_path / "out").write_text("years of work")
    with pytest.raises(UserError, match="out: is a file"):
        prepare(folder, tmp_path / "out")


def test_an_empty_folder_is_filled_and_what_a_link_points_to_is_replaced(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    for seed in (0, 1):
        prepare(folder, tmp_path / "link", seed=seed)
        assert (tmp_path / "link").is_symlink()
        assert load_dataset(tmp_path / "out").manifest.split_seed == seed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out", "source"]


def test_where_folders_cannot_be_exchanged_the_old_set_stays(folder, tmp_path, monkeypatch):
    prepare(folder, tmp_path / "out")
    before = state(tmp_path / "out")
    monkeypatch.setattr(convert, "RENAME_EXCHANGE", 1 << 30)  # no such flag: what file systems without it answer
    with pytest.raises(UserError, match=r"out: cannot be replaced in one step \(Invalid argument\)"):
        prepare(folder, tmp_path / "out", seed=1)
    assert state(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_what_cannot_be_written_is_one_line(folder, tmp_path):
    with pytest.raises(UserError, match=r"not written: .*No such file or directory"):
        prepare(folder, "/proc/out")


def test_what_another_process_is_writing_is_left_alone_and_what_a_dead_one_left_is_removed(folder, tmp_path):
    living, dead = tmp_path / ".out.tmp-living", tmp_path / ".out.tmp-dead"
    for leftover in (living, dead):
        leftover.mkdir()
        (leftover / "train.beton").write_text("half")
    with convert._lock(living):
        prepare(folder, tmp_path / "out")
        assert living.exists()
        assert not dead.exists()
    prepare(folder, tmp_path / "out")
    assert not living.exists()


def test_progress_names_every_stage_and_rises_to_1_in_each(folder, tmp_path):
    told = {}
    prepare(folder, tmp_path / "out", progress=lambda stage, share: told.setdefault(stage, []).append(share))
    assert list(told) == ["reading train", "reading test", "writing train", "writing val", "writing test"]
    assert all(shares == sorted(shares) and shares[-1] == 1 for shares in told.values())


def test_what_reads_back_differently_is_not_put_in_place(folder, tmp_path, monkeypatch):
    def damaged(path):
        read = read_beton(path)
        read.images[-1, -1, -1, -1] ^= 1
        return read

    monkeypatch.setattr(convert, "read_beton", damaged)
    with pytest.raises(UserError, match="reads back differently"):
        prepare(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


PREPARE = r"""
import re, sys
from pathlib import Path
from data_prep import prepare
result = prepare(sys.argv[1], sys.argv[2])
print(result.seconds, re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
"""
"""Prints the seconds and the peak of memory; getrusage would give that of the process that started this one, if higher."""


def test_real_cifar10_is_prepared_within_its_memory_and_found_unchanged_at_once(cifar10_source, tmp_path):
    command = [sys.executable, "-c", PREPARE, str(cifar10_source), str(tmp_path / "out")]
    seconds, kilobytes = map(float, subprocess.check_output(command, text=True).split())
    assert kilobytes < 1.5e6
    assert seconds < 30  # 5 s on two cores that are free, which a test cannot know
    again = prepare(cifar10_source, tmp_path / "out")
    assert not again.changed
    assert again.seconds < seconds / 2


def test_real_cifar10_has_its_published_counts_and_statistics(cifar10_source, tmp_path):
    manifest = prepare(cifar10_source, tmp_path / "out", val_fraction=0).manifest
    dataset = load_dataset(tmp_path / "out")
    assert manifest.counts == {"train": 50_000, "test": 10_000}
    assert manifest.classes[:2] == ("airplane", "automobile")
    assert [f"{value:.4f}" for value in manifest.mean] == ["0.4914", "0.4822", "0.4465"]
    assert [f"{value:.4f}" for value in manifest.std] == ["0.2470", "0.2435", "0.2616"]
    assert np.bincount(dataset.train.labels).tolist() == [5000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
