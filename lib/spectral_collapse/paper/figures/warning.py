"""Who warns first, and at what price: the paper's first figure."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ...analysis.metrics import label
from ...analysis.report import Analysis
from ...analysis.statistics import TREATMENT, matched_controls
from .style import WIDTH, colour, drawn

# The metrics of the figure and of the table beside it; those that a profile lacks are left out.
SHOWN = (
    *("predictive_entropy", "distinct_2", "distinct_4", "tail_coverage", "rare_token_coverage", "hashed_ngram_hhi"),
    *("track_two_drift", "logdet_drift", "lambda_max", "log_spectral_ratio", "log_published_ratio"),
    "population_log_ratio",
)


def shown(warnings: pd.DataFrame) -> pd.DataFrame:
    """The rows of `warning.warnings` that the figure shows, cheapest first."""
    return warnings[warnings["metric"].isin(SHOWN)]


@drawn
def warnings(analysis: Analysis, found: pd.DataFrame) -> Figure:
    """Share of the treated runs that have raised an alarm up to each generation: the area of a disc, a row a metric,
    cheapest first, below the outcome. Hollow: the control's runs, whose alarms are false. On the right the price of a
    check in forward passes over the held-out text (`warning.costs`)."""
    outcome, last = analysis.outcomes[0], int(analysis.table["generation"].max())
    rows = shown(found)
    names = [outcome, *rows["metric"]]
    control = matched_controls(analysis.table).get(TREATMENT)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.8 + 0.23 * len(names)), layout="constrained")
    axes.axhspan(-0.5, 0.5, color="0.93", linewidth=0)
    alarms = analysis.alarms.dropna(subset="alarm").set_index(["metric", "condition"])["alarm"]
    medians = alarms.get((outcome, TREATMENT), pd.Series(dtype=float))
    if len(medians) and np.isfinite(medians.median()):
        axes.axvline(medians.median(), color="0.4", linestyle="--", linewidth=0.9, zorder=0)
    for row, name in enumerate(names):
        for condition, style in (
            (TREATMENT, {"color": colour(TREATMENT), "zorder": 2}),
            (control, {"facecolors": "none", "edgecolors": "black", "linewidths": 0.8, "zorder": 3}),
        ):
            runs = alarms.get((name, condition), pd.Series(dtype=float))
            for generation in range(1, last + 1) if len(runs) else ():
                share = float((runs <= generation).mean())
                axes.scatter(generation, row, s=110 * share, **style)
    prices = [1.0, *rows["passes"]]
    for row, price in enumerate(prices):
        text = "–" if np.isnan(price) else f"{price:.0f}" if price >= 1.5 else "1"
        axes.text(last + 0.75, row, text, ha="center", va="center", fontsize=7.5)
    axes.text(last + 0.75, -0.75, "passes", ha="center", va="bottom", fontsize=7.5)
    if alarms.empty:
        why = "with fewer than three seeds there is no band to judge by"
        axes.text(0.45, 0.5, why, transform=axes.transAxes, ha="center", va="center")
    axes.set_yticks(range(len(names)), [label(name) for name in names])
    axes.set_xticks(range(1, last + 1))
    axes.set(xlim=(0.5, last + 1.1), ylim=(len(names) - 0.5, -0.6), xlabel="generation")
    axes.grid(axis="x", visible=False)
    return figure
