"""Spectral signatures of a language model's loss: converged estimates with their errors, and the published one."""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.stats
import torch
from transformers import PreTrainedModel

from . import hessian
from .hessian import HessianOperator
from .lanczos import (
    Basis,
    Quadrature,
    Storage,
    cumulated_bounds,
    dot,
    joint_ritz,
    merged,
    probe_runs,
    quantile_bracket,
)
from .provenance import canonical, write_text
from .seeding import generator, stable_seed

# A node is one eigenvalue if it has converged to this part of itself, and carries less than SINGLE/n of the
# weight, where one eigenvalue has about 1/n.
CONVERGED = 0.01
SINGLE = 30
MOST_OUTLIERS = 10
# Vectors (n,) in use at once: gradient and product, Lanczos' own, and those of the errors over blocks.
WORKING_VECTORS = 12


@dataclass(frozen=True)
class Estimate:
    """A value with its standard errors: over probes at fixed blocks, and over blocks (None: not estimated)."""

    value: float
    probe_error: float
    batch_error: float | None
    probes: int
    blocks: int

    @property
    def standard_error(self) -> float:
        """Both errors together; they are independent."""
        return math.hypot(self.probe_error, self.batch_error or 0.0)

    def interval(self, level: float = 0.95) -> list[float]:
        """[low, high] by Student's t, its degrees of freedom by Welch and Satterthwaite from the two errors'.

        For normal errors a level of 95 % holds to three points from three probes on; with two it may be 88 %.
        """
        parts = [(self.probe_error**2, self.probes - 1), ((self.batch_error or 0.0) ** 2, self.blocks - 1)]
        spread = sum(variance**2 / freedom for variance, freedom in parts if freedom > 0)
        if spread == 0:
            return [self.value, self.value]
        freedom = self.standard_error**4 / spread
        half = float(scipy.stats.t.ppf(0.5 + level / 2, freedom)) * self.standard_error
        return [self.value - half, self.value + half]


@dataclass(frozen=True)
class Signature:
    """Spectral signature of one Hessian or Gauss–Newton matrix; eigenvalues in nats per squared unit of θ.

    `…_residual` bounds the distance to an eigenvalue, a bracket [low, high] carries the quadrature's error,
    an `Estimate` those of probes and blocks. basis: the type Lanczos kept its vectors in, or "none".
    """

    parameters: int
    probes: int
    steps: int
    blocks: int
    basis: str
    lambda_max: float
    lambda_max_residual: float
    lambda_max_batch_error: float | None
    lambda_min: float
    lambda_min_residual: float
    eigenvalue_range: float
    leading_eigenvalues: list[float]
    leading_residuals: list[float]
    mean_eigenvalue: Estimate
    spectral_variance: Estimate
    outliers: list[float]
    outlier_count_bracket: list[float]
    outlier_separation: float
    bulk_center: Estimate
    bulk_sigma: Estimate
    spectral_ratio: float
    log_spectral_ratio: Estimate
    effective_rank: Estimate
    spectral_entropy: Estimate
    negative_mass_bracket: list[float]
    iqr_bracket: list[float]
    nodes: list[list[float]]
    weights: list[list[float]]


@dataclass(frozen=True)
class PublishedSignature:
    """Figures of the published estimator, without error estimate, as published."""

    published_lambda_max: float
    published_iqr: float
    published_ratio: float


