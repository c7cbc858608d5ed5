"""The C compiler and Python headers that torch.compile and Triton need to build their launchers."""

import os
import shutil
import sysconfig
from pathlib import Path


def missing_compiler() -> str:
    """Describe what is missing, and how to get it; "" if nothing is."""
    if not any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "gcc", "clang")):
        return "a C compiler, and none is installed (Debian: build-essential)"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return f"{header}, which is not installed (Debian: python3-dev)"
    return ""
