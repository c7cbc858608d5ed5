"""Warm starts: what torch.compile made is kept in the user's cache folder, so that a later process does not make it again.

A file holds torch.compiler's cache artifacts of one configuration; its name is a hash of all that they depend on. They are
pickles, as torch.compile's own caches are, read from the user's own folder and from nowhere else.
"""

import functools
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

import fastcifar
from fastcifar.engine.environment import version_of
from fastcifar.files import replacing

KEPT = 32
"""Configurations that are kept, the latest used; one of the seed recipe takes a few MB."""


def cache_folder() -> Path:
    """$FASTCIFAR_CACHE, by default $XDG_CACHE_HOME/fastcifar or ~/.cache/fastcifar."""
    if chosen := os.environ.get("FASTCIFAR_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastcifar"


@contextmanager
def warm_start(configuration: Mapping[str, Any]) -> Iterator[None]:
    """Load what an earlier process compiled for `configuration` (JSON values, the device among them), and keep what is now.

    A folder that cannot be written or a file that cannot be read makes the start a cold one, nothing worse.
    """
    path = cache_folder() / "compiled" / f"{_key(configuration)}.bin"
    _load(path)
    before = _misses()
    yield
    if _misses() > before or not path.exists():
        _keep(path)


def _misses() -> int:
    """How often torch.compile has not found in its cache what it was asked for."""
    from torch._dynamo.utils import counters  # here: importing torch.compile takes seconds

    return counters["inductor"]["fxgraph_cache_miss"]


def _key(configuration: Mapping[str, Any]) -> str:
    """A hash of the configuration, the versions, the CPU's instruction set, Inductor's options and this package's source."""
    from torch._inductor import config as inductor

    versions = [torch.__version__, torch.version.cuda, version_of("triton"), platform.python_version()]
    options = {name: str(value) for name, value in inductor.save_config_portable().items()}
    text = json.dumps([versions, torch.backends.cpu.get_cpu_capability(), options, configuration], sort_keys=True)
    return hashlib.sha256(text.encode() + _source_hash()).hexdigest()[:32]


@functools.cache
def _source_hash() -> bytes:
    folder = Path(fastcifar.__file__).parent
    files = sorted(folder.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).digest()


def _load(path: Path) -> None:
    with suppress(OSError):
        content = path.read_bytes()
        os.utime(path)
        if torch.compiler.load_cache_artifacts(content) is None:
            path.unlink()  # damaged: kept anew, even where torch.compile finds everything in its own cache


def _keep(path: Path) -> None:
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(artifacts[0])
        for old in sorted(path.parent.glob("*.bin"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    except OSError:
        return
