"""Everything that only a GPU can tell, in one command:

    python benchmarks/gpu_suite.py --data betons

First the tests marked `gpu`, then the seed recipe's time and accuracy, then every benchmark with its peers, the profiler and
the scaling, each piece in a process of its own with a limit of time, so that one that fails or hangs costs the others nothing.
After each piece benchmarks/results/<device>-<date>.json and .md are written anew. A second call goes on with the pieces that
are not there yet; `--only training,step` runs those named, whether they are there or not. No piece is begun that has not half
of its limit left of `--minutes`. `--readme` copies the tables of a results file into README.md. Without a GPU it says what it
would do and exits with 2; `--rehearse` walks through every piece on the CPU with sizes so small that the figures mean nothing.
"""
# ruff: noqa: E402 (it runs from a checkout, where fastcifar need not be installed)

import argparse
import dataclasses
import datetime
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch
from gpu_report import copy_to_readme, write_tables

from fastcifar.bench import TINY, Size, run
from fastcifar.bench import scaling as scale
from fastcifar.bench.report import document
from fastcifar.config import Recipe, load_recipe
from fastcifar.data.dataset import Dataset, load_dataset
from fastcifar.engine.environment import device_name, environment
from fastcifar.engine.runs import train_runs
from fastcifar.engine.trainer import train
from fastcifar.files import write_json
from fastcifar.models import build_model
from fastcifar.profiling.roofline import FLOPS_PER_MAC, floor_seconds, measure_ceilings
from fastcifar.profiling.summary import summarize
from fastcifar.report.console import Reporter

RESULTS = ROOT / "benchmarks" / "results"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How large everything is.

    Attributes:
        device: "cuda" or "cpu".
        data: folder that `fastcifar prep` wrote.
        sizes: of the benchmarks; None for what suits the device.
        overrides: of every recipe.
        variants: of "training": name -> (back end, overrides).
        runs: of "accuracy": recipe -> number.
        grid: of "scaling".
        backends: of "profile"; the first is that of "start" too.
        steps: of "profile".
        warps_batches: batch sizes of "warps".
    """

    device: str
    data: Path
    sizes: Mapping[str, Size] | None
    overrides: tuple[str, ...]
    variants: Mapping[str, tuple[str, tuple[str, ...]]]
    runs: Mapping[str, int]
    grid: scale.Grid
    backends: tuple[str, ...]
    steps: int
    warps_batches: tuple[int, ...]

    def recipe(self, name: str = "seed", *overrides: str) -> Recipe:
        return load_recipe(name, [*self.overrides, *overrides])


def real_plan(data: Path) -> Plan:
    variants = {
        "captured": ("captured", ()),
        "captured, widths padded to 8": ("captured", ("train.pad_widths=8",)),
        "captured, widths padded to 32": ("captured", ("train.pad_widths=32",)),
        "captured, pure bf16, widths padded to 8": ("captured", ("train.pad_widths=8", "train.precision=pure_bf16")),
        "compiled": ("compiled", ()),
        "eager": ("eager", ()),
    }
    batches = (64, 256, 1024, 4096, 16384)
    grid = scale.Grid((64, 256, 1024, 4096), (32, 64, 128), (0.5, 2), (1, 32))
    return Plan("cuda", data, None, (), variants, {"seed": 3, "cpu": 5}, grid, ("captured", "eager"), 50, batches)


def rehearsal(data: Path) -> Plan:
    small = ("model.channels=[4, 8]", "model.blocks=[1, 1]", "model.strides=[2, 2]", "model.stem_channels=4")
    small += ("train.epochs=1", "train.batch_size=32", "schedule.warmup_epochs=0")
    variants = {"eager": ("eager", ()), "eager, widths padded to 8": ("eager", ("train.pad_widths=8",))}
    return Plan("cpu", data, TINY, small, variants, {"cpu": 2}, scale.TINY, ("eager",), 1, (8,))


def tests(plan: Plan) -> dict[str, Any]:
    """The tests marked gpu; elsewhere they are collected and skipped."""
    command = [sys.executable, "-m", "pytest", "tests", "-m", "gpu", "-q", "-rfE", "--durations=5", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors"]  # a module that lacks a package costs the others nothing
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    return {"exit_code": done.returncode, "summary": lines[-1] if lines else done.stderr[-2000:], "tail": lines[-60:]}


def training(plan: Plan) -> dict[str, Any]:
    """The seed recipe whole, by every back end, with its floor: time, images/s, TFLOP/s."""
    dataset, rows = load_dataset(plan.data), {}
    for name, (backend, overrides) in plan.variants.items():
        recipe = plan.recipe("seed", *overrides)
        with tempfile.TemporaryDirectory() as folder:
            how = {"device": plan.device, "backend": backend, "reporter": Reporter(epochs=False)}
            result = train(recipe, dataset, Path(folder) / "run", **how)
            chosen = json.loads(result.run.environment.read_text())
        rows[name] = result.summary | {"step": chosen["step"], "step_reason": chosen["step_reason"]}
    return {"floor": _floor(plan, dataset), "rows": rows}


def _floor(plan: Plan, dataset: Dataset) -> dict[str, float]:
    recipe = plan.recipe("seed")
    ceilings = measure_ceilings(torch.device(plan.device), torch.bfloat16)
    height, width, channels = dataset.manifest.image_shape
    macs = summarize(build_model(recipe.model), (channels, *recipe.augment.output_size(height, width, channels))).macs
    images = recipe.train.epochs * (dataset.manifest.counts["train"] // recipe.train.batch_size) * recipe.train.batch_size
    seconds = floor_seconds(macs, images, ceilings)
    return {"seconds": seconds, "flop": FLOPS_PER_MAC * macs * images, "flops_per_s": ceilings.flops_per_s}


def accuracy(plan: Plan) -> dict[str, Any]:
    """Several runs of each recipe: mean and 95 % interval of accuracy and time."""
    dataset, summaries = load_dataset(plan.data), {}
    for name, count in plan.runs.items():
        with tempfile.TemporaryDirectory() as folder:
            how = {"device": plan.device, "runs": count, "reporter": Reporter(epochs=False)}
            _, summaries[name] = train_runs(plan.recipe(name), dataset, Path(folder) / "runs", **how)
    return summaries


def benchmark(*subjects: str) -> Callable[[Plan], dict[str, Any]]:
    """Subjects of `fastcifar bench`."""

    def measure(plan: Plan) -> dict[str, Any]:
        device = torch.device(plan.device)
        rows = run(subjects, device, plan.recipe(), sizes=plan.sizes, progress=lambda what: print(what, flush=True))
        return document(rows, device, f"fastcifar bench {' '.join(subjects)}")

    return measure


def start(plan: Plan) -> dict[str, Any]:
    """Seconds from the start of a process to its first step, without and with what the one before has compiled."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"FASTCIFAR_CACHE": folder, "TRITON_CACHE_DIR": f"{folder}/triton"}
        seconds = {}
        for temperature in ("cold", "warm"):
            kept = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor-{temperature}"}  # only our own cache is kept
            arguments = [str(plan.data), plan.device, json.dumps(plan.overrides), plan.backends[0]]
            child = [sys.executable, "-W", "ignore", "-c", FIRST_STEP, *arguments]
            done = subprocess.run(child, cwd=ROOT, env=os.environ | own | kept, capture_output=True, text=True, check=True)
            seconds[temperature] = json.loads(done.stdout.splitlines()[-1])
    return seconds


