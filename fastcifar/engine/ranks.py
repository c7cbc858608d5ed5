"""Synchronise the ranks of a run: at the start, and their metrics at the end of an epoch."""

from fastcifar.engine.engine import Engine
from fastcifar.recipe import dump_recipe
from fastcifar.runtime.errors import UserError


def start_together(engine: Engine) -> None:
    """Check that all ranks run the same training, and broadcast rank 0's weights and optimizer state.

    Raises:
        UserError: recipe, data, position or back end differ between the ranks.
    """
    world = engine.world
    own = dump_recipe(engine.recipe), str(engine.dataset.manifest.sha256), engine.loader.position, engine.backend
    for what, values in zip(("recipe", "data", "checkpoint", "step"), zip(*world.gather(own), strict=True), strict=True):
        if len(set(values)) > 1:
            raise UserError(f"the ranks of the run have different {what}s; give all of them the same")
    states = [tensor for state in engine.optimizer.state.values() for tensor in state.values()]
    averages = engine.average.averages if engine.average else []
    world.broadcast([*engine.model.parameters(), *engine.model.buffers(), *states, *averages])


def merge_metrics(engine: Engine, first: int) -> None:
    """Average the losses since global step `first` over the ranks, and sum their correct predictions.

    Also broadcast rank 0's BatchNorm statistics, so that all ranks evaluate the same model.
    """
    if first < engine.loader.position:
        engine.world.all_reduce_mean(engine.step.losses[first : engine.loader.position])
        engine.world.all_reduce_sum(engine.step.correct)
        engine.world.broadcast([*engine.model.buffers(), *(engine.average.model.buffers() if engine.average else ())])
