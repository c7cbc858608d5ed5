"""prep: throughput from images to a .beton file, beside FFCV's own writer.

"write" is from arrays in memory to a complete file in the temporary folder. "whole" is all of `fastcifar prep` for the source
named by $FASTCIFAR_SOURCE: read, split, write, read back, hash and describe.
"""

import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from data_prep import prepare
from fastcifar.bench.bounds import copy_roofline
from fastcifar.bench.interleaved import Case, Implementation, Work, throughput_case
from fastcifar.bench.peers import CORES, Unavailable, require
from fastcifar.bench.setting import IMAGE_BYTES, Setting, random_split
from fastcifar.data.beton import write_beton

CPU = torch.device("cpu")


def cases(setting: Setting) -> list[Case]:
    """List both cases, which always run on the host."""
    setting = dataclasses.replace(setting, device=CPU)
    ours = Implementation("fastcifar", functools.partial(write, setting.size.images), ours=True)
    ffcv = Implementation("FFCV DatasetWriter", functools.partial(ffcv_write, setting.size.images))
    return [_case(setting, "write", ours, ffcv), _case(setting, "whole", Implementation("fastcifar", whole, ours=True))]


def _case(setting: Setting, name: str, *implementations: Implementation) -> Case:
    roofline = functools.partial(copy_roofline, IMAGE_BYTES, IMAGE_BYTES, CPU)
    return throughput_case(setting, "prep", name, None, roofline, implementations, warm_up=1)


@contextmanager
def write(count: int) -> Iterator[Work]:
    split = random_split(count)
    with TemporaryDirectory() as folder:
        path = Path(folder, "ours.beton")

        def run() -> Path:
            write_beton(path, split.images, split.labels)
            return path

        yield Work(run, count)


@contextmanager
def ffcv_write(count: int) -> Iterator[Work]:
    fields, writer = require("ffcv.fields"), require("ffcv.writer")
    split = random_split(count)
    samples = list(zip(split.images, split.labels, strict=True))
    with TemporaryDirectory() as folder:
        path = Path(folder, "ffcv.beton")

        def run() -> Path:
            kinds = {"image": fields.RGBImageField(write_mode="raw"), "label": fields.IntField()}
            with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
                writer.DatasetWriter(str(path), kinds, num_workers=CORES).from_indexed_dataset(samples)
            return path

        yield Work(run, count)


def whole() -> Work:
    source = os.environ.get("FASTCIFAR_SOURCE")
    if not source:
        raise Unavailable("no source is given; name one with FASTCIFAR_SOURCE=...")

    def run() -> int:
        with TemporaryDirectory() as folder:  # a new one per round: prep skips what exists already
            return sum(prepare(source, Path(folder, "betons")).manifest.counts.values())

    return Work(run, run(), note=lambda: f"of {Path(source).name}")
