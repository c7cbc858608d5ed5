"""With this folder in PYTHONPATH, every Python process sees the software device; where it cannot, it says why and ends."""

import os
import sys

import softcuda

try:
    softcuda.install()
except softcuda.Unavailable as reason:
    print(f"softcuda cannot be used: {reason}", file=sys.stderr, flush=True)
    os._exit(1)  # sys.exit here would print a traceback of the interpreter's start; going on would skip all tests in silence
