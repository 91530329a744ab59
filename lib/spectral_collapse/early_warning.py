"""Does a series warn? Bands from the control's runs, alarms at a stated rate, leads over an outcome, and the Icarus
pattern.

A run's change from generation 0 is held against the `prediction_band` of the changes of the control's runs of the
*other* seeds: a control run is judged as a treated one is, so that the alarms of the control's runs are false alarms.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pingouin
from scipy import stats

from .statistics import CONTROL, ROUNDING, TREATMENT, metric_names, require_complete

RATE = 0.05  # false alarms a run and metric, over all generations, in the long run
OUTCOMES = ("held_out_perplexity", "training_loss")


def candidates(table: pd.DataFrame) -> list[str]:
    """The metrics that may warn of an outcome: all but the outcomes."""
    return [name for name in metric_names(table) if name not in OUTCOMES]


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


def changes_by_condition(table: pd.DataFrame, metric: str, control: str) -> dict[str, np.ndarray]:
    """Changes from generation 0 of every condition, (seeds, generations ≥ 1), in the order of seeds."""
    require_complete(table, metric)
    if control not in set(table["condition"]):
        raise ValueError(f"the table has no condition {control!r} to compare with.")
    values = table.pivot(index=["condition", "seed"], columns="generation", values=metric).sort_index()
    changes = values.sub(values[0], axis=0).drop(columns=0)
    return {name: changes.loc[name].to_numpy(float) for name in table["condition"].unique()}


def band_positions(judged: np.ndarray, control: np.ndarray, level: float) -> np.ndarray:
    """Where `judged` lies in the band of the other seeds' controls: 0 is its middle and ±1 are its ends.

    Both (seeds, …), and so is the result; NaN with fewer than two other seeds. Where the band has no width a change is
    0 or ±inf.
    """
    tolerance = ROUNDING * max(np.abs(judged).max(), np.abs(control).max())
    found = np.empty(judged.shape)
    for seed in range(len(control)):
        low, high = prediction_band(np.delete(control, seed, axis=0), level)
        distance = judged[seed] - (low + high) / 2
        distance = np.where(np.abs(distance) <= tolerance, 0.0, distance)
        with np.errstate(divide="ignore", invalid="ignore"):
            found[seed] = np.where(distance == 0, 0.0, distance / ((high - low) / 2))
    return found


def level_of(rate: float, generations: int) -> float:
    """Level of the band of one generation, (1 − rate)^{1/G}, for false alarms at `rate` a run of G generations.

    Šidák's: exact for independent generations; where a run's changes are positively dependent, as those of a random
    walk, false alarms are rarer. At rate 0.05 over five generations they came, in simulation, in 5.0 % of the runs for
    independent changes, and for random walks in 5.0, 4.3 and 3.8 % with three, five and ten seeds.
    """
    return (1 - rate) ** (1 / generations)


def alarms(table: pd.DataFrame, metric: str, rate: float = RATE, control: str = CONTROL) -> pd.DataFrame:
    """First generation at which each run leaves the control's band, on either side, at `level_of(rate, G)`.

    Columns condition, seed; alarm, inf where the run stays inside and NaN where fewer than two other control runs
    exist; direction, the sign of the change at the alarm (0 without one); score, the run's greatest |change − band's
    middle| in half-widths of its band, above 1 exactly where there is an alarm.
    """
    changes = changes_by_condition(table, metric, control)
    seeds = sorted(table["seed"].unique())
    rows = []
    for condition, judged in changes.items():
        positions = band_positions(judged, changes[control], level_of(rate, judged.shape[1]))
        for seed, run in zip(seeds, positions, strict=True):
            outside = np.flatnonzero(np.abs(run) > 1)
            alarm = math.nan if np.isnan(run).any() else float(outside[0] + 1) if len(outside) else math.inf
            direction = np.sign(run[outside[0]]) if len(outside) else 0.0
            rows.append((condition, seed, alarm, direction, np.abs(run).max()))
    return pd.DataFrame(rows, columns=["condition", "seed", "alarm", "direction", "score"])


def leads(
    table: pd.DataFrame,
    metric: str,
    outcome: str,
    rate: float = RATE,
    condition: str = TREATMENT,
    control: str = CONTROL,
) -> pd.DataFrame:
    """Lead of a metric over an outcome in every treated run, alarm(outcome) − alarm(metric) in generations.

    What never fires in G generations fires after them, at G + 1 or later. Columns seed, metric_alarm, outcome_alarm
    (as `alarms`), low, high: the values that the lead may have. low = high where both fire; metric alone: low =
    G + 1 − alarm(metric), high = inf; outcome alone: low = −inf, high = alarm(outcome) − G − 1; neither: −inf, inf.
    """
    last = table["generation"].max()
    judged = table[table["condition"].isin([condition, control])]
    found = {name: alarms(judged, name, rate, control).set_index(["condition", "seed"]) for name in (metric, outcome)}
    first, second = (found[name].loc[condition, "alarm"] for name in (metric, outcome))
    frame = pd.DataFrame({"metric_alarm": first, "outcome_alarm": second})
    frame["low"] = second.clip(upper=last + 1) - first
    frame["high"] = second - first.clip(upper=last + 1)
    return frame.reset_index()


def lead_summary(
    table: pd.DataFrame,
    metrics: Sequence[str],
    outcome: str,
    rate: float = RATE,
    condition: str = TREATMENT,
    control: str = CONTROL,
) -> pd.DataFrame:
    """`leads` over the runs, a row a metric.

    Columns metric; both, metric_only, outcome_only, neither (numbers of runs by what fired); median, of the lead over
    the runs in which both fire; low, high: where the median lead lies over all runs in which anything fires, every
    censored run at its least and at its greatest; earlier, later: runs in which the metric certainly fired before and
    after the outcome; p, the one-sided sign test that it fires earlier more often than later, and p_holm over metrics.
    All counts are 0 where runs cannot be judged.
    """
    rows = []
    for metric in metrics:
        runs = leads(table, metric, outcome, rate, condition, control).dropna()
        fired = np.isfinite(runs[["metric_alarm", "outcome_alarm"]].to_numpy()).reshape(-1, 2)
        known, any_fired = fired.all(1), fired.any(1)
        counts = (
            known.sum(),
            (fired[:, 0] & ~fired[:, 1]).sum(),
            (~fired[:, 0] & fired[:, 1]).sum(),
            (~any_fired).sum(),
        )
        medians = [
            float(np.median(values)) if len(values) else math.nan
            for values in (runs.loc[known, "low"], runs.loc[any_fired, "low"], runs.loc[any_fired, "high"])
        ]
        earlier, later = int((runs["low"] > 0).sum()), int((runs["high"] < 0).sum())
        decided = earlier + later
        p = stats.binomtest(earlier, decided, alternative="greater").pvalue if decided else 1.0
        rows.append((metric, *map(int, counts), *medians, earlier, later, p))
    names = [
        "metric",
        "both",
        "metric_only",
        "outcome_only",
        "neither",
        "median",
        "low",
        "high",
        "earlier",
        "later",
        "p",
    ]
    frame = pd.DataFrame(rows, columns=names)
    frame["p_holm"] = pingouin.multicomp(frame["p"].to_numpy(float), method="holm")[1]
    return frame


def icarus(table: pd.DataFrame, metric: str, control: str = CONTROL, level: float = 0.95) -> pd.DataFrame:
    """The Icarus pattern in every run: a rise above the control at generation 1, a fall below it at the last one.

    In a normal population a run without effect rises, and falls, with probability (1 − level)/2.

    Columns condition, seed, rise, fall, icarus (both): 1.0, 0.0, or nan where fewer than two other control runs
    exist. ValueError for an incomplete table or an absent control.
    """
    changes = changes_by_condition(table, metric, control)
    seeds = sorted(table["seed"].unique())
    rows = []
    for condition, judged in changes.items():
        for seed, run in zip(seeds, band_positions(judged, changes[control], level), strict=True):
            rise, fall = (math.nan, math.nan) if np.isnan(run).any() else (float(run[0] > 1), float(run[-1] < -1))
            rows.append((condition, seed, rise, fall, rise * fall))
    return pd.DataFrame(rows, columns=["condition", "seed", "rise", "fall", "icarus"])


def icarus_counts(table: pd.DataFrame, metric: str, control: str = CONTROL) -> pd.DataFrame:
    """Runs of each condition, and how many of them rise, fall, and do both; the control's are false alarms.

    Columns condition, runs (that could be judged), rise, fall, icarus.
    """
    found = icarus(table, metric, control)
    counts = found.groupby("condition", sort=False)[["rise", "fall", "icarus"]].sum().astype(int)
    counts.insert(0, "runs", found.groupby("condition", sort=False)["rise"].count())
    return counts.reset_index()
