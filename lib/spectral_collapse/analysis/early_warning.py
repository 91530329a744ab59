"""Does a series warn? Bands from the control's runs, alarms at a stated rate, leads over an outcome, and the Icarus
pattern.

A run's change from generation 0 is held against the `prediction_band` of the changes of its matched control's runs of
the *other* seeds: a control run is judged as a treated one is, and the alarms of the control's runs are false alarms.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from .statistics import ALPHA, ROUNDING, TREATMENT, changes, holm, matched_controls

RATE = 0.05  # false alarms a run and metric, over all generations, in the long run
NO_LEAD = "not shown to be earlier"


def prediction_band(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval for one more draw from the normal population of `values`: mean ± t_{n−1} s √(1 + 1/n).

    `values` (n, …), runs first; the ends have the shape (…). NaN for fewer than two runs.
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    half = stats.t.ppf(0.5 + level / 2, n - 1) * values.std(0, ddof=1) * math.sqrt(1 + 1 / n)
    return values.mean(0) - half, values.mean(0) + half


def band_positions(judged: np.ndarray, control: np.ndarray, level: float) -> np.ndarray:
    """Where `judged` lies in the band of the other seeds' controls: 0 is its middle and ±1 are its ends.

    Both (seeds, …), and so is the result; NaN with fewer than two other seeds. A band without width says nothing of how
    far one more run would lie: controls tie where a metric counts in steps. There a change that equals the controls' is
    0, and any other NaN.
    """
    tolerance = ROUNDING * max(np.abs(judged).max(), np.abs(control).max())
    found = np.empty(judged.shape)
    for seed in range(len(control)):
        low, high = prediction_band(np.delete(control, seed, axis=0), level)
        distance, half = judged[seed] - (low + high) / 2, (high - low) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            found[seed] = np.where(half > tolerance, distance / half, np.where(np.abs(distance) > tolerance, np.nan, 0))
        found[seed] = np.where(np.isnan(half), np.nan, found[seed])
    return found


def positions(table: pd.DataFrame, metric: str, level: float) -> pd.DataFrame:
    """`band_positions` of every run in the band of its matched control: rows (condition, seed), a column for every
    generation after 0; NaN for conditions without a control of their own weights.

    ValueError for an incomplete table, an absent control, and a table without generation 0.
    """
    controls, moved = matched_controls(table), changes(table, metric)
    found = []
    for name in table["condition"].unique():
        runs = moved.loc[[name]]
        if controls[name] is None:
            found.append(runs * math.nan)
        else:
            places = band_positions(runs.to_numpy(float), moved.loc[controls[name]].to_numpy(float), level)
            found.append(pd.DataFrame(places, runs.index, runs.columns))
    return pd.concat(found)


def level_of(rate: float, generations: int) -> float:
    """Level of the band of one generation, (1 − rate)^{1/G}, for false alarms at `rate` a run of G generations.

    Šidák's: exact for independent generations; where a run's changes are positively dependent, as those of a random
    walk, false alarms are rarer. At rate 0.05 over five generations they came, in simulation, in 5.0 % of the runs for
    independent changes, and for random walks in 5.0, 4.3 and 3.8 % with three, five and ten seeds.
    """
    return (1 - rate) ** (1 / generations)


def excursion(controls: int, generations: int, rate: float = RATE) -> float:
    """How far a run must lie from the mean of so many control runs to raise an alarm, in their standard deviations:
    t_{n−1} √(1 + 1/n) at `level_of(rate, generations)`; infinite for fewer than two.

    >>> [round(excursion(n, 8), 2) for n in (2, 4, 9)]
    [121.99, 7.65, 3.86]
    """
    if controls < 2:
        return math.inf
    share = 0.5 + level_of(rate, generations) / 2
    return float(stats.t.ppf(share, controls - 1)) * math.sqrt(1 + 1 / controls)


def alarms(table: pd.DataFrame, metrics: Sequence[str], rate: float = RATE) -> pd.DataFrame:
    """First generation at which each run leaves its control's band, on either side, at `level_of(rate, G)`.

    Columns metric, condition, seed; alarm, a generation of the table, inf where the run stays inside, and NaN where
    that cannot be judged: with fewer than two other control runs, without a matched control, or where a band has no
    width before any alarm; direction, the sign of the change at the alarm (0 without one); score, the run's greatest
    distance from a band's middle in half-widths, over the bands that have a width: above 1 where there is an alarm.
    """
    level = level_of(rate, max(table["generation"].nunique() - 1, 1))
    rows = []
    for metric in metrics:
        for (condition, seed), run in positions(table, metric, level).iterrows():
            sizes = run.abs()
            open_or_out = sizes.index[~(sizes <= 1)]  # NaN is neither inside nor outside
            first = open_or_out[0] if len(open_or_out) else None
            alarm = math.inf if first is None else math.nan if math.isnan(run[first]) else float(first)
            direction = float(np.sign(run[first])) if math.isfinite(alarm) else 0.0
            rows.append((metric, condition, seed, alarm, direction, sizes.max()))
    return pd.DataFrame(rows, columns=["metric", "condition", "seed", "alarm", "direction", "score"])


def leads(
    found: pd.DataFrame, metric: str, outcome: str, generations: Sequence[int], condition: str = TREATMENT
) -> pd.DataFrame:
    """Lead of a metric over an outcome in every run of a condition, alarm(outcome) − alarm(metric) in generations.

    `found`: their `alarms` in a table of these generations. What never fires up to the last generation G fires after
    it, at G + 1 or later. Columns seed, metric_alarm, outcome_alarm, low, high: the values that the lead may have.
    low = high where both fire; metric alone: low = G + 1 − alarm(metric), high = inf; outcome alone: low = −inf, high =
    alarm(outcome) − G − 1; neither: ∓inf.
    """
    after = max(generations) + 1
    runs = found[found["condition"] == condition].set_index("seed")
    first, second = (runs.loc[runs["metric"] == name, "alarm"] for name in (metric, outcome))
    frame = pd.DataFrame({"metric_alarm": first, "outcome_alarm": second})
    frame["low"] = second.clip(upper=after) - first
    frame["high"] = second - first.clip(upper=after)
    return frame.reset_index()


def lead_summary(
    found: pd.DataFrame, metrics: Sequence[str], outcome: str, generations: Sequence[int], condition: str = TREATMENT
) -> pd.DataFrame:
    """`leads` over the runs, a row a metric.

    Columns metric; both, metric_only, outcome_only, neither (numbers of runs by what fired); median, of the lead over
    the runs in which both fire; low, high: bounds of the runs' own median lead, over all runs in which anything fires,
    every censored run at its least and at its greatest: no confidence interval; earlier, later: runs in which the
    metric certainly fired before and after the outcome; p, the one-sided sign test that it fires earlier more often
    than later, and p_holm over metrics: give all that were tried; verdict, in words. All counts are 0 where runs cannot
    be judged.
    """
    rows = []
    for metric in metrics:
        runs = leads(found, metric, outcome, generations, condition).dropna()
        fired = np.isfinite(runs[["metric_alarm", "outcome_alarm"]].to_numpy()).reshape(-1, 2)
        known, any_fired = fired.all(1), fired.any(1)
        low, high = runs["low"], runs["high"]
        medians = low[known].median(), low[any_fired].median(), high[any_fired].median()
        earlier, later = int((low > 0).sum()), int((high < 0).sum())
        decided = earlier + later
        rows.append(
            {
                "metric": metric,
                "both": int(known.sum()),
                "metric_only": int((fired[:, 0] & ~fired[:, 1]).sum()),
                "outcome_only": int((~fired[:, 0] & fired[:, 1]).sum()),
                "neither": int((~any_fired).sum()),
                **dict(zip(("median", "low", "high"), medians, strict=True)),
                "earlier": earlier,
                "later": later,
                "p": stats.binomtest(earlier, decided, alternative="greater").pvalue if decided else 1.0,
            }
        )
    frame = pd.DataFrame(rows)
    frame["p_holm"] = holm(frame["p"])
    frame["verdict"] = [lead_verdict(*row) for row in frame[["p", "p_holm"]].to_numpy()]
    return frame


def lead_verdict(p: float, p_holm: float) -> str:
    """`earlier` if the sign test of `lead_summary` rejects at 0.05 after Holm's correction over all metrics tried."""
    if p_holm < ALPHA:
        return "earlier"
    return "earlier before correction, not after" if p < ALPHA else NO_LEAD


