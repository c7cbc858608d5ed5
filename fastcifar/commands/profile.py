"""Profile a training step."""

from pathlib import Path
from typing import Annotated

import typer

from fastcifar.commands.options import (
    Device,
    Json,
    LoaderKind,
    OptionalData,
    Overrides,
    RecipeName,
    StepKind,
    in_options,
    prepared_data,
    write_result,
)


def profile(
    recipe: RecipeName = "seed",
    data: OptionalData = None,
    set_: Overrides = [],  # noqa: B006
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps per round and in the trace; default 20 on CUDA, 2 on a CPU.")
    ] = None,
    step: StepKind = "auto",
    loader: LoaderKind = "auto",
    device: Device = "auto",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for trace, roofline and figures.")] = Path("profile"),
    json: Json = None,
) -> None:
    """Show where the time of a training step is spent, and how to reduce it."""
    from fastcifar.bench.setting import random_dataset
    from fastcifar.data.dataset import load_dataset
    from fastcifar.display.profile import plot_roofline, print_profile
    from fastcifar.profiling.profile import profile as run_profile
    from fastcifar.recipe import load_recipe
    from fastcifar.runtime.device import choose_device
    from fastcifar.runtime.precision import emulation_warning

    loaded, where = load_recipe(recipe, set_), choose_device(device)
    data = prepared_data(data)
    if data is None:
        print("no betons here: using random images of 32 x 32 pixels; the times are the same")
        dataset = random_dataset(max(4096, 2 * loaded.train.batch_size), 0)
    else:
        dataset = load_dataset(data)
    trace = out / "trace.json.gz"
    if loaded.train.image_sizes:
        print("all steps at the images' own size, without train.image_sizes")
    if warning := emulation_warning(loaded.resolved(where)[0].train.precision, where):
        print(warning)
    found = run_profile(loaded, dataset, where, trace, backend=step, loader=loader, steps=steps)
    found["bottleneck"] = in_options(found["bottleneck"])
    print_profile(found)
    plot_roofline(found, out / "roofline.png")
    write_result(out / "profile.json", found)
    write_result(json, found)
    print(f"{trace} (for https://ui.perfetto.dev), {out / 'roofline.png'}, {out / 'profile.json'}")