def as_result(signature: Signature | PublishedSignature) -> dict[str, Any]:
    """A signature as a flat dictionary for a record: `name`, and of an estimate `name_standard_error`,
    `name_probe_error`, `name_batch_error` and `name_interval` (95 %)."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(signature):
        value = getattr(signature, field.name)
        if isinstance(value, Estimate):
            result |= {
                field.name: value.value,
                f"{field.name}_standard_error": value.standard_error,
                f"{field.name}_probe_error": value.probe_error,
                f"{field.name}_batch_error": value.batch_error,
                f"{field.name}_interval": value.interval(),
            }
        else:
            result[field.name] = value
    return result


# ---- one run: its nodes, and what each block contributes


@dataclass(frozen=True)
class Nodes:
    """Nodes, weights and residuals of one run, the largest |node| first."""

    nodes: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray

    @classmethod
    def of(cls, run: Quadrature, n: int, orthogonal: bool = True) -> "Nodes":
        """The run's nodes; without reorthogonalisation its copies joined and its newest copies left out: those of
        next to no weight that may belong to the eigenvalue of a neighbour."""
        nodes, weights, residuals = run.nodes, run.weights, run.residuals
        if not orthogonal:
            nodes, weights = merged(run.nodes, run.weights, 1e-4)
            nearest = np.abs(run.nodes[:, None] - nodes).argmin(1)
            residuals = np.array([run.residuals[nearest == index].min() for index in range(len(nodes))])
            apart = np.diff(nodes, prepend=-np.inf, append=np.inf)
            real = (weights > 1e-4 / n) | (residuals < np.minimum(apart[1:], apart[:-1]))
            nodes, weights, residuals = nodes[real], weights[real], residuals[real]
        order = np.argsort(-np.abs(nodes))
        return cls(nodes[order], weights[order], residuals[order])

    def outliers(self, n: int) -> int:
        """How many of the largest |θ|, at most ten, come before the first that is no single converged eigenvalue."""
        head = slice(0, MOST_OUTLIERS)
        converged = self.residuals[head] <= CONVERGED * np.abs(self.nodes[head])
        single = self.weights[head] <= SINGLE / n
        return int(np.argmin(np.append(converged & single, False)))


def _influences(operator: HessianOperator, run: Quadrature, basis: Basis) -> dict[str, np.ndarray]:
    """What every block adds to each moment, (blocks,): derivatives of the estimates in the blocks' weights.

    With H = Σ_b H_b / B: for λ_max it is uᵀH_b u, u its Ritz vector (Hellmann–Feynman). For the moments of the
    bulk it is vᵀH_b v and 2 (Hv)ᵀH_b v, v the probe with the outliers projected out; for those of the outliers
    the same with v = Σ ± u_i, signs as in the probe, since the derivative of Σ λ_i² is 2 Σ λ_i u_iᵀH_b u_i and
    what the pairs i ≠ j add averages to zero. Only means over b of the squared deviations are used, so that
    constants do not matter. Source: Efron 1982, ch. 6 (infinitesimal jackknife).
    """
    n = operator.n
    order = np.argsort(-np.abs(run.nodes))
    count = Nodes.of(run, n).outliers(n)
    S, out = run.vectors, order[:count]
    tridiagonal = run.extended()[:-1]
    outlying = S[:, out] @ np.sign(S[0, out])
    bulk = (np.eye(len(S))[0] - S[:, out] @ S[0, out]) * math.sqrt(n)
    right, left = [], []
    for coefficients in (outlying, bulk):
        right.append(basis.combine(coefficients))
        left.append([right[-1], basis.combine(tridiagonal @ coefficients)])
    top = basis.combine(S[:, -1])
    forms = operator.block_forms([*left, [top]], [*right, top]).T
    rest = n - count
    return {
        "mean_eigenvalue": (forms[0] + forms[2]) / n,
        "second": 2 * (forms[1] + forms[3]) / n,
        "bulk_center": forms[2] / rest,
        "bulk_second": 2 * forms[3] / rest,
        "lambda_max": forms[4],
    }


def _batch_error(influence: np.ndarray | None) -> float | None:
    """√(Σ (I_b − Ī)² / (B(B − 1)))."""
    if influence is None or len(influence) < 2:
        return None
    return float(influence.std(ddof=1) / math.sqrt(len(influence)))


# ---- the signature


def signature_of_runs(
    runs: list[Quadrature],
    n: int,
    influences: list[dict[str, np.ndarray]] | None = None,
    *,
    joint: tuple[np.ndarray, np.ndarray] | None = None,
    basis: str = "float32",
) -> Signature:
    """Signature of an n × n matrix from two or more Lanczos runs, and what each block adds in each run.

    λ_max and λ_min are the outermost Ritz values of all runs: none lies beyond the spectrum. They and the leading
    eigenvalues are those of all runs together where `joint` (of `joint_ritz`) is given. Outliers: the
    largest |eigenvalues|, at most ten, that every run has converged to 1 %. With Σ over the other nodes of
    a run, n(Σ w θ)/(n − n_out) averages to the bulk centre c and n(Σ w θ²)/(n − n_out) to c² + σ_bulk²: since
    E(uᵀv)² = 1 for every eigenvector u, leaving the outliers' nodes out subtracts them exactly in expectation
    and removes the variance they bring (deflation). Spectral ratio = λ_max / σ_bulk. The second moment of a
    probe is ‖Hv‖²/n, exact after two steps. Outlier separation: from the smallest outlier's |λ| to the largest
    node that is none, in σ_bulk. Effective rank (tr H)²/tr H²; spectral entropy −Σ p log p of p = |λ|/Σ|λ|.
    Raises ValueError for fewer than two probes, and where the bulk has no width.
    Source: Ubaru, Chen & Saad 2017 (SLQ); Hutchinson 1989.
    """
    if len(runs) < 2:
        raise ValueError("one probe gives no standard error: set lanczos_probes to 2 or more.")
    ranked = [Nodes.of(run, n, basis != "none") for run in runs]
    leading, leading_residuals = joint or (ranked[0].nodes, ranked[0].residuals)
    values = np.concatenate([*(run.nodes for run in runs), leading])
    residuals = np.concatenate([*(run.residuals for run in runs), leading_residuals])
    top, bottom = values.argmax(), values.argmin()
    # As many in every run: a bulk that loses more eigenvalues in one run than in another is not one quantity.
    count = min(nodes.outliers(n) for nodes in ranked)
    rest = n - count

    def per_probe(function: Any, start: int = 0) -> np.ndarray:
        """Σ w f(θ) of every run, its first `start` nodes left out."""
        return np.array([q.weights[start:] @ function(q.nodes[start:]) for q in ranked])

    per_block = None
    blocks = 0
    if influences:
        per_block = {name: np.mean([part[name] for part in influences], axis=0) for name in influences[0]}
        blocks = len(per_block["lambda_max"])

    def estimate(value: float, by_probe: np.ndarray, by_block: np.ndarray | None = None) -> Estimate:
        error = float(by_probe.std(ddof=1) / math.sqrt(len(by_probe)))
        return Estimate(float(value), error, _batch_error(by_block), len(runs), blocks)

    def block(name: str) -> np.ndarray | None:
        return per_block[name] if per_block else None

    def variance_of(first: np.ndarray, second: np.ndarray, names: tuple[str, str]) -> tuple[Estimate, Any]:
        """Second moment less the squared mean, errors by linearisation; and the blocks' influence on it."""
        mean = first.mean()
        by_block = block(names[1]) - 2 * mean * block(names[0]) if per_block else None
        return estimate(second.mean() - mean**2, second - 2 * mean * first, by_block), by_block

    means, seconds = per_probe(lambda x: x), per_probe(np.square)
    centers, bulk_seconds = (per_probe(f, count) * n / rest for f in (lambda x: x, np.square))
    variance, _ = variance_of(means, seconds, ("mean_eigenvalue", "second"))
    bulk_variance, bulk_by_block = variance_of(centers, bulk_seconds, ("bulk_center", "bulk_second"))
    width = bulk_variance.value
    if not width > 0:
        raise ValueError(f"the spectrum without its {count} outliers has no width: is the loss flat?")
    sigma = math.sqrt(width)
    # d log σ = dσ²/(2σ²)
    log_sigma = (bulk_seconds - 2 * centers.mean() * centers) / (2 * width)
    log_sigma_by_block = bulk_by_block / (2 * width) if per_block else None
    lambda_max, residual = float(values[top]), float(residuals[top])
    ratio_by_block = block("lambda_max") / lambda_max - log_sigma_by_block if per_block else None
    ratio = estimate(math.log(max(lambda_max, 1e-300) / sigma), log_sigma, ratio_by_block)
    ratio = dataclasses.replace(ratio, probe_error=math.hypot(ratio.probe_error, residual / abs(lambda_max)))
    bulk_sigma = estimate(sigma, sigma * log_sigma, sigma * log_sigma_by_block if per_block else None)

    rank = n * means.mean() ** 2 / seconds.mean()
    by_probe = rank * (2 * means / means.mean() - seconds / seconds.mean()) if means.mean() else means
    absolute = per_probe(np.abs)
    logs = per_probe(lambda x: np.abs(x) * np.log(np.abs(x) + 1e-300))
    total, inner = absolute.mean(), logs.mean()
    entropy = math.log(n * total) - inner / total
    entropy_by_probe = absolute / total - logs / total + inner * absolute / total**2

    head = ranked[0]
    smallest = abs(head.nodes[count - 1]) if count else math.nan
    edge = max(abs(q.nodes[count]) if len(q.nodes) > count else 0.0 for q in ranked)
    points = np.array([-smallest, smallest, 0.0]) if count else np.zeros(3)
    below, above = cumulated_bounds([run.nodes for run in runs], [run.weights for run in runs], points)
    low, high = quantile_bracket(runs, 0.25), quantile_bracket(runs, 0.75)
    return Signature(
        parameters=n,
        probes=len(runs),
        steps=max(len(run.nodes) for run in runs),
        blocks=blocks,
        basis=basis,
        lambda_max=lambda_max,
        lambda_max_residual=residual,
        lambda_max_batch_error=_batch_error(block("lambda_max")),
        lambda_min=float(values[bottom]),
        lambda_min_residual=float(residuals[bottom]),
        eigenvalue_range=lambda_max - float(values[bottom]),
        leading_eigenvalues=leading[:MOST_OUTLIERS].tolist(),
        leading_residuals=leading_residuals[:MOST_OUTLIERS].tolist(),
        mean_eigenvalue=estimate(means.mean(), means, block("mean_eigenvalue")),
        spectral_variance=variance,
        outliers=np.sort(head.nodes[:count])[::-1].tolist(),
        outlier_count_bracket=[float(count), max(float(count), n * (above[0] + 1 - below[1])) if count else 0.0],
        outlier_separation=float((smallest - edge) / sigma) if count else 0.0,
        bulk_center=estimate(centers.mean(), centers, block("bulk_center")),
        bulk_sigma=bulk_sigma,
        spectral_ratio=lambda_max / sigma,
        log_spectral_ratio=ratio,
        effective_rank=estimate(rank, by_probe),
        spectral_entropy=estimate(entropy, entropy_by_probe),
        negative_mass_bracket=[float(below[2]), float(above[2])],
        iqr_bracket=[max(0.0, high[0] - low[1]), high[1] - low[0]],
        nodes=[run.nodes.tolist() for run in runs],
        weights=[run.weights.tolist() for run in runs],
    )


