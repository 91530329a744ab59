"""Size and direction of parameter changes."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from ..curvature.basis import dot
from .vectors import Vector, minus, norm


class Drift(NamedTuple):
    """‖Δ‖, and ‖Δ‖/‖θ‖ with the parameters θ before."""

    absolute: float
    relative: float


def drift(before: Vector, after: Vector, parts: Mapping[str, list[str]]) -> dict[str, Drift]:
    """Drift of the parameters of every part, Δ = θ_after − θ_before."""
    moved = minus(after, before)
    found = {}
    for part, names in parts.items():
        size, length = norm(before, names), norm(moved, names)
        found[part] = Drift(length, length / size if size > 0 else math.nan)
    return found


class Alignment(NamedTuple):
    """Share of a drift's squared norm in a subspace, and the mean share k/n of a random direction."""

    share: float
    by_chance: float


def alignment(moved: torch.Tensor, directions: torch.Tensor) -> Alignment:
    """Σ_i ⟨Δ, u_i⟩² / ‖Δ‖² of a drift (n,) and orthonormal directions (k, n); NaN for a zero drift."""
    k, n = directions.shape
    square = dot(moved, moved)
    inside = sum(dot(moved, direction) ** 2 for direction in directions)
    return Alignment(inside / square if square > 0 else math.nan, k / n)
