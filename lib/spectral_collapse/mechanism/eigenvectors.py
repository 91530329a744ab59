"""The leading Hessian eigenvectors of generation 0, followed through the generations."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ..curvature.krylov import probe_runs
from ..curvature.signature import Nodes

# A direction is the same while at least half of its squared length is.
SAME = 0.5
# An eigenvalue is the same while it stays within a factor of this.
FACTOR = 1.25
FATES = ("stays", "rescales", "rotates", "merges")


class RitzPairs(NamedTuple):
    """Leading eigenpairs of a Hessian, largest |θ| first: values (m,), unit vectors (m, n), residual bounds (m,); how
    many of the values are outliers, and the bulk's edge, the largest |θ| of those that are none."""

    values: np.ndarray
    vectors: torch.Tensor
    residuals: np.ndarray
    outliers: int
    edge: float


def ritz_pairs(operator, steps: int, count: int, seed: int) -> RitzPairs:
    """The `count` leading Ritz pairs of one Lanczos run of `steps` products, as many as it has at most.

    operator: a `HessianOperator`, or anything with its `shape`, `device` and `matvec`. Outliers as in `Signature`:
    single eigenvalues that have converged to a hundredth of themselves, at most ten. Source: Golub & Meurant 2010, ch. 4.
    """
    ((run, basis),) = probe_runs(operator, steps, 1, seed)
    n = operator.shape[0]
    found = Nodes.of(run, n)
    outliers = found.outliers(n)
    order = np.argsort(-np.abs(run.nodes))[:count]
    vectors = torch.stack([basis.combine(run.vectors[:, index]) for index in order])
    edge = float(abs(found.nodes[outliers])) if outliers < len(found.nodes) else 0.0
    return RitzPairs(run.nodes[order], vectors, run.residuals[order], min(outliers, len(order)), edge)


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


class Spectrum(NamedTuple):
    """What `follow` needs of a generation: leading values (m,), number of outliers, and squared overlaps with the
    generation before (m', m) and with generation 0 (m_0, m)."""

    values: Sequence[float]
    outliers: int
    from_before: Sequence[Sequence[float]]
    from_start: Sequence[Sequence[float]]


class Followed(NamedTuple):
    """Where an outlier of generation 0 is in a generation: its fate, value, and squared overlap with its own start;
    value and overlap are NaN once it has merged."""

    outlier: int
    generation: int
    fate: str
    value: float
    overlap: float


def follow(generations: Sequence[Spectrum], count: int) -> list[Followed]:
    """The first `count` outliers of generation 0, at most those there are, in every generation from 0 on.

    From one generation to the next an outlier goes to its partner (`partners`), and its fate is the first that holds:

    - merges: its partner is no outlier, or most of its direction (more than half of the squared length) has left the
      span of the next generation's outliers. From then on it counts as merged.
    - rotates: still an outlier, but less than half of its squared length is the direction it had at generation 0.
    - rescales: same direction, and an eigenvalue that changed by more than a factor of 1.25, or its sign.
    - stays: same direction and value.

    A direction that is replaced within one generation by another outlier counts as merged: overlaps cannot tell that
    from one eigenvalue sinking while another rises. Two eigenvalues close to one another mix freely.
    """
    start = generations[0]
    found = []
    for outlier in range(min(count, start.outliers)):
        place = outlier
        for number, now in enumerate(generations):
            if number and place >= 0:
                overlaps = np.asarray(now.from_before)[:, : now.outliers]
                kept = now.outliers and overlaps[place].sum() >= SAME
                place = int(partners(overlaps)[place]) if kept else -1
            if place < 0:
                found.append(Followed(outlier, number, "merges", math.nan, math.nan))
                continue
            value, overlap = now.values[place], np.asarray(now.from_start)[outlier, place]
            ratio = value / start.values[outlier]
            if overlap < SAME:
                fate = "rotates"
            else:
                fate = "stays" if 1 / FACTOR <= ratio <= FACTOR else "rescales"
            found.append(Followed(outlier, number, fate, float(value), float(overlap)))
    return found
