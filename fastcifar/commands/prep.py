"""Convert a data set to betons."""

from pathlib import Path
from typing import Annotated

import typer

from fastcifar.commands.options import Json, write_result


def prep(
    source: Annotated[
        str | None,
        typer.Argument(
            help="cifar10, cifar100, synthetic, a cifar-*-batches folder or .tar.gz, or a folder of class folders of "
            "images. Default: $FASTCIFAR_SOURCE, then ./data, then the download of CIFAR-10."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the betons and dataset.json to.")] = Path("betons"),
    val_fraction: Annotated[float, typer.Option(help="Share of the training images kept for validation.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of that split.")] = 0,
    resize: Annotated[int | None, typer.Option(metavar="N", help="Resize the images of a folder to N x N.")] = None,
    json: Json = None,
) -> None:
    """Convert a data set, once, to train.beton, val.beton, test.beton and dataset.json."""
    from dataclasses import asdict

    from data_prep import prepare
    from fastcifar.display.console import preparing

    with preparing() as progress:
        result = prepare(source, out, val_fraction=val_fraction, seed=seed, resize=resize, progress=progress)
    manifest = result.manifest
    counts = ", ".join(f"{count:,} {split}" for split, count in manifest.counts.items())
    done = f"written in {result.seconds:.1f} s" if result.changed else "already up to date, nothing done"
    print(f"{out}: {manifest.name}, {len(manifest.classes)} classes, {counts}; {done}")
    write_result(json, {"out": str(out), "changed": result.changed, "seconds": result.seconds, "manifest": asdict(manifest)})