def plan(
    budget: int,
    host_budget: int,
    operator: HessianOperator,
    steps: int,
    block_bytes: int,
    together: int,
    held: int = 1,
) -> tuple[int | None, Storage | None]:
    """(blocks at a time, storage of the basis) for a budget in bytes on the operator's device and on the host.

    Of what fits, the fastest: a basis in full before one in float16, on the device before the host; the graph of
    all blocks, kept (blocks None), before graphs made anew. No basis only where none fits beside one block.
    `block_bytes`: of one block's graph at work; `together`: Lanczos runs at a time; `held`: bases that
    are all kept to the end if they are in full.
    Raises MemoryError where the budget does not hold one block.
    """
    device, dtype = str(operator.device), operator.torch_dtype
    left = budget - WORKING_VECTORS * together * operator.n * dtype.itemsize
    kinds = [Storage(device, dtype), Storage(device, torch.float16)]
    if torch.device(device).type != "cpu":
        kinds += [Storage("cpu", dtype), Storage("cpu", torch.float16)]
    blocks = operator.share
    for needed, storage in itertools.product((blocks * block_bytes, block_bytes), [*kinds, None]):
        bases = max(held, together) if storage and storage.dtype == dtype else together
        size = bases * storage.bytes(steps, operator.n) if storage else 0
        here = size if storage and storage.device == device else 0
        if needed + here > left or (size - here) > host_budget:
            continue
        if storage is None and needed > block_bytes:
            continue  # a basis is worth more than a kept graph
        fitting = (left - here) // block_bytes
        return (None if fitting >= blocks else fitting), storage
    raise MemoryError(
        f"curvature of {operator.n:,} parameters needs {(budget - left + block_bytes) / 2**30:.1f} GiB even for one "
        f"block at a time, and the budget is {budget / 2**30:.1f} GiB: raise it, or shorten the blocks."
    )


