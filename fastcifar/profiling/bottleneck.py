"""The one sentence of a profile: what limits the step, and the key of the recipe, or the option, to turn."""

from collections.abc import Mapping

MUCH = 0.25
"""A share of the step from which idling is called the bottleneck."""
NOTABLE = 0.15
"""The same for what should be small beside the arithmetic: augmentation and optimizer."""
NEAR = 0.6
"""A share of the ceiling that large convolutions reach when all is well."""

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
        idle_in: the phase in which most of the idling lies, or "" where that is between two steps.
        waits: what makes the host wait for the device, with the times that it does so in a step.
        utilisation: of the ceiling of arithmetic, 0 to 1; above 1 where matrix products are slower than convolutions.
        awkward_widths: whether some width is no multiple of 8 and is not padded.
        precision: `train.precision`.
    """
    step, work = sum(phases.values()), sum(groups.values())
    idle = phases["idle"] / step
    where = f"in {idle_in}" if idle_in else "between two steps"
    if waits and idle > NOTABLE:
        name, times = max(waits.items(), key=lambda item: item[1])
        return (
            f"You are host-bound at batch {batch_size}: {idle:.0%} of the step is idle, and the host waits for the device "
            f"{times:.3g} times a step ({name}); take that out of the step."
        )
    if idle > MUCH and device == "cpu":
        return (
            f"You are host-bound at batch {batch_size}: for {idle:.0%} of the step no operator runs, most of it {where}: "
            "something there waits (a sleep, a file, another process); `loader=resident` reads no files."
        )
    if idle > MUCH:
        turn = "turn train.batch_size up" if backend == "captured" else "try `backend=captured`, or turn train.batch_size up"
        return f"You are launch-bound at batch {batch_size}: {idle:.0%} of the step is gaps, most of them {where}; {turn}."
    for phase, turn in (("augment", "augment.transforms: fewer of them"), ("optimizer", "train.batch_size up: fewer steps")):
        if phases.get(phase, 0.0) / step > NOTABLE:
            return f"You are bound by the {phase} phase: it takes {phases[phase] / step:.0%} of the step; turn {turn}."
    arithmetic = groups.get(CONVOLUTION, 0.0) / work
    if arithmetic < 0.5:
        turn = "`backend=compiled` fuses them" if backend == "eager" else "turn train.precision to pure_bf16, which moves less"
        return f"You are memory-bound: {1 - arithmetic:.0%} of the work is passes over memory, not arithmetic; {turn}."
    reached = f"{utilisation:.0%} of the measured ceiling of {precision} arithmetic"
    if utilisation >= NEAR:
        turn = "train.precision to bf16" if precision in ("fp32", "tf32") else "model.channels or train.epochs: less work"
        if utilisation > 1:  # the ceiling is a matrix product's
            return (
                f"You are bound by convolutions, {arithmetic:.0%} of the work; the step does {utilisation:.0%} of the "
                f"arithmetic of a {precision} matrix product, which is no ceiling here; what is left to turn is {turn}."
            )
        return f"You are compute-bound: the step reaches {reached}; what is left to turn is {turn}."
    turn = "train.pad_widths to 8 or 16" if awkward_widths else "train.batch_size up"
    return f"You are bound by convolutions, {arithmetic:.0%} of the work, and the step reaches {reached}; turn {turn}."
