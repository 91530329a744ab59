"""The leading Hessian eigenvectors of generation 0, followed through the generations."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ..curvature.basis import dot
from ..curvature.krylov import probe_runs

# A direction is the same while at least half of its squared length is.
SAME = 0.5
# An eigenvalue is the same while it stays within a factor of this.
FACTOR = 1.25
FATES = ("stays", "rescales", "rotates", "merges")


class RitzPairs(NamedTuple):
    """Leading eigenpairs of a Hessian, largest |θ| first: values (m,), unit vectors (m, n), residual bounds (m,)."""

    values: np.ndarray
    vectors: torch.Tensor
    residuals: np.ndarray


def ritz_pairs(operator, steps: int, count: int, seed: int) -> RitzPairs:
    """The `count` leading Ritz pairs of one Lanczos run of `steps` products, as many as it has at most.

    operator: a `HessianOperator`, or anything with its `shape`, `device` and `matvec`.
    Source: Golub & Meurant 2010, ch. 4.
    """
    ((run, basis),) = probe_runs(operator, steps, 1, seed)
    order = np.argsort(-np.abs(run.nodes))[:count]
    vectors = torch.stack([basis.combine(run.vectors[:, index]) for index in order])
    return RitzPairs(run.nodes[order], vectors, run.residuals[order])


def squared_overlaps(before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    """⟨u_i, v_j⟩² of unit vectors (m, n) and (m', n): (m, m'). Two random directions have 1/n on average."""
    products = torch.zeros(len(before), len(after), dtype=torch.float64)
    for a, b in zip(before.split(1 << 16, dim=1), after.split(1 << 16, dim=1), strict=True):
        products += a.double() @ b.double().T
    return products.square().numpy()


def subspace_overlap(overlaps: np.ndarray) -> float:
    """Mean share of the rows' directions that lies in the span of the columns' (orthonormal): 1 for equal spans."""
    return float(overlaps.sum() / len(overlaps)) if len(overlaps) else math.nan


def partners(overlaps: np.ndarray) -> np.ndarray:
    """The column assigned to every row, (m,), so that no two share one and the sum of squared overlaps is greatest;
    −1 where columns are fewer. Source: Kuhn 1955, by scipy's `linear_sum_assignment`."""
    assigned = np.full(len(overlaps), -1)
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    assigned[rows] = columns
    return assigned


def sunk(operator, before: torch.Tensor, overlaps: np.ndarray, values: np.ndarray) -> list[bool]:
    """Which of the directions `before` (m, n) the leading eigenspace of `operator` has let go, (m,).

    Less than half of their squared length lies in it (rows of `overlaps`), and the curvature left along them, |uᵀHu|,
    is below the smallest |eigenvalue| of `values`, the leading ones. Costs a product for every direction that has left.
    """
    least = np.abs(values).min()
    left = overlaps.sum(axis=1) < SAME
    return [bool(gone and abs(dot(u, operator.matvec(u))) < least) for gone, u in zip(left, before, strict=True)]


class Spectrum(NamedTuple):
    """What `follow` needs of a generation: leading values (m,), squared overlaps with the generation before (m', m) and
    with generation 0 (m_0, m), and which of the directions before have `sunk` (m',)."""

    values: Sequence[float]
    from_before: Sequence[Sequence[float]]
    from_start: Sequence[Sequence[float]]
    sunk: Sequence[bool]


class Followed(NamedTuple):
    """Where an outlier of generation 0 is in a generation: its fate, value, and squared overlap with its own start;
    value and overlap are NaN once it has merged."""

    outlier: int
    generation: int
    fate: str
    value: float
    overlap: float


def follow(generations: Sequence[Spectrum], count: int) -> list[Followed]:
    """The first `count` eigenvectors of generation 0 in every generation from 0 on.

    From one generation to the next each goes to its partner (`partners`), and its fate is the first that holds:

    - merges: it has `sunk`, into the rest of the spectrum. From then on it counts as merged.
    - rotates: less than half of its squared length is the direction it had at generation 0.
    - rescales: same direction, and an eigenvalue that changed by more than a factor of 1.25, or its sign.
    - stays: same direction and value.

    A direction that is replaced within one generation by another one counts as merged: overlaps cannot tell that from
    one eigenvalue sinking while another rises. Two eigenvalues close to one another mix freely, and rotate.
    """
    start = generations[0]
    found = []
    for outlier in range(min(count, len(start.values))):
        place = outlier
        for number, now in enumerate(generations):
            if number and place >= 0:
                place = -1 if now.sunk[place] else int(partners(np.asarray(now.from_before))[place])
            if place < 0:
                found.append(Followed(outlier, number, "merges", math.nan, math.nan))
                continue
            value, overlap = float(now.values[place]), float(now.from_start[outlier][place])
            ratio = value / start.values[outlier]
            if overlap < SAME:
                fate = "rotates"
            else:
                fate = "stays" if 1 / FACTOR <= ratio <= FACTOR else "rescales"
            found.append(Followed(outlier, number, fate, value, overlap))
    return found
