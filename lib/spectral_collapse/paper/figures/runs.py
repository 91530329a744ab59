"""Series of the runs: metrics over generations, training, rescue."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...analysis.metrics import condition_label, label
from ...estimate import Estimate
from .style import WIDTH, colour, conditions_of, drawn, legend_above, linestyle, marker, panels_of

FEW = 3  # conditions in a panel; of more only the means are drawn


def _draw_series(axes: Axes, table: pd.DataFrame, metric: str) -> None:
    """Mean over seeds; of few conditions also every seed as a thin line, and the 95 % t interval from three on."""
    found = {
        name: table[table["condition"] == name].pivot(index="generation", columns="seed", values=metric)
        for name in conditions_of(table)
    }
    for condition, runs in found.items():
        style = {
            "color": colour(condition),
            "label": condition_label(condition),
            "markersize": 3.5,
            **marker(condition),
        }
        if len(found) <= FEW:
            axes.plot(runs.index, runs, color=colour(condition), linewidth=0.5, alpha=0.45)
        axes.plot(runs.index, runs.mean(axis=1), linestyle(condition), **style)
    limits = axes.get_ylim()  # the intervals of few seeds are wide; the runs set the scale
    if table["seed"].nunique() > 2 and len(found) <= FEW:  # that of two seeds says nothing
        for condition, runs in found.items():
            intervals = np.array([Estimate.mean(row)[1:] for row in runs.to_numpy()])
            axes.fill_between(runs.index, *intervals.T, color=colour(condition), alpha=0.12, linewidth=0)
    axes.set_ylim(limits)
    axes.set(title=label(metric), xlabel="generation")
    axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))


@drawn
def series(table: pd.DataFrame, metrics: Sequence[str], columns: int = 3, height: float = 1.9) -> Figure:
    """One panel a metric that the table has, one colour a condition; generation 0 is the base model."""
    present = [metric for metric in metrics if metric in table]
    figure, panels = panels_of(len(present), min(columns, len(present)), height)
    for axes, metric in zip(panels, present, strict=True):
        _draw_series(axes, table, metric)
    legend_above(figure, panels[0])
    return figure


@drawn
def rescue(found: pd.DataFrame) -> Figure:
    """Held-out perplexity under recursion, and after one generation of real text from there, as changes from
    generation 0 (`rescue.reversibility`), a panel a condition; below the dashed line lies the band of the fresh
    control."""
    conditions = conditions_of(found)
    figure, panels = plt.subplots(
        1, len(conditions), figsize=(WIDTH * min(1.0, 0.55 * len(conditions)), 2.4), squeeze=False, layout="constrained"
    )
    styles = {
        "before": ("recursive", "-", "under recursion"),
        "after": ("fresh", "-", "after one generation of real text"),
        "high": ("baseline", "--", "band of the fresh control, upper end"),
    }
    for axes, condition in zip(panels.flat, conditions, strict=True):
        for column, (shade, line, name) in styles.items():
            runs = found[found["condition"] == condition].pivot(index="generation", columns="seed", values=column)
            axes.plot(runs.index, runs, line, color=colour(shade), linewidth=0.5, alpha=0.45)
            axes.plot(runs.index, runs.mean(axis=1), line, color=colour(shade), marker="o", markersize=2.5, label=name)
        axes.set(title=condition_label(condition), xlabel="generation", ylabel="change of perplexity")
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    panels[0, 0].legend(fontsize=7)
    return figure


@drawn
def doses(found: pd.DataFrame) -> Figure:
    """Share of the gap to the matched control that real text closes (`rescue.recovered`), against its dose: a line a
    condition, its mean with the 95 % t interval over seeds."""
    figure, axes = plt.subplots(figsize=(WIDTH * 0.55, 2.4), layout="constrained")
    for place, condition in enumerate(conditions_of(found)):
        runs = found[found["condition"] == condition].pivot(index="dose", columns="seed", values="share")
        rows = [Estimate.mean(row[np.isfinite(row)]) for row in runs.to_numpy()]
        middle, low, high = np.array(rows).T
        style = {
            "fmt": "os"[place % 2] + linestyle(condition),
            "color": colour(condition),
            "markersize": 4,
            "capsize": 2,
        }
        x = runs.index * 1.04**place  # bars side by side
        axes.errorbar(
            x, middle, np.nan_to_num([middle - low, high - middle]), label=condition_label(condition), **style
        )
    axes.axhline(1, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(found["dose"].unique()), map(str, sorted(found["dose"].unique())))
    axes.set(xlabel="steps of real text, in generations", ylabel="share of the gap closed")
    axes.legend(fontsize=7)
    return figure


@drawn
def training_curves(curves: Sequence[tuple[str, int, int, dict]]) -> Figure:
    """Loss of every run over the steps of its generations, the base model first; (condition, seed, generation,
    training result) each. Real-text conditions and synthetic ones differ in what is fitted, not in the recipe."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.2), width_ratios=[1, 2], layout="constrained")
    seen: set[tuple] = set()
    for condition, seed, generation, result in curves:
        curve = result["curve"]
        if generation == 0:
            if (seed, 0) not in seen:
                left.plot(curve["step"], curve["loss"], color=colour("baseline"), linewidth=0.7, alpha=0.7)
            seen.add((seed, 0))
            continue
        x = generation - 1 + np.asarray(curve["step"]) / result["steps"]
        right.plot(x, curve["loss"], linestyle(condition), color=colour(condition), linewidth=0.6, alpha=0.7)
        if condition not in seen:
            right.plot([], [], linestyle(condition), color=colour(condition), label=condition_label(condition))
        seen.add(condition)
    left.set(title="base model", xlabel="step", ylabel="training loss (nats per token)")
    right.set(title="generations", xlabel="generation (end of its training)")
    if len(right.lines):
        legend_above(figure, right)
    else:  # the base model alone
        right.set_visible(False)
    return figure
