"""The tests that softcuda does not judge exist: one that was renamed would be judged again, and its reason mean nothing."""

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_reason_is_of_tests_marked_gpu():
    spec = importlib.util.spec_from_file_location("reasons", Path(__file__).with_name("not_judged.py"))
    not_judged = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(not_judged)
    begins = [*not_judged.REASONS, *not_judged.AT_ONCE_REASONS]
    files = sorted({begin.partition("::")[0] for begin in begins})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = done.stdout.splitlines()
    assert [begin for begin in begins if not any(one.startswith(begin) for one in found)] == []
