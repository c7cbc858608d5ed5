"""Read a trace of torch.profiler: the work of a step, the phase and the duration of each piece, and when nothing ran.

*Work* is a kernel or a copy on CUDA; on a CPU it is an operator, without the operators that it calls. A phase ends at the mark
of its name, a `user_annotation` that `mark` writes to the trace. The phase of a kernel is the one in which it was launched.
"""

import bisect
import difflib
import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch.profiler import record_function

PREFIX = "fastcifar:"
PHASES = "augment", "forward", "loss", "backward", "optimizer"
GROUPS = {
    "augmentation": "_augment_kernel|_erasing_kernel",
    "optimizer": "fused_(sgd|adam)|multi_tensor|FusedSgd|FusedAdam|FusedOptimizer|_(pack|multiply|unpack)_kernel",
    "normalisation": "batch_?norm|bn_(fw|bw)|welford|var_mean|_(moments|normalize|reduce|apply)_kernel",
    "convolution and matrix product": (
        "conv|gemm|wgrad|dgrad|fprop|xmma|cutlass|cudnn.*(nhwc|nchw)|nvjet|implicit|aten::(add|b)?mm|aten::linear|triton_tem"
    ),
    "copies": "memcpy|memset|copy|clone|_to_copy|contiguous|cat(array)?|fill_|zero_|nchwToNhwc|nhwcToNchw",
    "elementwise and reductions": "",
}
"""Group -> regular expression that is searched in the names of its work. The first match counts; the last matches all."""
SYNCHRONISING = re.compile(r"cuda(Device|Stream|Event)Synchronize|aten::_local_scalar_dense|aten::nonzero")


@dataclass(frozen=True)
class Work:
    """A kernel, a copy or an operator.

    Attributes:
        begin, end: seconds, on the trace's clock.
        seconds: its own, without what it calls.
        phase: of PHASES; "" outside of a step.
        group: of GROUPS.
        replayed: launched as part of a CUDA graph.
        step: number of the step in the trace, from 1; 0 before the first "begin".
    """

    name: str
    begin: float
    end: float
    seconds: float
    phase: str
    group: str
    replayed: bool = False
    step: int = 0


@dataclass(frozen=True)
class Trace:
    """A trace as it was read.

    Attributes:
        work: in the order in which it began.
        waits: names of what made the host wait for the device within the steps, one entry per wait.
        on_cpu: the work is operators.
        host_s: the host's seconds in each phase, and between two steps under "", of all steps together; {} without marks.
        phases_found: see `phases_by_order`; {} if the marks gave the phases.
    """

    work: tuple[Work, ...]
    waits: tuple[str, ...]
    on_cpu: bool
    host_s: dict[str, float]
    phases_found: dict[str, int] = field(default_factory=dict)


def mark(phase: str) -> None:
    """Mark the end of a phase in the trace; for `fastcifar.engine.step.EagerStep`."""
    with record_function(PREFIX + phase):
        pass


