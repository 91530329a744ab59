"""How well do alarms tell treated runs from control runs? Rates, AUC, and a correction for many metrics."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import optimize, stats

from ..estimate import Estimate
from .early_warning import RATE, alarms, band_positions
from .statistics import TREATMENT, changes, holm, matched_controls

EXACT_SEEDS = 12  # up to here all 2^seeds exchanges of the permutation test are made


def exact_interval(count: int, runs: int, level: float = 0.95) -> Estimate:
    """Share of runs with its interval of Clopper and Pearson (1934), never too short; NaN without runs."""
    if runs == 0:
        return Estimate(math.nan, math.nan, math.nan)
    return Estimate(count / runs, *stats.binomtest(count, runs).proportion_ci(level))


def _auc(treated: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Probability that a treated run's score exceeds a control run's, ties counted half: (runs, …) each -> (…)."""
    pairs = treated[:, None], control[None, :]
    return (np.greater(*pairs) + 0.5 * np.equal(*pairs)).mean((0, 1))


def auc_interval(auc: float, treated: int, control: int, level: float = 0.95) -> Estimate:
    """AUC with the interval that Newcombe (2006) recommends, his method 5, for so many treated and control runs.

    All θ with |auc − θ| ≤ z √V(θ), V(θ) = θ(1 − θ)(1 + k (1 − θ)/(2 − θ) + k θ/(1 + θ))/(mn), k = (m + n)/2 − 1. It
    does not shrink to a point at 0 or 1. Runs are taken as independent; for
    the scores of `separation` it covered 93 to 99.7 % in simulation, at three, five and ten seeds.
    """
    z = stats.norm.ppf(0.5 + level / 2)
    k = (treated + control) / 2 - 1

    def beyond(theta: float) -> float:
        variance = theta * (1 - theta) * (1 + k * (1 - theta) / (2 - theta) + k * theta / (1 + theta))
        return (auc - theta) ** 2 - z**2 * variance / (treated * control)

    # V is 0 at 0 and 1, so that an AUC of 0 or 1 solves the equation itself: the other solution is the one meant.
    low = optimize.brentq(beyond, 0, min(auc, 1 - 1e-9)) if auc > 0 else 0.0
    high = optimize.brentq(beyond, max(auc, 1e-9), 1) if auc < 1 else 1.0
    return Estimate(auc, low, high)


def separation(table: pd.DataFrame, metric: str) -> tuple[Estimate, float]:
    """AUC of the alarm score between treated and control runs, and its exact permutation p.

    Without an effect the treated and the control run of a seed may be exchanged: all 2^seeds exchanges are made, bands
    and scores computed anew for each, and p is the share whose AUC is as large. Exchanging every run separates well
    separated conditions just as well, so that p is hardly below `least_p("exchange", seeds)`: 0.25 at three seeds, 0.06
    at five. NaN below three seeds and without a matched control; p is NaN beyond `EXACT_SEEDS`.
    """
    moved, matched = changes(table, metric), matched_controls(table).get(TREATMENT)
    if matched is None:
        return Estimate(math.nan, math.nan, math.nan), math.nan
    pair = np.stack([moved.loc[name].to_numpy(float) for name in (TREATMENT, matched)])  # (2, seeds, generations)
    seeds = pair.shape[1]
    if seeds < 3:
        return Estimate(math.nan, math.nan, math.nan), math.nan
    exact = seeds <= EXACT_SEEDS
    masks = np.arange(2**seeds if exact else 1)[None, :] >> np.arange(seeds)[:, None] & 1  # (seeds, exchanges)
    places = np.arange(seeds)[:, None]
    treated, untreated = pair[masks, places], pair[1 - masks, places]  # (seeds, exchanges, generations)
    # The level scales every score alike, and leaves their order as it is. A band without width adds nothing to a score.
    scores = [np.nan_to_num(np.abs(band_positions(runs, untreated, 0.95))).max(-1) for runs in (treated, untreated)]
    found = _auc(*scores)
    p = float(np.mean(found >= found[0] - 1e-12)) if exact else math.nan
    return auc_interval(float(found[0]), seeds, seeds), p


def detection(
    table: pd.DataFrame,
    metrics: Sequence[str],
    found: pd.DataFrame,
    rate: float = RATE,
) -> pd.DataFrame:
    """Which metrics tell treated runs from control runs? A row a metric, of all `metrics` that were tried.

    `found`: the table's `alarms` of these metrics at `rate`. Columns metric; runs and control_runs, the treated and the
    control runs that could be judged; detected and false_alarms, those of them with an alarm at `rate`, each with the
    `exact_interval` of its share, as detected_low and so on; detected_family and false_alarms_family, the same at
    rate/len(metrics) (Bonferroni), so that a run without effect raises any alarm of the family with probability `rate`
    at most; auc, auc_low, auc_high; p (of `separation`) and p_holm over the metrics.

    With three seeds a band rests on two runs and t has one degree of freedom. At rate 0.05 over five generations the
    band's half-width is then 76 standard deviations of those two. A shift of all five generations by five standard
    deviations between control runs was detected, in simulation, in 24 % of the runs at three seeds and in 91 % at five;
    by ten in 43 % and 100 %.
    """
    if not metrics:
        raise ValueError("There is no metric to try: give at least one.")
    matched = matched_controls(table).get(TREATMENT)
    family = alarms(table[table["condition"].isin([TREATMENT, matched])], metrics, rate / len(metrics))
    raised = {
        suffix: dict(list(frame.groupby(["metric", "condition"])["alarm"]))
        for suffix, frame in (("", found), ("_family", family))
    }
    rows = []
    for metric in metrics:
        row: dict[str, str | float] = {"metric": metric}
        for runs, count, group in (("runs", "detected", TREATMENT), ("control_runs", "false_alarms", matched)):
            for suffix, by_group in raised.items():
                alarm = by_group.get((metric, group), pd.Series(dtype=float))
                row[f"{count}{suffix}"] = int(np.isfinite(alarm).sum())
                row.setdefault(runs, int(alarm.notna().sum()))
            _, row[f"{count}_low"], row[f"{count}_high"] = exact_interval(row[count], row[runs])
        auc, p = separation(table, metric)
        rows.append(row | {"auc": auc.value, "auc_low": auc.low, "auc_high": auc.high, "p": p})
    frame = pd.DataFrame(rows)
    frame["p_holm"] = holm(frame["p"])
    return frame
