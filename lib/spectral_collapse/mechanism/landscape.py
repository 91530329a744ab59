"""The loss around a generation: two-dimensional slices, and the straight line from generation 0."""

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from ..curvature import mean_loss
from ..estimate import generator
from .vectors import Vector

Loss = Callable[[Vector], float]


def filter_normalised(weights: Vector, *seed_parts: str | int) -> Vector:
    """A Gaussian direction whose filters have the lengths of those of `weights`.

    A filter is a row of a matrix: the weights into one unit, or a token's embedding. Vectors (gains, biases) stay
    fixed. Source: Li et al. 2018, sec. 4.
    """
    direction = {}
    for name, tensor in weights.items():
        if tensor.ndim < 2:
            direction[name] = torch.zeros_like(tensor)
            continue
        draws = generator(*seed_parts, name).standard_normal(tuple(tensor.shape), dtype=np.float32)
        draw = torch.from_numpy(draws).to(tensor)
        lengths = [rows.flatten(1).norm(dim=1) for rows in (tensor, draw)]
        direction[name] = draw * (lengths[0] / lengths[1]).view(-1, *[1] * (tensor.ndim - 1))
    return direction


def loss_of(model: PreTrainedModel, blocks: torch.Tensor) -> Loss:
    """L as a function of the weights: the mean loss on blocks (B, T) of a copy of the model; inf if it is not
    finite."""
    model = copy.deepcopy(model)
    blocks = blocks.to(model.device)

    @torch.no_grad()
    def loss(weights: Vector) -> float:
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
        value = mean_loss(model, blocks).item()
        return value if math.isfinite(value) else math.inf

    return loss


def _moved(centre: Vector, *steps: tuple[float, Vector]) -> Vector:
    return {name: tensor + sum(size * step[name] for size, step in steps) for name, tensor in centre.items()}


def plane(loss: Loss, centre: Vector, first: Vector, second: Vector, offsets: Sequence[float]) -> list[list[float]]:
    """L(θ + a d_1 + b d_2) on a grid of `offsets`, rows by a and columns by b."""
    return [[loss(_moved(centre, (a, first), (b, second))) for b in offsets] for a in offsets]


def line(loss: Loss, start: Vector, end: Vector, places: Sequence[float]) -> list[float]:
    """L((1 − t) θ_start + t θ_end) for every t of `places`."""
    step = {name: end[name] - start[name] for name in start}
    return [loss(_moved(start, (t, step))) for t in places]


def barrier(places: Sequence[float], losses: Sequence[float]) -> float:
    """Largest excess of the loss over the chord between its ends, max_t L(t) − (1 − t) L(0) − t L(1), 0 < t < 1.

    At most 0 if the ends lie in one convex valley along the line. ValueError if an end is not among the places.
    Source: Frankle et al. 2020.
    """
    t, values = np.asarray(places, dtype=float), np.asarray(losses, dtype=float)
    if not {0.0, 1.0} <= set(t.tolist()):
        raise ValueError("a barrier needs the loss at both ends of the line, t = 0 and t = 1.")
    inside = (t > 0) & (t < 1)
    ends = (1 - t) * values[t == 0][0] + t * values[t == 1][0]
    return float((values - ends)[inside].max()) if inside.any() else 0.0
