"""Measure everything that needs a GPU, in one command:

    python benchmarks/gpu_suite.py --data betons

Jobs run in order of importance: the profile of the captured step, the seed recipe trained with it, the step, starts and
accuracy; then the tests marked `gpu`, folder by folder; then the other back ends, every benchmark with its peers, and the
scaling. Each job has a process group and a time limit of its own, so a job that fails or hangs does not harm the others. Its
result is written to <out>/<device>-<date>.json and .md when it ends, with the GPU's clocks, power and temperature during the
job (needs nvidia-ml-py). If a job fails or times out, its finished results are kept under "partial": runs, cases, points or
tests.

A second call runs the missing and failed jobs. `--only training,step` runs the jobs whose names begin so, even if they have
results. A job starts only if half of its time limit is left of `--minutes`. `--readme` copies the tables of a results file
into README.md. Without a GPU the suite prints what it would run and exits with 2; `--dry-run` runs every job, on a CPU too,
with sizes too small for meaningful figures.
"""
# ruff: noqa: E402 (it runs from a checkout, where fastcifar need not be installed)

import argparse
import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import scaling as scale
import torch
from gpu_monitor import Monitor
from gpu_report import copy_to_readme, write_tables

from fastcifar.bench import TINY, Size, make_cases, measure
from fastcifar.data.dataset import load_dataset
from fastcifar.display.console import Reporter
from fastcifar.display.measurements import document
from fastcifar.engine.runs import train_runs
from fastcifar.engine.trainer import train
from fastcifar.models import build_model
from fastcifar.models.summary import summarize
from fastcifar.recipe import Recipe, load_recipe
from fastcifar.runtime.device import device_name, make_current
from fastcifar.runtime.environment import environment
from fastcifar.runtime.files import write_json
from fastcifar.runtime.roofline import FLOPS_PER_MAC, measure_peaks, sustained_flops_per_s

RESULTS = ROOT / "benchmarks" / "results"
Save = Callable[[dict[str, Any]], None]
"""Called by a job with what it has measured so far, which is kept if the job fails or times out."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of all jobs.

    Attributes:
        device: "cuda" or "cpu".
        data: folder that `fastcifar prep` wrote.
        sizes: of the benchmarks; None for those that suit the device.
        overrides: of every recipe.
        variants: of "training": name -> (back end, overrides).
        runs: of "accuracy": recipe -> number.
        grid: of "scaling".
        backends: of "profile"; "start" uses the first.
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
    short = "train.epochs=2", "schedule.warmup_epochs=0"
    variants = {
        "captured": ("captured", ()),
        "captured padded to 8": ("captured", ("train.pad_widths=8",)),
        "captured padded to 32": ("captured", ("train.pad_widths=32",)),
        "captured pure bf16 padded to 8": ("captured", ("train.pad_widths=8", "train.precision=pure_bf16")),
        "compiled": ("compiled", short),
        "eager": ("eager", short),
    }
    batches = (64, 256, 1024, 4096, 16384)
    grid = scale.Grid((64, 256, 1024, 4096), (32, 64, 128), (0.5, 2), (1, 32))
    runs = {"seed": 3, "quick": 5, "speed94": 20}
    return Plan("cuda", data, None, (), variants, runs, grid, ("captured", "eager"), 50, batches)


def dry_run_plan(data: Path) -> Plan:
    small = ("model.channels=[16, 32]", "model.blocks=[1, 1]", "model.strides=[2, 2]", "model.stem_channels=16")
    small += ("train.epochs=1", "train.batch_size=32", "schedule.warmup_epochs=0.0")
    device, backend = ("cuda", "captured") if torch.cuda.is_available() else ("cpu", "eager")
    variants = {backend: (backend, ()), f"{backend} padded to 32": (backend, ("train.pad_widths=32",))}
    return Plan(device, data, TINY, small, variants, {"seed": 2}, scale.TINY, (backend,), 1, (8,))


@dataclasses.dataclass(frozen=True)
class Job:
    """A part of the suite that runs in its own process.

    Attributes:
        limit: seconds until it times out.
        measure: takes a `Save` and returns the result, JSON values.
    """

    limit: int
    measure: Callable[[Save], dict[str, Any]]


class Failed(Exception):
    """A job finished and found a failure; the message is one line."""


def make_jobs(plan: Plan) -> dict[str, Job]:
    """Return the jobs by name, in the order in which they run."""
    first, *others = plan.backends

    def training_of(backends: set[str]) -> dict[str, Job]:
        chosen = {name: variant for name, variant in plan.variants.items() if variant[0] in backends}
        return {f"training/{name}": Job(150, partial(training, plan, *variant)) for name, variant in chosen.items()}

    def benchmarks(names: Mapping[str, int]) -> dict[str, Job]:
        return {name: Job(limit, partial(benchmark, plan, name)) for name, limit in names.items()}

    jobs = {f"profile/{first}": Job(120, partial(profile, plan, first))}
    jobs |= training_of({first})
    jobs |= benchmarks({"step": 150})
    jobs["start"] = Job(120, partial(start, plan))
    jobs |= {f"accuracy/{name}": Job(150, partial(accuracy, plan, name, runs)) for name, runs in plan.runs.items()}
    folders = sorted(path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.glob("test_*.py")))
    jobs |= {f"tests/{folder}": Job(120, partial(tests, folder)) for folder in folders}
    jobs |= training_of({"captured", "compiled", "eager"} - {first})
    jobs |= {f"profile/{name}": Job(120, partial(profile, plan, name)) for name in others}
    jobs |= benchmarks({"augment": 120, "erasing": 120, "loader": 120, "epoch": 120, "train": 150, "prep": 60})
    jobs["warps"] = Job(60, partial(warps, plan))
    jobs["scaling"] = Job(300, partial(scaling, plan))
    return jobs


def tests(folder: str, save: Save) -> dict[str, Any]:
    """Run the tests of a folder that are marked gpu; without a GPU they are skipped.

    Raises:
        Failed: a test failed, or pytest did.
    """
    command = [sys.executable, "-m", "pytest", f"tests/{folder}", "-m", "gpu", "-v", "-rfE", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors"]  # a module that lacks a package does not stop the others
    lines, outcomes = [], Counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in filter(None, map(str.rstrip, process.stdout)):
            lines.append(line)
            if outcome := re.match(r"tests/\S+::.* (PASSED|FAILED|ERROR|SKIPPED)\b", line):
                outcomes[outcome[1].lower()] += 1
                counts = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
                save({"exit_code": None, "summary": f"{counts} so far", "tail": lines[-60:]})
    result = {"exit_code": process.returncode, "summary": lines[-1] if lines else "no output", "tail": lines[-60:]}
    if process.returncode not in (0, NO_TESTS):
        save(result)
        raise Failed(result["summary"].strip("= "))
    return result


NO_TESTS = 5
"""pytest's exit code if no test is marked gpu."""


