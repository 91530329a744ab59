"""Drifts of SIGMA's tracks between two checkpoints, with a band and a test, for the full prompt bank and by bucket.

Leaving a prompt's few blocks V out of A takes a small determinant: det(M − VVᵀ) = det M · det(I − VᵀM⁻¹V), with
M = A + δI for Track II and A + (δ + τ)I for Track I. For the water-filled envelope this holds in the eigenvectors above
the water level, and below it the level falls by tr VVᵀ; cross terms are dropped, so that these influences are exact to
first order, the others exact. The corrected log-determinant is estimated again without each prompt
(`inference.leave_groups_out`).

Drifts use only the blocks that both checkpoints have. With every further block log det(A + δI) − m log n_A grows by
about log(n_A/(n_A − m)) − m/n_A, more than a nat for n_A near m, and Track I falls by m/n: a change in the number of
blocks would count as a drift.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..estimate import generator
from .gram import SingularGram, finite_rows
from .inference import GROUPS, least_rows, leave_groups_out

TRACKS = ("track_two", "logdet", "track_one", "track_one_sharp")
UNSEEN = 1e12  # n ≫ n_A, where log det G − m log n is log det Σ
LEVEL = 0.95
RESAMPLES = 2000
NO_BAND = dict.fromkeys(("low", "high", "standard_error", "p_value"), math.nan)


@dataclass(frozen=True)
class Observed:
    """A checkpoint's embeddings (n_A, m), with each one's prompt (place in the bank) and block (place in the
    response)."""

    rows: np.ndarray
    prompts: np.ndarray
    blocks: np.ndarray

    def select(self, chosen: np.ndarray) -> "Observed":
        """The rows under a mask (n_A,)."""
        return Observed(self.rows[chosen], self.prompts[chosen], self.blocks[chosen])

    @property
    def ids(self) -> np.ndarray:
        """One number for each (prompt, block)."""
        return self.prompts * 2**20 + self.blocks


def common(first: Observed, last: Observed) -> tuple[Observed, Observed]:
    """Both checkpoints, reduced to the blocks that both have."""
    return first.select(np.isin(first.ids, last.ids)), last.select(np.isin(last.ids, first.ids))


class Budget(NamedTuple):
    """The tracks' constants: n_B unobserved embeddings of ‖v‖² ≤ ρ, and δ."""

    unobserved: int
    rho: float
    delta: float


class _Track(NamedTuple):
    """A track of a checkpoint in the eigenvectors of A, ascending; the first `filled` lie below the water `level`."""

    value: float
    total: int
    shifted: np.ndarray
    vectors: np.ndarray
    filled: int
    level: float


def _track(observed: Observed, track: str, budget: Budget) -> _Track:
    if track not in TRACKS:
        raise ValueError(f"the tracks are {', '.join(TRACKS)}, not {track!r}.")
    unobserved = 0 if track == "track_two" else budget.unobserved
    m, total, tau = observed.rows.shape[1], len(observed.rows) + unobserved, budget.rho * unobserved
    rows = finite_rows(observed.rows)
    eigenvalues, vectors = np.linalg.eigh(rows.T @ rows)
    shifted, filled, level = np.maximum(eigenvalues, 0) + budget.delta, 0, 1.0
    if track == "track_one":
        shifted += tau
    if track == "track_one_sharp":
        # Filling too few or too many eigenvalues gives a higher level than the right number of them.
        levels = (tau + np.cumsum(shifted)) / np.arange(1, m + 1)
        filled, level = int(levels.argmin()) + 1, levels.min()
    value = np.log(shifted[filled:]).sum() + filled * math.log(level) - m * math.log(total)
    return _Track(float(value), total, shifted, vectors, filled, level)


def _logdet(observed: Observed) -> tuple[float, np.ndarray, np.ndarray]:
    """Estimate of log det Σ, names (P,) of the prompts, and the estimate without each; NaN if there are too few
    blocks."""
    names, m = np.unique(observed.prompts), observed.rows.shape[1]
    if len(names) >= GROUPS and len(observed.rows) >= least_rows(m):
        try:
            value, names, without = leave_groups_out(observed.rows, observed.prompts, UNSEEN)
            return value - m * math.log(UNSEEN), names, without - m * math.log(UNSEEN)
        except SingularGram:  # a collapsed model; the tracks still measure it
            pass
    return math.nan, names, np.full(len(names), math.nan)


