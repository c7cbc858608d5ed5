"""Train small-image classifiers as fast as the hardware allows.

The names below are the library; each is imported on first use, so that `import fastcifar` stays cheap.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Policy": "fastcifar.augment",
    "RandomErasing": "fastcifar.augment.erasing",
    "Recipe": "fastcifar.recipe",
    "ResidentLoader": "fastcifar.data.resident",
    "StreamingLoader": "fastcifar.data.streaming",
    "UserError": "fastcifar.runtime.errors",
    "build_model": "fastcifar.models",
    "evaluate": "fastcifar.engine.evaluate",
    "load_dataset": "fastcifar.data.dataset",
    "load_recipe": "fastcifar.recipe",
    "train": "fastcifar.engine.trainer",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastcifar' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
