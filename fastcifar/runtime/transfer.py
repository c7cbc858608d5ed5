"""Copies from the device to the host while the device continues: an epoch's metrics, and the weights.

On a CPU the same code only copies.
"""

from collections.abc import Mapping, Sequence

import torch


class Transfer:
    """Asynchronous copy of numbers to the host, after all work given so far; the host waits for it only when it reads it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.host = torch.empty(0)
        self.sizes: list[int] = []
        self.arrived: torch.cuda.Event | None = None

    def send(self, parts: Sequence[torch.Tensor]) -> None:
        """Send tensors as float64, which is exact for float32 and for counts below 2**53."""
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
        """Return the tensors sent last, flat; waits for their copy, but not for later work of the device."""
        if self.device.type == "cuda":
            self.arrived.synchronize()
        return self.host.clone().split(self.sizes)


class Snapshot:
    """A copy of tensors between two steps, to be read while later steps change the originals.

    Args:
        stream: on CUDA, the stream that reads it, and that copies from it to another snapshot; None on a CPU.
    """

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self.stream = stream
        self.tensors: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def take(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy `tensors`, always with the same names and shapes, after all work given to the device so far."""
        if self.tensors.keys() != tensors.keys():
            self.tensors = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        if self.stream:
            torch.cuda.current_stream().wait_stream(self.stream)  # it may still be read
        torch._foreach_copy_(list(self.tensors.values()), [tensor.detach() for tensor in tensors.values()])
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream())

    def copy(self, other: "Snapshot", prefix: str) -> None:
        """Copy the tensors of another snapshot whose names begin with `prefix`, without waiting for later work."""
        assert self.stream == other.stream  # whose order replaces waits
        with torch.cuda.stream(self.stream) if self.stream else torch.no_grad():
            self.take({name: tensor for name, tensor in other.tensors.items() if name.startswith(prefix)})

    def read(self) -> dict[str, torch.Tensor]:
        """Return new copies on the CPU; waits for this snapshot, but not for later work."""
        with torch.cuda.stream(self.stream) if self.stream else torch.no_grad():
            return {name: tensor.to("cpu", copy=True) for name, tensor in self.tensors.items()}