def training(plan: Plan, backend: str, overrides: tuple[str, ...], _: Save) -> dict[str, Any]:
    """Train the seed recipe with a back end: times, images/s, and the FLOP/s of matrix products to compare them with."""
    dataset, device = load_dataset(plan.data), torch.device(plan.device)
    recipe, _ = plan.recipe("seed", *overrides).resolved(device)
    precision, reporter = recipe.train.precision, Reporter(epochs=False)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        result = train(recipe, dataset, out, device=plan.device, backend=backend, reporter=reporter)
        chosen = json.loads(result.run.environment.read_text())
    height, width, channels = dataset.manifest.image_shape
    macs = summarize(build_model(recipe.model), (channels, *recipe.augment.output_size(height, width, channels))).macs
    return {
        **result.summary.to_json(),
        "precision": precision,
        "step": chosen["step"],
        "step_reason": chosen["step_reason"],
        "flop_per_image": FLOPS_PER_MAC * macs,
        "flops_per_s": measure_peaks(device, precision).flops_per_s,
        "sustained_flops_per_s": sustained_flops_per_s(device, precision),
    }


def accuracy(plan: Plan, recipe: str, runs: int, save: Save) -> dict[str, Any]:
    """Train a recipe several times: mean and 95 % interval of accuracy and time."""
    with tempfile.TemporaryDirectory() as folder:
        _, summary = train_runs(
            plan.recipe(recipe),
            load_dataset(plan.data),
            Path(folder) / "runs",
            runs=runs,
            device=plan.device,
            reporter=Reporter(epochs=False),
            after_run=lambda summary: save(summary.to_json()),
        )
    return summary.to_json()


def benchmark(plan: Plan, subject: str, save: Save) -> dict[str, Any]:
    """Run a subject of `fastcifar bench`."""
    device, rows, result = torch.device(plan.device), [], {}
    make_current(device)
    for case in make_cases(subject, device, plan.recipe(), sizes=plan.sizes):
        print(f"{subject}: {case.title}", flush=True)
        rows += measure(case)
        result = document(rows, device, f"fastcifar bench {subject}")
        save(result)
    return result


