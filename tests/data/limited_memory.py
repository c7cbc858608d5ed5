"""Script that `test_streaming.py` starts in a separate process: `limited_memory.py FOLDER BYTES`.

It opens the data set in FOLDER and loads every batch of an epoch, with at most BYTES of new memory.
"""

import resource
import sys
import warnings

import torch

from fastcifar.augment import Normalize, Policy
from fastcifar.data.dataset import load_dataset
from fastcifar.data.resident import ResidentLoader
from fastcifar.data.streaming import StreamingLoader


def limit_memory(more: int) -> None:
    """Let this process allocate at most `more` new bytes; mapped files do not count."""
    with open("/proc/self/status") as status:
        now = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (now + more, now + more))


def main(folder: str, most: int) -> None:
    torch.set_num_threads(1)
    with warnings.catch_warnings(action="ignore"):
        import ffcv  # noqa: F401  its libraries take some 100 MB
    limit_memory(most)
    dataset, policy = load_dataset(folder), Policy((Normalize(0.5, 0.5),))
    loader = StreamingLoader(dataset.root / "train.beton", policy, batch_size=100)
    print(sum(len(labels) for _, labels in loader), "images streamed")
    try:
        ResidentLoader(dataset.train, policy, batch_size=100)
    except MemoryError:
        print("no memory for all at once")


main(sys.argv[1], int(sys.argv[2]))
