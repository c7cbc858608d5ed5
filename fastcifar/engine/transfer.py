"""What goes from the device to the host while the device goes on: an epoch's metrics, and copies of the weights.

On a CPU everything is there at once, and the same code does nothing but copy.
"""

import time
from collections.abc import Mapping, Sequence

import torch


class Clock:
    """Time on the device: `now` waits for nothing, `seconds` for the later of two moments."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float | torch.cuda.Event:
        """The moment when the work given to the device so far is done."""
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


class Transfer:
    """Numbers on their way to the host: one copy, behind the work given so far, that nothing waits for until it is read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.host = torch.empty(0)
        self.sizes: list[int] = []
        self.arrived: torch.cuda.Event | None = None

    def send(self, parts: Sequence[torch.Tensor]) -> None:
        """Send tensors of the device, as float64: exact for float32 and for counts below 2**53."""
        packed = torch.cat([part.detach().reshape(-1).double() for part in parts])
        self.sizes = [part.numel() for part in parts]
        cuda = self.device.type == "cuda"
        if self.host.shape != packed.shape:
            self.host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=cuda)
        self.host.copy_(packed, non_blocking=True)
        if cuda:
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def receive(self) -> tuple[torch.Tensor, ...]:
        """What was sent last, flat; waits for it, and not for what the device was given since."""
        if self.device.type == "cuda":
            self.arrived.synchronize()
        return self.host.clone().split(self.sizes)


class Snapshot:
    """A copy of tensors as they are between two steps, to be read while the steps that follow change the originals.

    Args:
        stream: on CUDA, where it is read; None on a CPU.
    """

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self.stream = stream
        self.tensors: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def take(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy `tensors`, whose names and shapes are always the same, behind the work given to the device so far."""
        if self.tensors.keys() != tensors.keys():
            self.tensors = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        if self.stream:
            torch.cuda.current_stream().wait_stream(self.stream)  # it may still be read
        torch._foreach_copy_(list(self.tensors.values()), [tensor.detach() for tensor in tensors.values()])
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream())

    def copy(self, other: "Snapshot", prefix: str) -> None:
        """Copy those of another snapshot whose names begin with `prefix`, without waiting for later work."""
        chosen = {name: tensor for name, tensor in other.tensors.items() if name.startswith(prefix)}
        if self.stream:
            self.stream.wait_stream(other.stream)  # it may not be taken yet
        with torch.cuda.stream(self.stream) if self.stream else torch.no_grad():
            self.take(chosen)
        if self.stream:
            other.stream.wait_stream(self.stream)  # it may not be taken anew before

    def read(self) -> dict[str, torch.Tensor]:
        """Copies on the CPU, which later ones leave alone; waits for this snapshot, and not for later work."""
        with torch.cuda.stream(self.stream) if self.stream else torch.no_grad():
            return {name: tensor.to("cpu", copy=True) for name, tensor in self.tensors.items()}