def read_trace(path: Path) -> Trace:
    """Read a Chrome trace that torch.profiler exported, compressed or not."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return parse([event for event in json.loads(content)["traceEvents"] if event.get("ph") == "X"])


def parse(events: Sequence[dict[str, Any]]) -> Trace:
    """Read the complete events ("ph": "X") of a trace."""
    marks = sorted(
        (event["ts"] / 1e6, event["name"].removeprefix(PREFIX))
        for event in events
        if event.get("cat") == "user_annotation" and event["name"].startswith(PREFIX)
    )
    phase_of = _Phases(marks)
    device = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    work = _on_device(events, device, phase_of) if device else _on_cpu(events, phase_of)
    waits = [
        event["name"]
        for event in events
        if device  # a CPU waits for nobody
        and event.get("cat") in ("cuda_runtime", "cpu_op")
        and SYNCHRONISING.match(event["name"])
        and phase_of(event["ts"] / 1e6)
    ]
    host_s: dict[str, float] = {}
    for (begin, _), (end, name) in itertools.pairwise(marks):
        phase = "" if name == "begin" else name
        host_s[phase] = host_s.get(phase, 0.0) + end - begin
    return Trace(tuple(sorted(work, key=lambda one: one.begin)), tuple(waits), not device, host_s)


class _Phases:
    """Phases of moments: the name of the first mark after the moment, or "" if that is "begin"."""

    def __init__(self, marks: Sequence[tuple[float, str]]) -> None:
        self.times, self.names = [time for time, _ in marks], [name for _, name in marks]
        self.begins = [time for time, name in marks if name == "begin"]

    def step(self, moment: float) -> int:
        """Count the "begin" marks up to a moment."""
        return bisect.bisect_right(self.begins, moment)

    def __call__(self, moment: float) -> str:
        index = bisect.bisect_left(self.times, moment)
        name = self.names[index] if index < len(self.names) else ""
        return "" if name == "begin" else name


def group_of(name: str, phase: str) -> str:
    """Return the group of a kernel or operator; in the augment and optimizer phases it is theirs, unless it copies memory."""
    if phase in ("augment", "optimizer") and not name.startswith("Mem"):
        return {"augment": "augmentation", "optimizer": "optimizer"}[phase]
    return next(group for group, pattern in GROUPS.items() if re.search(pattern, name, re.IGNORECASE))


def _on_device(events: Iterable[dict[str, Any]], device: Iterable[dict[str, Any]], phase_of: _Phases) -> list[Work]:
    launches = {
        event["args"]["correlation"]: event
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    work = []
    for event in device:
        begin = event["ts"] / 1e6
        launch = launches.get(event.get("args", {}).get("correlation"), event)
        launched, replayed = launch["ts"] / 1e6, "GraphLaunch" in launch["name"]
        phase, step, seconds = phase_of(launched), phase_of.step(launched), event["dur"] / 1e6
        group = group_of(event["name"], phase)
        work.append(Work(event["name"], begin, begin + seconds, seconds, phase, group, replayed, step))
    return work


def _on_cpu(events: Iterable[dict[str, Any]], phase_of: _Phases) -> list[Work]:
    """List the operators, each without those that it calls; within a thread they are properly nested."""
    threads: dict[Any, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "cpu_op":
            threads.setdefault(event["tid"], []).append(event)
    work = []
    for operators in threads.values():
        operators.sort(key=lambda event: (event["ts"], -event["dur"]))
        own = [event["dur"] for event in operators]
        stack: list[int] = []
        for index, event in enumerate(operators):
            while stack and operators[stack[-1]]["ts"] + operators[stack[-1]]["dur"] <= event["ts"]:
                stack.pop()
            if stack:
                own[stack[-1]] -= event["dur"]
            stack.append(index)
        for event, duration in zip(operators, own, strict=True):
            begin = event["ts"] / 1e6
            phase = phase_of(begin)
            group = group_of(event["name"], phase)
            work.append(Work(event["name"], begin, begin + event["dur"] / 1e6, max(0.0, duration) / 1e6, phase, group))
    return work


def phases_by_order(replayed: Sequence[Work], cycle: Sequence[Work], steps: int) -> tuple[list[Work], dict[str, int]]:
    """Give kernels that a graph replayed the phases of the same kernels launched one by one by the host.

    Args:
        replayed: of `steps` whole steps, in order.
        cycle: of one step, in order, with phases.

    Returns:
        `replayed` with phases, and the number of kernels whose phase was found in each way: "by position" where a step's
        kernels are those of the cycle; else "by alignment" with the cycle, for what both have in the same order; else
        "by name", that of the first kernel so named; or "unknown".
    """
    names = [one.name for one in replayed]
    length, rest = divmod(len(names), steps)
    parts = [names] if rest else [names[begin : begin + length] for begin in range(0, len(names), length or 1)]
    found: dict[tuple[str, ...], list[tuple[str, str]]] = {}  # the steps of a trace are mostly the same
    for part in map(tuple, parts):
        if part not in found:
            found[part] = _phases_of(part, list(cycle) * (steps if rest else 1))
    phases = list(itertools.chain.from_iterable(found[tuple(part)] for part in parts))
    work = [
        replace(one, phase=phase, group=group_of(one.name, phase)) for one, (phase, _) in zip(replayed, phases, strict=True)
    ]
    return work, dict(Counter(how for _, how in phases))


def _phases_of(names: Sequence[str], cycle: Sequence[Work]) -> list[tuple[str, str]]:
    """Return (phase, how it was found) for each name."""
    known: dict[str, str] = {}
    for one in cycle:
        known.setdefault(one.name, one.phase)
    phases = [(known[name], "by name") if name in known else ("", "unknown") for name in names]
    cycle_names = [one.name for one in cycle]
    how = "by position" if list(names) == cycle_names else "by alignment"
    for here, there, length in difflib.SequenceMatcher(None, names, cycle_names, autojunk=False).get_matching_blocks():
        phases[here : here + length] = [(one.phase, how) for one in cycle[there : there + length]]
    return phases


def busy_seconds(work: Iterable[Work]) -> float:
    """Count the seconds in which at least one of them ran."""
    total = reached = 0.0
    for one in sorted(work, key=lambda one: one.begin):
        begin = max(one.begin, reached)
        if one.end > begin:
            total += one.end - begin
            reached = one.end
    return total
