"""Where the kernels' tests run: Triton's interpreter on a CPU where there is no GPU, and compiled on a GPU.

Whether a kernel is interpreted is decided when its module is imported. So they are imported here, with the switch set for
that moment alone: other tests and the processes they start never see it.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastcifar

REGISTERS = Path(__file__).parent / "registers.json"
INTERPRETED = not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None

if INTERPRETED:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        import triton

        from fastcifar.augment import erasing, fused  # noqa: F401


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """The device of the tensors given to a kernel."""
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    if not INTERPRETED:
        pytest.skip("the interpreter: Triton is not installed, or compiles in this process because there is a GPU")
    if triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of Triton 3.6 fails with NumPy 2.4: it takes int() of arrays")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # some of Triton's own functions ask again when they are called
        yield torch.device("cpu")


@pytest.fixture
def run_script(tmp_path):
    """Run a Python script in a process of its own, where Triton compiles, and return what it printed.

    The script can import `cross_compile`.
    """
    pytest.importorskip("triton", reason="Triton is not installed")

    def run(source: str) -> str:
        script = tmp_path / "script.py"  # Triton reads a kernel's source from its file
        script.write_text(source)
        path = os.pathsep.join(map(str, (Path(fastcifar.__file__).parents[1], Path(__file__).parent)))
        done = subprocess.run(
            [sys.executable, "-W", "error", "-W", "ignore:AnnAssign.__init__ missing:DeprecationWarning", str(script)],
            env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def check_registers():
    """Read the kernels that a script printed, a JSON object a line, and hold their registers to the recorded ones.

    They depend on the compiler, so the table is of one version of Triton. With FASTCIFAR_RECORD=1 it is written anew.
    """
    import triton

    def check(printed: str) -> list[dict]:
        kernels = [json.loads(line) for line in printed.splitlines()]
        found = {kernel["kernel"]: kernel["registers"] for kernel in kernels}
        table = json.loads(REGISTERS.read_text()) if REGISTERS.exists() else {}
        if os.environ.get("FASTCIFAR_RECORD") == "1":
            known = table["registers"] if table.get("triton") == triton.__version__ else {}
            table = {"triton": triton.__version__, "registers": dict(sorted((known | found).items()))}
            REGISTERS.write_text(json.dumps(table, indent=2) + "\n")
        if table["triton"] == triton.__version__:
            more = {name: count for name, count in found.items() if count > table["registers"].get(name, 0)}
            assert not more, f"more registers than in {REGISTERS.name}; if that is worth it, record with FASTCIFAR_RECORD=1"
        return kernels

    return check
