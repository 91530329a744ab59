"""SIGMA's settings S1 (weights restart) and S2 (weights are carried over): their drifts, slopes and proxies."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr

from ..estimate import Estimate
from ..record.schema import Params, split_condition
from ..sigma import TRACKS, ols_slope, track_agreement
from .metrics import COLLAPSE
from .statistics import matched_controls

# Metrics under the published artefacts' column names.
COLUMNS = {
    "track_two_drift": "track2_drift",
    "track_one_drift": "track1_drift",
    "track_one_sharp_drift": "track1_sharp_drift",
    "response_distinct_2": "distinct2",
    "hashed_ngram_hhi": "hhi",
    "logdet_drift": "logdet_drift",
}


def settings(params: Params) -> dict[str, str]:
    """The conditions that are S1 and S2, {} unless the profile has both.

    Both train on synthetic text alone, or both on `mixed` text with one real fraction α.
    """
    found: dict[str, dict[str, str]] = {}
    for condition in params.conditions:
        source, weights = split_condition(condition, params.weights)
        if source in ("recursive", "mixed"):
            found.setdefault(source, {})[weights] = condition
    pairs = [conditions for conditions in found.values() if len(conditions) == 2]
    return {"S1": pairs[0]["restart"], "S2": pairs[0]["carry"]} if pairs else {}


# ---- drifts of several runs (`series.drifts`)


def last_drifts(drifts: pd.DataFrame) -> pd.DataFrame:
    """Drift of every condition and track at the last generation: columns condition, track, generation, runs, drift,
    low, high; the mean over runs with its t interval, of a single run its own band. Tracks are in their order."""
    last = drifts[drifts["generation"] == drifts["generation"].max()]
    rows = []
    for (condition, track), runs in last.groupby(["condition", "track"], sort=False):
        found = Estimate.mean(runs["drift"]) if len(runs) > 1 else runs[["drift", "low", "high"]].iloc[0]
        rows.append((condition, track, runs["generation"].iloc[0], len(runs), *found))
    frame = pd.DataFrame(rows, columns=["condition", "track", "generation", "runs", "drift", "low", "high"])
    return frame.sort_values("track", key=lambda names: names.map(TRACKS.index), kind="stable", ignore_index=True)


def differences(drifts: pd.DataFrame, names: Mapping[str, str], track: str) -> pd.Series:
    """Last drift of a track in S2 less that in S1, by seed; `names`: the conditions by setting."""
    last = drifts[(drifts["generation"] == drifts["generation"].max()) & (drifts["track"] == track)]
    wide = last.pivot(index="seed", columns="condition", values="drift")
    return wide[names["S2"]] - wide[names["S1"]]


def compared(drifts: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """`last_drifts` with the column setting, S1 or S2, and rows of the setting `difference`: S2 less S1 paired by seed,
    with its t interval. `names`: the conditions by setting."""
    last, settings_of = last_drifts(drifts), {condition: setting for setting, condition in names.items()}
    last["setting"] = last["condition"].map(settings_of)
    tracks = last["track"].unique()
    gaps = [("difference", track, *Estimate.mean(differences(drifts, names, track))) for track in tracks]
    return pd.concat([last, pd.DataFrame(gaps, columns=["setting", "track", "drift", "low", "high"])])


# ---- against control runs of the same length


def first_beyond(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """When each run of a condition with a matched control leaves what the control's runs ever did: columns metric,
    condition, seed, generation; inf where it never does.

    Changes since generation 0 are compared: a run is beyond where its change is greater than every change of every
    control run, or smaller than every one; to the side of collapse alone where `metrics.COLLAPSE` has it. A run without
    effect lies at one of G generations beyond R control runs of G, to one side, with probability 1/(R + 1) if all are
    independent draws.
    """
    rows, controls = [], matched_controls(table)
    pairs = {condition: control for condition, control in controls.items() if control not in (None, condition)}
    for metric, (condition, control) in itertools.product(metrics, pairs.items()):
        wide = table.pivot(index=["condition", "seed"], columns="generation", values=metric)
        later, direction = wide.sub(wide[0], axis=0).drop(columns=0), COLLAPSE.get(metric, 0)
        known, treated = later.loc[control], later.loc[[condition]]
        above, below = treated > known.max(axis=None), treated < known.min(axis=None)
        beyond = (above & (direction >= 0)) | (below & (direction <= 0))
        first = beyond.idxmax(axis=1).where(beyond.any(axis=1), np.inf)
        rows += [(metric, *run, generation) for run, generation in first.items()]
    return pd.DataFrame(rows, columns=["metric", "condition", "seed", "generation"])


# ---- tables of the SIGMA paper, from `series.table`


def points(table: pd.DataFrame, condition: str) -> pd.DataFrame:
    """Means over seeds by generation, to six decimals, under the published column names: what the plots show."""
    columns = [name for name in COLUMNS if name in table]
    rows = table[table["condition"] == condition].groupby("generation")[columns].mean()
    return rows.rename(columns=COLUMNS).round(6).reset_index()


def summary(points: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Final drift and OLS slope of both tracks and whether they agree, from the points of each setting (Table 1)."""
    rows = []
    for setting, frame in points.items():
        drifts = [frame[name].to_numpy() for name in ("track2_drift", "track1_drift")]
        scalars = [value for drift in drifts for value in (drift[-1], ols_slope(drift, frame["generation"]))]
        rows.append((setting, frame["generation"].iloc[-1], *scalars, track_agreement(*drifts[::-1])))
    names = ["track2_final_drift", "track2_slope", "track1_final_drift", "track1_slope", "agree"]
    return pd.DataFrame(rows, columns=["setting", "final_generation", *names])