def _finished_probes(state: Path, identity: str) -> list[dict]:
    """What a state file holds of this very measurement, otherwise nothing."""
    try:
        content = json.loads(state.read_text(encoding="utf-8"))
        return content["probes"] if content["identity"] == identity else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def spectral_signature(
    model: PreTrainedModel,
    batch: torch.Tensor,
    *,
    steps: int = 20,
    probes: int = 2,
    later_steps: int | None = None,
    seed: int = 0,
    kind: Literal["hessian", "gauss_newton"] = "hessian",
    parameters: list[str] | None = None,
    memory_budget: int | None = None,
    batch_errors: bool = True,
    state: Path | None = None,
    identity: str = "",
) -> Signature:
    """Signature of the mean loss on blocks of token ids (B, T): `probes` Lanczos runs of `steps` products.

    later_steps: of the probes after the first, as many if None. A probe's moments are exact after two steps, so that
    the first alone may go on for the eigenvalues; outliers are left out of the bulk only as far as all have them.
    parameters: names to differentiate in (see `hessian.parameter_blocks`), all trainable ones if None.
    memory_budget: bytes on the model's device, four fifths of what is free if None; what is kept and what is
    made anew follows from it (`plan`). batch_errors: the noise of the blocks, by the infinitesimal jackknife,
    for a gradient and ten more per probe; it needs a basis, and more than one block. state: a file for what every
    finished probe gave, marked with `identity`; a later call with the same identity goes on with the next probe. The
    caller removes it in the end. Without one, and with all bases in full, eigenvalues are those of `joint_ritz`.
    """
    operator = hessian.operator_class(kind)(model, batch, parameters=parameters)
    together = 1 if operator.device.type == "cpu" else probes
    budgets = [int(0.8 * hessian.available_memory(device)) for device in (operator.device, "cpu")]
    if memory_budget is not None:
        budgets[0] = memory_budget
    block_bytes = int(hessian.WORKING_SHARE * operator.graph_bytes())
    # Ranks whose bases differed in type would sum the products of different vectors.
    *budgets, block_bytes = operator.least(*budgets, block_bytes)
    # All bases side by side give sharper eigenvalues; probes read from a file have none.
    sizes = operator, min(steps, operator.n), block_bytes, together
    operator.micro_batch, storage = plan(*budgets, *sizes, held=1 if state else probes)
    side_by_side = state is None and storage is not None and storage.dtype == operator.torch_dtype
    bases = []
    finished = _finished_probes(state, identity) if state else []
    for run, basis in probe_runs(operator, steps, probes, seed, storage, len(finished), later_steps):
        influence = {}
        if batch_errors and basis and operator.blocks > 1:
            influence = {name: part.tolist() for name, part in _influences(operator, run, basis).items()}
        finished.append({"alphas": run.alphas.tolist(), "betas": run.betas.tolist(), "influence": influence})
        if side_by_side:
            bases.append(basis)
        if state:
            write_text(state, canonical({"identity": identity, "probes": finished}))
        basis = None  # or it would stay beside the next run's
    runs = [Quadrature(np.array(probe["alphas"]), np.array(probe["betas"])) for probe in finished]
    influences = [{k: np.array(v) for k, v in probe["influence"].items()} for probe in finished if probe["influence"]]
    joint = joint_ritz(list(zip(runs, bases, strict=True))) if bases else None
    kept = str(storage.dtype).removeprefix("torch.") if storage else "none"
    return signature_of_runs(runs, operator.n, influences, joint=joint, basis=kept)


