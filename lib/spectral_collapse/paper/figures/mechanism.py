"""The mechanism: where the network moves, what its layers do, the loss around it, its leading eigenvalues."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ...analysis.metrics import condition_label, label
from .style import WIDTH, colour, conditions_of, drawn, in_lines, legend_above, panels_of

PARTS = ("relative_drift_start", "real_gradient_norm", "gradient_cosine_start", "real_own_cosine")
LAYERS = ("activation_rank", "activation_entropy_rank", "anisotropy", "cka_start")
# How an eigenvector of generation 0 is marked, and how the line of one ends that cannot be followed any further.
FATE_STYLES = {"stays": "full", "rescales": "top", "rotates": "none"}
ENDS = {"merges": ("x", "merges"), "rotates": (">", "turns away")}


def _groups(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Generation 0, which conditions share, and the last generation of each condition."""
    last = frame[frame["generation"] == frame["generation"].max()]
    first = frame[(frame["generation"] == 0) & (frame["condition"] == frame["condition"].iloc[0])]
    return [("baseline", first)] + [(name, last[last["condition"] == name]) for name in conditions_of(frame)]


def _name(group: str) -> str:
    return "generation 0" if group == "baseline" else group


@drawn
def mechanism_parts(parts: pd.DataFrame) -> Figure:
    """Drift and gradients by part of the network at the last generation, and at generation 0: a dot a run, a bar for
    their mean. `parts` of a `Study`."""
    names = [name for name in parts["part"].unique() if name != "all"]
    figure, panels = plt.subplots(
        1, len(PARTS), figsize=(WIDTH, 0.9 + 0.19 * len(names)), sharey=True, layout="constrained"
    )
    for axes, metric in zip(panels, PARTS, strict=True):
        groups = _groups(parts)
        for index, (group, rows) in enumerate(groups):
            shift = 0.22 * (index - (len(groups) - 1) / 2)
            values = rows.pivot(index="part", columns="seed", values=metric).loc[names]
            places = np.arange(len(names)) + shift
            axes.plot(values, places, "o", color=colour(group), markersize=2, alpha=0.5, mew=0)
            axes.plot(values.mean(axis=1), places, "|", color=colour(group), markersize=6, label=_name(group))
        axes.set_title(in_lines(label(metric)))
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    legend_above(figure, panels[0])
    return figure


@drawn
def mechanism_layers(layers: pd.DataFrame) -> Figure:
    """Activations on real text by layer, at generation 0 and at the last: thin lines runs, thick lines their mean.
    `layers` of a `Study`."""
    names = list(layers["layer"].unique())
    figure, panels = panels_of(len(LAYERS), len(LAYERS), 1.9)
    for axes, metric in zip(panels, LAYERS, strict=True):
        for group, rows in _groups(layers):
            values = rows.pivot(index="layer", columns="seed", values=metric).loc[names]
            axes.plot(range(len(names)), values, color=colour(group), linewidth=0.5, alpha=0.45)
            mean = values.mean(axis=1).to_numpy()
            axes.plot(mean, color=colour(group), marker="o", markersize=2.5, label=_name(group))
        axes.set(title=in_lines(label(metric)), xlabel="after layer")
        axes.set_xticks(range(len(names)), ["emb.", *(name.removeprefix("layer ") for name in names[1:])])
    legend_above(figure, panels[0])
    return figure


def _draw_plane(axes: Axes, rows: pd.DataFrame, norm: LogNorm, levels: np.ndarray):
    grid = rows.pivot(index="a", columns="b", values="loss")
    image = axes.contourf(grid.columns, grid.index, grid, levels=levels, norm=norm, cmap="viridis", extend="both")
    axes.contour(grid.columns, grid.index, grid, levels=levels[::2], colors="white", linewidths=0.4)
    axes.plot(0, 0, "+", color="white", markersize=5)
    axes.set_aspect("equal")
    axes.grid(False)
    return image


def _draw_lines(axes: Axes, lines: pd.DataFrame) -> None:
    """Loss by `place`: a thin line a run, a thick one for the mean of a condition's runs."""
    for condition in conditions_of(lines):
        runs = lines[lines["condition"] == condition].pivot(index="place", columns="seed", values="loss")
        axes.plot(runs.index, runs, color=colour(condition), linewidth=0.5, alpha=0.45)
        axes.plot(runs.index, runs.mean(axis=1), color=colour(condition), label=condition_label(condition))


