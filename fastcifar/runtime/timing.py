"""Time on a device."""

import time

import torch


class Clock:
    """Clock of a device: `now` does not wait for the device, `seconds` waits for the later of two times."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float | torch.cuda.Event:
        """Return the time when the device finishes all work given to it so far."""
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, first: float | torch.cuda.Event, last: float | torch.cuda.Event) -> float:
        if self.device.type == "cpu":
            return last - first
        last.synchronize()
        return first.elapsed_time(last) / 1000
