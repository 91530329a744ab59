"""Vectors of parameter space as {parameter name: tensor}, tied weights once."""

import math
from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from ..curvature.basis import dot

Vector = dict[str, torch.Tensor]


def weights_of(model: PreTrainedModel) -> Vector:
    """A copy of the trainable parameters, in the order in which Hessian operators stack them."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def flat(vector: Vector) -> torch.Tensor:
    """All entries as one vector (n,)."""
    return torch.cat([tensor.flatten() for tensor in vector.values()])


def minus(a: Vector, b: Vector) -> Vector:
    """a − b."""
    return {name: a[name] - b[name] for name in a}


def inner(a: Vector, b: Vector, names: Iterable[str] | None = None) -> float:
    """⟨a, b⟩ over the named parameters, all if None; sums in float64."""
    return sum(dot(a[name].flatten(), b[name].flatten()) for name in (a if names is None else names))


def norm(a: Vector, names: Iterable[str] | None = None) -> float:
    """‖a‖ over the named parameters, all if None."""
    return math.sqrt(inner(a, a, names))


def cosine(a: Vector, b: Vector, names: Iterable[str] | None = None) -> float:
    """⟨a, b⟩ / ‖a‖‖b‖ over the named parameters, all if None; NaN if one of them is zero."""
    lengths = norm(a, names) * norm(b, names)
    return inner(a, b, names) / lengths if lengths > 0 else math.nan
