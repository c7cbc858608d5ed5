"""Warm starts: keep torch.compile's results in the user's cache folder, so that a later process need not compile again.

A file holds torch.compiler's cache artifacts of one configuration; its name is a hash of everything that they depend on. They
are pickles, like torch.compile's own caches, and are read only from the user's own folder.
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
from fastcifar.runtime.environment import version_of
from fastcifar.runtime.files import replacing

KEPT = 32
"""Number of configurations to keep, the most recently used ones; the seed recipe's takes a few MB."""


def cache_folder() -> Path:
    """Return $FASTCIFAR_CACHE, by default $XDG_CACHE_HOME/fastcifar or ~/.cache/fastcifar."""
    if chosen := os.environ.get("FASTCIFAR_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastcifar"


@contextmanager
def warm_start(configuration: Mapping[str, Any]) -> Iterator[None]:
    """Load what an earlier process compiled for `configuration` (JSON values, with the device); then save new results.

    If the folder cannot be written or the file cannot be read, the start is cold; no error is raised.
    """
    path = cache_folder() / "compiled" / f"{_key(configuration)}.bin"
    _load(path)
    before = _misses()
    yield
    if _misses() > before or not path.exists():
        _keep(path)


def _misses() -> int:
    """Count the misses of torch.compile's cache."""
    from torch._dynamo.utils import counters  # here: importing torch.compile takes seconds

    return counters["inductor"]["fxgraph_cache_miss"]


def _key(configuration: Mapping[str, Any]) -> str:
    """Hash the configuration, the versions, the CPU's instruction set, Inductor's options and this package's source."""
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
            path.unlink()  # damaged: written again, even if torch.compile finds everything in its own cache


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
