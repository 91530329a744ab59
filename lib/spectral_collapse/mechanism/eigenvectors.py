"""Leading Hessian eigenvectors, and how those of two generations overlap."""

import math
from typing import NamedTuple

import numpy as np
import torch

from ..curvature.basis import dot
from ..curvature.krylov import probe_runs

# A direction counts as the same if at least half of its squared length is.
SAME = 0.5


class RitzPairs(NamedTuple):
    """Leading eigenpairs of a Hessian, largest |θ| first: values (m,), unit vectors (m, n), residual bounds (m,)."""

    values: np.ndarray
    vectors: torch.Tensor
    residuals: np.ndarray


def ritz_pairs(operator, steps: int, count: int, seed: int) -> RitzPairs:
    """The `count` leading Ritz pairs of one Lanczos run of `steps` products, or fewer if it has fewer.

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
    """Mean share of the rows' directions in the span of the columns' orthonormal directions; 1 for equal spans."""
    return float(overlaps.sum() / len(overlaps)) if len(overlaps) else math.nan


def merged_into_bulk(operator, before: torch.Tensor, overlaps: np.ndarray, values: np.ndarray) -> list[bool]:
    """Which of the directions `before` (m, n) have left the leading eigenspace of `operator`, (m,).

    Less than half of their squared length lies in it (rows of `overlaps`), and the curvature along them, |uᵀHu|, is
    below the smallest |eigenvalue| of the leading `values`. Costs a product for every direction that fails the first.
    """
    least = np.abs(values).min()
    left = overlaps.sum(axis=1) < SAME
    curvatures = (dot(u, operator.matvec(u).to(u)) for u in before[torch.from_numpy(left)])
    return [bool(gone and abs(next(curvatures)) < least) for gone in left]