def start(plan: Plan, save: Save) -> dict[str, Any]:
    """Measure the time from the start of a process to its first step, without and with the compiled code of an earlier one."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"FASTCIFAR_CACHE": folder, "TRITON_CACHE_DIR": f"{folder}/triton"}
        seconds = {}
        for temperature in ("cold", "warm"):
            kept = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor-{temperature}"}  # only our own cache is kept
            arguments = [str(plan.data), plan.device, json.dumps(plan.overrides), plan.backends[0]]
            child = [sys.executable, "-W", "ignore", "-c", FIRST_STEP, *arguments]
            done = subprocess.run(child, cwd=ROOT, env=os.environ | own | kept, capture_output=True, text=True, check=True)
            seconds[temperature] = json.loads(done.stdout.splitlines()[-1])
            save(seconds)
    return seconds


FIRST_STEP = """
import json, sys, time
began = time.time() - float(open("/proc/uptime").read().split()[0])
ticks = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
import os, torch
from fastcifar.recipe import load_recipe
from fastcifar.data.dataset import load_dataset
from fastcifar.runtime.distributed import process_group
from fastcifar.engine.engine import Engine

recipe = load_recipe("seed", json.loads(sys.argv[3]))
with process_group(sys.argv[2]) as world:
    engine = Engine(recipe, load_dataset(sys.argv[1]), world, backend=sys.argv[4])
    warm_up = engine.warm_up()
    engine.step.run(1)
    engine.step.losses[0].item()
total = time.time() - (began + ticks / os.sysconf("SC_CLK_TCK"))
print(json.dumps({"first_step_s": total, "warm_up_s": warm_up, "step": engine.backend}))
"""


def profile(plan: Plan, backend: str, _: Save) -> dict[str, Any]:
    """Run `fastcifar profile` on the step of a back end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        overrides = itertools.chain.from_iterable(("--set", override) for override in plan.overrides)
        where = ["--data", str(plan.data), "--device", plan.device, "--steps", str(plan.steps), "--step", backend]
        files = ["--out", folder, "--json", str(path)]
        command = [sys.executable, "-m", "fastcifar", "profile", *where, *files, *overrides]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return json.loads(path.read_text())


def warps(plan: Plan, save: Save) -> dict[str, Any]:
    """Measure the images/s of the seed policy's kernel with 1, 2, 4 and 8 warps per image."""
    from fastcifar.bench.timing import captured, past_the_cache

    if plan.device == "cpu":
        return {"not measured": "the kernel needs CUDA"}
    from fastcifar.augment import fused
    from fastcifar.bench.setting import IMAGE_BYTES, random_split
    from fastcifar.data.resident import ResidentLoader
    from fastcifar.runtime.timing import Clock

    clock, rates = Clock(torch.device(plan.device)), {}
    for batch, number in itertools.product(plan.warps_batches, (1, 2, 4, 8)):
        fused.warps_per_image = lambda _, number=number: number
        fused.specialize.cache_clear()
        count = past_the_cache(batch * 3 * IMAGE_BYTES, torch.device(plan.device))  # uint8 read, bf16 written
        policy = plan.recipe("seed", "train.precision=bf16").augment
        loader = ResidentLoader(random_split(count * batch), policy, batch_size=batch, device=plan.device)
        replay = captured(lambda loader=loader, count=count: [loader.batch(n)[0] for n in range(count)])
        rounds = []
        for _ in range(7):
            began = clock.now()
            replay()
            rounds.append(4 * count * batch / clock.seconds(began, clock.now()))
        rates[f"batch {batch}, {number} warps"] = sorted(rounds)[3]
        save(rates)
    return rates


def scaling(plan: Plan, save: Save) -> dict[str, Any]:
    """Measure images/s over batch size, image size, width and data set; see scaling.py."""
    device = torch.device(plan.device)
    begins = scale.streaming_begins(device)

    def result(points: list[scale.Point]) -> dict[str, Any]:
        return {"points": [point.to_json() for point in points], "streaming_begins": begins}

    def progress(what: str) -> None:
        print(what, flush=True)

    return result(scale.measure_scaling(plan.recipe(), device, plan.grid, progress, lambda points: save(result(points))))