def proxies(points: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Surface proxies at both ends, and their correlations with Track II over the generations (Table 14).

    The formulas of the published headings are lost; the third correlation is read as Pearson's r with the HHI.
    """
    rows = []
    for setting, frame in points.items():
        two, distinct, hhi = (frame[name] for name in ("track2_drift", "distinct2", "hhi"))

        def correlation(measure, other: pd.Series, two: pd.Series = two) -> float:
            return measure(two, other).statistic if two.nunique() > 1 and other.nunique() > 1 else math.nan

        rhos = correlation(spearmanr, distinct), correlation(pearsonr, hhi), correlation(spearmanr, hhi)
        ends = [other.iloc[place] for other in (distinct, hhi) for place in (0, -1)]
        rows.append((setting, *ends, *rhos))
    ends = ["distinct2_first", "distinct2_last", "hhi_first", "hhi_last"]
    return pd.DataFrame(rows, columns=["setting", *ends, "rho_distinct2", "r_hhi", "rho_hhi"])


# ---- the published series


PUBLISHED_DIMENSION = 384  # of its embeddings


def published_counts(points: pd.DataFrame) -> dict[str, float]:
    """Whole numbers of blocks behind the published S1 series: Track I − Track II = m log(n_A(t)/n_A(0)).

    base: the n_A(0) from 100 to 1,900 for which whole n_A(t) come nearest to every printed difference; least and most:
    of n_A(t); series: their number; error: the largest distance in nats.
    """
    gaps = (points["track1_drift"] - points["track2_drift"]).to_numpy()[points["generation"] > 0]
    bases = np.arange(100, 1901)[:, None]
    counts = np.round(bases * np.exp(gaps / PUBLISHED_DIMENSION))
    errors = np.abs(PUBLISHED_DIMENSION * np.log(counts / bases) - gaps).max(axis=1)
    best = int(errors.argmin())
    return {
        "base": int(bases[best, 0]),
        "least": int(counts[best].min()),
        "most": int(counts[best].max()),
        "series": len(gaps),
        "error": float(errors[best]),
    }
