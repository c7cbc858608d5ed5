"""PyTorch's random state, of one process and of all ranks.

Initial weights, dropout and the default seed of `RandomErasing` are drawn from it; order and augmentation of a run are not.
"""

import hashlib
from collections.abc import Mapping

import torch

from fastcifar.runtime.distributed import World


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of the default generators, as stored in a checkpoint."""
    state = {"rng_cpu": torch.get_rng_state()}
    return state | ({"rng_cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Restore a state of `random_state`; a generator that it does not name is unchanged."""
    if "rng_cpu" in state:
        torch.set_rng_state(state["rng_cpu"])
    if device.type == "cuda" and "rng_cuda" in state:
        torch.cuda.set_rng_state(state["rng_cuda"], device)


def seed_rank(seed: int, world: World, step: int = 0) -> None:
    """Seed the generators of a rank other than 0 by a function of (seed, rank, global step).

    Rank 0 keeps its state, which is that of a run of one process.
    """
    if world.is_rank_0:
        return
    digest = hashlib.sha256(f"{seed} {world.rank} {step}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def gather_random_state(state: Mapping[str, torch.Tensor], world: World) -> dict[str, torch.Tensor]:
    """Gather the states of all ranks: rank 0's under their own names, those of rank r with the suffix ".r"."""
    gathered = enumerate(world.gather(dict(state)))
    return {f"{key}.{rank}" if rank else key: tensor for rank, part in gathered for key, tensor in part.items()}


def own_random_state(state: Mapping[str, torch.Tensor], world: World) -> dict[str, torch.Tensor]:
    """Select this rank's part of `gather_random_state`; empty if the run had fewer ranks when it was gathered."""
    if world.is_rank_0:
        return {key: tensor for key, tensor in state.items() if key.startswith("rng_") and "." not in key}
    suffix = f".{world.rank}"
    return {key.removesuffix(suffix): tensor for key, tensor in state.items() if key.endswith(suffix)}
