"""Devices of the kernels' tests: Triton's interpreter on a CPU if there is no GPU, otherwise compiled on the GPU.

Triton decides at import whether a module's kernels are interpreted. So they are imported here, with the variable set only
meanwhile: other tests and the processes they start do not see it.
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
from fastcifar.augment import Policy, batch

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
        patch.setenv("TRITON_INTERPRET", "1")  # some of Triton's own functions read it again when they are called
        yield torch.device("cpu")


# An ulp, since the order of operations differs, and since the interpreter truncates to bf16 and a GPU rounds.
ULP = {torch.float32: 2**-20, torch.float16: 2**-10, torch.bfloat16: 2**-7}


@pytest.fixture(scope="module")
def make_data(device):
    """Make random images (count, H, W, C) uint8, labels in 0 .. 9, and an order, on the device."""

    def make(count, height, width, channels):
        generator = torch.Generator().manual_seed(height * width + channels)
        images = torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (count,), generator=generator)
        return [t.to(device) for t in (images, labels, torch.randperm(count, generator=generator))]

    return make


@pytest.fixture(scope="module")
def check_kernel(device, make_data):
    """Compare the fused kernel with its specification, `batch.load_batch`, for some transforms; by default in every dtype."""
    from fastcifar.augment import fused

    def check(*transforms, dtypes=tuple(ULP), shape=(9, 8, 3), count=12, batch_size=8, step=0, seed=2**40 + 3, epoch=7):
        policy = Policy(transforms)
        arguments = [*make_data(count, *shape), torch.tensor([seed, epoch, step], device=device)]
        for dtype in dtypes:
            options = dict(batch_size=batch_size, policy=policy, num_classes=10, dtype=dtype)
            ours, our_targets = fused.load_batch(*arguments, **options)
            theirs, their_targets = batch.load_batch(*arguments, **options)
            assert ours.dtype == theirs.dtype
            assert ours.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(ours, theirs, rtol=ULP[dtype], atol=4e-6)
            torch.testing.assert_close(our_targets, their_targets, rtol=0, atol=1e-6 if policy.mixing else 0)

    return check


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
    """Compare the registers of kernels that a script printed with the recorded ones; the last check of a test.

    They depend on the compiler, so there is a table for each version of Triton; where this one has none the test is skipped.
    With FASTCIFAR_RECORD=1 the table of this version is rewritten.
    """
    import triton

    def check(kernels: list[dict]) -> None:
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