FIRST_STEP = """
import json, sys, time
begun = time.time() - float(open("/proc/uptime").read().split()[0])
ticks = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
import os, torch
from fastcifar.config import load_recipe
from fastcifar.data.dataset import load_dataset
from fastcifar.engine.distributed import joined
from fastcifar.engine.engine import Engine
from fastcifar.engine.trainer import arithmetic_of

recipe = load_recipe("seed", json.loads(sys.argv[3]))
with joined(sys.argv[2]) as world, arithmetic_of(recipe):
    engine = Engine(recipe, load_dataset(sys.argv[1]), world, backend=sys.argv[4])
    warm_up = engine.warm_up()
    engine.step.run(1)
    engine.step.losses[0].item()
total = time.time() - (begun + ticks / os.sysconf("SC_CLK_TCK"))
print(json.dumps({"first_step_s": total, "warm_up_s": warm_up, "step": engine.backend}))
"""


def profile(plan: Plan) -> dict[str, Any]:
    """`fastcifar profile` of a step by several back ends."""
    found = {}
    for backend in plan.backends:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "profile.json"
            overrides = itertools.chain.from_iterable(("--set", override) for override in plan.overrides)
            where = ["--data", str(plan.data), "--device", plan.device, "--steps", str(plan.steps), "--step", backend]
            files = ["--out", folder, "--json", str(path)]
            command = [sys.executable, "-m", "fastcifar", "profile", *where, *files, *overrides]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            found[backend] = {"printed": done.stdout, **json.loads(path.read_text())}
    return found


def warps(plan: Plan) -> dict[str, Any]:
    """Images/s of the seed policy's kernel for 1, 2, 4 and 8 warps an image."""
    from fastcifar.bench.timing import captured, past_the_cache

    if plan.device == "cpu":
        return {"not measured": "the kernel needs CUDA"}
    from fastcifar.augment import fused
    from fastcifar.bench.setting import PIXELS, random_split
    from fastcifar.data.resident import ResidentLoader
    from fastcifar.engine.transfer import Clock

    clock, rates = Clock(torch.device(plan.device)), {}
    for batch, number in itertools.product(plan.warps_batches, (1, 2, 4, 8)):
        fused.warps_per_image = lambda _, number=number: number
        fused.specialize.cache_clear()
        count = past_the_cache(batch * 3 * PIXELS, torch.device(plan.device))
        loader = ResidentLoader(random_split(count * batch), plan.recipe().augment, batch_size=batch, device=plan.device)
        replay = captured(lambda loader=loader, count=count: [loader.batch(n)[0] for n in range(count)])
        rounds = []
        for _ in range(7):
            begun = clock.now()
            replay()
            rounds.append(4 * count * batch / clock.seconds(begun, clock.now()))
        rates[f"batch {batch}, {number} warps"] = sorted(rounds)[3]
    return rates


