"""The published estimator of the Hessian study: power iteration, and the interpolated width of one quadrature."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from .kinds import hessian_operator
from .krylov import lanczos, probe_of, probe_runs
from .signature import Signature

# PyHessian's defaults, which the study used.
ITERATIONS = 100
TOLERANCE = 1e-3


@dataclass(frozen=True, repr=False)
class PublishedSignature:
    """The published estimator, without errors as published, and the exact eigenvalue beside it.

    `published_lambda_max` is the final value of power iteration, sign included; it is the eigenvalue of largest |λ|
    only if the iteration converged to it. `largest_eigenvalue` is that eigenvalue from Lanczos, to within
    `largest_eigenvalue_residual`; `published_ratio_exact` is the published ratio with it.
    """

    published_lambda_max: float
    published_iterations: int
    published_converged: bool
    published_iqr: float
    published_ratio: float
    largest_eigenvalue: float
    largest_eigenvalue_residual: float
    published_ratio_exact: float

    def __repr__(self) -> str:
        word = "converged" if self.published_converged else "not converged"
        return (
            f"PublishedSignature(ratio {self.published_ratio:.4g}: power iteration {self.published_lambda_max:.4g}, "
            f"{word} after {self.published_iterations}, IQR {self.published_iqr:.3g}; with the exact eigenvalue "
            f"{self.largest_eigenvalue:.4g} it is {self.published_ratio_exact:.4g})"
        )


def interpolated_iqr(nodes: np.ndarray, weights: np.ndarray) -> float:
    """Bulk width as published: interp(0.75) − interp(0.25), linear in the cumulated, normalised weights of sorted
    nodes.

    Kept for comparison. If one node carries nearly all weight, it is half the gap below that node:

    >>> interpolated_iqr(np.array([-2.0, 0.0, 5.0]), np.array([0.0, 1.0, 0.0]))
    1.0
    """
    order = np.argsort(nodes)
    cumulated = np.cumsum(weights[order]) / np.sum(weights)
    low, high = np.interp([0.25, 0.75], cumulated, nodes[order])
    return float(high - low)


def published_ratio(lambda_max: float, width: float) -> float:
    """λ_max / IQR, and 0 where the IQR is at most 1e-6, as published."""
    return lambda_max / width if width > 1e-6 else 0.0


class PowerIteration(NamedTuple):
    """Where power iteration ended: vᵀHv with its sign, the products it took, and whether it met its tolerance."""

    value: float
    iterations: int
    converged: bool


def power_iteration(
    nodes: np.ndarray, weights: np.ndarray, iterations: int = ITERATIONS, tolerance: float = TOLERANCE
) -> PowerIteration:
    """Eigenvalue of largest |λ| as the published pipeline finds it, for a spectrum seen by the start vector.

    v ← Hv/(‖Hv‖ + 1e-6) until vᵀHv changes by less than `tolerance` of itself; the value before that last change is the
    result. After k products vᵀHv = Σ w θ^(2k+1) / Σ w θ^(2k), which a quadrature of more than k nodes has exactly.
    Where eigenvalues of about one size have opposite signs, vᵀHv may settle at a mixture of them: `converged` says that
    the tolerance was met, not that an eigenvalue was.
    Source: Yao et al. 2020 (PyHessian), whose constants these are.

    >>> power_iteration(np.array([0.0, 1.0, 2.0]), np.array([0.8, 0.1, 0.1])).iterations
    7
    """
    scaled, share, found = np.abs(nodes) / np.abs(nodes).max(), np.array(weights, dtype=float), math.nan
    for iteration in range(1, iterations + 1):
        value = float(share @ nodes / share.sum())
        if abs(value - found) / (abs(found) + 1e-6) < tolerance:
            return PowerIteration(found, iteration, True)
        found, share = value, share * scaled**2
    return PowerIteration(found, iterations, False)


def _settled(nodes: np.ndarray, weights: np.ndarray) -> PowerIteration | None:
    """Power iteration on a quadrature's spectrum; None if it takes more products than are exact and the quadrature with
    one node less ends elsewhere, by more than a tenth of the tolerance."""
    found = power_iteration(nodes, weights)
    if found.iterations <= len(nodes) or len(nodes) == 1:
        return found
    spectrum = torch.from_numpy(nodes)
    shorter = lanczos(lambda v: spectrum * v, torch.from_numpy(weights).sqrt(), len(nodes) - 1)
    before = power_iteration(shorter.nodes, shorter.weights)
    same = before[1:] == found[1:] and abs(before.value - found.value) <= TOLERANCE / 10 * abs(found.value)
    return found if same else None


def largest_eigenvalue(lambda_max: float, lambda_min: float) -> float:
    """The end of a spectrum that is larger in absolute value, which power iteration approaches.

    >>> largest_eigenvalue(2.0, -3.0)
    -3.0
    """
    return max(lambda_max, lambda_min, key=abs)


def published_signature(
    model: PreTrainedModel,
    batch: Any,
    *,
    signature: Signature | None = None,
    steps: int = 20,
    seed: int = 0,
    memory_budget: float | None = None,
) -> PublishedSignature:
    """The estimator of the Hessian study: power iteration, and the interpolated width of one quadrature.

    The settings are its source's (100 iterations, tolerance 1e-3) and fixed. The study takes the largest |λ| of three
    successive power iterations; this function runs the first one, and gives the exact value, which none of the three
    can exceed. The density comes from one Rademacher probe of 20 or 30 steps. Power iteration starts from the same
    probe, not from a Gaussian vector: of the start only the components along the leading eigenvectors matter, which are
    distributed alike. It is read off the probe's run, and off longer runs until it no longer depends on their length.
    signature: of the same batch, if available; its first run is the density and its outermost eigenvalues are exact.
    Otherwise makes a run of `steps`. seed: that of the signature.
    """
    operator = None
    if signature is None:
        operator = hessian_operator(model, batch, memory_budget=memory_budget)
        ((run, _),) = probe_runs(operator, steps, 1, seed)
        nodes, weights = run.nodes, run.weights
        ends = dict(zip(run.nodes[[0, -1]].tolist(), run.residuals[[0, -1]].tolist(), strict=True))
    else:
        nodes, weights = np.array(signature.nodes[0]), np.array(signature.weights[0])
        ends = {
            signature.lambda_min: signature.lambda_min_residual,
            signature.lambda_max: signature.lambda_max_residual,
        }
    power, length = _settled(nodes, weights), len(nodes)
    while power is None:
        operator = operator or hessian_operator(model, batch, memory_budget=memory_budget)
        length *= 2
        run = lanczos(operator.matvec, probe_of(operator, seed, 0), length, storage=None)
        power = power_iteration(run.nodes, run.weights) if length >= ITERATIONS else _settled(run.nodes, run.weights)
    width, exact = interpolated_iqr(nodes, weights), max(ends, key=abs)
    return PublishedSignature(
        published_lambda_max=power.value,
        published_iterations=power.iterations,
        published_converged=power.converged,
        published_iqr=width,
        published_ratio=published_ratio(power.value, width),
        largest_eigenvalue=exact,
        largest_eigenvalue_residual=ends[exact],
        published_ratio_exact=published_ratio(exact, width),
    )
