"""Warm starts: the file depends on everything that was compiled for, and no error with it stops a run."""

import os
import time
from pathlib import Path

import pytest
import torch
import torch._inductor.config

from fastcifar.runtime import compile_cache as caches


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCIFAR_CACHE", str(tmp_path))
    return tmp_path / "compiled"


@pytest.fixture
def artifacts(monkeypatch):
    """Replaces torch.compiler's functions: [what was loaded]."""
    loaded = []
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"compiled", None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda content: loaded.append(content) or "info")
    return loaded


def test_the_second_start_of_a_configuration_is_warm(folder, artifacts):
    for batch_size in (64, 64, 128):
        with caches.warm_start({"batch_size": batch_size}):
            pass
    assert artifacts == [b"compiled"]
    assert len(list(folder.iterdir())) == 2


def test_another_version_of_torch_starts_cold(folder, artifacts, monkeypatch):
    with caches.warm_start({}):
        pass
    monkeypatch.setattr(torch, "__version__", "9.0")
    with caches.warm_start({}):
        pass
    assert artifacts == []


def test_a_start_that_had_to_compile_is_kept_though_there_was_a_file(folder, artifacts, monkeypatch):
    """Otherwise an outdated file would make every later start a cold one."""
    with caches.warm_start({}):
        pass
    (path,) = folder.iterdir()
    for misses, kept in (((3, 3), b"old"), ((3, 4), b"compiled")):
        path.write_bytes(b"old")
        counted = iter(misses)
        monkeypatch.setattr(caches, "_misses", lambda counted=counted: next(counted))
        with caches.warm_start({}):
            pass
        assert path.read_bytes() == kept


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(caches, "version_of", lambda package: "9.0"),
        lambda patch: patch.setattr(caches, "_source_hash", lambda: b"changed"),
        lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX1024"),
    ],
    ids=["Triton", "source", "instruction set"],
)
def test_what_compiled_code_depends_on_is_in_its_name(monkeypatch, change):
    before = caches._key({})
    change(monkeypatch)
    assert caches._key({}) != before


def test_inductors_options_are_in_its_name():
    before = caches._key({})
    with torch._inductor.config.patch(max_autotune=True):
        assert caches._key({}) != before
    assert caches._key({}) == before


def test_the_configurations_used_last_are_kept(folder, artifacts, monkeypatch):
    monkeypatch.setattr(caches, "KEPT", 2)
    for number in (1, 2, 1, 3):
        with caches.warm_start({"number": number}):
            pass
        for age, file in enumerate(sorted(folder.iterdir(), key=lambda file: -file.stat().st_mtime)):
            os.utime(file, times=(time.time() - 100 * (age + 1),) * 2)
    artifacts.clear()
    with caches.warm_start({"number": 1}):
        pass
    assert artifacts == [b"compiled"]
    assert len(list(folder.iterdir())) == 2


def test_a_folder_that_cannot_be_written_makes_a_cold_start(tmp_path, artifacts, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTCIFAR_CACHE", str(tmp_path / "file"))
    with caches.warm_start({}):
        pass
    assert artifacts == []


@pytest.mark.slow
def test_a_damaged_file_makes_a_cold_start_and_is_replaced(folder):
    configuration = {"damaged": True}
    folder.mkdir(parents=True)
    path = folder / f"{caches._key(configuration)}.bin"
    for _ in range(2):  # the second time torch.compile finds all it needs in its own cache
        path.write_bytes(b"nonsense")
        torch.compiler.reset()
        with caches.warm_start(configuration):
            torch.compile(lambda x: x * 2 + 1)(torch.ones(7))
        assert path.read_bytes() != b"nonsense"
        assert torch.compiler.load_cache_artifacts(path.read_bytes()) is not None


def test_the_folder_is_the_users_cache_folder_unless_told(monkeypatch):
    monkeypatch.delenv("FASTCIFAR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert caches.cache_folder() == Path("/somewhere/fastcifar")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert caches.cache_folder() == Path.home() / ".cache" / "fastcifar"
