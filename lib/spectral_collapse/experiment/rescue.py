"""Rescue: more training on real text, from the weights of a generation."""

import copy

import torch

from ..model import train
from . import loop
from .runs import View, stage


def _rescued(run: View, generation: int, slices: range, what: str) -> dict:
    """Held-out perplexity and steps after the profile's recipe on slices of real text, a generation's amount each."""
    model, recipe = copy.deepcopy(loop.load(run, generation)), loop.recipe_of(run)
    blocks = torch.cat([run.real.slice(run.seed, index) for index in slices])
    losses, state = loop.train_model(run, generation, model, blocks, recipe, what)
    state.unlink(missing_ok=True)
    return train.perplexity(model, run.real.held_out, run.params.batch_size) | {"steps": len(losses)}


@stage()
def rescue(run: View, generation: int) -> dict:
    """Held-out perplexity after training the model of this generation (≥ 1) once more, on the blocks of the `fresh`
    condition's generation of the same number."""
    return _rescued(run, generation, range(generation, generation + 1), "rescue")


@stage()
def doses(run: View, generation: int) -> dict:
    """The same after each of `rescue_doses` times the steps, each a training of its own with the whole schedule, on the
    slices after the generation's, which no condition has seen: lists doses, steps and held_out_perplexity."""
    given = list(run.params.rescue_doses)
    slices = [range(generation + 1, generation + 1 + dose) for dose in given]
    found = [_rescued(run, generation, each, f"rescue_{len(each)}") for each in slices]
    return {"doses": given, **{name: [one[name] for one in found] for name in ("steps", "held_out_perplexity")}}
