"""Profile a training step: phases, kinds of work and idle time, beside the device's peak rates, and what to change.

The step is timed without the profiler, and all other times add up to that time. A trace of torch.profiler then gives the
duration and the phase of each kernel (on a CPU: of each operator); the rest of the step is idle. A captured step is traced
twice, because all kernels of a CUDA graph are launched at once: replayed for the durations, and uncaptured for the phases.
"""

import math
import os
import resource
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from fastcifar.data.dataset import Dataset
from fastcifar.engine.engine import Engine
from fastcifar.models import build_model
from fastcifar.models.padding import ALIGNED
from fastcifar.models.summary import Summary, summarize
from fastcifar.profiling.bottleneck import bottleneck
from fastcifar.profiling.trace import PHASES, Trace, Work, busy_seconds, mark, phases_by_order, read_trace
from fastcifar.recipe import Recipe
from fastcifar.runtime.distributed import World
from fastcifar.runtime.environment import environment
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.files import replacing
from fastcifar.runtime.precision import PRECISIONS
from fastcifar.runtime.roofline import FLOPS_PER_MAC, best_of, measure_peaks
from fastcifar.runtime.timing import Clock

ROUNDS = 7
TOP = 10
STEPS = {"cpu": 2, "cuda": 20}
"""Steps in a round, and in the trace, unless asked otherwise."""


def profile(
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    trace: Path,
    *,
    backend: str = "auto",
    loader: str = "auto",
    steps: int | None = None,
) -> dict[str, Any]:
    """Profile the training step of `recipe`, and write a Chrome trace (.json.gz, for Perfetto) to `trace`.

    The images have their own size, whatever `train.image_sizes` says.

    Args:
        backend, loader: see `fastcifar.engine.engine.Engine`.
        steps: in each of `ROUNDS` rounds, and in the trace.

    Returns:
        JSON values; seconds are of one step. "phases", which include "idle", add up to "step_seconds", and "groups" to the
        phases other than "idle".
    """
    steps = steps or STEPS[device.type]
    recipe, precision_reason = _long_enough(recipe.at_one_size(), dataset, steps).resolved(device)
    before = measure_peaks(device, recipe.train.precision)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with Engine(recipe, dataset, World(device), backend=backend, loader=loader, mark=mark) as engine:
        warm_up_s = engine.warm_up()
        engine.model.train()
        rounds, launch_s = _time_rounds(engine, steps)
        peak_bytes = _peak_bytes(device)
        peaks = best_of(before, measure_peaks(device, recipe.train.precision))
        traced = _trace_steps(engine, steps, trace)
    step_s, height_width = statistics.median(rounds), dataset.manifest.image_shape
    shape = (height_width[2], *recipe.augment.output_size(*height_width))
    summary = summarize(build_model(engine.recipe.model), shape)
    found = _account(traced, steps, step_s)
    flops = FLOPS_PER_MAC * summary.macs * recipe.train.batch_size
    moved = count_bytes(summary, recipe)
    result = {
        "recipe": recipe.name,
        "batch_size": recipe.train.batch_size,
        "precision": recipe.train.precision,
        "precision_reason": precision_reason,
        "step": engine.backend,
        "step_reason": engine.backend_reason,
        "augment": engine.loader.augment,
        "loader": engine.loader_kind,
        "warm_up_seconds": warm_up_s,
        "step_seconds": step_s,
        "rounds": rounds,
        "launch_seconds": launch_s,
        "images_per_s": recipe.train.batch_size / step_s,
        **found,
        "flops": flops,
        "flops_per_s": flops / step_s,
        "utilisation": flops / step_s / peaks.flops_per_s,
        "bytes": moved,
        "bytes_per_s": moved["step"] / step_s,
        "peaks": asdict(peaks),
        "peak_bytes": peak_bytes,
        "environment": environment(device),
    }
    convolutions = [layer for layer in engine.model.modules() if isinstance(layer, torch.nn.Conv2d)]
    result["bottleneck"] = bottleneck(
        batch_size=recipe.train.batch_size,
        device=device.type,
        backend=engine.backend,
        phases=found["phases"],
        groups=found["groups"],
        idle_in=found["idle_in"],
        waits=found["waits"],
        utilisation=result["utilisation"],
        awkward_widths=any(layer.out_channels % ALIGNED for layer in convolutions),
        precision=recipe.train.precision,
    )
    return result


