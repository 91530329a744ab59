"""The published estimator of the Hessian study: power iteration, and an interpolated width of one quadrature."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from ..seeding import generator, stable_seed
from .basis import dot
from .krylov import probe_runs
from .operators import HessianOperator, hessian_operator


@dataclass(frozen=True)
class PublishedSignature:
    """Figures of the published estimator, without error estimate, as published."""

    published_lambda_max: float
    published_iqr: float
    published_ratio: float


def interpolated_iqr(nodes: np.ndarray, weights: np.ndarray) -> float:
    """Bulk width as published: nodes sorted, weights normalised and cumulated, and then
    interp(0.75) − interp(0.25) of the nodes against the cumulated weights, linearly.

    Kept for comparison. Where one node carries nearly all weight it is half the gap below that node.
    """
    order = np.argsort(nodes)
    cumulated = np.cumsum(weights[order]) / np.sum(weights)
    low, high = np.interp([0.25, 0.75], cumulated, nodes[order])
    return float(high - low)


def published_ratio(lambda_max: float, width: float) -> float:
    """λ_max / IQR, and 0 where the IQR is at most 1e-6, as published."""
    return lambda_max / width if width > 1e-6 else 0.0


def power_iteration(operator: HessianOperator, iterations: int, seed: int, tolerance: float = 1e-3) -> float:
    """Eigenvalue of largest |λ| as the published pipeline finds it.

    From a Gaussian start, v ← Hv/(‖Hv‖ + 1e-6) until vᵀHv changes by less than `tolerance` of itself; the value
    before that last change is the result.
    Source: Yao et al. 2020 (PyHessian), whose constants these are.
    """
    draw = generator(seed, "power iteration").standard_normal(operator.n, dtype=np.float32)
    vector = torch.from_numpy(draw).to(operator.device, operator.torch_dtype)
    vector /= math.sqrt(dot(vector, vector)) + 1e-6
    found = math.nan
    for _ in range(iterations):
        product = operator.matvec(vector)
        value = dot(product, vector)
        if abs(value - found) / (abs(found) + 1e-6) < tolerance:
            break
        found = value
        vector = product / (math.sqrt(dot(product, product)) + 1e-6)
    return found


def published_signature(
    model: PreTrainedModel,
    batch: torch.Tensor,
    *,
    nodes: list[float] | None = None,
    weights: list[float] | None = None,
    steps: int = 20,
    power_iterations: int = 100,
    seed: int = 0,
    memory_budget: float | None = None,
) -> PublishedSignature:
    """The estimator of the Hessian study: power iteration, and the interpolated width of one quadrature.

    The study takes the largest |λ| of three, which is the first, so one is sought. Its density comes from one
    Rademacher probe of 20 or 30 steps: the given nodes and weights, or a run of `steps` if none are given.
    PyHessian, which it used, gives the same numbers from the same start where its `density` still runs.
    """
    operator = hessian_operator(model, batch, memory_budget=memory_budget)
    if nodes is None or weights is None:
        ((run, _),) = probe_runs(operator, steps, 1, stable_seed(seed, "published"))
        nodes, weights = run.nodes, run.weights
    lambda_max = power_iteration(operator, power_iterations, seed)
    width = interpolated_iqr(np.asarray(nodes), np.asarray(weights))
    return PublishedSignature(lambda_max, width, published_ratio(lambda_max, width))
