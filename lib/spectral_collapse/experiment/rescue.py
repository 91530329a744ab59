"""Rescue: one generation of real text after recursion. Does perplexity come back, and what tells beforehand?"""

import copy
import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from ..analysis.early_warning import prediction_band
from ..analysis.statistics import CONTROL, TREATMENT, changes, matched_controls
from ..model import train
from ..paper.formatting import format_number
from ..paper.tables import Number, Raw, frame_of, label
from . import loop
from .runs import View, stage

OUTCOME = "held_out_perplexity"
# To which side a metric moves in a collapsing model, as the two studies and the field have it, fixed before these runs.
COLLAPSE = {
    **dict.fromkeys(("log_spectral_ratio", "log_published_ratio", "lambda_max", "track_two_drift"), -1),
    **dict.fromkeys(("distinct_2", "tail_coverage"), -1),
    **dict.fromkeys(("held_out_perplexity", "bulk_sigma", "repetition_4", "hashed_ngram_hhi"), 1),
}


@stage()
def rescue(run: View, generation: int) -> dict:
    """Held-out perplexity after one more generation of training, on the real text that the fresh control's generation
    of this number had, from the weights of this generation (≥ 1)."""
    model, recipe = copy.deepcopy(loop.load(run, generation)), loop.recipe_of(run)
    blocks = run.real.slice(run.seed, generation)
    losses, state = loop.learn(run, generation, model, blocks, recipe, "rescue")
    state.unlink(missing_ok=True)
    return train.perplexity(model, run.real.held_out, run.params.batch_size) | {"steps": len(losses)}


def rescued(results: Iterable[tuple[str, int, int, dict]]) -> pd.DataFrame:
    """Perplexities after rescue: columns condition, seed, generation, perplexity."""
    rows = [(condition, seed, generation, result[OUTCOME]) for condition, seed, generation, result in results]
    return pd.DataFrame(rows, columns=["condition", "seed", "generation", "perplexity"])


def reversibility(
    table: pd.DataFrame, after: pd.DataFrame, control: str = CONTROL, level: float = 0.95
) -> pd.DataFrame:
    """Whether each rescued model's perplexity lies in the band of its matched control, or below it.

    Changes from generation 0 are compared, with the `prediction_band` of the control runs of the *other* seeds at the
    same generation. Columns condition, seed, generation, before, after (both as changes), high (the band's upper end),
    reversible: 1.0, 0.0, or nan without a control of the same weights and where fewer than two other control runs
    exist. ValueError for an incomplete table or an absent control.
    """
    moved, controls = changes(table, OUTCOME), matched_controls(table, control)
    start = table[table["generation"] == 0].set_index(["condition", "seed"])[OUTCOME]
    rows = []
    for condition, seed, generation, perplexity in after.itertuples(index=False):
        high = math.nan
        if controls[condition] is not None:
            others = moved.loc[controls[condition]].drop(index=seed, errors="ignore")
            high = float(prediction_band(others[generation], level)[1])
        back = perplexity - start[condition, seed]
        reversible = float(back <= high) if math.isfinite(high) else math.nan
        rows.append((condition, seed, generation, moved.loc[(condition, seed), generation], back, high, reversible))
    return pd.DataFrame(rows, columns=["condition", "seed", "generation", "before", "after", "high", "reversible"])


def turning_point(found: pd.DataFrame) -> dict[int, float]:
    """Seed to the first generation from which on a run is irreversible, inf where it is reversible at the last.

    Runs that could not be judged are left out.
    """
    points = {}
    for seed, run in found.dropna(subset="reversible").sort_values("generation").groupby("seed"):
        lost = run["reversible"].to_numpy() == 0
        kept = np.flatnonzero(~lost)
        first = kept[-1] + 1 if len(kept) else 0
        points[seed] = float(run["generation"].iloc[first]) if first < len(run) else math.inf
    return points


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
    """How well the value of a metric before the rescue tells irreversible models from reversible ones.

    Changes from generation 0 of every rescued model, in the direction of `COLLAPSE`. Columns condition, metric,
    direction (1 or −1), auc (below 0.5 where the metric moves to the other side), threshold (of the change, in sample),
    models and runs. Models of one run are alike and the runs are few, so that there is no interval that would cover: a
    bootstrap over them is too short. NaN where all models are of one kind. ValueError for a metric without a direction.
    """
    if unknown := [metric for metric in metrics if metric not in COLLAPSE]:
        raise ValueError(f"No direction is fixed for {unknown[0]}: give it one in rescue.COLLAPSE.")
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


# ---- for the paper


def table(separated: pd.DataFrame) -> pd.DataFrame:
    """`separation` for readers, one condition or several."""
    rows = [
        [
            row.condition,
            label(row.metric),
            "rises" if row.direction > 0 else "falls",
            Number(format_number(row.auc)),
            Number(format_number(row.threshold)),
            Number(f"{row.models} of {row.runs} runs"),
        ]
        for row in separated.itertuples()
    ]
    return frame_of(rows, ["Condition", "Metric", "Said to", "AUC", Raw("Threshold (change)"), "Models"])


def values(found: pd.DataFrame) -> dict[str, str]:
    """Of every condition C with judged models: rescue.models.C, their number; rescue.reversible.C; rescue.runs.C;
    rescue.lost.C, runs with a turning point, and rescue.turning.C, its median generation among them, if there are any.
    Of one without: rescue.unjudged.C, its number of models."""
    text = {}
    for condition, rescued_models in found.groupby("condition"):
        judged = rescued_models.dropna(subset="reversible")
        if judged.empty:
            text[f"rescue.unjudged.{condition}"] = str(len(rescued_models))
            continue
        points = turning_point(judged).values()
        lost = [point for point in points if math.isfinite(point)]
        text |= {
            f"rescue.models.{condition}": str(len(judged)),
            f"rescue.reversible.{condition}": str(int(judged["reversible"].sum())),
            f"rescue.runs.{condition}": str(len(points)),
            f"rescue.lost.{condition}": str(len(lost)),
        }
        if lost:
            text[f"rescue.turning.{condition}"] = f"{np.median(lost):g}"
    return text
