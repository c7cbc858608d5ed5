"""Free memory of a device or the host, and the setting of glibc's allocator."""

import ctypes
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
OWN_GROUP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes of CUDA, or those of the host that this process can use without swapping; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min((*_left_on_the_machine(), *_left_in_groups()), default=None)


def _left_on_the_machine() -> Iterator[int]:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _left_in_groups() -> Iterator[int]:
    """Yield the bytes left in each control group (version 2) with a limit around this process: a container, a batch job."""
    try:
        path = next((line[4:] for line in OWN_GROUP.read_text().splitlines() if line.startswith("0::/")), "")
    except OSError:
        return
    own = GROUPS / path
    for group in (own, *own.parents):
        if not group.is_relative_to(GROUPS):
            return
        try:
            limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
            counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such file; a limit of "max"
            continue
        # `used` includes the cached pages of files, which the kernel can reclaim.
        yield max(0, limit - used + int(counts["active_file"]) + int(counts["inactive_file"]))


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, for the whole process, so that the next step can reuse it without page faults.

    By default glibc returns large blocks to the kernel, which fills every page with zeros when they are allocated again: some
    100 MB per step of the seed recipe. Other C libraries are not changed.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
