"""Clocks, power, temperature and what holds the clocks down, sampled while something is measured; needs nvidia-ml-py."""

import statistics
import threading
from collections import defaultdict
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
    """Samples the current CUDA device from a thread while the `with` block runs; then `summary` holds what was seen.

    Attributes:
        summary: JSON values. "sm_clock_mhz", "memory_clock_mhz", "power_w" and "temperature_c": [least, median, most];
            "clock_limits": the reasons seen; "samples": their number. Or "not recorded": the reason.
    """

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}
        self._samples: dict[str, list[float]] = defaultdict(list)
        self._reasons = 0
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
        self.summary["clock_limits"] = [meaning for bit, meaning in REASONS.items() if self._reasons & bit]
        self.summary["samples"] = len(self._samples["power_w"])

    def _watch(self) -> None:
        while True:
            self._sample()
            if self._ended.wait(INTERVAL_S):
                return

    def _sample(self) -> None:
        nvml, handle = self._nvml, self._handle
        self._samples["sm_clock_mhz"].append(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
        self._samples["memory_clock_mhz"].append(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))
        self._samples["power_w"].append(nvml.nvmlDeviceGetPowerUsage(handle) / 1000)
        self._samples["temperature_c"].append(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        self._reasons |= nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)


def _open() -> tuple[ModuleType, Any]:
    """NVML and its handle of PyTorch's device 0, which it numbers differently where devices are hidden."""
    import pynvml
    import torch

    pynvml.nvmlInit()
    return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
