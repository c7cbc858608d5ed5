"""Resume a run at the step where it stopped; the result equals an uninterrupted run bit for bit (on a CPU)."""

import torch

from fastcifar.engine.engine import Engine
from fastcifar.run.checkpoint import Checkpoint, checkpoint_tensors, load_checkpoint, restore_model, restore_optimizer
from fastcifar.run.directory import RunDirectory, read_environment
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.random_state import own_random_state, seed_rank, set_random_state


def live_tensors(engine: Engine) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint but the random state: weights, optimizer, losses, counts and loss scale."""
    state = {"losses": engine.step.losses, "correct": engine.step.correct, **engine.scaler_state(), **engine.loader.recorded()}
    tensors = checkpoint_tensors(engine.model, engine.optimizer, state)
    for section, model in _models(engine).items():
        tensors |= {f"{section}.{key}": tensor for key, tensor in model.state_dict().items()}
    return tensors


def _models(engine: Engine) -> dict[str, torch.nn.Module]:
    """Section of a checkpoint -> model: "model" is the one that is scored, the other serves to resume."""
    if engine.scored_model is not engine.model:
        return {"model": engine.scored_model, "trained": engine.model}
    return {"model": engine.model} | ({"average": engine.average.model} if engine.average else {})


def resume(engine: Engine, run: RunDirectory) -> Checkpoint:
    """Restore the run's last checkpoint into `engine`, in place; returns it.

    Raises:
        UserError: the run is finished, its files are missing or damaged, or its recipe or data have changed.
    """
    if read_environment(run).get("dataset_sha256") != engine.dataset.manifest.sha256:
        raise UserError(f"{run.root}: began with other data than {engine.dataset.root} holds; give it its own data set")
    checkpoint = load_checkpoint(run.last)
    for section, model in _models(engine).items():
        restore_model(checkpoint, model, engine.recipe.model, section)
    restore_optimizer(checkpoint, engine.model, engine.optimizer)
    state, position, total = checkpoint.section("state"), checkpoint.info["step"], len(engine.step.losses)
    if state["losses"].shape != engine.step.losses.shape:
        raise UserError(
            f"{checkpoint.path}: of a run of {len(state['losses'])} steps, the recipe and data make {total}; resume with the "
            "data, batch size and epochs it began with"
        )
    if position >= total:
        raise UserError(f"{run.root}: already finished; score it with: fastcifar eval {run.root}")
    engine.loader.restore(position, state)  # before the step asks for the position: an order may depend on what is restored
    engine.step.seek(position)
    engine.step.losses.copy_(state["losses"])
    if engine.world.is_rank_0:  # the sum over the ranks, counted once
        engine.step.correct.copy_(state["correct"])
    for name, tensor in engine.scaler_state().items():
        tensor.copy_(state[name])
    seed_rank(engine.recipe.train.seed, engine.world, position)
    set_random_state(own_random_state(state, engine.world), engine.device)
    return checkpoint
