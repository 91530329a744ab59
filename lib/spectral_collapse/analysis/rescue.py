"""Reversibility: does perplexity return into the control's band after rescue, and which metric tells beforehand?"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from .early_warning import prediction_band
from .metrics import COLLAPSE
from .statistics import TREATMENT, changes, matched_controls

OUTCOME = "held_out_perplexity"


def rescued(results: Iterable[tuple[str, int, int, dict]]) -> pd.DataFrame:
    """Results of the stage `rescue`: columns condition, seed, generation, perplexity."""
    rows = [(condition, seed, generation, result[OUTCOME]) for condition, seed, generation, result in results]
    return pd.DataFrame(rows, columns=["condition", "seed", "generation", "perplexity"])


def reversibility(table: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Whether the perplexity of each rescued model lies in the band of its matched control, or below it.

    Changes from generation 0 are compared with the `prediction_band` of the control's runs of the *other* seeds at the
    same generation. Columns condition, seed, generation, before, after (both changes), high (upper end of the band),
    reversible: 1.0, 0.0, or NaN without a control of the same weights or with fewer than two other control runs.
    ValueError for an incomplete table or an absent control.
    """
    moved, controls = changes(table, OUTCOME), matched_controls(table)
    start = table[table["generation"] == 0].set_index(["condition", "seed"])[OUTCOME]
    rows = []
    for condition, seed, generation, perplexity in after.itertuples(index=False):
        high = math.nan
        if controls[condition] is not None:
            others = moved.loc[controls[condition]].drop(index=seed, errors="ignore")
            high = float(prediction_band(others[generation])[1])
        back = perplexity - start[condition, seed]
        reversible = float(back <= high) if math.isfinite(high) else math.nan
        rows.append((condition, seed, generation, moved.loc[(condition, seed), generation], back, high, reversible))
    return pd.DataFrame(rows, columns=["condition", "seed", "generation", "before", "after", "high", "reversible"])


def recovered(table: pd.DataFrame, results: Iterable[tuple[str, int, int, dict]]) -> pd.DataFrame:
    """Share of the gap to the matched control that real text closes, by dose: columns condition, seed, dose, steps,
    share.

    `results`: those of the stage `doses`, of treated runs and of their matched controls, which take the same doses:
    share = 1 − (log P_treated − log P_control after the dose)/(the same before it), P held-out perplexity. 0: nothing
    is recovered; 1: all of it. NaN where there is no gap. Without results of a control its conditions are left out.
    """
    controls = matched_controls(table)
    last = table[table["generation"] == table["generation"].max()].set_index(["condition", "seed"])[OUTCOME]
    after = {(condition, seed): result for condition, seed, _, result in results}
    rows = []
    for (condition, seed), result in after.items():
        control = controls[condition]
        if control in (None, condition) or (control, seed) not in after:
            continue
        before = math.log(last[condition, seed] / last[control, seed])
        for place, dose in enumerate(result["doses"]):
            ends = [one[OUTCOME][place] for one in (result, after[control, seed])]
            share = 1 - math.log(ends[0] / ends[1]) / before if before > 0 else math.nan
            rows.append((condition, seed, dose, result["steps"][place], share))
    return pd.DataFrame(rows, columns=["condition", "seed", "dose", "steps", "share"])


def turning_point(found: pd.DataFrame) -> dict[int, float]:
    """Seed to the generation from which on its run is irreversible, inf where it is reversible at the last.

    Runs that could not be judged are left out.
    """
    points = {}
    for seed, run in found.dropna(subset="reversible").sort_values("generation").groupby("seed"):
        reversible = np.flatnonzero(run["reversible"])
        first = reversible[-1] + 1 if len(reversible) else 0
        points[seed] = float(run["generation"].iloc[first]) if first < len(run) else math.inf
    return points


def reversibility_counts(found: pd.DataFrame) -> pd.DataFrame:
    """What `reversibility` says of each condition: rescued, judged and reversible models; runs judged, runs lost (with
    a turning point), and the median turning point of those."""
    rows = {}
    for condition, models in found.groupby("condition"):
        points = turning_point(models).values()
        lost = [point for point in points if math.isfinite(point)]
        rows[condition] = {
            "rescued": len(models),
            "judged": int(models["reversible"].notna().sum()),
            "reversible": int(models["reversible"].sum()),
            "runs": len(points),
            "lost": len(lost),
            "turning": float(np.median(lost)) if lost else math.nan,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _separation(values: np.ndarray, irreversible: np.ndarray) -> tuple[float, float]:
    """AUC of greater values for irreversibility, and the midpoint cut of the largest Youden index."""
    ones = int(irreversible.sum())
    zeros = len(values) - ones
    if not ones or not zeros:
        return math.nan, math.nan
    auc = (rankdata(values)[irreversible].sum() - ones * (ones + 1) / 2) / (ones * zeros)
    order = np.unique(values)
    cuts = np.concatenate([[order[0]], (order[1:] + order[:-1]) / 2])
    gains = [(values[irreversible] >= cut).mean() - (values[~irreversible] >= cut).mean() for cut in cuts]
    return float(auc), float(cuts[int(np.argmax(gains))])


def separation(
    table: pd.DataFrame, found: pd.DataFrame, metrics: Sequence[str], condition: str = TREATMENT
) -> pd.DataFrame:
    """How well a metric before the rescue separates irreversible models of a condition from reversible ones.

    Changes from generation 0 of every rescued model, in the direction of `COLLAPSE`. Columns condition, metric,
    direction (1 or −1), auc (below 0.5 where the metric moves to the other side), threshold (of the change, in sample),
    models and runs. There is no interval: models of one run are alike and runs are few, so that a bootstrap is too
    short. NaN where all models are of one kind. ValueError for a metric without a direction.
    """
    if unknown := [metric for metric in metrics if metric not in COLLAPSE]:
        raise ValueError(f"No direction is fixed for {unknown[0]}: give it one in analysis/metrics.py.")
    judged = found[found["condition"] == condition].dropna(subset="reversible")
    models = pd.MultiIndex.from_frame(judged[["condition", "seed", "generation"]])
    rows = []
    for metric in metrics:
        moved = COLLAPSE[metric] * changes(table, metric).stack().loc[models].to_numpy(float)
        auc, threshold = _separation(moved, judged["reversible"].to_numpy() == 0)
        counts = len(judged), judged["seed"].nunique()
        rows.append((condition, metric, COLLAPSE[metric], auc, COLLAPSE[metric] * threshold, *counts))
    names = ["condition", "metric", "direction", "auc", "threshold", "models", "runs"]
    return pd.DataFrame(rows, columns=names)
