"""Write checkpoints in a thread, from copies on the device, while training continues."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from fastcifar.models import ModelConfig
from fastcifar.run.checkpoint import save_checkpoint
from fastcifar.run.directory import RunDirectory
from fastcifar.runtime.transfer import Snapshot

SAVE_EVERY_S = 10.0
"""Seconds between two saves; the last epoch and a stop always save."""


class CheckpointWriter:
    """Writes `last.safetensors` and `best.safetensors` of a run.

    `snapshot` copies the live tensors on the device. `save` copies the snapshot to the host, without waiting for later work of
    the device, and a thread writes the file. One save at a time: the next one waits for the last and raises its error.
    """

    def __init__(self, run: RunDirectory, config: ModelConfig, device: torch.device) -> None:
        self.run, self.config = run, config
        stream = torch.cuda.Stream() if device.type == "cuda" else None
        self.newest, self.best = Snapshot(stream), Snapshot(stream)
        self.best_is_saved = True
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fastcifar-checkpoint")
        self.saving: Future | None = None
        self.saved_at = time.perf_counter()

    @property
    def due(self) -> bool:
        """True if the last save is more than `SAVE_EVERY_S` ago."""
        return time.perf_counter() - self.saved_at > SAVE_EVERY_S

    def snapshot(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the tensors of `checkpoint_tensors` on the device."""
        self.newest.take(tensors)

    def keep_best(self) -> None:
        """Keep the weights of the last snapshot as the best so far."""
        self.best.copy(self.newest, "model.")
        self.best_is_saved = False

    def save(self, info: Mapping[str, Any], random_states: Mapping[str, torch.Tensor]) -> None:
        """Write the last snapshot, and the best weights if they are new."""
        self.wait()
        self.saved_at = time.perf_counter()
        checkpoints = {} if self.best_is_saved else {self.run.best: self.best.read()}
        self.best_is_saved = True
        checkpoints[self.run.last] = self.newest.read() | {f"state.{name}": state for name, state in random_states.items()}
        self.saving = self.thread.submit(self._write, checkpoints, dict(info))

    def wait(self) -> None:
        """Wait for the current save; raises its error."""
        if self.saving:
            self.saving.result()

    def close(self) -> None:
        """End the thread after the current save."""
        self.thread.shutdown()

    def _write(self, checkpoints: Mapping[Path, Mapping[str, torch.Tensor]], info: Mapping[str, Any]) -> None:
        for path, tensors in checkpoints.items():
            save_checkpoint(path, tensors, self.config, info=info)
