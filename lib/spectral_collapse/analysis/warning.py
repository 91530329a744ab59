"""What a warning is worth: when it comes, how often it is false, how far it stands out at each generation, its cost."""

import math

import numpy as np
import pandas as pd

from ..estimate import Estimate
from ..record.evidence import Source
from ..record.schema import Params
from . import metrics, series
from .early_warning import RATE, excursion
from .report import Analysis
from .statistics import TREATMENT, changes, matched_controls

PASS = "anchors"  # whose time is that of one forward pass over the held-out blocks
# Stages that a check takes, where that is not the stage alone whose record has the metric; of single metrics first.
NEEDED_OF = {
    **dict.fromkeys(("held_out_perplexity", "log_perplexity"), (PASS,)),  # their stage draws stories besides
    **dict.fromkeys(("hashed_ngram_hhi", "response_distinct_2"), ("responses",)),
    "coherence": ("responses", "coherence"),
    "prompt_similarity": ("responses", "embeddings", "coherence"),
    "mauve": ("continuations", "coherence"),
}
NEEDED = {"sigma": ("responses", "embeddings", "sigma")}


def detection_curve(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """How far the treated runs stand out, whatever the number of control runs: d′ of every metric and generation.

    d′ = (mean Δ_treated − mean Δ_control)/sd(Δ_control), Δ the changes of n runs each from generation 0. Columns
    metric, generation, value, low, high; runs, the number of control runs by which a run at that distance raises an
    alarm in every second case (`runs_needed`). The 95 % interval is t with n − 1 degrees of freedom and variance
    (1 + r)/n + d′²/(2(n − 1)), r the treated runs' variance over the controls'; pairs count as independent, which makes
    it longer where they agree. Empty without a matched control; NaN where the controls do not vary.
    """
    control, rows = matched_controls(table).get(TREATMENT), []
    generations = table["generation"].nunique() - 1
    for name in names if control else []:
        moved = changes(table, name)
        treated, held = moved.loc[TREATMENT], moved.loc[control]
        n, spread = len(held), held.std(ddof=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (treated.mean() - held.mean()) / spread
            ratio = treated.var(ddof=1) / spread**2
        error = np.sqrt((1 + ratio) / n + distance**2 / (2 * (n - 1)))
        for generation in moved.columns:
            if not np.isfinite(distance[generation]):
                rows.append((name, generation, *Estimate(math.nan), math.inf))
                continue
            found = Estimate.of_error(float(distance[generation]), float(error[generation]), n - 1)
            rows.append((name, generation, *found, runs_needed(found.value, generations)))
    return pd.DataFrame(rows, columns=["metric", "generation", "value", "low", "high", "runs"])


def runs_needed(distance: float, generations: int, rate: float = RATE) -> float:
    """The least number of control runs whose band a run leaves that lies `distance` of their standard deviations away;
    inf where no number suffices.

    >>> runs_needed(8, 6), runs_needed(2, 6)
    (4.0, inf)
    """
    if not abs(distance) > excursion(10**6, generations, rate):
        return math.inf
    fewest, enough = 2, 10**6
    while fewest < enough:
        middle = (fewest + enough) // 2
        fewest, enough = (
            (fewest, middle) if excursion(middle, generations, rate) <= abs(distance) else (middle + 1, enough)
        )
    return float(enough)


def costs(params: Params, conditions: list[str] | None = None, source: Source | None = None) -> pd.DataFrame:
    """What one check of each metric costs: columns metric, seconds (median over the profile's models of the time that
    their records took; NaN where there are none) and passes, the same in forward passes over the held-out blocks. A
    metric of curvature is charged all that its stage estimates."""
    later = range(1, params.generations + 1)

    def seconds(stage: str) -> float:
        try:
            found = list(series.records(params, stage, conditions, generations=later, source=source))
        except series.MissingRecord:  # a stage that older runs did not have
            return math.nan
        return float(np.median([record["timing"]["wall_seconds"] for *_, record in found]))

    stages = {*metrics.STAGES, "responses", "embeddings"} - {"training"}
    taken = {stage: seconds(stage) for stage in stages}
    rows = []
    for name, metric in metrics.METRICS.items():
        if metric.stage in stages:
            needed = NEEDED_OF.get(name) or NEEDED.get(metric.stage, (metric.stage,))
            total = sum(taken[stage] for stage in needed)
            rows.append((name, total, total / taken[PASS]))
    return pd.DataFrame(rows, columns=["metric", "seconds", "passes"])


def warnings(analysis: Analysis, curve: pd.DataFrame, prices: pd.DataFrame) -> pd.DataFrame:
    """A row for every metric that was tried, cheapest first: `early_warning.lead_summary` over the first outcome and
    `detection.detection` of an `Analysis`, d′ at generation 1 (`detection_curve`), and the price (`costs`).

    Columns metric, seconds, passes, median, low, high (lead), earlier, later, both, detected, runs, false_alarms,
    control_runs, first, first_low, first_high (d′).
    """
    outcome = analysis.outcomes[0]
    leads = analysis.leads[analysis.leads["outcome"] == outcome]
    first = curve[curve["generation"] == 1].rename(columns={"value": "first"})[["metric", "first", "low", "high"]]
    first = first.rename(columns={"low": "first_low", "high": "first_high"})
    found = leads[["metric", "median", "low", "high", "earlier", "later", "both"]]
    tried = analysis.detection[["metric", "detected", "runs", "false_alarms", "control_runs"]]
    for other in (tried, first, prices):
        found = found.merge(other, on="metric", how="left")
    return found.sort_values(["seconds", "metric"], kind="stable").reset_index(drop=True)