def execute(name: str, limit: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a job in its own process group; return "seconds", "gpu", and "result", or "failed" and "partial", what it saved."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Monitor() as monitor:
        path = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--job", name, "--data", str(arguments.data), "--out", str(path)]
        why = run_group(command + ["--dry-run"] * arguments.dry_run, limit)
        saved = json.loads(path.read_text()) if path.exists() else None
        if why or saved is None:
            outcome = {"failed": why or "no result"} | ({"partial": saved} if saved else {})
        else:
            outcome = {"result": saved}
    return without_paths({"seconds": round(time.perf_counter() - began, 1), "gpu": monitor.summary, **outcome})


def without_paths(value: Any) -> Any:
    """Remove the folders of this machine from JSON values.

    A path within the checkout, the installed packages or the standard library is shortened to the part below it, any other
    path to its last name.
    """
    if isinstance(value, str):
        return ABSOLUTE_PATH.sub(lambda path: path[0].rpartition("/")[2], BELOW_A_ROOT.sub("", value))
    if isinstance(value, Mapping):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
    return [without_paths(item) for item in value] if isinstance(value, list) else value


_START = r"(?<![\w.:/<)-])"
_ROOTS = {sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), str(ROOT), str(ROOT.resolve())}
BELOW_A_ROOT = re.compile(rf"{_START}(?:{'|'.join(re.escape(root) for root in sorted(_ROOTS, key=len, reverse=True))})/")
ABSOLUTE_PATH = re.compile(rf"{_START}(?:~|/[\w.+@-]+)(?:/[\w.+@-]+)+")


def run_group(command: list[str], limit: float) -> str:
    """Run a command; end its process group with it, or after `limit` seconds. Return why it failed, or ""."""
    with tempfile.TemporaryFile("w+") as errors:  # not a pipe, which processes that outlive it would keep open
        process = subprocess.Popen(command, cwd=ROOT, stderr=errors, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"took longer than {limit} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        errors.seek(0)
        return errors.read().strip()[-4000:] or f"exit code {code}" if code else ""


def suite(arguments: argparse.Namespace, jobs: Mapping[str, Job]) -> int:
    """Run jobs and write the results after each, under the key "pieces"; return the exit code, 1 if a job failed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    label = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    today = datetime.date.today().isoformat()
    path = arguments.out / f"{'dry-run-' if arguments.dry_run else ''}{label}-{today}.json"
    head = {"command": f"python benchmarks/{Path(__file__).name}", "date": today, "environment": environment(device)}
    results = head | {"pieces": json.loads(path.read_text())["pieces"] if path.exists() else {}}
    began, failed = time.perf_counter(), False
    for name, job in jobs.items():
        left = 60 * arguments.minutes - (time.perf_counter() - began)
        if not arguments.only and "result" in results["pieces"].get(name, {}):
            print(f"{name}: has a result; --only {name} measures it again", flush=True)
        elif left < job.limit / 2:
            print(f"{name}: not started, {left:.0f} s are left and it may take {job.limit} s; run this again", flush=True)
        else:
            limit = int(min(job.limit, left))
            print(f"{name}: at most {limit} s", flush=True)
            done = results["pieces"][name] = execute(name, limit, arguments)
            failed |= "failed" in done
            print(f"{name}: {done.get('failed', 'done')} ({done['seconds']} s)", flush=True)
            write_json(path, results)
            write_tables(results, path.with_suffix(".md"))
    print(f"{path} and {path.with_suffix('.md').name}")
    return int(failed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("betons"), help="folder that `fastcifar prep` wrote")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--only", default="", help="names of jobs, or their beginnings, separated by commas")
    parser.add_argument("--minutes", type=float, default=9.0, help="a job starts only if half of its time limit is left")
    parser.add_argument("--dry-run", action="store_true", help="run every job with sizes too small for meaningful figures")
    parser.add_argument("--readme", type=Path, metavar="RESULTS", help="copy the tables of a results file into README.md")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.readme:
        copy_to_readme(arguments.readme, ROOT / "README.md")
        return 0
    jobs = make_jobs((dry_run_plan if arguments.dry_run else real_plan)(arguments.data))
    if arguments.job:
        save = partial(write_json, arguments.out)
        try:
            save(jobs[arguments.job].measure(save))
        except Failed as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    asked = arguments.only.split(",") if arguments.only else [""]
    for name in asked:
        if not any(job.startswith(name) for job in jobs):
            print(f"gpu_suite: --only {name}: must be one of {', '.join(jobs)}", file=sys.stderr)
            return 2
    jobs = {name: job for name, job in jobs.items() if name.startswith(tuple(asked))}
    if not arguments.dry_run and not torch.cuda.is_available():
        print(
            f"gpu_suite: PyTorch sees no CUDA device; with one this would run {', '.join(jobs)}; --dry-run tries it here",
            file=sys.stderr,
        )
        return 2
    if not (arguments.data / "dataset.json").is_file():
        print(
            f"gpu_suite: {arguments.data} holds no data set; make one with: fastcifar prep --out {arguments.data}",
            file=sys.stderr,
        )
        return 2
    return suite(arguments, jobs)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the job that runs too
    sys.exit(main())