def _long_enough(recipe: Recipe, dataset: Dataset, steps: int) -> Recipe:
    """Raise the recipe's epochs to those that `steps` steps take, which all need a learning rate."""
    images = round(recipe.train.keep * len(dataset.train.labels))
    epochs = math.ceil(steps / max(1, images // recipe.train.batch_size))
    return replace(recipe, train=replace(recipe.train, epochs=max(recipe.train.epochs, epochs)))


def _time_rounds(engine: Engine, steps: int) -> tuple[list[float], float | None]:
    """Return the seconds of a step in each round, without a first round, and on CUDA the seconds that launching it takes."""
    clock, rounds, launches = Clock(engine.device), [], []
    for _ in range(ROUNDS + 1):
        engine.step.seek(0)
        began, host = clock.now(), time.perf_counter()
        engine.step.run(steps)
        launches.append((time.perf_counter() - host) / steps)
        rounds.append(clock.seconds(began, clock.now()) / steps)
    return rounds[1:], statistics.median(launches[1:]) if engine.device.type == "cuda" else None


def _trace_steps(engine: Engine, steps: int, path: Path) -> Trace:
    """Trace `steps` steps into `path`; the kernels of a captured step get their phases from a trace of the uncaptured step."""
    engine.step.seek(0)
    traced = _recorded(lambda: engine.step.run(steps), engine.device, path)
    if engine.backend != "captured":
        return traced
    engine.step.seek(0)
    with replacing(path.with_name(f"uncaptured-{path.name}")) as temporary, engine.step.arithmetic():
        body = _recorded(engine.step.take_warm_up_steps, engine.device, temporary)
    launched = [one for one in body.work if one.phase]
    last = max((one.step for one in launched), default=0)
    replayed = [one for one in traced.work if one.replayed]
    work, found = phases_by_order(replayed, [one for one in launched if one.step == last], steps)
    return replace(traced, work=tuple(work), waits=body.waits, phases_found=found)


def _recorded(run: Callable[[], None], device: torch.device, path: Path) -> Trace:
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    if device.type == "cpu":  # the profiler's library would complain that there is no GPU
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(activities=activities) as recording:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    with replacing(path) as temporary:
        recording.export_chrome_trace(str(temporary))
        traced = read_trace(temporary)
        if not traced.work or traced.on_cpu != (device.type == "cpu"):
            raise UserError(f"the profiler recorded no work on {device}: does another profiler hold it?")
        return traced


def _account(traced: Trace, steps: int, step_s: float) -> dict[str, Any]:
    """Divide the seconds of a step among phases, groups and names.

    On CUDA a kernel takes about as long with the profiler as without it, and the rest of the step is idle. Kernels that take
    longer with it hide idle time, so the idle time of the traced steps is returned too. On a CPU the profiler slows all work,
    so the shares of the traced steps are applied to the seconds of the untraced step.
    """
    work = [one for one in traced.work if one.phase]
    busy = busy_seconds(work)
    window = sum(traced.host_s.values()) if traced.on_cpu else max(busy, steps * step_s)
    summed = sum(one.seconds for one in work)
    # Work that runs at the same time as other work, in threads or streams, counts for less than its own seconds.
    scale = busy / summed * step_s / window if work else 0.0
    phases = dict.fromkeys(PHASES, 0.0)
    groups: dict[str, float] = defaultdict(float)
    names: dict[str, list[Work]] = defaultdict(list)
    for one in work:
        phases[one.phase] += one.seconds * scale
        groups[one.group] += one.seconds * scale
        names[one.name].append(one)
    phases["idle"] = max(0.0, step_s - sum(phases.values()))
    traced_s = (max(one.end for one in work) - min(one.begin for one in work)) / steps if work else 0.0
    top = [
        {
            "name": name,
            "group": Counter(one.group for one in ones).most_common(1)[0][0],
            "calls": len(ones) / steps,
            "seconds": sum(one.seconds for one in ones) * scale,
        }
        for name, ones in names.items()
    ]
    top.sort(key=lambda row: -row["seconds"])
    waits = {name: count / steps for name, count in Counter(traced.waits).items()}
    return {
        "phases": phases,
        "groups": dict(sorted(groups.items(), key=lambda item: -item[1])),
        "top": top[:TOP],
        "waits": waits,
        "idle_in": _idle_in(traced, work),
        "phases_found": traced.phases_found,
        "traced_seconds": traced_s,
        "traced_idle_seconds": traced_s - busy / steps,
    }


def _idle_in(traced: Trace, work: list[Work]) -> str:
    """Return the phase with the most idle time; "" if that is between two steps.

    The idle time of a phase is the host's time in it less the time of its work. In a CUDA graph, whose replay the host does
    not follow, it is the time that the device waited before the work of the phase.
    """
    gaps: dict[str, float] = dict(traced.host_s)
    for one in work if gaps else ():
        gaps[one.phase] = gaps.get(one.phase, 0.0) - one.seconds
    reached = work[0].begin if work else 0.0
    for one in work if not traced.host_s else ():
        gaps[one.phase] = gaps.get(one.phase, 0.0) + max(0.0, one.begin - reached)
        reached = max(reached, one.end)
    return max(gaps, key=gaps.__getitem__, default="")


def count_bytes(summary: Summary, recipe: Recipe) -> dict[str, int]:
    """Count the bytes that a step moves if nothing is fused and nothing stays in a cache.

    "step": each layer's output is written and read forward, read again backward, where its gradient is written and read;
    weights, gradients and momentum are moved eight times. "convolution": inputs, outputs and weights of the convolutions and
    of the linear layer, once in each of three products.
    """
    batch, size = recipe.train.batch_size, PRECISIONS[recipe.train.precision].compute.itemsize
    weight_size = PRECISIONS[recipe.train.precision].weights.itemsize
    outputs = sum(torch.Size(layer.output_shape).numel() for layer in summary.layers)
    products = [layer for layer in summary.layers if layer.macs]
    moved = sum(
        batch * (torch.Size(layer.input_shape).numel() + torch.Size(layer.output_shape).numel()) + layer.parameters
        for layer in products
    )
    return {"step": 5 * batch * outputs * size + 8 * summary.parameters * weight_size, "convolution": 3 * moved * size}


def _peak_bytes(device: torch.device) -> int:
    """Return the most memory that was allocated on CUDA; on a CPU, the most that the process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
