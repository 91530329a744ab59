"""SIGMA: what the observed block says about the whole, with intervals. Notation as in `gram`.

Intervals are for log det G, G random with A a random part of its columns. Their measured
coverage is in results/sigma_coverage; proofs are in the paper's appendix.
"""

import functools
import math
from typing import Literal, NamedTuple

import numpy as np
import scipy.linalg
from scipy.optimize import brentq
from scipy.special import digamma, polygamma
from scipy.stats import beta, norm
from sklearn.covariance import LedoitWolf

from .gram import SingularGram, cholesky_logdet

CHUNK = 4096  # embeddings whitened at a time


def leverages(embeddings: np.ndarray, gram: np.ndarray | None = None) -> np.ndarray:
    """h_j = v_jᵀ A⁻¹ v_j of the observed embeddings (n_A, m), each in [0, 1], their sum m; shape (n_A,).

    A is their Gram matrix where it is not given. SingularGram where it has no inverse: too few embeddings, too many
    of them alike, or dead directions of the encoder (`live_space`).
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    gram = rows.T @ rows if gram is None else gram
    try:
        factor = scipy.linalg.cholesky(gram, lower=True)
    except scipy.linalg.LinAlgError:
        raise SingularGram(
            f"the Gram matrix of {len(rows)} embeddings is singular in {rows.shape[1]} dimensions: observe more "
            "blocks, or project to the encoder's live directions."
        ) from None
    starts = range(0, len(rows), CHUNK)
    white = (scipy.linalg.solve_triangular(factor, rows[start : start + CHUNK].T, lower=True) for start in starts)
    return np.concatenate([np.einsum("ij,ij->j", part, part) for part in white])


def mahalanobis_variance(embeddings: np.ndarray, second_moment: np.ndarray | None = None) -> float:
    """σ² = Var(xᵀΣ⁻¹x) over embeddings (n_A, m), Σ = E xxᵀ; 2m for Gaussian columns of mean zero.

    Without Σ it is the plug-in, Σ replaced by A/n_A. The plug-in is low for n_A near m, since no x_jᵀ(A/n_A)⁻¹x_j
    can exceed n_A; `logdet_estimate(correction="leverage")` uses each x_j against the others' Gram matrix.
    SIGMA eq. 3.9.
    """
    count = len(embeddings)
    gram = None if second_moment is None else count * np.asarray(second_moment)
    return float(np.var(count * leverages(embeddings, gram), ddof=1))


def required_sample_size(sigma: float, precision: float, level: float = 0.95) -> int:
    """n_A ≥ (zσ/ε)²: SIGMA's sample size for a half-width ε of log det G when n ≫ n_A (eq. 3.14).

    It counts the linear part of the error only: below n_A ≫ (σ² + m² − m)/(2ε) the plug-in's bias exceeds ε, and
    the rule holds for the corrected estimates alone. `sigma` is σ, not σ².
    """
    if not (sigma >= 0 and precision > 0 and 0 < level < 1):
        raise ValueError(f"sigma {sigma}, precision {precision} and level {level} give no sample size.")
    return math.ceil((norm.ppf((1 + level) / 2) * sigma / precision) ** 2)


# Log-determinant of the whole

Correction = Literal["wishart", "leverage", "none"]


class Estimate(NamedTuple):
    """An estimate with its interval and standard error."""

    estimate: float
    low: float
    high: float
    standard_error: float


def wishart_moments(m: int, n_observed: int, n_total: float) -> tuple[float, float]:
    """Mean and variance of log det G − log det A for Gaussian columns of mean zero and any covariance.

    Σ_i ψ((n−i+1)/2) − ψ((n_A−i+1)/2) and Σ_i ψ'((n_A−i+1)/2) − ψ'((n−i+1)/2), i = 1 … m.
    """
    observed, total = (n_observed - np.arange(m)) / 2, (n_total - np.arange(m)) / 2
    mean = (digamma(total) - digamma(observed)).sum()
    return float(mean), float((polygamma(1, observed) - polygamma(1, total)).sum())


def _extrapolate(odds: np.ndarray, m: int, n: float) -> tuple[float, np.ndarray]:
    """V(n) = n·mean log(1 + c q) − m log c with n·mean c q/(1 + c q) = m, and n log(1 + c q), from leverage odds q."""

    def excess(log_c: float) -> float:
        scaled = math.exp(log_c) * odds
        return float(np.mean(scaled / (1 + scaled)) * n / m - 1)

    log_c = brentq(excess, math.log(m / n / odds.mean()) - 1e-9, math.log(2), xtol=1e-13, rtol=1e-14)
    influence = n * np.log1p(math.exp(log_c) * odds)
    return float(influence.mean() - m * log_c), influence


@functools.lru_cache(maxsize=64)
def _gaussian_odds(m: int, n_observed: int) -> np.ndarray:
    """Quantiles of h/(1 − h) for Gaussian columns, h ~ Beta(m/2, (n_A − m)/2), at 4,000 equal steps."""
    share = beta.ppf((np.arange(4000) + 0.5) / 4000, m / 2, (n_observed - m) / 2)
    return share / (1 - share)


def logdet_estimate(
    gram: np.ndarray,
    n_observed: int,
    n_total: float,
    correction: Correction = "wishart",
    level: float = 0.95,
    leverages: np.ndarray | None = None,
) -> Estimate:
    """log det G from the Gram matrix A (m, m) of n_A of its n columns, with an interval of the nominal level.

    none      log det A + m log(n/n_A) ± z σ √(1/n_A − 1/n), σ² = Var(n_A h_j), 2m without leverages (SIGMA
              eqs. 3.13, 3.14). Low by about (σ² + m² − m)/2 · (1/n_A − 1/n): it covers only for n_A ≫ m⁴/(4σ²).
    wishart   log det A and the exact mean and variance of log det G − log det A for Gaussian columns. Fails where
              xᵀΣ⁻¹x spreads otherwise than χ²_m: heavy tails, and sentence embeddings in many dimensions.
    leverage  adds what the leverages h_j (n_A,) say beyond the Gaussian: V(n) − V(n_A) over the odds
              h_j/(1 − h_j), less the same for Gaussian odds; the variance likewise, with its own standard error
              added. For columns r·u, u Gaussian, r² of any distribution with a second moment. Needs n_A > m; falls
              short of the level for heavy tails and only tens of columns.

    ValueError for sizes outside m ≤ n_A ≤ n and for a singular A.
    """
    m = len(gram)
    if not m <= n_observed <= n_total:
        raise ValueError(f"log det G needs m ≤ n_observed ≤ n_total, not {m}, {n_observed} and {n_total}.")
    base, gap = cholesky_logdet(gram), 1 / n_observed - 1 / n_total
    mean, variance = wishart_moments(m, n_observed, n_total)
    match correction:
        case "none":
            mean = m * math.log(n_total / n_observed)
            spread = 2 * m if leverages is None else np.var(n_observed * np.asarray(leverages), ddof=1)
            variance = spread * gap
        case "wishart":
            pass
        case "leverage":
            if leverages is None or len(leverages) != n_observed or n_observed <= m:
                raise ValueError(f"the leverages of all {n_observed} > m = {m} observed embeddings are needed.")
            odds = np.asarray(leverages) / (1 - np.asarray(leverages))
            total, influence = _extrapolate(odds, m, n_total)
            gauss_total, gauss_influence = _extrapolate(_gaussian_odds(m, n_observed), m, n_total)
            gauss_observed, _ = _extrapolate(_gaussian_odds(m, n_observed), m, n_observed)
            mean += (total - n_observed * np.log1p(odds).mean()) - (gauss_total - gauss_observed)
            squares = (influence - influence.mean()) ** 2
            excess = squares.sum() / (n_observed - 1) - gauss_influence.var()
            # never below the variance of columns of constant xᵀΣ⁻¹x, the least there is
            variance += gap * (max(excess, -2 * m) + squares.std() / math.sqrt(n_observed))
        case _:
            raise ValueError(f"the correction is wishart, leverage or none, not {correction!r}.")
    error = math.sqrt(max(variance, 0))
    half = norm.ppf((1 + level) / 2) * error
    return Estimate(base + mean, base + mean - half, base + mean + half, error)


def shrunk_logdet(embeddings: np.ndarray) -> float:
    """log det of Ledoit and Wolf's shrinkage estimate (1 − s) A/n_A + s tr(A)/(n_A m) I of Σ = E xxᵀ.

    An alternative to δ for Track II where n_A is near or below m: the shrinkage s is estimated from the rows
    (n_A, m), not set. Source: Ledoit and Wolf 2004; scikit-learn's implementation, not centred.
    """
    fitted = LedoitWolf(store_precision=False, assume_centered=True).fit(np.asarray(embeddings, dtype=np.float64))
    return cholesky_logdet(fitted.covariance_)
