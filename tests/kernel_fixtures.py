"""Fixtures of the kernels' tests, for the conftest.py of each folder that has some.

They run in Triton's interpreter on a CPU if there is no GPU, otherwise compiled on the GPU. Triton decides at import whether a
module's kernels are interpreted. So `interpreted` imports them, with the variable set only meanwhile: other tests and the
processes they start do not see it.
"""

import importlib
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


def interpreted(*modules: str) -> None:
    """Import Triton and modules with kernels for its interpreter, if that is what runs them here."""
    if INTERPRETED:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            for module in ("triton", *modules):
                importlib.import_module(module)


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """The device of the tensors given to a kernel."""
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    if not INTERPRETED:
        pytest.skip("the interpreter: Triton is not installed, or compiles in this process because there is a GPU")
    import triton

    if triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of Triton 3.6 fails with NumPy 2.4: it takes int() of arrays")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # some of Triton's own functions read it again when they are called
        yield torch.device("cpu")


@pytest.fixture
def run_script(tmp_path):
    """Run a Python script in its own process, where Triton compiles, and return its output.

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
    """Check that kernels, which a script printed, spill nothing and need no more registers than recorded; a test's last check.

    They depend on the compiler, so there is a table for each version of Triton; where this one has none the test is skipped.
    With FASTCIFAR_RECORD=1 the table of this version is rewritten.
    """
    import triton

    def check(kernels: list[dict]) -> None:
        assert [kernel for kernel in kernels if kernel["spilled"]] == []
        found = {kernel["kernel"]: kernel["registers"] for kernel in kernels}
        tables = json.loads(REGISTERS.read_text())
        if os.environ.get("FASTCIFAR_RECORD") == "1":
            tables[triton.__version__] = dict(sorted((tables.get(triton.__version__, {}) | found).items()))
            REGISTERS.write_text(json.dumps(dict(sorted(tables.items())), indent=2) + "\n")
        if triton.__version__ not in tables:
            pytest.skip(f"{REGISTERS.name} has no table of Triton {triton.__version__}; write it with FASTCIFAR_RECORD=1")
        recorded = tables[triton.__version__]
        more = {name: count for name, count in found.items() if count > recorded.get(name, count)}  # a new one has no record
        assert not more, f"more registers than in {REGISTERS.name}; if that is worth it, record with FASTCIFAR_RECORD=1"

    return check
