"""What the runs say together: correlations and alarms."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ...analysis.metrics import label
from ...analysis.report import Analysis
from ...analysis.statistics import CONTROL, TREATMENT
from .style import WIDTH, colour, drawn, legend_above


@drawn
def correlations(analysis: Analysis, metrics: Sequence[str]) -> Figure:
    """Heat map of Spearman's rho over generations, mean over the treated runs."""
    present = [metric for metric in metrics if metric in analysis.metrics]
    matrix = pd.DataFrame(np.eye(len(present)), index=present, columns=present)
    for row in analysis.correlations.itertuples():
        if row.metric_a in present and row.metric_b in present:
            matrix.loc[row.metric_a, row.metric_b] = matrix.loc[row.metric_b, row.metric_a] = row.rho
    figure, axes = plt.subplots(figsize=(WIDTH * 0.8, WIDTH * 0.7), layout="constrained")
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    labels = [label(metric) for metric in present]
    axes.set_xticks(range(len(present)), labels, rotation=55, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(present)), labels)
    axes.grid(False)
    for (i, j), value in np.ndenumerate(matrix.to_numpy()):
        if np.isfinite(value):
            shade = "white" if abs(value) > 0.6 else "black"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=6, color=shade)
    figure.colorbar(image, ax=axes, shrink=0.8, label=r"Spearman's $\rho$ over generations")
    return figure


@drawn
def alarms(analysis: Analysis) -> Figure:
    """First generation at which each run leaves the control's band (`early_warning.alarms`): a row a metric, a mark a
    run. Treated runs are full marks, pale where they stay inside, and the control's false alarms hollow ones. Outcomes
    are in the shaded rows on top, the line is the median alarm of the first, and the other metrics are sorted: a mark
    to the line's left warned."""
    last = analysis.table["generation"].max()
    never = last + 1.4  # a column of its own, set apart from the generations
    treated, control = TREATMENT, CONTROL
    outcomes, names = analysis.outcomes, analysis.outcomes + analysis.candidates
    judged = analysis.alarms[analysis.alarms["condition"].isin([treated, control])].dropna()
    judged = judged.set_index("condition")
    places = {name: judged.loc[judged["metric"] == name, "alarm"].clip(upper=never) for name in names}
    mean = {name: found[found.index == treated].mean() for name, found in places.items()}
    shown = outcomes + sorted(names[len(outcomes) :], key=mean.get)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + 0.2 * len(shown)), layout="constrained")
    axes.axhspan(-0.5, len(outcomes) - 0.5, color="0.93", linewidth=0)
    axes.axvline(last + 0.7, color="0.7", linewidth=0.8)
    if outcomes and len(places[outcomes[0]]):
        median = places[outcomes[0]][places[outcomes[0]].index == treated].median()
        name = f"{label(outcomes[0])}: median alarm"
        axes.axvline(median, color=colour(treated), linestyle="--", linewidth=1, label=name)
    for row, name in enumerate(shown):
        for condition, below, size, face in ((treated, 0.0, 4.5, colour(treated)), (control, 0.3, 3.2, "white")):
            found = places[name][places[name].index == condition]
            for place, runs in found.groupby(found):
                if place == never and condition == control:
                    continue  # a control run that stays inside is no news
                # Runs with the same alarm stand side by side.
                offsets = min(0.13, 0.8 / len(runs)) * (np.arange(len(runs)) - (len(runs) - 1) / 2)
                style = {"color": colour(condition), "mfc": face, "alpha": 0.3 if place == never else 1.0}
                axes.plot(place + offsets, np.full(len(runs), row + below), "o", markersize=size, **style)
    if not any(map(len, places.values())):
        why = "with fewer than three seeds there is no band to judge by"
        axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center")
    axes.plot([], [], "o", color=colour(treated), markersize=4.5, label=f"alarm of a {treated} run")
    axes.plot([], [], "o", color=colour(control), markersize=3.2, mfc="white", label=f"false alarm of a {control} run")
    axes.set_yticks(range(len(shown)), [label(name) for name in shown])
    axes.set_xticks([*range(1, last + 1), never], [*map(str, range(1, last + 1)), "never"])
    axes.set(xlim=(0.5, never + 0.5), ylim=(len(shown) - 0.5, -0.5), xlabel="generation of the alarm")
    axes.grid(axis="x", visible=False)
    legend_above(figure, axes)
    return figure


@drawn
def lagged_correlations(analysis: Analysis, leading: Sequence[str]) -> Figure:
    """Heat maps of Spearman's rho with a lag, a panel for each metric that others may lead (`report.FOLLOWED`): rows
    lead it by the lag, where that is positive. Framed: the 95 % t interval over runs excludes 0."""
    leading = [name for name in leading if name in analysis.metrics]
    frame = analysis.lagged[analysis.lagged["leading"].isin(leading)]
    following = list(frame["following"].unique())
    figure, panels = plt.subplots(
        1, len(following), figsize=(WIDTH, 0.9 + 0.2 * len(leading)), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, second in zip(panels.flat, following, strict=True):
        rows = frame[frame["following"] == second].set_index(["leading", "lag"])
        grid = rows["rho"].unstack().reindex(leading)
        image = axes.imshow(grid, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        for (first, lag), cell in rows.iterrows():
            if cell["low"] > 0 or cell["high"] < 0:
                corner = grid.columns.get_loc(lag) - 0.46, leading.index(first) - 0.46
                axes.add_patch(plt.Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="black", linewidth=0.8))
        axes.set_xticks(range(len(grid.columns)), [f"{lag:+d}" if lag else "0" for lag in grid.columns], fontsize=7)
        axes.set(title=label(second), xlabel="lag")
        axes.grid(False)
    panels[0, 0].set_yticks(range(len(leading)), [label(name) for name in leading])
    figure.colorbar(image, ax=panels, shrink=0.9, label=r"Spearman's $\rho$")
    return figure
