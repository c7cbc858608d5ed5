"""Printed description of a recipe's model and of this machine."""

from typing import Any

from rich.table import Table

from fastcifar.display.console import plain_console


def print_info(described: dict[str, Any], *, layers: bool) -> None:
    """Print the result of `fastcifar.profiling.info.describe`; with `layers`, the table of layers first."""
    console = plain_console()
    model, env, rates = described["model"], described["environment"], described["peaks"]
    if layers:
        console.print(_layers(model["layers"]))
    seconds = described["floor_seconds"]
    floor = f"{seconds:,.0f} s" if seconds > 100 else f"{seconds:.3g} s"
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("recipe", described["recipe"]),
        ("parameters", f"{model['parameters']:,} ({model['trainable']:,} trainable)"),
        ("parameter size", f"{model['parameter_mb']:.2f} MB (float32)"),
        ("activations", f"{model['activation_mb']:.2f} MB (forward and backward, one image, float32)"),
        ("multiply-accumulates", f"{model['macs'] / 1e9:.3f} G per image, forward"),
        ("precision", f"{described['precision']} ({described['precision_reason']})"),
        ("padding", ", ".join(described["padding"]) or "none"),
        ("device", f"{env['device']}: {env['device_name']}"),
        (
            "versions",
            f"fastcifar {env['fastcifar']}, Python {env['python']}, torch {env['torch']}, Triton {env['triton']}",
        ),
        (
            "measured here",
            f"{rates['flops_per_s'] / 1e12:.3g} TFLOP/s {described['precision']}, {rates['bytes_per_s'] / 1e9:.3g} GB/s copy",
        ),
        ("floor of the run", f"{floor} for {described['images_trained']:,} images of {described['data']} (arithmetic alone)"),
    ):
        table.add_row(name, value)
    console.print(table)


def _layers(rows: list[dict[str, Any]]) -> Table:
    table = Table("layer", "kind", "output shape", "parameters", "MMAC", box=None)
    for column in table.columns[3:]:
        column.justify = "right"
    for row in rows:
        shape = "x".join(map(str, row["output_shape"]))
        table.add_row(row["name"], row["kind"], shape, f"{row['parameters']:,}", f"{row['macs'] / 1e6:.3f}")
    return table
