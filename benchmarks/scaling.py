"""How throughput and memory change with batch size, image size, width and data set, and where streaming begins.

    python benchmarks/scaling.py RESULTS.json PICTURE.png [RECIPE]

Each point is an engine of its own, on random pixels; the table is printed.
"""

import sys
from pathlib import Path

from fastcifar.bench.scaling import ON_CPU, Grid, measure_scaling, plot_scaling, scaling_table, streaming_begins
from fastcifar.recipe import load_recipe
from fastcifar.runtime.device import choose_device
from fastcifar.runtime.environment import environment
from fastcifar.runtime.files import write_json


def main(results: str, picture: str, name: str = "seed") -> None:
    device = choose_device("auto")
    grid = ON_CPU if device.type == "cpu" else Grid()
    points = measure_scaling(load_recipe(name), device, grid, progress=lambda what: print(what, file=sys.stderr))
    limit = streaming_begins(device)
    document = {"command": f"python benchmarks/scaling.py RESULTS.json PICTURE.png {name}", "environment": environment(device)}
    document |= {"points": [point.to_json() for point in points], "streaming_begins": limit}
    write_json(Path(results), document)
    plot_scaling(points, Path(picture), f"the recipe {name} on {document['environment']['device_name']}", limit)
    print(scaling_table(points, limit))


if __name__ == "__main__":
    main(*sys.argv[1:])
