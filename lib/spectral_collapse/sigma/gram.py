"""SIGMA: log-determinant tracks of the Gram matrix of sentence embeddings (arXiv 2601.03385).

A = Σ v vᵀ over the observed embeddings v ∈ R^m (n_A of them), B the same over the unobserved n_B, G = A + B,
n = n_A + n_B. Estimates and intervals are in `inference`, drifts with bands in `bands`, checks of input in `health`.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dpotrf
from scipy.sparse.linalg import ArpackError, eigsh

CHUNK = 4096  # rows converted to float64 at a time: limits memory, and is large enough for the BLAS
LANCZOS_FROM = 256  # below this m computing all eigenvalues is cheaper than finding the largest few
# An eigenvalue below this share of the largest is rounding: embeddings are float32, and the Gram matrix squares them.
RANK = 1e-12


class GramAccumulator:
    """A = Σ v vᵀ over embeddings v ∈ R^m and their number n, summed in float64, chunk by chunk.

    Memory O(m²) for any number of embeddings; accumulators over different embeddings merge.

    >>> seen = GramAccumulator(2).update(np.array([[1.0, 0.0], [1.0, 2.0]]))
    >>> seen.n, seen.gram.tolist()
    (2, [[2.0, 2.0], [2.0, 4.0]])
    """

    def __init__(self, dim: int):
        self._lower = np.zeros((dim, dim), order="F")  # the lower triangle: half the work of the full product
        self.n = 0

    def __repr__(self) -> str:
        return f"GramAccumulator(dim={self.dim}, n={self.n})"

    @property
    def dim(self) -> int:
        """The dimension m of the embeddings."""
        return len(self._lower)

    @property
    def gram(self) -> np.ndarray:
        """A, float64 (m, m), a fresh copy."""
        upper = np.triu(self._lower.T)  # C-ordered
        return upper + np.triu(upper, 1).T

    def update(self, embeddings: np.ndarray, rho: float = math.inf) -> "GramAccumulator":
        """Adds rows (k, m). ValueError, and nothing is added, for a row that is not finite or has ‖v‖² > `rho`."""
        rows = np.asarray(embeddings)
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"embeddings have shape {rows.shape}; rows of length {self.dim} are expected.")
        lower = self._lower.copy(order="F")
        for start in range(0, len(rows), CHUNK):
            chunk = np.asarray(rows[start : start + CHUNK], dtype=np.float64, order="C")
            energy = np.einsum("ij,ij->i", chunk, chunk)
            if not np.isfinite(energy).all():
                bad = start + int(np.flatnonzero(~np.isfinite(energy))[0])
                raise ValueError(f"embedding {bad} is not finite: look at the text it was made from.")
            if (energy > rho * (1 + 1e-6)).any():
                raise ValueError(
                    f"an embedding has squared norm {energy.max():.4g}, above the energy budget rho = {rho:g}: "
                    "Track I would not be a bound; normalise the embeddings."
                )
            lower = dsyrk(1.0, chunk.T, beta=1.0, c=lower, lower=1, overwrite_c=1)
        self._lower = lower
        self.n += len(rows)
        return self

    def merge(self, other: "GramAccumulator") -> "GramAccumulator":
        """Adds the embeddings of another accumulator of the same dimension."""
        if other.dim != self.dim:
            raise ValueError(f"accumulators of dimensions {self.dim} and {other.dim} cannot be merged.")
        self._lower += other._lower
        self.n += other.n
        return self


class SingularGram(ValueError):
    """A Gram matrix without an inverse: too few different embeddings, or dead directions."""


def finite_rows(embeddings: np.ndarray) -> np.ndarray:
    """The embeddings (k, m) in float64. ValueError for another shape, NaN and infinity."""
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"embeddings have shape {rows.shape}: rows (number, dimension) are expected.")
    if (bad := np.flatnonzero(~np.isfinite(rows).all(axis=1))).size:
        raise ValueError(
            f"{len(bad)} of {len(rows)} embeddings are not finite, row {bad[0]} first: look at their text."
        )
    return rows


def require_full_rank(gram: np.ndarray) -> None:
    """SingularGram unless every eigenvalue of A (m, m) exceeds RANK = 1e-12 of the largest, in float64.

    Cholesky's factorisation cannot decide this: rounding makes an eigenvalue of 0 positive as often as not.
    """
    matrix = np.asarray(gram, dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise SingularGram("the Gram matrix is not finite: look at the embeddings it was summed from.")
    eigenvalues = scipy.linalg.eigvalsh(matrix, check_finite=False)
    rank = int((eigenvalues > RANK * eigenvalues[-1]).sum())
    if rank < len(matrix):
        raise SingularGram(
            f"the Gram matrix has rank {rank} in {len(matrix)} dimensions (eigenvalues below {RANK:g} of the largest "
            "are rounding): its log-determinant is not finite; leave out the encoder's dead directions (`live_space`), "
            "or observe more blocks that differ."
        )


def cholesky_logdet(gram: np.ndarray, shift: float = 0.0) -> float:
    """log det(A + shift·I) of a symmetric A (m, m), by Cholesky in float64, m³/3 flops.

    SingularGram if A + shift·I is not positive definite and finite.

    >>> round(cholesky_logdet(np.diag([1.0, 3.0]), shift=1.0) - math.log(8), 12)
    0.0
    """
    shifted = np.array(gram, dtype=np.float64, order="C")
    diagonal = np.einsum("ii->i", shifted)  # a view
    diagonal += shift
    _, failed = dpotrf(shifted.T, lower=1, clean=0, overwrite_a=1)  # in place: the transpose is Fortran-ordered
    value = math.nan if failed else 2 * np.log(diagonal).sum()
    if not math.isfinite(value):
        raise SingularGram("the Gram matrix plus delta is not positive definite and finite.")
    return float(value)


def _positive(delta: float) -> float:
    if not delta > 0:
        raise ValueError(f"delta must be positive, not {delta}.")
    return delta


def regularized_logdet(gram_or_embeddings: np.ndarray, delta: float) -> float:
    """logdet_δ(A) = log det(A + δI) from A (m, m) or from the rows (n_A, m) it is the Gram matrix of.

    A symmetric square matrix is read as A, any other as rows. With fewer rows than columns it is the dual
    log det(K + δI) + (m − n_A) log δ, K the (n_A, n_A) matrix of inner products.
    ValueError for δ ≤ 0, and if A + δI is not positive definite and finite.
    """
    matrix = np.asarray(gram_or_embeddings, dtype=np.float64)
    rows, m = matrix.shape
    if not np.isfinite(matrix).all():
        raise SingularGram("the Gram matrix plus delta is not positive definite and finite.")
    if rows == m and np.abs(matrix - matrix.T).max() <= 1e-9 * np.abs(matrix).max():
        return cholesky_logdet(matrix, _positive(delta))
    if rows < m:
        return cholesky_logdet(matrix @ matrix.T, _positive(delta)) + (m - rows) * math.log(delta)
    return cholesky_logdet(matrix.T @ matrix, _positive(delta))


# ---- bounds


class Bounds(NamedTuple):
    lower: float
    upper: float


def deterministic_bounds(
    gram: np.ndarray, delta: float, *, lambda_max: float | None = None, budget: float | None = None
) -> Bounds:
    """logdet_δ(A) ≤ logdet_δ(G) ≤ Σ_i log(λ_i(A) + δ + λ_max(B)), from λ_max(B) or a budget τ ≥ λ_max(B).

    ValueError unless exactly one of the two is given, and that non-negative. SIGMA, Theorem 1.
    """
    if (lambda_max is None) == (budget is None):
        raise ValueError("give either lambda_max, the largest eigenvalue of B, or a budget above it.")
    spread = lambda_max if budget is None else budget
    if not spread >= 0:
        raise ValueError(f"the largest eigenvalue of B and its budget are at least 0, not {spread}.")
    return Bounds(cholesky_logdet(gram, _positive(delta)), cholesky_logdet(gram, delta + spread))


def overestimation_ratio(second_moment: np.ndarray, observed_share: float) -> float:
    """*Logarithm* of Π_i (γ + (1 − γ) λ_max(Σ)/λ_i(Σ)), by which the upper bound exceeds det(nΣ); γ = n_A/n.

    The product itself overflows in the dimensions of sentence embeddings. 0 only for isotropic Σ (or γ = 1).
    SingularGram for a singular Σ, ValueError for γ outside [0, 1]. SIGMA eq. 3.8.
    """
    if not 0 <= observed_share <= 1:
        raise ValueError(f"the observed share lies between 0 and 1, not at {observed_share}.")
    require_full_rank(second_moment)
    eigenvalues = np.linalg.eigvalsh(second_moment)
    return float(np.log(observed_share + (1 - observed_share) * eigenvalues[-1] / eigenvalues).sum())


def _is_psd(matrix: np.ndarray, tolerance: float) -> bool:
    """Whether no eigenvalue lies below −tolerance, by one factorisation."""
    try:
        cholesky_logdet(matrix, tolerance)
    except SingularGram:
        return False
    return True


def water_filling(gram: np.ndarray, budget: float, delta: float) -> float:
    """max of log det(A + δI + B) over B ⪰ 0 with tr B ≤ τ: Σ_i log max(λ_i + δ, μ), Σ_i (μ − λ_i − δ)₊ = τ.

    The sharpest envelope for A and the budget τ, never above Ky Fan's log det(A + (δ + τ)I). Only eigenvalues above the
    water level μ enter one by one, the others by their sum. If m is large and few lie above it, Lanczos finds them;
    eigenvalues that it underestimates or misses can only raise the envelope.
    ValueError for δ ≤ 0, τ < 0, and a matrix that is not PSD and finite. Proof: appendix, sharp envelope.

    >>> round(water_filling(np.diag([1.0, 4.0]), budget=1.0, delta=1.0) - math.log(3 * 5), 12)  # μ = 3
    0.0
    """
    matrix = np.asarray(gram, dtype=np.float64)
    m = len(matrix)
    if not (delta > 0 and budget >= 0):
        raise ValueError(f"delta must be positive and the budget at least 0, not {delta} and {budget}.")
    if not np.isfinite(matrix).all():
        raise ValueError("the Gram matrix is not finite.")
    if m >= LANCZOS_FROM and budget > 2 * np.trace(matrix):
        energy = np.trace(matrix) + m * delta + budget
        for count in (8, 32):
            try:
                start = np.random.default_rng(0).normal(size=m)
                # an eigenvalue's error is the square of its vector's: 1e-6 leaves rounding
                tops = eigsh(matrix, count, which="LA", v0=start, tol=1e-6, return_eigenvectors=False)[::-1] + delta
            except ArpackError:  # no convergence, or a zero matrix
                break
            if not _is_psd(matrix, 1e-9 * max(tops[0], delta)):
                break  # the full spectrum shows which eigenvalue is negative
            # level[j]: the water level when the j largest eigenvalues stand above it
            level = (energy - np.append(0, np.cumsum(tops[:-1]))) / (m - np.arange(count))
            if (below := np.flatnonzero(tops <= level)).size:
                above = below[0]
                return float(np.log(tops[:above]).sum() + (m - above) * math.log(level[above]))
    eigenvalues = scipy.linalg.eigvalsh(matrix, check_finite=False)
    if eigenvalues[0] < -1e-9 * max(eigenvalues[-1], delta):
        raise ValueError(f"the Gram matrix has the eigenvalue {eigenvalues[0]:.3g}: it is not PSD.")
    shifted = np.maximum(eigenvalues, 0) + delta  # ascending
    sums, counts = np.cumsum(shifted), np.arange(1, m + 1)
    filled = max(1, int(np.searchsorted(counts * shifted - sums, budget, side="right")))
    return float(np.log(np.maximum(shifted, (budget + sums[filled - 1]) / filled)).sum())


# ---- tracks

Envelope = Literal["ky_fan", "water_filling"]


def track_one(
    gram: np.ndarray, n_observed: int, n_total: int, rho: float, delta: float, envelope: Envelope = "ky_fan"
) -> float:
    """Track I: an upper envelope of logdet_δ(G) − m log n for any unobserved embeddings of ‖v‖² ≤ ρ.

    With the budget τ = ρ (n − n_A), `ky_fan` is the published D_KF = log det(A + (δ + τ)I) − m log n
    (SIGMA eq. 3.16), `water_filling` the sharp one. ValueError for impossible sizes.
    """
    if n_total < n_observed or n_observed < 1:
        raise ValueError(f"n_total {n_total} must be at least n_observed {n_observed}, and that at least 1.")
    budget = rho * (n_total - n_observed)
    match envelope:
        case "ky_fan":
            value = cholesky_logdet(gram, _positive(delta) + budget)
        case "water_filling":
            value = water_filling(gram, budget, delta)
        case _:
            raise ValueError(f"the envelope is ky_fan or water_filling, not {envelope!r}.")
    return value - len(gram) * math.log(n_total)


def track_two(gram: np.ndarray, n_observed: int, delta: float) -> float:
    """Track II, D_LLN = log det(A + δI) − m log n_A, the size-corrected log-volume. SIGMA eq. 3.17."""
    if n_observed < 1:
        raise ValueError("no embedding was observed: the responses are empty.")
    return cholesky_logdet(gram, _positive(delta)) - len(gram) * math.log(n_observed)


def drift(values: Sequence[float]) -> np.ndarray:
    """value(t) − value(0) of a track over generations 0, 1, …, shape as `values`. SIGMA eq. 3.18."""
    values = np.asarray(values, dtype=np.float64)
    return values - values[0]


def ols_slope(values: Sequence[float], generations: Sequence[float] | None = None) -> float:
    """Least-squares slope per generation, generation 0 included; generations 0, 1, … by default.

    ValueError for fewer than two generations.

    >>> ols_slope([1.0, 3.0, 5.0])
    2.0
    """
    values = np.asarray(values, dtype=np.float64)
    times = np.arange(len(values)) if generations is None else np.asarray(generations, dtype=np.float64)
    if len(values) < 2 or len(values) != len(times):
        raise ValueError(f"a slope needs two generations or more: {len(values)} values, {len(times)} generations.")
    times = times - times.mean()
    return float(times @ values / (times @ times))


def track_agreement(track_one_drift: Sequence[float], track_two_drift: Sequence[float]) -> bool:
    """Whether final drift and slope have the same sign in both tracks (SIGMA, Table 1: S1 yes, S2 no)."""
    signs = {np.sign(x) for track in (track_one_drift, track_two_drift) for x in (track[-1], ols_slope(track))}
    return len(signs) == 1