def layerwise_signatures(
    model: PreTrainedModel, batch: torch.Tensor, **options: Any
) -> Iterator[tuple[str, Signature]]:
    """(part, signature) of the Hessian's diagonal block for every part of the network, in the network's order.

    options: those of `spectral_signature`.
    """
    for part, names in hessian.parameter_blocks(model).items():
        yield part, spectral_signature(model, batch, parameters=names, **options)


# ---- the published estimator


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
    memory_budget: int | None = None,
) -> PublishedSignature:
    """The estimator of the Hessian study: power iteration, and the interpolated width of one quadrature.

    The study takes the largest |λ| of three, which is the first, so one is sought. Its density comes from one
    Rademacher probe of 20 or 30 steps: the given nodes and weights, or a run of `steps` if none are given.
    PyHessian, which it used, gives the same numbers from the same start where its `density` still runs.
    """
    operator = hessian.hessian_operator(model, batch, memory_budget=memory_budget)
    if nodes is None or weights is None:
        ((run, _),) = probe_runs(operator, steps, 1, stable_seed(seed, "published"))
        nodes, weights = run.nodes, run.weights
    lambda_max = power_iteration(operator, power_iterations, seed)
    width = interpolated_iqr(np.asarray(nodes), np.asarray(weights))
    return PublishedSignature(lambda_max, width, published_ratio(lambda_max, width))
