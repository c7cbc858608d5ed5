"""Name the bottleneck of a step in one sentence, with the key of the recipe or the option to change."""

from collections.abc import Mapping

MUCH = 0.25
"""Share of the step from which idle time is the bottleneck."""
NOTABLE = 0.15
"""The same for augmentation, optimizer, and idle time in which the host waits for the device."""
NEAR = 0.6
"""Share of the peak FLOP/s that large convolutions reach when nothing else slows them."""

CONVOLUTION = "convolution and matrix product"  # a key of `fastcifar.profiling.trace.GROUPS`


def bottleneck(
    *,
    batch_size: int,
    device: str,
    backend: str,
    phases: Mapping[str, float],
    groups: Mapping[str, float],
    idle_in: str,
    waits: Mapping[str, float],
    utilisation: float,
    awkward_widths: bool,
    precision: str,
) -> str:
    """Name the bottleneck of a step.

    Args:
        device: "cuda" or "cpu".
        backend: of the step.
        phases: seconds of the step in each phase, and "idle".
        groups: seconds of work in each group.
        idle_in: the phase with the most idle time; "" if that is between two steps.
        waits: what makes the host wait for the device -> how often per step.
        utilisation: FLOP/s of the step over the peak FLOP/s, which is that of a matrix product: convolutions can exceed it.
        awkward_widths: whether some width is neither a multiple of 8 nor padded.
        precision: `train.precision`.
    """
    step, work = sum(phases.values()), sum(groups.values())
    idle = phases["idle"] / step
    where = f"in {idle_in}" if idle_in else "between two steps"
    if waits and idle > NOTABLE:
        name, times = max(waits.items(), key=lambda item: item[1])
        return (
            f"You are host-bound at batch {batch_size}: {idle:.0%} of the step is idle, and the host waits for the device "
            f"{times:.3g} times per step ({name}); take that out of the step."
        )
    if idle > MUCH and device == "cpu":
        return (
            f"You are host-bound at batch {batch_size}: for {idle:.0%} of the step no operator runs, most of it {where}: "
            "something there waits (a sleep, a file, another process); `loader=resident` reads no files."
        )
    if idle > MUCH:
        remedy = "increase train.batch_size"
        remedy = remedy if backend == "captured" else f"try `backend=captured`, or {remedy}"
        return f"You are launch-bound at batch {batch_size}: {idle:.0%} of the step is gaps, most of them {where}; {remedy}."
    for phase, remedy in (("augment", "use fewer augment.transforms"), ("optimizer", "increase train.batch_size")):
        if phases.get(phase, 0.0) / step > NOTABLE:
            return f"You are bound by the {phase} phase: it takes {phases[phase] / step:.0%} of the step; {remedy}."
    arithmetic = groups.get(CONVOLUTION, 0.0) / work
    if arithmetic < 0.5:
        remedy = "`backend=compiled` fuses them" if backend == "eager" else "set train.precision to pure_bf16, to move less"
        return f"You are memory-bound: {1 - arithmetic:.0%} of the work is passes over memory, not arithmetic; {remedy}."
    reached = f"{utilisation:.0%} of the peak rate measured for a {precision} matrix product"
    if utilisation >= NEAR:
        remedy = "set train.precision to bf16" if precision in ("fp32", "tf32") else "reduce model.channels or train.epochs"
        if utilisation > 1:
            return (
                f"You are bound by convolutions, {arithmetic:.0%} of the work; the step reaches {reached}, which is slower "
                f"here than convolutions; {remedy}."
            )
        return f"You are compute-bound: the step reaches {reached}; {remedy}."
    remedy = "set train.pad_widths to 8 or 16" if awkward_widths else "increase train.batch_size"
    return f"You are bound by convolutions, {arithmetic:.0%} of the work, and the step reaches {reached}; {remedy}."
