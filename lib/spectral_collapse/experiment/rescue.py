"""Rescue: one more generation of training, on real text, from the weights of a generation."""

import copy

from ..model import train
from . import loop
from .runs import View, stage


@stage()
def rescue(run: View, generation: int) -> dict:
    """Held-out perplexity after training the model of this generation (≥ 1) once more, on the blocks of the `fresh`
    condition's generation of the same number."""
    model, recipe = copy.deepcopy(loop.load(run, generation)), loop.recipe_of(run)
    losses, state = loop.train_model(run, generation, model, run.real.slice(run.seed, generation), recipe, "rescue")
    state.unlink(missing_ok=True)
    return train.perplexity(model, run.real.held_out, run.params.batch_size) | {"steps": len(losses)}
