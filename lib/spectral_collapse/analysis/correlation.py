"""Do metrics move together, and does one move first? Spearman's ρ over the generations of a run, also with a lag."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from ..estimate import Estimate
from .statistics import TREATMENT, require_complete

LAGS = tuple(range(-3, 4))


def _runs(table: pd.DataFrame, metrics: Sequence[str], condition: str) -> list[pd.DataFrame]:
    """The condition's runs in the order of seeds, each (generations, metrics)."""
    for metric in metrics:
        require_complete(table, metric)
    chosen = table[table["condition"] == condition].sort_values("generation")
    if chosen.empty:
        raise ValueError(f"Condition {condition!r} is not among {', '.join(table['condition'].unique())}.")
    return [run[list(metrics)] for _, run in chosen.groupby("seed")]


def within_run_spearman(table: pd.DataFrame, metrics: Sequence[str], condition: str = TREATMENT) -> pd.DataFrame:
    """Spearman's ρ of every two metrics over the generations of a run, averaged over the condition's runs.

    Columns metric_a, metric_b, rho, low, high, runs. The interval is the 95 % t interval of the mean over
    runs, cut to [−1, 1]: for three runs of six generations it covered 85-93 % in simulation, a bootstrap over
    runs 74 %, and Fisher's z is infinite at ρ = ±1, which a short series often reaches. A run where either
    metric is constant, or with fewer than three generations, has no ρ and is left out; `runs` counts the
    others, and rho is NaN if there are none.
    """
    runs = [run.corr("spearman", min_periods=3) for run in _runs(table, metrics, condition)]
    rows = []
    for first, second in combinations(metrics, 2):
        rhos = np.array([run.loc[first, second] for run in runs])
        rhos = rhos[np.isfinite(rhos)]
        mean, low, high = Estimate.mean(rhos)
        rows.append((first, second, mean, np.clip(low, -1, 1), np.clip(high, -1, 1), len(rhos)))
    return pd.DataFrame(rows, columns=["metric_a", "metric_b", "rho", "low", "high", "runs"])


def lagged_spearman(
    table: pd.DataFrame,
    leading: Sequence[str],
    following: Sequence[str],
    condition: str = TREATMENT,
    lags: Sequence[int] = LAGS,
) -> pd.DataFrame:
    """Spearman's ρ of a metric at generation g with another at g + lag, within runs, averaged over the runs.

    At a positive lag the metric of `leading` moves first. Columns leading, following, lag, rho, low, high (95 % t
    interval of the mean over runs, cut to [−1, 1]), runs. A lag of k leaves k generations out; a run with fewer than
    three pairs of generations, or where either metric is constant over them, has no ρ at that lag and is left out:
    `runs` counts the others.

    For series of six generations the interval covered 87-94 % in simulation at three runs and 89-94 % at five. Two
    series with a trend correlate at every lag, so that a lag is evidence of order only where ρ there exceeds that at
    lag 0.
    """
    runs = _runs(table, list(dict.fromkeys([*leading, *following])), condition)
    rows = []
    for first in leading:
        for second in following:
            if first == second:
                continue
            for lag in lags:
                rhos = [_rank_correlation(run[first].to_numpy(float), run[second].to_numpy(float), lag) for run in runs]
                rhos = np.array(rhos)[np.isfinite(rhos)]
                mean, *ends = Estimate.mean(rhos)
                rows.append((first, second, lag, mean, *np.clip(ends, -1, 1), len(rhos)))
    names = ["leading", "following", "lag", "rho", "low", "high", "runs"]
    return pd.DataFrame(rows, columns=names)


def _rank_correlation(first: np.ndarray, second: np.ndarray, lag: int) -> float:
    """Spearman's ρ of first[g] and second[g + lag], (generations,) each; NaN below three pairs or without variation."""
    first, second = (first[: len(first) - lag], second[lag:]) if lag >= 0 else (first[-lag:], second[:lag])
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return np.nan
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])
