"""The suite for a GPU: without one it says so, and a dry run executes its jobs."""

import importlib
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ABSOLUTE_PATH
from PIL import Image

from data_prep import prepare

ROOT = Path(__file__).parents[2]
JOBS = "profile,training,step,start,accuracy,warps,scaling,tests/optim"
"""One folder of the tests, which are running, and one of the benchmarks, all of which tests/bench/test_subjects.py runs."""


def write_pictures(folder, count=60):
    """A folder of two classes of random 32 x 32 images, to train and to test."""
    rng = np.random.default_rng(0)
    for name in ("train/one", "train/two", "test/one", "test/two"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name / f"{number}.png")


def suite(*arguments):
    command = [sys.executable, "-W", "ignore", "benchmarks/gpu_suite.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def modules(monkeypatch):
    """(gpu_suite, gpu_report, gpu_monitor), which are scripts."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return tuple(importlib.import_module(name) for name in ("gpu_suite", "gpu_report", "gpu_monitor"))


@pytest.fixture
def said(modules, monkeypatch, capsys):
    """A function that runs the suite in this process: (exit code, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu_suite.py", *map(str, arguments)])
        return modules[0].main(), capsys.readouterr().err

    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch sees a CUDA device")
def test_without_a_gpu_it_says_what_it_would_do(said, tmp_path):
    code, err = said("--only", "step,training", "--data", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "would run training/captured, training/captured padded to 8" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--dry-run", "--only", "stepp"], "--only stepp: must be one of profile/"), (["--dry-run"], "holds no data set")],
)
def test_bad_input_is_one_line(said, tmp_path, arguments, words):
    code, err = said(*arguments, "--data", tmp_path)
    assert code == 2
    assert words in err


@pytest.mark.slow
def test_a_dry_run_executes_the_jobs_and_a_second_call_none_of_them_again(tmp_path):
    source, out = tmp_path / "betons", tmp_path / "results"
    write_pictures(tmp_path / "pictures")
    prepare(str(tmp_path / "pictures"), source)
    how = ("--dry-run", "--data", source, "--out", out, "--minutes", 30)
    done = suite(*how, "--only", JOBS)
    (path,) = out.glob("*.json")
    jobs = json.loads(path.read_text())["pieces"]
    assert {name: job["failed"] for name, job in jobs.items() if "failed" in job} == {}
    assert done.returncode == 0, done.stderr
    assert {name.partition("/")[0] for name in jobs} == {name.partition("/")[0] for name in JOBS.split(",")}
    table = path.with_suffix(".md").read_text()
    assert ABSOLUTE_PATH.findall(path.read_text() + table) == []
    for words in (
        "the seed recipe, one run each",
        "The recipe seed, 2 runs",
        "### step",
        "### scaling",
        "cold",
        "not recorded",
    ):
        assert words in table
    again = suite(*how, "--minutes", 0)
    assert again.stdout.count("has a result") == len(jobs)
    assert "tests/engine: not started" in again.stdout


def test_jobs_run_in_order_of_importance(modules, tmp_path):
    gpu_suite, _, _ = modules
    names = list(gpu_suite.make_jobs(gpu_suite.real_plan(tmp_path)))
    assert names[:2] == ["profile/captured", "training/captured"]
    begins = ["profile", "training", "step", "start", "accuracy", "tests", "training", "profile", "augment"]
    assert [name for name, _ in itertools.groupby(name.partition("/")[0] for name in names)][:9] == begins
    assert names[-1] == "scaling"


def test_what_was_measured_stays_when_a_later_job_takes_too_long(modules, tmp_path, monkeypatch):
    gpu_suite, _, _ = modules
    outcomes = {"training/one": {"failed": "took longer than 1 s"}, "start": {"result": {"cold": {"first_step_s": 3.0}}}}
    monkeypatch.setattr(gpu_suite, "execute", lambda name, *_: {"seconds": 1.0, "gpu": {}} | outcomes[name])
    arguments = SimpleNamespace(only="", minutes=9, dry_run=True, out=tmp_path)
    jobs = {name: gpu_suite.Job(1, dict) for name in ("start", "training/one")}
    assert gpu_suite.suite(arguments, jobs) == 1
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["pieces"]["start"]["result"] == {"cold": {"first_step_s": 3.0}}
    assert "cold 3.0 s" in path.with_suffix(".md").read_text()
    assert "training/one: not measured (took longer than 1 s)" in path.with_suffix(".md").read_text()


@pytest.fixture
def executed(modules, monkeypatch):
    """Run a job whose process is faked, as (what it saved, why it failed)."""
    gpu_suite, _, _ = modules

    def execute(saved, why):
        def run_group(command, limit):
            Path(command[command.index("--out") + 1]).write_text(json.dumps(saved))
            return why

        monkeypatch.setattr(gpu_suite, "run_group", run_group)
        return gpu_suite.execute("start", 1, SimpleNamespace(data="betons", dry_run=True))

    return execute


def test_what_a_job_saved_before_it_overran_is_kept_and_a_second_call_measures_it(modules, executed, tmp_path, monkeypatch):
    gpu_suite, _, _ = modules
    cold = {"cold": {"first_step_s": 3.0}}
    outcomes = [executed(cold, "took longer than 1 s"), executed(cold | {"warm": {"first_step_s": 2.0}}, "")]
    assert (outcomes[0]["partial"], "result" in outcomes[0]) == (cold, False)
    remaining = iter(outcomes)
    monkeypatch.setattr(gpu_suite, "execute", lambda *_: next(remaining))
    arguments = SimpleNamespace(only="", minutes=9, dry_run=True, out=tmp_path)
    for code, words in (1, "cold 3.0 s\n"), (0, "cold 3.0 s, warm 2.0 s\n"):
        assert gpu_suite.suite(arguments, {"start": gpu_suite.Job(1, dict)}) == code
        (path,) = tmp_path.glob("*.md")
        assert words in path.read_text()
        assert ("start: measured in part (took longer than 1 s)" in path.read_text()) is bool(code)


def test_no_path_of_this_machine_is_in_the_result_of_a_job(executed):
    inside = f'File "{ROOT}/benchmarks/gpu_suite.py", File "{torch.__file__}", File "{json.__file__}"'
    result = {"tail": [inside, "rootdir: /home/me/fastcifar", "3 images/s"], "exit_code": 1}
    outcome = executed(result, f"{inside}\nFileNotFoundError: '/tmp/pytest-of-me/x.json'")
    assert ABSOLUTE_PATH.findall(json.dumps(outcome)) == []
    assert 'File "benchmarks/gpu_suite.py", File "torch/__init__.py", File "' in outcome["failed"]
    assert outcome["failed"].endswith("FileNotFoundError: 'x.json'")
    assert outcome["partial"]["tail"][1:] == ["rootdir: fastcifar", "3 images/s"]


TESTS = """
import pytest
pytestmark = pytest.mark.gpu
def test_one(): pass
def test_two(): assert {good}
"""


@pytest.mark.parametrize("good", [True, False])
def test_a_folder_with_a_failing_test_has_failed_and_each_test_is_saved(modules, tmp_path, monkeypatch, good):
    gpu_suite, _, _ = modules
    (tmp_path / "tests/some").mkdir(parents=True)
    (tmp_path / "tests/some/test_it.py").write_text(TESTS.format(good=good))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    monkeypatch.setattr(gpu_suite, "ROOT", tmp_path)
    saved = []
    if good:
        result = gpu_suite.tests("some", saved.append)
        assert (result["exit_code"], "2 passed" in result["summary"]) == (0, True)
    else:
        with pytest.raises(gpu_suite.Failed, match="1 failed, 1 passed"):
            gpu_suite.tests("some", saved.append)
        assert saved[-1]["exit_code"] == 1
    counts = "2 passed so far" if good else "1 failed, 1 passed so far"
    assert [one["summary"] for one in saved[:2]] == ["1 passed so far", counts]


def test_a_folder_without_tests_for_a_gpu_has_not_failed(modules, tmp_path, monkeypatch):
    gpu_suite, _, _ = modules
    (tmp_path / "tests/none").mkdir(parents=True)
    monkeypatch.setattr(gpu_suite, "ROOT", tmp_path)
    assert gpu_suite.tests("none", lambda _: None)["exit_code"] == gpu_suite.NO_TESTS


def test_a_failed_job_ends_with_one_line_and_exit_code_1(modules, tmp_path, monkeypatch, capsys):
    gpu_suite, _, _ = modules

    def measure(save):
        save({"summary": "1 failed"})
        raise gpu_suite.Failed("1 failed")

    monkeypatch.setattr(gpu_suite, "make_jobs", lambda plan: {"tests/some": gpu_suite.Job(1, measure)})
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", "--job", "tests/some", "--out", str(tmp_path / "out.json")])
    assert gpu_suite.main() == 1
    assert capsys.readouterr().err == "1 failed\n"
    assert json.loads((tmp_path / "out.json").read_text()) == {"summary": "1 failed"}


def test_every_run_case_and_point_is_saved_when_it_is_measured(modules, tmp_path, monkeypatch):
    """Long work is faked, except for the loops over runs, cases and points."""
    gpu_suite, _, _ = modules
    plan, saved = gpu_suite.dry_run_plan(tmp_path / "betons"), []
    cases = [SimpleNamespace(title=name) for name in "ab"]
    monkeypatch.setattr(gpu_suite, "make_cases", lambda *_, **__: cases)
    monkeypatch.setattr(gpu_suite, "measure", lambda case: [case.title])
    monkeypatch.setattr(gpu_suite, "document", lambda rows, *_: {"rows": list(rows)})
    assert gpu_suite.benchmark(plan, "step", saved.append) == {"rows": ["a", "b"]}
    assert saved == [{"rows": ["a"]}, {"rows": ["a", "b"]}]

    saved.clear()
    point = gpu_suite.scale.Point("width", 1.0, (1.0,), None, 0.0)
    monkeypatch.setattr(gpu_suite.scale, "_measure", lambda *_: point)
    points = gpu_suite.scaling(plan, saved.append)["points"]
    assert [len(one["points"]) for one in saved] == list(range(1, len(points) + 1))

    saved.clear()
    write_pictures(tmp_path / "pictures", count=40)
    prepare(str(tmp_path / "pictures"), tmp_path / "betons")
    summary = gpu_suite.accuracy(plan, "seed", 2, saved.append)
    assert [one["runs"] for one in saved] == [1, 2]
    assert saved[-1] == summary


GRANDCHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
child.wait() if sys.argv[2] == "wait" else sys.exit(sys.argv[2])
"""


@pytest.mark.parametrize(("ending", "why"), [("wait", "took longer than 5 s"), ("broken", "broken")])
def test_a_job_ends_with_all_that_it_started(modules, tmp_path, ending, why):
    gpu_suite, _, _ = modules
    assert gpu_suite.run_group([sys.executable, "-c", GRANDCHILD, str(tmp_path / "pid"), ending], 5) == why
    state = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    deadline = time.monotonic() + 10
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.05)


@pytest.fixture
def nvml(modules, monkeypatch):
    """NVML's functions faked: the clock falls because of the power limit."""
    clocks = itertools.chain([1980, 1500], itertools.repeat(1200))
    faked = SimpleNamespace(
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetClockInfo=lambda handle, kind: next(clocks) if kind == 1 else 3201,
        nvmlDeviceGetPowerUsage=lambda handle: 700_500,
        nvmlDeviceGetTemperature=lambda handle, kind: 61,
        nvmlDeviceGetCurrentClocksEventReasons=lambda handle: 0x4 | 0x40,
    )
    monkeypatch.setattr(modules[2], "_open", lambda: (faked, "handle"))
    monkeypatch.setattr(modules[2], "INTERVAL_S", 0.01)
    return faked


def test_clocks_and_power_are_summed_up_with_what_lowered_the_clocks(modules, nvml):
    _, gpu_report, gpu_monitor = modules
    with gpu_monitor.Monitor() as monitor:
        time.sleep(0.5)
    assert monitor.summary["sm_clock_mhz"] == [1200, 1200, 1980]
    assert monitor.summary["power_w"] == [700.5] * 3
    assert monitor.summary["clock_limits"] == ["software power cap", "hardware thermal slowdown"]
    assert "| step | 1200 (1980) MHz | 700 (700) W |" in gpu_report._gpu_table({"step": monitor.summary})


FUNCTIONS = {
    "nvmlDeviceGetClockInfo": ("sm_clock_mhz", "memory_clock_mhz"),
    "nvmlDeviceGetPowerUsage": ("power_w",),
    "nvmlDeviceGetTemperature": ("temperature_c",),
    "nvmlDeviceGetCurrentClocksEventReasons": ("clock_limits",),
}
"""Of NVML -> what the summary has from it."""


@pytest.mark.parametrize("raising", [*([name] for name in FUNCTIONS), list(FUNCTIONS)])
def test_what_a_gpu_does_not_report_is_left_out_and_the_rest_recorded(modules, nvml, monkeypatch, raising):
    """NVML raises NVMLError_NotSupported, as for the power of a virtual GPU."""
    _, gpu_report, gpu_monitor = modules

    def not_supported(*_):
        raise RuntimeError("Not Supported")

    for name in raising:
        monkeypatch.setattr(nvml, name, not_supported)
    with gpu_monitor.Monitor() as monitor:
        time.sleep(0.1)
    untold = {key for name in raising for key in FUNCTIONS[name]}
    assert monitor.summary["not told"] == dict.fromkeys(untold, "RuntimeError: Not Supported")
    told = {key for keys in FUNCTIONS.values() for key in keys} - untold
    assert set(monitor.summary) == told | {"samples", "not told"}
    assert monitor.summary["samples"] > 1
    assert "| step |" in gpu_report._gpu_table({"step": monitor.summary})


def test_without_nvml_it_says_so(modules, monkeypatch):
    _, gpu_report, gpu_monitor = modules
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with gpu_monitor.Monitor() as monitor:
        pass
    assert "pynvml" in monitor.summary["not recorded"]
    assert "not recorded" in gpu_report._gpu_table({"step": monitor.summary})


def test_tables_take_their_place_in_a_readme(modules, tmp_path):
    _, gpu_report, _ = modules
    known = dict.fromkeys(("device_name", "torch", "cuda", "python"), "x")
    results = {"environment": known, "date": "today", "command": "run"}
    results["pieces"] = {"step": {"seconds": 1.0, "failed": "Traceback\nRuntimeError: no kernel"}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{gpu_report.BEGIN}\nold\n{gpu_report.END}\nafter\n")
    for _ in range(2):
        gpu_report.copy_to_readme(tmp_path / "results.json", readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{gpu_report.BEGIN}\nx, torch x")
    assert text.endswith(f"{gpu_report.END}\nafter\n")
    assert "old" not in text
    assert text.count("step: not measured (RuntimeError: no kernel)") == 1
