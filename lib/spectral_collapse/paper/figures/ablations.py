"""What a factor's levels do to the runs, and what all factors do."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ...analysis.ablations import METRICS, Study
from ...analysis.metrics import label
from .style import WIDTH, drawn, legend_above, panels_of

# Okabe & Ito's palette; the reference is black.
SHADES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")


@drawn
def ablation(runs: pd.DataFrame, reference: str, metrics: Sequence[str] = METRICS) -> Figure:
    """Changes from generation 0 of every level's treated runs: thin lines are runs, thick lines means over seeds; the
    control's means, where there is one, are dashed."""
    present = [metric for metric in metrics if metric in runs]
    figure, panels = panels_of(len(present), 3, 1.8)
    others = [level for level in runs["level"].unique() if level != reference]
    shades = {reference: "black", **dict(zip(others, SHADES, strict=False))}
    for axes, metric in zip(panels, present, strict=True):
        for (level, role, _), part in runs.groupby(["level", "role", "condition"], sort=False):
            wide = part.pivot(index="generation", columns="seed", values=metric)
            change = wide - wide.loc[0]
            if role == "treated":
                axes.plot(change.index, change, color=shades[level], linewidth=0.5, alpha=0.4)
            name = level.replace("_", " ") if role == "treated" else None
            line = "-" if role == "treated" else "--"
            style = {"color": shades[level], "label": name, "marker": "o", "markersize": 2}
            axes.plot(change.index, change.mean(axis=1), line, **style)
        axes.set(title=label(metric), xlabel="generation")
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    panels[0].set_ylabel("change")
    legend_above(figure, panels[0])
    return figure


@drawn
def ablation_effects(studies: Sequence[Study], metrics: Sequence[str] = METRICS) -> Figure:
    """Small multiples: a panel a metric, a row a level, by factor: the paired difference from the factor's reference
    level (change from generation 0 to the last), with the 95 % t interval, cut off at the range of the estimates."""
    frames = {study.factor.name: study.effects for study in studies}
    rows = [(name, level) for name, frame in frames.items() for level in dict.fromkeys(frame["level"])]
    figure, panels = plt.subplots(
        1, len(metrics), figsize=(WIDTH, 0.8 + 0.16 * len(rows)), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, metric in zip(panels.flat, metrics, strict=True):
        shown = []
        for place, (name, level) in enumerate(rows):
            found = frames[name]
            for cell in found[(found["metric"] == metric) & (found["level"] == level)].itertuples():
                apart = cell.low > 0 or cell.high < 0
                shade = SHADES[0] if apart else "0.45"
                axes.plot([cell.low, cell.high], [place, place], color=shade, linewidth=0.9)
                axes.plot(cell.difference, place, "o", color=shade, markersize=2.8)
                shown.append(abs(cell.difference))
        axes.axvline(0, color="black", linewidth=0.6)
        limit = 2 * max(shown, default=1.0) or 1.0
        axes.set(xlim=(-limit, limit))
        axes.set_title(label(metric), fontsize=6)
        axes.tick_params(labelsize=6)
        axes.xaxis.set_major_locator(plt.MaxNLocator(3))
        for start in np.flatnonzero([row[0] != before[0] for row, before in zip(rows[1:], rows, strict=False)]):
            axes.axhline(start + 0.5, color="0.85", linewidth=0.5)
        axes.grid(axis="y", visible=False)
    names = [f"{name}: {level}".replace("_", " ") for name, level in rows]
    panels[0, 0].set_yticks(range(len(rows)), names, fontsize=6)
    panels[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    return figure
