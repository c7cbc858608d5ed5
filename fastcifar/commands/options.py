"""Options shared by several commands, and the output of their result."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from fastcifar.runtime.errors import UserError

INTERRUPTED = 130  # the exit code of a program ended by Ctrl-C

OPTIONS = {"backend": "--step"}
"""Parameters whose option has another name; all others have the same name as their option."""


def check_writable(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse a file that cannot be written, before the work begins."""
    if path and not _writable(path):
        raise UserError(f"{option.opts[0]} {path}: no file can be written there")
    return path


def _writable(path: Path) -> bool:
    if path.exists() and not path.is_file():  # a folder, or a pipe or device, which is not replaced
        return not path.is_dir() and os.access(path, os.W_OK)
    folder = next((parent for parent in path.resolve().parents if parent.exists()), path)
    return folder.is_dir() and os.access(folder, os.W_OK)


Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON too.", callback=check_writable),
]
Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder that `fastcifar prep` wrote.")]
OptionalData = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Folder that `fastcifar prep` wrote; default: betons, if there.")
]
RecipeName = Annotated[str, typer.Option("--recipe", help="Name of a recipe (see `fastcifar recipes`) or a .toml file.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe, as in optimizer.lr=0.1.")
]
StepKind = Annotated[str, typer.Option("--step", help="Back end of the training step: auto, captured, compiled or eager.")]
LoaderKind = Annotated[
    str, typer.Option("--loader", help="auto, resident, or streaming for data larger than the device's memory.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def prepared_data(data: Path | None) -> Path | None:
    """Return the folder asked for, or `betons` if `fastcifar prep` wrote it, or None."""
    return data or (Path("betons") if Path("betons", "dataset.json").is_file() else None)


def write_result(path: Path | None, value: Any) -> None:
    """Write a command's result as JSON, if a path was given."""
    if path:
        from fastcifar.runtime.files import write_json

        write_json(path, value)


def in_options(message: str) -> str:
    """Replace the parameters in a library's message by the options of the command line.

    >>> in_options("`backend=x`: no such back end; `train.pad_widths=8` avoids it, or choose another `out`")
    '--step x: no such back end; --set train.pad_widths=8 avoids it, or choose another --out'
    """

    def option(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        if "." in name:
            return f"--set {name}={value}"
        named = OPTIONS.get(name, "--" + name.replace("_", "-"))
        return f"{named} {value}" if value else named

    return re.sub(r"`(?P<name>[a-z_]+(\.[a-z_]+)?)(=(?P<value>[^`]*))?`", option, message)
