"""Does a series warn? Bands from the control's runs, and detectors with their false-alarm rates."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from .statistics import CONTROL, require_complete


def prediction_band(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Interval for one more draw from the normal population of `values` (n,): mean ± t_{n−1} s √(1 + 1/n).

    (nan, nan) for fewer than two values.
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    half = stats.t.ppf(0.5 + level / 2, n - 1) * values.std(ddof=1) * math.sqrt(1 + 1 / n)
    return float(values.mean() - half), float(values.mean() + half)


def icarus(table: pd.DataFrame, metric: str, control: str = CONTROL, level: float = 0.95) -> pd.DataFrame:
    """The Icarus pattern in every run: a rise above the control at generation 1, a fall below it at the last one.

    A run's change from generation 0 is held against the `prediction_band` of the changes of the control's runs of
    the *other* seeds: a control run is judged as a treated one is, so that the control's share of patterns is the
    false-alarm rate. In a normal population a run without effect rises, and falls, with probability (1 − level)/2.

    Columns condition, seed, rise, fall, icarus (both): 1.0, 0.0, or nan where fewer than two other control runs
    exist. ValueError for an incomplete table or an absent control.
    """
    require_complete(table, metric)
    if control not in set(table["condition"]):
        raise ValueError(f"the table has no condition {control!r} to compare with.")
    values = table.pivot(index=["condition", "seed"], columns="generation", values=metric)
    changes = values.sub(values[0], axis=0)
    first, last = 1, changes.columns.max()
    rows = []
    for condition, seed in changes.index:
        others = changes.loc[control].drop(index=seed, errors="ignore")
        high, low = prediction_band(others[first], level)[1], prediction_band(others[last], level)[0]
        if math.isnan(high):
            rise = fall = math.nan
        else:
            rise = float(changes.loc[(condition, seed), first] > high)
            fall = float(changes.loc[(condition, seed), last] < low)
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