def track_value(observed: Observed, track: str, budget: Budget) -> float:
    """A track of a checkpoint; `logdet` is the corrected estimate of log det Σ, NaN if it needs more blocks."""
    return _logdet(observed)[0] if track == "logdet" else _track(observed, track, budget).value


def prompt_influences(observed: Observed, universe: np.ndarray, track: str, budget: Budget) -> tuple[float, np.ndarray]:
    """A track's value, and the influence of each prompt of `universe` (P,) from leaving out its blocks, (P,).

    Influences sum to zero, and the variance of their mean is the jackknife's. One factorisation serves all prompts.
    ValueError for fewer than two prompts.
    """
    size = len(universe)
    if size < 2:
        raise ValueError("without its one prompt a checkpoint has no track: influences need two prompts or more.")
    if track == "logdet":
        value, names, found_without = _logdet(observed)
        without = np.full(size, value)
        without[np.searchsorted(universe, names)] = found_without
        return value, math.sqrt(size * (size - 1)) * (without.mean() - without)
    found, m = _track(observed, track, budget), observed.rows.shape[1]
    filled, coordinates = found.filled, observed.rows @ found.vectors
    below, above = (coordinates[:, :filled] ** 2).sum(1), coordinates[:, filled:] / np.sqrt(found.shifted[filled:])
    without = np.empty(size)
    for place, prompt in enumerate(universe):
        own = observed.prompts == prompt
        change = np.linalg.slogdet(np.eye(own.sum()) - above[own] @ above[own].T).logabsdet
        change += filled * math.log1p(-below[own].sum() / (filled * found.level)) if filled else 0.0
        without[place] = found.value + change - m * math.log1p(-own.sum() / found.total)
    return found.value, math.sqrt(size * (size - 1)) * (without.mean() - without)


def banded_drift(first: Observed, last: Observed, track: str, budget: Budget, seed: int = 0) -> dict[str, float]:
    """Drift of a track over the blocks that both checkpoints have: band at nominal 95 %, standard error, p-value of no
    drift.

    By a paired bootstrap over prompts, the same prompts for both checkpoints. It resamples the prompts' influences and
    not the columns: a resample of columns holds 63 % of the prompts, and its log-determinant is far lower. The band is
    NaN below 10 prompts, the p-value if nothing moves. Conservative for n_A near m, where the jackknife's variance is
    high on average (Efron and Stein 1981). ValueError if the checkpoints have no block in common.
    """
    first, last = common(first, last)
    universe = np.unique(first.prompts)
    if not len(universe):
        raise ValueError("the two checkpoints have no block in common: there is no drift.")
    count = len(universe)
    if count < GROUPS:
        moved = track_value(last, track, budget) - track_value(first, track, budget)
        return {"drift": moved, **NO_BAND}
    (start, pull_first), (end, pull_last) = (prompt_influences(each, universe, track, budget) for each in (first, last))
    moved, pull = end - start, pull_last - pull_first
    if not math.isfinite(moved):
        return {"drift": moved, **NO_BAND}
    weights = generator("bootstrap_drift", seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    errors = np.abs(weights @ pull / count)
    half = float(np.quantile(errors, LEVEL))
    p_value = (1 + np.count_nonzero(errors >= abs(moved))) / (1 + RESAMPLES) if np.any(pull) else math.nan
    return {
        "drift": moved,
        "low": moved - half,
        "high": moved + half,
        "standard_error": float(np.sqrt((pull**2).mean() / count)),
        "p_value": float(p_value),
    }


def banded_drifts(first: Observed, last: Observed, budget: Budget, seed: int = 0) -> dict[str, dict[str, float]]:
    """`banded_drift` of every track."""
    return {track: banded_drift(first, last, track, budget, seed) for track in TRACKS}


def bucket_drifts(
    first: Observed, last: Observed, buckets: Sequence[str], budget: Budget, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Track II's `banded_drift` in each bucket, with its number of blocks; `buckets` has the bucket of each prompt."""
    labels = np.asarray(buckets)
    both = common(first, last)
    found = {}
    for bucket in dict.fromkeys(buckets):
        parts = [each.select(labels[each.prompts] == bucket) for each in both]
        if len(parts[0].rows):
            found[bucket] = {**banded_drift(*parts, "track_two", budget, seed), "blocks": len(parts[0].rows)}
    return found
