"""How much memory is free, on a device or on the host."""

from collections.abc import Iterator
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
OWN_GROUP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int | None:
    """Bytes free on CUDA, or on the host available to this process without swapping; None where the system does not say."""
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
    """Bytes below the limit of each control group (version 2) around this process that has one: a container, a batch job."""
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
        # What is used counts the cached pages of files, which make way.
        yield max(0, limit - used + int(counts["active_file"]) + int(counts["inactive_file"]))
