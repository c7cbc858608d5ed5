"""Sample a GPU's clocks, power and temperature, and what lowers the clocks, during a measurement; needs nvidia-ml-py."""

import statistics
import threading
from collections import defaultdict
from collections.abc import Callable
from types import ModuleType
from typing import Any

INTERVAL_S = 0.25
REASONS = {
    0x1: "idle",
    0x2: "applications clock setting",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clock setting",
}
"""Bit of NVML's clocks event reasons -> its meaning (NVML API reference, nvmlClocksEventReasons)."""


class Monitor:
    """Samples PyTorch's CUDA device 0 in a thread while the `with` block runs; after it, `summary` holds the result.

    Attributes:
        summary: JSON values. "sm_clock_mhz", "memory_clock_mhz", "power_w" and "temperature_c": [least, median, most];
            "clock_limits": what lowered the clocks; "samples": their number. Values that the GPU does not report are left out,
            and "not told" holds the error of each. If nothing can be sampled, only "not recorded": the reason.
    """

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}
        self._samples: dict[str, list[float]] = defaultdict(list)
        self._reasons: int | None = None
        self._count = 0
        self._errors: dict[str, str] = {}
        self._ended = threading.Event()

    def __enter__(self) -> "Monitor":
        try:
            self._nvml, self._handle = _open()
        except Exception as error:  # NVML has many errors, and none of them may end a measurement
            self.summary = {"not recorded": f"{type(error).__name__}: {error}"}
            self._thread = None
        else:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self.summary = {
            name: [min(values), statistics.median(values), max(values)] for name, values in sorted(self._samples.items())
        }
        if self._reasons is not None:
            self.summary["clock_limits"] = [meaning for bit, meaning in REASONS.items() if self._reasons & bit]
        if untold := {name: why for name, why in self._errors.items() if name not in self.summary}:
            self.summary["not told"] = untold
        self.summary["samples"] = self._count

    def _watch(self) -> None:
        while True:
            self._sample()
            if self._ended.wait(INTERVAL_S):
                return

    def _sample(self) -> None:
        nvml, handle = self._nvml, self._handle
        self._count += 1
        readings = {
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }
        for name, read in readings.items():
            if (value := self._reading(name, read)) is not None:
                self._samples[name].append(value)
        reasons = self._reading("clock_limits", lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        if reasons is not None:
            self._reasons = (self._reasons or 0) | reasons

    def _reading(self, name: str, read: Callable[[], Any]) -> Any:
        """Read a value; None if NVML raises, as it does for the power of a virtual GPU."""
        try:
            return read()
        except Exception as error:
            self._errors[name] = f"{type(error).__name__}: {error}"
            return None


def _open() -> tuple[ModuleType, Any]:
    """Return NVML and its handle of PyTorch's device 0, whose number differs in NVML if devices are hidden."""
    import pynvml
    import torch

    pynvml.nvmlInit()
    return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
