"""Both writers write every image; with a source, all of prep is timed."""

from types import SimpleNamespace

import numpy as np
import pytest

from data_prep import synthetic
from fastcifar.bench import prep
from fastcifar.bench.peers import Unavailable
from fastcifar.bench.setting import random_split
from fastcifar.data.beton import read_beton


@pytest.mark.filterwarnings("ignore")  # FFCV's
@pytest.mark.parametrize("write", [prep.write, prep.ffcv_write])
def test_a_round_writes_a_complete_file_of_the_images(write):
    if write is prep.ffcv_write:
        pytest.importorskip("ffcv.writer", reason="FFCV cannot be imported; see `make setup`")
    with write(30) as work:
        written = read_beton(work.run())
        assert work.amount == 30
        assert np.array_equal(written.images, random_split(30).images)
        assert np.array_equal(written.labels, random_split(30).labels)


def test_every_round_prepares_the_source_anew(monkeypatch):
    monkeypatch.setenv("FASTCIFAR_SOURCE", "synthetic")
    monkeypatch.setattr(synthetic, "TRAIN_COUNT", 40)
    monkeypatch.setattr(synthetic, "TEST_COUNT", 10)
    done = []
    monkeypatch.setattr(prep, "prepare", lambda *args, prepare=prep.prepare: done.append(prepare(*args)) or done[-1])
    with prep.whole() as work:
        work.run()
    assert [result.changed for result in done] == [True, True]
    assert work.amount == sum(done[0].manifest.counts.values())


def test_without_a_source_it_says_how_to_name_one(monkeypatch):
    monkeypatch.delenv("FASTCIFAR_SOURCE", raising=False)
    with pytest.raises(Unavailable, match="FASTCIFAR_SOURCE"), prep.whole():
        pass


def test_the_note_names_the_source_without_its_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCIFAR_SOURCE", str(tmp_path / "cifar-10-batches-py"))
    monkeypatch.setattr(prep, "prepare", lambda *_: SimpleNamespace(manifest=SimpleNamespace(counts={"train": 1})))
    with prep.whole() as work:
        assert work.note() == "of cifar-10-batches-py"
