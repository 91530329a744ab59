"""SIGMA: log-determinant tracks of the Gram matrix of sentence embeddings (arXiv 2601.03385)."""

import math

import numpy as np
import scipy.linalg

from .text_metrics import words


class GramAccumulator:
    """A = Σ v vᵀ over embeddings v ∈ R^m and their number n, summed in float64, chunk by chunk.

    Memory O(m²) whatever the number of embeddings; two accumulators over different embeddings merge.
    """

    def __init__(self, dimension: int):
        self.gram = np.zeros((dimension, dimension))
        self.n = 0

    def update(self, embeddings: np.ndarray, rho: float = math.inf) -> "GramAccumulator":
        """Adds rows (k, m). Raises ValueError on a non-finite row or one with ‖v‖² above `rho`."""
        rows = np.asarray(embeddings, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.gram):
            raise ValueError(f"embeddings have shape {rows.shape}; rows of length {len(self.gram)} are expected.")
        if not np.isfinite(rows).all():
            bad = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
            raise ValueError(f"embedding {bad} is not finite: look at the text it was made from.")
        energy = (rows**2).sum(1)
        if (energy > rho * (1 + 1e-6)).any():
            raise ValueError(
                f"an embedding has squared norm {energy.max():.4g}, above the energy budget rho = {rho:g}: "
                "Track I would not be a bound; normalise the embeddings."
            )
        self.gram += rows.T @ rows
        self.n += len(rows)
        return self

    def merge(self, other: "GramAccumulator") -> "GramAccumulator":
        """Adds what another accumulator of the same dimension has seen."""
        if len(other.gram) != len(self.gram):
            raise ValueError(f"accumulators of dimensions {len(self.gram)} and {len(other.gram)} cannot be merged.")
        self.gram += other.gram
        self.n += other.n
        return self


def regularized_logdet(gram: np.ndarray, delta: float) -> float:
    """logdet_δ(A) = log det(A + δI) of a symmetric PSD matrix (m, m), by Cholesky in float64.

    Raises ValueError where A + δI is not positive definite (A not PSD, or δ ≤ 0).
    """
    matrix = np.asarray(gram, dtype=np.float64)
    if delta <= 0:
        raise ValueError(f"delta must be positive, not {delta}.")
    try:
        factor = scipy.linalg.cholesky(matrix + delta * np.eye(len(matrix)), lower=True)
    except (scipy.linalg.LinAlgError, ValueError):
        raise ValueError("the Gram matrix plus delta is not positive definite and finite.") from None
    return float(2 * np.log(np.diag(factor)).sum())


def track_one(gram: np.ndarray, n_observed: int, n_total: int, *, rho: float, delta: float) -> float:
    """Track I, D_KF = log det(A + (δ + τ)I) − m log n with the budget τ = ρ (n − n_A) ≥ λ_max(B).

    An upper envelope of log det(G + δI) − m log n, whatever the unobserved embeddings. SIGMA eq. 3.16.
    """
    if n_total < n_observed or n_observed < 1:
        raise ValueError(f"n_total {n_total} must be at least n_observed {n_observed}, and that at least 1.")
    tau = rho * (n_total - n_observed)
    return regularized_logdet(gram, delta + tau) - len(gram) * math.log(n_total)


def track_two(gram: np.ndarray, n_observed: int, *, delta: float) -> float:
    """Track II, D_LLN = log det(A + δI) − m log n_A, the size-corrected log-volume. SIGMA eq. 3.17."""
    if n_observed < 1:
        raise ValueError("no embedding was observed: the responses are empty.")
    return regularized_logdet(gram, delta) - len(gram) * math.log(n_observed)


def split_blocks(text: str, block_words: int) -> list[str]:
    """The text in runs of `block_words` words; a last run shorter than half of that is dropped.

    Words are counted as elsewhere in this package; the runs keep case and punctuation.
    """
    pieces, run, count = [], [], 0
    for token in text.split():
        run.append(token)
        count += len(words(token))
        if count >= block_words:
            pieces.append(" ".join(run))
            run, count = [], 0
    if 2 * count >= block_words:
        pieces.append(" ".join(run))
    return pieces
