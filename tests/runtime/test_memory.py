"""The memory that counts as free is what this process may take, not what the machine has."""

import platform
import resource

import pytest
import torch

from fastcifar.runtime import memory

CPU = torch.device("cpu")


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A folder instead of the system's files: a machine with 1,000 kB available, and this process in group /job/step."""
    for name in ("MEMINFO", "OWN_GROUP", "GROUPS"):
        monkeypatch.setattr(memory, name, tmp_path / name)
    (tmp_path / "MEMINFO").write_text("MemTotal:  9000 kB\nMemAvailable:   1000 kB\n")
    (tmp_path / "OWN_GROUP").write_text("4:memory:/old\n0::/job/step\n")
    (tmp_path / "GROUPS/job/step").mkdir(parents=True)
    return tmp_path


def limit(group, most, used=300_000, active=10_000, inactive=40_000):
    for name, content in (
        ("max", f"{most}\n"),
        ("current", f"{used}\n"),
        ("stat", f"anon 250000\nactive_file {active}\ninactive_file {inactive}\n"),
    ):
        (group / f"memory.{name}").write_text(content)


def test_without_a_group_it_is_what_the_machine_has_available(system):
    assert memory.free_memory(CPU) == 1_024_000
    (system / "OWN_GROUP").unlink()
    assert memory.free_memory(CPU) == 1_024_000


@pytest.mark.parametrize("group", ["", "job", "job/step"])
def test_the_limit_of_any_group_around_counts_and_cached_files_make_way(system, group):
    limit(system / "GROUPS" / group, 900_000)
    assert memory.free_memory(CPU) == 900_000 - 300_000 + 50_000


def test_the_smallest_of_all_limits_counts(system):
    limit(system / "GROUPS", 800_000)
    limit(system / "GROUPS/job", "max")
    limit(system / "GROUPS/job/step", 5_000_000_000)
    assert memory.free_memory(CPU) == 550_000
    limit(system / "GROUPS/job/step", 100_000)
    assert memory.free_memory(CPU) == 0


def test_a_group_of_another_place_leaves_the_limits_that_can_be_seen(system):
    """In a container that sees only its own groups, under its name outside."""
    (system / "OWN_GROUP").write_text("0::/docker/0123\n")
    limit(system / "GROUPS", 700_000)
    assert memory.free_memory(CPU) == 450_000


def test_what_the_system_does_not_say_is_none(system):
    (system / "MEMINFO").unlink()
    assert memory.free_memory(CPU) is None


def test_this_machine_says_how_much():
    if not memory.MEMINFO.exists():
        pytest.skip("needs /proc/meminfo")
    assert 2**20 < memory.free_memory(CPU) < 2**50


def faults(size, times=5):
    """Count the page faults while a tensor of `size` bytes is allocated and freed repeatedly."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(size, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told")
def test_memory_that_was_freed_is_used_again():
    size = 2**27  # more than glibc would keep on its own
    memory.keep_freed_memory()
    for _ in range(5):  # glibc's heap grows to its size within some rounds
        faults(size)
    assert faults(size) < size / resource.getpagesize() / 10
