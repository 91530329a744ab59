"""Rescue: one generation of real text after recursion. Does perplexity come back, and what tells beforehand?"""

import copy
import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from . import loop, train
from .early_warning import prediction_band
from .formatting import format_interval
from .runs import View, stage
from .seeding import generator
from .statistics import CONTROL, TREATMENT, Interval, require_complete
from .tables import Number, Raw, frame_of, label

OUTCOME = "held_out_perplexity"


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
    """Whether each rescued model's perplexity lies in the band of the fresh control, or below it.

    Changes from generation 0 are compared, with the `prediction_band` of the control runs of the *other* seeds at the
    same generation. Columns condition, seed, generation, before, after (both as changes), high (the band's upper end),
    reversible: 1.0, 0.0, or nan where fewer than two other control runs exist. ValueError for an incomplete table or an
    absent control.
    """
    require_complete(table, OUTCOME)
    if control not in set(table["condition"]):
        raise ValueError(f"the table has no condition {control!r} to compare with.")
    values = table.pivot(index=["condition", "seed"], columns="generation", values=OUTCOME)
    changes = values.sub(values[0], axis=0)
    rows = []
    for condition, seed, generation, perplexity in after.itertuples(index=False):
        others = changes.loc[control].drop(index=seed, errors="ignore")
        high = prediction_band(others[generation], level)[1]
        moved = perplexity - values.loc[(condition, seed), 0]
        reversible = float(moved <= high) if math.isfinite(high) else math.nan
        rows.append((condition, seed, generation, changes.loc[(condition, seed), generation], moved, high, reversible))
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
    """AUC of values for irreversibility, (max of both directions), and the midpoint cut of the largest Youden index."""
    ones = int(irreversible.sum())
    zeros = len(values) - ones
    if not ones or not zeros:
        return math.nan, math.nan
    auc = (rankdata(values)[irreversible].sum() - ones * (ones + 1) / 2) / (ones * zeros)
    signed = values if auc >= 0.5 else -values
    order = np.unique(signed)
    cuts = np.concatenate([[order[0]], (order[1:] + order[:-1]) / 2])
    gains = [(signed[irreversible] >= cut).mean() - (signed[~irreversible] >= cut).mean() for cut in cuts]
    cut = cuts[int(np.argmax(gains))]
    return max(auc, 1 - auc), float(cut if auc >= 0.5 else -cut)


def separation(
    table: pd.DataFrame,
    found: pd.DataFrame,
    metrics: Sequence[str],
    condition: str = TREATMENT,
    resamples: int = 1000,
) -> pd.DataFrame:
    """How well the value of a metric before the rescue tells irreversible models from reversible ones.

    Changes from generation 0 of every rescued model. Columns condition, metric, auc (of the better direction, 0.5 to
    1), auc_low, auc_high, threshold, threshold_low, threshold_high: percentiles of a bootstrap over runs, at 95 %.
    Models of one run are alike, and few runs make the intervals too short. All NaN where all models are of one kind.
    """
    judged = found[found["condition"] == condition].dropna(subset="reversible")
    seeds = judged["seed"].unique()
    rows = []
    for metric in metrics:
        values = table.pivot(index=["condition", "seed"], columns="generation", values=metric)
        changes = values.sub(values[0], axis=0).loc[condition]
        parts = {
            seed: (
                np.array([changes.loc[seed, generation] for generation in run["generation"]]),
                run["reversible"].to_numpy() == 0,
            )
            for seed, run in judged.groupby("seed")
        }

        def of(chosen: Sequence[int], parts: dict = parts) -> tuple[float, float]:
            return _separation(*(np.concatenate([parts[seed][part] for seed in chosen]) for part in (0, 1)))

        auc, threshold = of(seeds) if len(seeds) else (math.nan, math.nan)
        ends = np.full((2, 2), math.nan)
        if math.isfinite(auc):
            draws = generator("separation").choice(seeds, size=(resamples, len(seeds)))
            replicates = np.array([of(draw) for draw in draws])
            ends = np.nanquantile(replicates, [0.025, 0.975], axis=0)
        rows.append((condition, metric, *Interval(auc, *ends[:, 0]), *Interval(threshold, *ends[:, 1])))
    names = ["condition", "metric", "auc", "auc_low", "auc_high", "threshold", "threshold_low", "threshold_high"]
    return pd.DataFrame(rows, columns=names)


# ---- for the paper


def table(separated: pd.DataFrame) -> pd.DataFrame:
    """`separation` for readers, one condition or several."""
    rows = [
        [
            row.condition,
            label(row.metric),
            Number(format_interval(Interval(row.auc, row.auc_low, row.auc_high))),
            Number(format_interval(Interval(row.threshold, row.threshold_low, row.threshold_high))),
        ]
        for row in separated.itertuples()
    ]
    return frame_of(rows, ["Condition", "Metric", "AUC", Raw("Threshold (change from generation 0)")])


def values(found: pd.DataFrame) -> dict[str, str]:
    """Of every condition C: rescue.models.C, those judged; rescue.reversible.C; rescue.runs.C; rescue.lost.C, runs with
    a turning point, and rescue.turning.C, its median generation among them, if there are any."""
    text = {}
    for condition, rescued_models in found.groupby("condition"):
        judged = rescued_models.dropna(subset="reversible")
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