def icarus(table: pd.DataFrame, metric: str, level: float = 0.95) -> pd.DataFrame:
    """The Icarus pattern in every run: a rise above the control at generation 1, a fall below it at the last one.

    In a normal population a run without effect rises, and falls, with probability (1 − level)/2.

    Columns condition, seed, rise, fall, icarus (both): 1.0, 0.0, or nan where the bands of those two generations cannot
    be had, as with fewer than two other control runs. ValueError as in `positions`.
    """
    rows = []
    for (condition, seed), run in positions(table, metric, level).iterrows():
        first, last = run.get(1, math.nan), run.iloc[-1] if len(run) else math.nan
        judged = math.isfinite(first) and math.isfinite(last)
        rise, fall = (float(first > 1), float(last < -1)) if judged else (math.nan, math.nan)
        rows.append((condition, seed, rise, fall, rise * fall))
    return pd.DataFrame(rows, columns=["condition", "seed", "rise", "fall", "icarus"])


def icarus_counts(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Runs of each condition, and how many of them rise, fall, and do both; the control's are false alarms.

    Columns condition, runs (that could be judged), rise, fall, icarus.
    """
    groups = icarus(table, metric).groupby("condition", sort=False)
    counts = groups[["rise", "fall", "icarus"]].sum().astype(int)
    counts.insert(0, "runs", groups["rise"].count())
    return counts.reset_index()
