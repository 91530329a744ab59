"""Gauss quadratures of a spectrum, and the bounds that they set on its distribution function."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg


@dataclass(frozen=True, eq=False, repr=False)
class Quadrature:
    """k-point Gauss quadrature, from k Lanczos steps, of the spectrum as seen by the start vector v.

    alphas (k,) and betas (k,): diagonal and subdiagonal of T; the last beta leads to the next vector.
    Σ w_i p(θ_i) = vᵀp(H)v / vᵀv for every polynomial p of degree at most 2k − 1.
    Source: Golub & Meurant 2010, ch. 6.

    >>> rule = Quadrature(np.array([0.0, 0.0]), np.array([1.0, 0.0]))
    >>> rule.nodes.round(9).tolist(), rule.weights.round(9).tolist()
    ([-1.0, 1.0], [0.5, 0.5])
    """

    alphas: np.ndarray
    betas: np.ndarray

    def __repr__(self) -> str:
        return f"Quadrature({len(self.alphas)} nodes from {self.nodes[0]:.4g} to {self.nodes[-1]:.4g})"

    @functools.cached_property
    def _eigen(self) -> tuple[np.ndarray, np.ndarray]:
        return scipy.linalg.eigh_tridiagonal(self.alphas, self.betas[:-1])

    @property
    def nodes(self) -> np.ndarray:
        """Ritz values θ_i, ascending, (k,)."""
        return self._eigen[0]

    @property
    def vectors(self) -> np.ndarray:
        """Eigenvectors of T in columns, (k, k): the Ritz vectors in the Lanczos basis."""
        return self._eigen[1]

    @property
    def weights(self) -> np.ndarray:
        """Squared first components of T's eigenvectors, summing to 1, (k,)."""
        return self.vectors[0] ** 2

    @property
    def residuals(self) -> np.ndarray:
        """|β_k s_ki|, (k,): an eigenvalue lies within this distance of θ_i. Source: Paige 1976."""
        return self.betas[-1] * np.abs(self.vectors[-1])

    def extended(self) -> np.ndarray:
        """T with the last beta below it, (k + 1, k): H Q = [Q, q_{k+1}] times this."""
        tridiagonal = np.diag(self.alphas) + np.diag(self.betas[:-1], 1) + np.diag(self.betas[:-1], -1)
        last = np.append(np.zeros(len(self.betas) - 1), self.betas[-1])
        return np.vstack([tridiagonal, last])

    def truncated(self, steps: int) -> "Quadrature":
        """The quadrature of the first `steps` steps."""
        return Quadrature(self.alphas[:steps], self.betas[:steps])


def merged(nodes: np.ndarray, weights: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes closer than `tolerance` max|θ|, joined into their weighted mean: without reorthogonalisation copies of one
    eigenvalue share its weight."""
    width = tolerance * np.abs(nodes).max()
    group = np.concatenate([[0], np.cumsum(np.diff(nodes) > width)])
    # The weight of a new copy may underflow.
    parts = np.maximum(weights, 1e-300)
    return np.bincount(group, parts * nodes) / np.bincount(group, parts), np.bincount(group, weights)


def cumulated_bounds(
    nodes: Sequence[Sequence[float]], weights: Sequence[Sequence[float]], points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Lower bounds of F(x⁻) and upper bounds of F(x), the spectrum's distribution function as seen by the probes.

    nodes, weights: ascending nodes of every probe, and their weights. Chebyshev–Markov–Stieltjes:
    Σ_{θ_i<θ_j} w_i ≤ F(θ_j⁻) ≤ F(θ_j) ≤ Σ_{θ_i≤θ_j} w_i, between nodes by monotonicity; averaged over probes.
    The bounds cover the quadrature's error, not that of the probes.
    Source: Szegő 1975, sec. 3.41; Golub & Meurant 2010, sec. 2.

    >>> below, above = cumulated_bounds([[0.0, 1.0]], [[0.25, 0.75]], np.array([0.0, 1.0]))
    >>> below.tolist(), above.tolist()
    ([0.0, 0.25], [0.25, 1.0])
    """
    below, above = np.zeros(len(points)), np.zeros(len(points))
    for each, mass in zip(nodes, weights, strict=True):
        cumulated = np.concatenate([[0.0], np.cumsum(mass)])
        # F(x) ≤ mass of the nodes up to the first one at or beyond x; F(x) ≥ mass of the nodes strictly
        # before the last one at or below x.
        above += cumulated[np.minimum(np.searchsorted(each, points, side="left") + 1, len(each))]
        below += cumulated[np.maximum(np.searchsorted(each, points, side="right") - 1, 0)]
    return below / len(nodes), above / len(nodes)


def quantile_bracket(
    nodes: Sequence[Sequence[float]], weights: Sequence[Sequence[float]], level: float
) -> tuple[float, float]:
    """Nodes between which the `level` quantile of the spectrum lies, by `cumulated_bounds`; −∞ or ∞ if none bounds it.

    >>> quantile_bracket([[-2.0, 0.0, 2.0]], [[0.2, 0.6, 0.2]], 0.5)
    (-2.0, 2.0)
    """
    points = np.unique(np.concatenate(nodes))
    below, above = cumulated_bounds(nodes, weights, points)
    # It lies above points with F < level, and at or below points with F ≥ level.
    lower = points[above < level]
    upper = points[below >= level]
    return (float(lower[-1]) if len(lower) else -math.inf, float(upper[0]) if len(upper) else math.inf)


def smoothed_density(
    nodes: list[list[float]], weights: list[list[float]], grid: np.ndarray, width: float
) -> np.ndarray:
    """Mean over probes of Σ_i w_i N(grid; θ_i, width²); for figures only, since the width is the kernel's."""
    kernels = [
        np.exp(-0.5 * ((grid[:, None] - np.asarray(n)) / width) ** 2) @ np.asarray(w)
        for n, w in zip(nodes, weights, strict=True)
    ]
    return np.mean(kernels, axis=0) / (width * math.sqrt(2 * math.pi))
