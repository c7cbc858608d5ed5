"""With this folder in PYTHONPATH, every Python process sees the software device; where it cannot, one line says why."""

import softcuda

softcuda.install()
