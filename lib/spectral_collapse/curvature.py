"""Hessian spectra of language models: products, Lanczos, stochastic quadrature, signatures with errors."""

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import scipy.linalg
import torch
from transformers import PreTrainedModel

from .seeding import generator, stable_seed

Matvec = Callable[[torch.Tensor], torch.Tensor]
CHUNK = 1 << 22


def dot(x: torch.Tensor, y: torch.Tensor) -> float:
    """⟨x, y⟩ of float32 vectors, accumulated in float64.

    A float32 accumulation is off by parts in a thousand at 10⁸ entries. Chunks of four million products
    keep the memory small.
    """
    total = 0.0
    for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        total += (a.double() * b.double()).sum().item()
    return total


def mean_loss(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """L(θ): mean next-token cross-entropy in nats over blocks (B, T)."""
    logits = model(input_ids=tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


class HessianOperator:
    """H = ∇²L(θ) ∈ R^{n×n} of the mean loss on frozen blocks; n parameters, tied weights counted once.

    Products by double backward. The graph of the gradient is built once and kept, so that a product
    costs about two gradients; with `micro_batch` blocks at a time the graphs are rebuilt for every
    product (about three gradients) and memory no longer grows with the number of blocks.
    Dropout is off: the model is left in evaluation mode. An embedding's row `padding_idx` counts as constant
    where its token is in the blocks, as in training. Source: Pearlmutter 1994.
    """

    def __init__(self, model: PreTrainedModel, tokens: torch.Tensor, micro_batch: int | None = None):
        model.eval()
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.sizes = [p.numel() for p in self.parameters]
        self.n = sum(self.sizes)
        self.shape = (self.n, self.n)
        self.device = self.parameters[0].device
        self.batches = tokens.to(self.device).split(micro_batch or len(tokens))
        # Blocks are equally long, so weights by blocks are weights by predictions.
        self.weights = [len(batch) / len(tokens) for batch in self.batches]
        self._gradient: tuple[torch.Tensor, ...] | None = None

    def _differentiable_gradient(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = mean_loss(self.model, batch)
        return torch.autograd.grad(loss, self.parameters, create_graph=True)

    def _product(self, gradient: tuple[torch.Tensor, ...], pieces: list[torch.Tensor], keep: bool) -> torch.Tensor:
        products = torch.autograd.grad(
            gradient, self.parameters, grad_outputs=pieces, retain_graph=keep, materialize_grads=True
        )
        return torch.cat([product.flatten() for product in products])

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        """H v for a vector (n,)."""
        pieces = [
            piece.view_as(parameter).to(parameter.dtype)
            for piece, parameter in zip(vector.split(self.sizes), self.parameters, strict=True)
        ]
        if len(self.batches) == 1:
            if self._gradient is None:
                self._gradient = self._differentiable_gradient(self.batches[0])
            return self._product(self._gradient, pieces, keep=True)
        total = torch.zeros(self.n, dtype=vector.dtype, device=self.device)
        for batch, weight in zip(self.batches, self.weights, strict=True):
            total += weight * self._product(self._differentiable_gradient(batch), pieces, keep=False)
        return total


def rademacher(n: int, *seed_parts: str | int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Probe with independent entries ±1, float32, shape (n,), the same on every device."""
    signs = generator(*seed_parts).integers(0, 2, size=n, dtype=np.int8)
    return torch.from_numpy(signs).to(device).float().mul_(2).sub_(1)


@dataclass(frozen=True)
class Quadrature:
    """What k Lanczos steps from one start vector tell of a spectrum.

    nodes: Ritz values θ_i, ascending, (k,); weights: squared first components, summing to 1, (k,);
    residuals: |β_k s_ki|, so that an eigenvalue lies within that distance of θ_i, (k,).
    """

    nodes: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray

    @property
    def bottom(self) -> tuple[float, float]:
        """Smallest Ritz value and its residual bound."""
        return float(self.nodes[0]), float(self.residuals[0])

    @property
    def top(self) -> tuple[float, float]:
        """Largest Ritz value and its residual bound."""
        return float(self.nodes[-1]), float(self.residuals[-1])


def lanczos(matvec: Matvec, start: torch.Tensor, steps: int) -> Quadrature:
    """Lanczos with full reorthogonalisation: the k-point Gauss quadrature of the spectrum seen by `start`.

    T = QᵀHQ is tridiagonal with α on its diagonal and β beside it; Σ w_i p(θ_i) = vᵀp(H)v / vᵀv for every
    polynomial p of degree at most 2k − 1. Stops early when the Krylov space is exhausted. Reductions
    accumulate in float64; the basis keeps the dtype of `start`, steps × n numbers.
    Source: Golub & Meurant 2010, ch. 4; Paige 1976 for the residual bound.
    """
    steps = min(steps, len(start))
    basis = torch.empty(steps, len(start), dtype=start.dtype, device=start.device)
    vector = start / math.sqrt(dot(start, start))
    alphas, betas = [], []
    scale = 0.0
    for step in range(steps):
        basis[step] = vector
        product = matvec(vector).to(start.dtype)
        alpha = dot(product, vector)
        product -= alpha * vector
        if step:
            product -= betas[-1] * basis[step - 1]
        # Twice is enough (Giraud et al. 2005): one pass leaves errors of the size of what it removes.
        for _ in range(2):
            product -= basis[: step + 1].T @ (basis[: step + 1] @ product)
        beta = math.sqrt(dot(product, product))
        if not math.isfinite(alpha) or not math.isfinite(beta):
            raise ValueError(f"the Hessian product is not finite at Lanczos step {step}: the model has diverged.")
        alphas.append(alpha)
        betas.append(beta)
        scale = max(scale, abs(alpha), beta)
        if beta <= 64 * torch.finfo(start.dtype).eps * scale:
            break
        vector = product / beta
    nodes, vectors = scipy.linalg.eigh_tridiagonal(np.array(alphas), np.array(betas[:-1]))
    return Quadrature(nodes, vectors[0] ** 2, betas[-1] * np.abs(vectors[-1]))


def spectral_density(operator: HessianOperator, steps: int, probes: int, seed: int) -> list[Quadrature]:
    """Stochastic Lanczos quadrature: one quadrature for each independent Rademacher probe."""
    return [
        lanczos(operator.matvec, rademacher(operator.n, seed, "probe", probe, device=operator.device), steps)
        for probe in range(probes)
    ]


def interpolated_iqr(nodes: np.ndarray, weights: np.ndarray) -> float:
    """Bulk width as published: nodes sorted, weights normalised and cumulated, and then
    interp(0.75) − interp(0.25) of the nodes against the cumulated weights, linearly.

    Kept for comparison. Where one node carries nearly all weight it is half the gap below that node.
    """
    order = np.argsort(nodes)
    cumulated = np.cumsum(weights[order]) / np.sum(weights)
    low, high = np.interp([0.25, 0.75], cumulated, nodes[order])
    return float(high - low)


def quantile_bracket(quadratures: list[Quadrature], level: float) -> tuple[float, float]:
    """Interval of nodes that contains the `level` quantile of the spectrum seen by the probes.

    Chebyshev–Markov–Stieltjes: the distribution function F at node θ_j satisfies
    Σ_{i<j} w_i ≤ F(θ_j⁻) ≤ F(θ_j) ≤ Σ_{i≤j} w_i. Averaged over probes on the union of their nodes this bounds
    the quantile; −∞ or ∞ where no node does. It carries the quadrature's error, not the probes'.
    Source: Golub & Meurant 2010, sec. 2; Szegő 1975, sec. 3.41.
    """
    points = np.unique(np.concatenate([q.nodes for q in quadratures]))
    above, below = np.zeros(len(points)), np.zeros(len(points))
    for q in quadratures:
        cumulated = np.concatenate([[0.0], np.cumsum(q.weights)])
        # F(x) ≤ mass of the nodes up to the first one at or beyond x; F(x) ≥ mass of the nodes strictly
        # before the last one at or below x.
        above += cumulated[np.minimum(np.searchsorted(q.nodes, points, side="left") + 1, len(q.nodes))]
        below += cumulated[np.maximum(np.searchsorted(q.nodes, points, side="right") - 1, 0)]
    above, below = above / len(quadratures), below / len(quadratures)
    # The quantile lies above a point whose F is below `level`, and at or below one whose F is at least that.
    lower = points[above < level]
    upper = points[below >= level]
    return (float(lower[-1]) if len(lower) else -math.inf, float(upper[0]) if len(upper) else math.inf)


@dataclass(frozen=True)
class Signature:
    """Spectral signature of one Hessian; names ending in _standard_error are over probes, _residual bounds
    the distance to an eigenvalue, brackets are [low, high]. Eigenvalues in nats per squared unit of θ."""

    parameters: int
    probes: int
    steps: int
    lambda_max: float
    lambda_max_residual: float
    lambda_min: float
    lambda_min_residual: float
    mean_eigenvalue: float
    mean_eigenvalue_standard_error: float
    spectral_variance: float
    spectral_variance_standard_error: float
    outliers: list[float]
    bulk_center: float
    bulk_center_standard_error: float
    bulk_sigma: float
    bulk_sigma_standard_error: float
    spectral_ratio: float
    log_spectral_ratio: float
    log_spectral_ratio_standard_error: float
    effective_rank: float
    negative_mass: float
    iqr_bracket: list[float]
    nodes: list[list[float]]
    weights: list[list[float]]


def _mean_and_error(values: list[float] | np.ndarray) -> tuple[float, float]:
    values = np.asarray(values, dtype=float)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def _variance_and_error(means: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """Second moment less the squared mean, from both of every probe, with its error by linearisation."""
    mean = means.mean()
    return float(seconds.mean() - mean**2), _mean_and_error(seconds - 2 * mean * means)[1]


def _outliers(quadrature: Quadrature, n: int, limit: int, tolerance: float) -> np.ndarray:
    """Indices of the largest |θ|, at most `limit`, up to the first that is no single eigenvalue:
    its residual bound exceeds `tolerance` |θ|, or its weight 30/n, where a single one has about 1/n."""
    order = np.argsort(-np.abs(quadrature.nodes))[:limit]
    converged = quadrature.residuals[order] <= tolerance * np.abs(quadrature.nodes[order])
    single = quadrature.weights[order] <= 30 / n
    return order[: np.argmin(np.append(converged & single, False))]


def spectral_signature(runs: list[Quadrature], n: int, *, outliers: int = 10, tolerance: float = 0.01) -> Signature:
    """Signature of an n × n Hessian from two or more Lanczos runs, as `spectral_density` makes them.

    λ_max and λ_min are the outermost Ritz values of all runs: none lies beyond the spectrum. Outliers: the
    largest |eigenvalues|, at most ten, that every run has converged to 1 %. With Σ over the other nodes of
    a run, n(Σ w θ)/(n − n_out) averages to the bulk centre c and n(Σ w θ²)/(n − n_out) to c² + σ_bulk²: since
    E(uᵀv)² = 1 for every eigenvector u, leaving the outliers' nodes out subtracts them exactly in expectation
    and removes the variance they bring (deflation). Spectral ratio = λ_max / σ_bulk, its logarithm with a
    standard error by propagation. The second moment of a probe is ‖Hv‖²/n, exact after two steps.
    Raises ValueError for fewer than two probes, and where the bulk has no width.
    Source: Ubaru, Chen & Saad 2017 (SLQ); Hutchinson 1989.
    """
    if len(runs) < 2:
        raise ValueError("one probe gives no standard error: set lanczos_probes to 2 or more.")
    top, bottom = max(q.top for q in runs), min(q.bottom for q in runs)
    ranked = [_outliers(q, n, outliers, tolerance) for q in runs]
    # As many in every run: a bulk that loses more eigenvalues in one run than in another is not one quantity.
    count = min(map(len, ranked))
    moments, bulk_moments = [], []
    for q, order in zip(runs, ranked, strict=True):
        powers = q.weights * np.stack([q.nodes, q.nodes**2])
        moments.append(powers.sum(1))
        bulk_moments.append(np.delete(powers, order[:count], axis=1).sum(1) * n / (n - count))
    (means, seconds), (centers, bulk_seconds) = np.transpose(moments), np.transpose(bulk_moments)
    mean, mean_error = _mean_and_error(means)
    center, center_error = _mean_and_error(centers)
    spectral_variance, spectral_variance_error = _variance_and_error(means, seconds)
    variance, variance_error = _variance_and_error(centers, bulk_seconds)
    if not variance > 0:
        raise ValueError(f"the spectrum without its {count} outliers has no width: is the loss flat?")
    bulk_sigma = math.sqrt(variance)
    log_error = variance_error / (2 * variance)
    low, high = quantile_bracket(runs, 0.25), quantile_bracket(runs, 0.75)
    return Signature(
        parameters=n,
        probes=len(runs),
        steps=max(len(q.nodes) for q in runs),
        lambda_max=top[0],
        lambda_max_residual=top[1],
        lambda_min=bottom[0],
        lambda_min_residual=bottom[1],
        mean_eigenvalue=mean,
        mean_eigenvalue_standard_error=mean_error,
        spectral_variance=spectral_variance,
        spectral_variance_standard_error=spectral_variance_error,
        outliers=np.sort(runs[0].nodes[ranked[0][:count]])[::-1].tolist(),
        bulk_center=center,
        bulk_center_standard_error=center_error,
        bulk_sigma=bulk_sigma,
        bulk_sigma_standard_error=bulk_sigma * log_error,
        spectral_ratio=top[0] / bulk_sigma,
        log_spectral_ratio=math.log(max(top[0], 1e-300) / bulk_sigma),
        log_spectral_ratio_standard_error=math.hypot(log_error, top[1] / abs(top[0])),
        effective_rank=n * mean**2 / float(seconds.mean()),
        negative_mass=float(np.mean([q.weights[q.nodes < 0].sum() for q in runs])),
        iqr_bracket=[max(0.0, high[0] - low[1]), high[1] - low[0]],
        nodes=[q.nodes.tolist() for q in runs],
        weights=[q.weights.tolist() for q in runs],
    )


class _Logits(torch.nn.Module):
    """The model as PyHessian calls it: blocks in, logits of the T − 1 predictions out, (B(T−1), V)."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens).logits[:, :-1].flatten(0, 1)


@dataclass(frozen=True)
class PublishedSignature:
    """Figures of the published estimator, without error estimate, as published."""

    published_lambda_max: float
    published_iqr: float
    published_ratio: float


def published_ratio(lambda_max: float, width: float) -> float:
    """λ_max / IQR, and 0 where the IQR is at most 1e-6, as published."""
    return lambda_max / width if width > 1e-6 else 0.0


def published_signature(
    model: PreTrainedModel, tokens: torch.Tensor, run: Quadrature, *, power_iterations: int, seed: int
) -> PublishedSignature:
    """The estimator of the Hessian study: power iteration, and the width read off one Lanczos run.

    λ_max comes from PyHessian's `eigenvalues`; the study takes the largest |λ| of three, which is the first,
    so one is asked for. PyHessian's `density` calls a function that torch no longer has, so `run` stands in
    for it: 20 or 30 steps of `lanczos` from one Rademacher probe. Source: Yao et al. 2020 (PyHessian).
    """
    from pyhessian import hessian

    inputs, targets = tokens.to(model.device), tokens[:, 1:].flatten().to(model.device)
    # PyHessian draws from torch's global generator, on the CPU; torch.manual_seed would reseed CUDA's too.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.default_generator.manual_seed(stable_seed(seed, "power iteration"))
        warnings.simplefilter("ignore")  # backward(create_graph=True) warns of a cycle that zero_grad breaks
        model.zero_grad(set_to_none=True)
        cuda = model.device.type == "cuda"
        peer = hessian(_Logits(model), torch.nn.functional.cross_entropy, data=(inputs, targets), cuda=cuda)
        eigenvalues, _ = peer.eigenvalues(maxIter=power_iterations, tol=1e-3, top_n=1)
        model.zero_grad(set_to_none=True)
    lambda_max = float(max(eigenvalues, key=abs))
    width = interpolated_iqr(run.nodes, run.weights)
    return PublishedSignature(lambda_max, width, published_ratio(lambda_max, width))


def smoothed_density(
    nodes: list[list[float]], weights: list[list[float]], grid: np.ndarray, width: float
) -> np.ndarray:
    """Mean over probes of Σ_i w_i N(grid; θ_i, width²), for pictures only: the width is the kernel's."""
    kernels = [
        np.exp(-0.5 * ((grid[:, None] - np.asarray(n)) / width) ** 2) @ np.asarray(w)
        for n, w in zip(nodes, weights, strict=True)
    ]
    return np.mean(kernels, axis=0) / (width * math.sqrt(2 * math.pi))


def as_result(signature: Signature | PublishedSignature) -> dict:
    """A signature as a dictionary for a record."""
    return asdict(signature)