@drawn
def landscape(planes: pd.DataFrame, lines: pd.DataFrame, seed: int) -> Figure:
    """Loss on real text around every generation of one seed: one plane, moved along, a row a condition, all on one
    colour scale; and, all seeds, along the straight line from generation 0 to the last, and from each generation to the
    next. `planes` and `lines` of a `Study`."""
    planes = planes[planes["seed"] == seed]
    shown = planes["loss"][np.isfinite(planes["loss"])]
    norm, levels = LogNorm(shown.min(), shown.max()), np.geomspace(shown.min(), shown.max(), 15)
    conditions, generations = conditions_of(planes), sorted(planes["generation"].unique())
    figure = plt.figure(figsize=(WIDTH, 1.25 * len(conditions) + 2.1), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.25 * len(conditions), 2.0])
    grid = above.subplots(len(conditions), len(generations), sharex=True, sharey=True, squeeze=False)
    for row, condition in zip(grid, conditions, strict=True):
        for axes, generation in zip(row, generations, strict=True):
            rows = planes[(planes["condition"] == condition) & (planes["generation"] == generation)]
            image = _draw_plane(axes, rows, norm, levels)
            least = rows["loss"][(rows["a"] == 0) & (rows["b"] == 0)].item()
            name = f"generation {generation}\n" if condition == conditions[0] else ""
            axes.set_title(f"{name}{least:.3g} at +", fontsize=7)
            axes.tick_params(labelsize=6)
        row[0].set_ylabel(condition)
    bar = above.colorbar(image, ax=grid, shrink=0.8, label="loss (nats)", ticks=levels[::4])
    bar.ax.yaxis.set_major_formatter("{x:.2g}")
    bar.ax.yaxis.set_minor_formatter(plt.NullFormatter())
    whole, steps = below.subplots(1, 2)
    last = lines[(lines["since"] == "start") & (lines["generation"] == lines["generation"].max())]
    _draw_lines(whole, last.assign(place=last["t"]))
    for t in (0, 1):
        whole.axvline(t, color="0.7", linewidth=0.6)
    whole.set(title="from generation 0 to the last", xlabel="$t$ (0: start, 1: last)", ylabel="loss (nats)")
    whole.legend(fontsize=7)
    # Two steps meet in the generation between them, where one of the two is enough.
    between = lines[(lines["since"] == "before") & (lines["t"] > 0) & (lines["t"] <= 1)]
    first = lines[(lines["since"] == "before") & (lines["generation"] == 1) & (lines["t"] == 0)]
    path = pd.concat([first, between])
    _draw_lines(steps, path.assign(place=path["generation"] - 1 + path["t"]))
    steps.set(title="from each generation to the next", xlabel="generation")
    steps.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    return figure


@drawn
def outlier_tracks(outliers: pd.DataFrame) -> Figure:
    """The leading eigenvalues of generation 0, followed through the generations: a panel a condition, a line an outlier
    of a run. `outliers` of a `Study`."""
    sizes = outliers.assign(value=outliers["value"].abs())
    names = conditions_of(sizes)
    figure, panels = plt.subplots(1, len(names), figsize=(WIDTH, 2.3), sharey=True, squeeze=False, layout="constrained")
    for axes, condition in zip(panels.flat, names, strict=True):
        runs = sizes[sizes["condition"] == condition].sort_values("generation")
        for _, line in runs.groupby(["seed", "outlier"]):
            axes.plot(line["generation"], line["value"], color=colour(condition), linewidth=0.7, alpha=0.6)
            kept = line.dropna(subset="value")
            for row in kept.itertuples():
                style = {"color": colour(condition), "fillstyle": FATE_STYLES[row.fate], "markersize": 4, "mew": 0.8}
                axes.plot(row.generation, row.value, "o", **style)
            if len(kept) < len(line):
                last, mark = kept.iloc[-1], ENDS[line["fate"].iloc[-1]][0]
                axes.plot(last["generation"] + 0.18, last["value"], mark, color="0.3", fillstyle="none", markersize=4)
        axes.set(title=condition_label(condition), xlabel="generation", yscale="log")
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=6)
    panels[0, 0].set_ylabel("|eigenvalue|")
    for fate, style in FATE_STYLES.items():
        panels[0, 0].plot([], [], "o", color="0.3", fillstyle=style, markersize=4, label=fate)
    for mark, name in ENDS.values():
        panels[0, 0].plot([], [], mark, color="0.3", fillstyle="none", markersize=4, label=name)
    legend_above(figure, panels[0, 0])
    return figure
