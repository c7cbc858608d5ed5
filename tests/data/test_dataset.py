"""A prepared data set loads whole and unchanged, or is refused with the file and the key."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from fastcifar.data.beton import write_beton
from fastcifar.data.dataset import Manifest, Split, file_sha256, load_dataset, load_manifest
from fastcifar.runtime.errors import UserError


def write_dataset(root, counts, *, seed=0, labels=None):
    """A data set of random 4x6 images with three classes; returns its splits as (images, labels)."""
    rng = np.random.default_rng(seed)
    splits = {}
    for name, count in counts.items():
        splits[name] = rng.integers(0, 256, (count, 4, 6, 3), np.uint8), rng.integers(0, 3, count)
        write_beton(root / f"{name}.beton", splits[name][0], splits[name][1] if labels is None else labels)
    manifest = Manifest(
        name="random",
        classes=("a", "b", "c"),
        image_shape=(4, 6, 3),
        counts=counts,
        split_seed=seed,
        val_fraction=0.2,
        mean=(0.5, 0.5, 0.5),
        std=(0.3, 0.3, 0.3),
        sha256={name: file_sha256(root / f"{name}.beton") for name in counts},
        source="x",
    )
    (root / "dataset.json").write_text(manifest.to_json())
    return manifest, splits


def refusal(root):
    with pytest.raises(UserError) as caught:
        load_dataset(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(root, **changes):
    content = json.loads((root / "dataset.json").read_text()) | changes
    (root / "dataset.json").write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def test_what_is_written_loads(tmp_path):
    manifest, splits = write_dataset(tmp_path, {"train": 8, "val": 2, "test": 3})
    dataset = load_dataset(str(tmp_path))
    assert dataset.root == tmp_path
    assert dataset.manifest == manifest
    for name, (images, labels) in splits.items():
        np.testing.assert_array_equal(getattr(dataset, name).images, images)
        np.testing.assert_array_equal(getattr(dataset, name).labels, labels)


def test_a_part_of_a_split_is_read_alone(tmp_path, monkeypatch):
    _, splits = write_dataset(tmp_path, {"train": 8})
    train = load_dataset(tmp_path).train
    monkeypatch.setattr("fastcifar.data.beton.Beton.images", property(lambda beton: pytest.fail("read whole")))
    images, labels = splits["train"]
    for split in (train, Split(images, labels)):
        assert split.image_shape == (4, 6, 3)
        np.testing.assert_array_equal(split.part(2, 5).images, images[2:5])
        np.testing.assert_array_equal(split.part(2, 5).labels, labels[2:5])


def test_a_split_that_is_not_there_is_none(tmp_path):
    write_dataset(tmp_path, {"train": 8})
    dataset = load_dataset(tmp_path)
    assert dataset.val is None
    assert dataset.test is None


def test_no_manifest_says_to_run_prep(tmp_path):
    assert f"fastcifar prep --out {tmp_path}" in refusal(tmp_path)
    assert "fastcifar prep --out" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[]", b"3", b"{}"])
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "dataset.json").write_bytes(content)
    assert str(tmp_path / "dataset.json") in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 2}, "format_version is 2, not 1"),
        ({"format_version": ...}, "format_version is None"),
        ({"meen": [1]}, "unknown key 'meen'"),
        ({"mean": ...}, "missing key 'mean'"),
        ({"counts": {"val": 2}}, "counts = {'val': 2}"),
        ({"counts": 8}, "counts = 8"),
        ({"sha256": {"train": "0"}}, "sha256 = {'train': '0'}"),
        ({"counts": {"train": 8, "extra": 2}}, "counts = {'train': 8, 'extra': 2}"),
    ],
)
def test_a_manifest_with_a_wrong_key_is_refused_and_the_key_is_named(tmp_path, changes, words):
    write_dataset(tmp_path, {"train": 8, "val": 2})
    edit(tmp_path, **changes)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / 'dataset.json'}: ")
    assert words in message


def test_a_beton_of_another_data_set_is_refused(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    write_dataset(tmp_path / "one", {"train": 8, "val": 2})
    write_dataset(tmp_path / "other", {"train": 8, "val": 3}, seed=1)
    for name, words in (("val", "of another data set: holds images (3, 4, 6, 3)"), ("train", "its SHA-256 differs")):
        (tmp_path / "other" / f"{name}.beton").rename(tmp_path / "one" / f"{name}.beton")
        message = refusal(tmp_path / "one")
        assert message.startswith(f"{tmp_path / 'one' / name}.beton: ")
        assert words in message
        write_dataset(tmp_path / "one", {"train": 8, "val": 2})


def test_one_changed_pixel_is_refused(tmp_path):
    write_dataset(tmp_path, {"train": 8})
    data = bytearray((tmp_path / "train.beton").read_bytes())
    data[2**23 + 5] ^= 1
    (tmp_path / "train.beton").write_bytes(data)
    assert "its SHA-256 differs" in refusal(tmp_path)


def test_a_beton_that_is_missing_or_truncated_is_refused(tmp_path):
    write_dataset(tmp_path, {"train": 8, "test": 2})
    with (tmp_path / "test.beton").open("r+b") as file:
        file.truncate(10_000)
    assert "truncated" in refusal(tmp_path)
    (tmp_path / "test.beton").unlink()
    assert "test.beton: no such file" in refusal(tmp_path)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_of_no_class_is_refused(tmp_path, label):
    write_dataset(tmp_path, {"train": 2}, labels=np.array([0, label]))
    assert "but 3 classes" in refusal(tmp_path)


def test_the_manifest_survives_json(tmp_path):
    manifest, _ = write_dataset(tmp_path, {"train": 8})
    renamed = replace(manifest, name="Größe\n", classes=("ä", "ß", "漢"))
    (tmp_path / "dataset.json").write_text(renamed.to_json())
    assert asdict(load_manifest(tmp_path)) == asdict(renamed)
