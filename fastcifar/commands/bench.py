"""Compare throughput with rooflines and peers."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastcifar.commands.options import Device, Json, Overrides, RecipeName, check_writable, write_result


def bench(
    subjects: Annotated[
        list[str], typer.Argument(metavar="[SUBJECT]...", help="prep, loader, augment, erasing, step, epoch, train, or all.")
    ] = ["all"],  # noqa: B006
    recipe: RecipeName = "seed",
    set_: Overrides = [],  # noqa: B006
    batch_size: Annotated[
        list[int],
        typer.Option(min=2, metavar="N", help="Repeat it for a sweep. Default: some that suit the device."),
    ] = [],  # noqa: B006
    device: Device = "auto",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the bars: .png, .pdf or .svg.", callback=check_writable)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the tables as markdown.", callback=check_writable)
    ] = None,
    json: Json = None,
) -> None:
    """Measure how fast everything is, and compare it with its roofline and with every installed peer."""
    import shlex

    from fastcifar.bench import choose_subjects, run
    from fastcifar.display.bars import check_format, plot_bars
    from fastcifar.display.measurements import document, print_measurements, to_markdown, working
    from fastcifar.recipe import load_recipe
    from fastcifar.runtime.device import choose_device, device_name
    from fastcifar.runtime.files import write_text
    from fastcifar.runtime.precision import emulation_warning

    chosen, loaded, where = choose_subjects(subjects), load_recipe(recipe, set_), choose_device(device)
    if plot:
        check_format("--plot", plot)
    loaded, why = loaded.resolved(where)
    print(
        f"{where}: {device_name(where)}, {loaded.train.precision} ({why}); implementations take turns; a ratio is the median "
        "over pairs of rounds\n"
    )
    if loaded.train.image_sizes:
        print("all steps at the images' own size, without train.image_sizes")
    if warning := emulation_warning(loaded.train.precision, where):
        print(warning)
    rows = []
    for subject in chosen:
        with working() as progress:
            measured = run([subject], where, loaded, batch_sizes=batch_size, progress=progress)
        print_measurements(measured)
        rows += measured
    if plot:
        plot_bars(rows, plot)
    if markdown:
        write_text(markdown, to_markdown(rows))
    write_result(json, document(rows, where, shlex.join(["fastcifar", *sys.argv[1:]])))