def scaling(plan: Plan) -> dict[str, Any]:
    device = torch.device(plan.device)
    points = scale.measure_scaling(plan.recipe(), device, plan.grid, progress=lambda what: print(what, flush=True))
    return {"points": [point.to_json() for point in points], "streaming_begins": scale.streaming_begins(device)}


PIECES: dict[str, tuple[int, Callable[[Plan], dict[str, Any]]]] = {
    "tests": (240, tests),
    "training": (240, training),
    "accuracy": (150, accuracy),
    "epoch": (120, benchmark("epoch")),
    "step": (150, benchmark("step")),
    "kernels": (150, benchmark("loader", "augment", "erasing")),
    "profile": (120, profile),
    "start": (120, start),
    "warps": (60, warps),
    "train": (150, benchmark("train")),
    "prep": (60, benchmark("prep")),
    "scaling": (300, scaling),
}
"""Name -> (limit in seconds, what it does), in the order in which they are run."""


def execute(name: str, arguments: argparse.Namespace, limit: int) -> dict[str, Any]:
    """Run a piece in a process of its own: {"seconds", "result"} or {"seconds", "failed"}."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--piece", name, "--data", str(arguments.data), "--out", str(path)]
        command += ["--rehearse"] if arguments.rehearse else []
        try:
            done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=limit)
            why = done.stderr.strip()[-4000:] if done.returncode else ""
        except subprocess.TimeoutExpired:
            why = f"took longer than {limit} s"
        outcome = {"failed": why} if why or not path.exists() else {"result": json.loads(path.read_text())}
    return {"seconds": round(time.perf_counter() - begun, 1), **outcome}


def suite(arguments: argparse.Namespace, names: list[str]) -> int:
    """Run pieces and write the results after each; exit code 1 where one failed."""
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    label = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    today = datetime.date.today().isoformat()
    path = arguments.out / f"{'rehearsal-' if arguments.rehearse else ''}{label}-{today}.json"
    head = {"command": f"python benchmarks/{Path(__file__).name}", "date": today, "environment": environment(device)}
    results = head | {"pieces": json.loads(path.read_text())["pieces"] if path.exists() else {}}
    begun, failed = time.perf_counter(), False
    for name in names:
        left = 60 * arguments.minutes - (time.perf_counter() - begun)
        limit = PIECES[name][0]
        if not arguments.only and "result" in results["pieces"].get(name, {}):
            print(f"{name}: is there already; --only {name} measures it again", flush=True)
        elif left < limit / 2:
            print(f"{name}: not begun, {left:.0f} s are left and it may take {limit} s; run this again", flush=True)
        else:
            print(f"{name}: at most {min(limit, left):.0f} s", flush=True)
            piece = results["pieces"][name] = execute(name, arguments, int(min(limit, left)))
            failed |= "failed" in piece
            print(f"{name}: {piece.get('failed', 'done')} ({piece['seconds']} s)", flush=True)
            write_json(path, results)
            write_tables(results, path.with_suffix(".md"))
    print(f"{path} and {path.with_suffix('.md').name}")
    return int(failed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("betons"), help="folder that `fastcifar prep` wrote")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--only", default="", help="pieces to run, comma between them")
    parser.add_argument("--minutes", type=float, default=9.0, help="no piece is begun that may not end by then")
    parser.add_argument("--rehearse", action="store_true", help="every piece on the CPU, with sizes that mean nothing")
    parser.add_argument("--readme", type=Path, metavar="RESULTS", help="copy the tables of a results file into README.md")
    parser.add_argument("--piece", choices=PIECES, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.readme:
        copy_to_readme(arguments.readme, ROOT / "README.md")
        return 0
    names = arguments.only.split(",") if arguments.only else list(PIECES)
    for name in set(names) - PIECES.keys():
        print(f"gpu_suite: --only {name}: must be of {', '.join(PIECES)}", file=sys.stderr)
        return 2
    if not arguments.rehearse and not torch.cuda.is_available():
        print(
            f"gpu_suite: PyTorch sees no CUDA device; with one this would run {', '.join(names)}; --rehearse tries it here",
            file=sys.stderr,
        )
        return 2
    if arguments.piece:
        plan = (rehearsal if arguments.rehearse else real_plan)(arguments.data)
        write_json(arguments.out, PIECES[arguments.piece][1](plan))
        return 0
    if not (arguments.data / "dataset.json").is_file():
        print(
            f"gpu_suite: {arguments.data} holds no data set; make one with: fastcifar prep --out {arguments.data}",
            file=sys.stderr,
        )
        return 2
    return suite(arguments, names)


if __name__ == "__main__":
    sys.exit(main())
