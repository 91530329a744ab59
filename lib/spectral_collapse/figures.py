"""Every picture of the notebooks and the paper. Functions return a figure; `save` alone writes files."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from . import early_warning, provenance
from .correlation import lagged_spearman, within_run_spearman
from .curvature import cumulated_bounds, smoothed_density
from .params import CONDITIONS
from .statistics import mean_interval
from .tables import LABELS

# It warns of the dates inside matplotlib's own fonts at every figure.
logging.getLogger("fontTools").setLevel(logging.ERROR)

WIDTH = 6.5  # inches, the paper's text width
# Okabe & Ito's palette, told apart by most colour-blind readers.
COLOURS = {
    "recursive": "#D55E00",
    "fresh": "#009E73",
    "static": "#0072B2",
    "mixed": "#CC79A7",
    "accumulate": "#E69F00",
    "baseline": "#000000",
}
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.03,
    "figure.dpi": 110,
}


def colour(condition: str) -> str:
    """Colour of a condition, the same in every figure."""
    return COLOURS[condition.removesuffix("_carry").removesuffix("_restart")]


def _linestyle(condition: str) -> str:
    return ":" if condition.endswith("_restart") else "-"


def _drawn(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws in the house style, and closes the figure so that a notebook shows it once, as a cell's value."""

    @functools.wraps(draw)
    def wrapped(*args, **kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
        plt.close(figure)
        return figure

    return wrapped


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PDF, without a creation date, so that equal figures are equal files."""
    with plt.rc_context(STYLE):
        provenance.write_atomically(
            path, lambda temporary: figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})
        )


def _grid(count: int, columns: int, height: float) -> tuple[Figure, np.ndarray]:
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height * rows), squeeze=False, layout="constrained")
    for spare in axes.flat[count:]:
        spare.set_visible(False)
    return figure, axes.flat[:count]


def _conditions(table: pd.DataFrame) -> list[str]:
    return sorted(table["condition"].unique(), key=lambda name: CONDITIONS.index(name))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), handlelength=1.6, columnspacing=1.4)


def _draw_series(axes: Axes, table: pd.DataFrame, metric: str) -> None:
    """Mean over seeds with its 95 % t interval, and every seed as a thin line."""
    for condition in _conditions(table):
        runs = table[table["condition"] == condition].pivot(index="generation", columns="seed", values=metric)
        axes.plot(runs.index, runs, color=colour(condition), linewidth=0.5, alpha=0.45)
        axes.plot(
            runs.index,
            runs.mean(axis=1),
            _linestyle(condition),
            color=colour(condition),
            label=condition,
            marker="o",
            markersize=2.5,
        )
    limits = axes.get_ylim()  # the intervals of few seeds are wide; the runs set the scale
    if table["seed"].nunique() > 1:
        for condition in _conditions(table):
            runs = table[table["condition"] == condition].pivot(index="generation", columns="seed", values=metric)
            intervals = np.array([mean_interval(row)[1:3] for row in runs.to_numpy()])
            axes.fill_between(runs.index, *intervals.T, color=colour(condition), alpha=0.12, linewidth=0)
    axes.set_ylim(limits)
    axes.set_title(LABELS.get(metric, metric))
    axes.set_xlabel("generation")
    axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))


@_drawn
def series(table: pd.DataFrame, metrics: Sequence[str], columns: int = 3, height: float = 1.9) -> Figure:
    """One panel a metric that the table has, one colour a condition; generation 0 is the base model."""
    present = [metric for metric in metrics if metric in table]
    figure, panels = _grid(len(present), min(columns, len(present)), height)
    for axes, metric in zip(panels, present, strict=True):
        _draw_series(axes, table, metric)
    _legend(figure, panels[0])
    return figure


@_drawn
def rescue(found: pd.DataFrame) -> Figure:
    """Held-out perplexity under recursion, and after one generation of real text from there, as changes from
    generation 0 (`rescue.reversibility`); below the dashed line lies the band of the fresh control."""
    figure, axes = plt.subplots(figsize=(WIDTH * 0.6, 2.3), layout="constrained")
    styles = {
        "before": ("recursive", "-", "under recursion"),
        "after": ("fresh", "-", "after one generation of real text"),
        "high": ("baseline", "--", "band of the fresh control, upper end"),
    }
    for column, (shade, line, name) in styles.items():
        runs = found.pivot_table(index="generation", columns=["condition", "seed"], values=column)
        if runs.empty:
            continue
        axes.plot(runs.index, runs, line, color=colour(shade), linewidth=0.5, alpha=0.45)
        axes.plot(runs.index, runs.mean(axis=1), line, color=colour(shade), marker="o", markersize=2.5, label=name)
    axes.set(xlabel="generation", ylabel="change of perplexity")
    axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    axes.legend(fontsize=7)
    return figure


@_drawn
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
        name = condition if condition not in seen else None
        seen.add(condition)
        right.plot(x, curve["loss"], color=colour(condition), linewidth=0.6, alpha=0.7, label=name)
    left.set(title="base model", xlabel="step", ylabel="training loss (nats per token)")
    right.set(title="generations", xlabel="generation (end of its training)")
    if len(right.lines):
        right.legend(ncols=2, fontsize=7)
    else:  # the base model alone
        right.set_visible(False)
    return figure


@_drawn
def density(spectra: Sequence[tuple[str, dict]]) -> Figure:
    """Spectral density of each (name, curvature result), smoothed for the eye by a kernel of 1 % of the range,
    with λ_max and λ_min marked. The width of the central peak is the kernel's, not the spectrum's."""
    figure, panels = _grid(len(spectra), min(3, len(spectra)), 1.9)
    low = min(result["lambda_min"] for _, result in spectra)
    high = max(result["lambda_max"] for _, result in spectra)
    margin = 0.05 * (high - low)
    grid = np.linspace(low - margin, high + margin, 1200)
    for axes, (name, result) in zip(panels, spectra, strict=True):
        shade = colour(name.split(",")[0].split(" ")[0]) if name.split(",")[0].split(" ")[0] in COLOURS else "black"
        values = smoothed_density(result["nodes"], result["weights"], grid, 0.01 * (high - low))
        axes.semilogy(grid, values, color=shade)
        axes.plot([result["lambda_min"], result["lambda_max"]], [3e-7] * 2, "|", color=shade, markersize=9)
        axes.set(title=name, xlabel=r"eigenvalue $\lambda$", ylim=(1e-7, 10 * values.max()))
    panels[0].set_ylabel("density, smoothed")
    return figure


@_drawn
def distribution(result: dict) -> Figure:
    """What the nodes of a curvature result prove about the spectrum's distribution function: it lies inside the band
    (Chebyshev, Markov, Stieltjes). The brackets of both quartiles are marked; the published width interpolates in them.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 2.4), layout="constrained")
    nodes, weights = result["nodes"], result["weights"]
    edges = np.unique(np.concatenate([np.asarray(each) for each in nodes]))
    # Beyond the outermost nodes too, and just beside every node, where the bounds jump.
    points = np.sort(np.concatenate([edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf)]))
    below, above = cumulated_bounds(nodes, weights, points)
    axes.fill_between(points, below, above, color=COLOURS["static"], alpha=0.3, linewidth=0, label="proved band")
    for each, mass in zip(nodes, weights, strict=True):
        axes.plot(each, np.cumsum(mass), color="0.3", linewidth=0.7)
    axes.plot([], [], color="0.3", linewidth=0.7, label="interpolated as published, each probe")
    for level in (0.25, 0.75):
        low, high = points[above < level], points[below >= level]
        ends = [low[-1] if len(low) else points[0], high[0] if len(high) else points[-1]]
        axes.plot(ends, [level] * 2, "|-", color=COLOURS["recursive"], linewidth=1.2)
    axes.plot([], [], "|-", color=COLOURS["recursive"], linewidth=1.2, label="bracket of a quartile")
    axes.set_xscale("symlog", linthresh=max(1e-12, 1e-3 * result["lambda_max"]))
    axes.set(xlabel=r"eigenvalue $\lambda$ (linear around 0, logarithmic beyond)", ylabel="share below", ylim=(0, 1))
    _legend(figure, axes)
    return figure


@_drawn
def estimators(frame: pd.DataFrame) -> Figure:
    """Each estimator against itself, `estimators.values`: one panel a quantity, one column of dots a batch, one dot a
    probe, groups by Lanczos steps, relative to the quantity's median at the most steps."""
    shown = frame["quantity"].cat.categories
    figure, panels = plt.subplots(1, len(shown), figsize=(WIDTH, 2.5), sharey=True, layout="constrained")
    steps, batches = sorted(frame["steps"].unique()), sorted(frame["batch"].unique())
    for axes, name in zip(np.atleast_1d(panels), shown, strict=True):
        part = frame[frame["quantity"] == name]
        part = part.assign(value=part["value"] / part.loc[part["steps"] == steps[-1], "value"].median())
        for (number, batch), dots in part.groupby(["steps", "batch"]):
            place = steps.index(number) + 0.7 * (batches.index(batch) / max(1, len(batches) - 1) - 0.5)
            shade = COLOURS["recursive"] if name.startswith("published") else COLOURS["static"]
            axes.semilogy([place] * len(dots), dots["value"], "o", color=shade, markersize=2.4, alpha=0.5, mew=0)
        axes.axhline(1, color="0.5", linewidth=0.6)
        axes.yaxis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(plt.NullFormatter())
        axes.set_xticks(range(len(steps)), steps)
        axes.set_title(LABELS[name].removesuffix(" estimator").replace(", ", ",\n", 1))
        axes.set_xlabel("Lanczos steps")
        axes.grid(axis="x", visible=False)
    np.atleast_1d(panels)[0].set_ylabel(f"value / median at {steps[-1]} steps")
    return figure


@_drawn
def layers(results: Sequence[tuple[str, dict]], metrics: Sequence[str] = ("lambda_max", "bulk_sigma")) -> Figure:
    """Where curvature sits: each metric of every part of the network, for each (name, result of the stage `layers`)."""
    figure, panels = plt.subplots(
        1, len(metrics), figsize=(WIDTH, 0.9 + 0.19 * len(results[0][1])), sharey=True, layout="constrained"
    )
    for axes, metric in zip(panels, metrics, strict=True):
        for index, (name, parts) in enumerate(results):
            error = "lambda_max_batch_error" if metric == "lambda_max" else f"{metric}_standard_error"
            values = [part[metric] for part in parts.values()]
            errors = [part[error] or 0.0 for part in parts.values()]
            places = np.arange(len(parts)) + 0.22 * (index - (len(results) - 1) / 2)
            shade = plt.get_cmap("viridis")(0.85 * index / max(1, len(results) - 1))
            axes.errorbar(values, places, xerr=errors, fmt="o", color=shade, markersize=3, linewidth=0.8, label=name)
        axes.set(title=LABELS.get(metric, metric), xscale="log")
    panels[0].set_yticks(range(len(results[0][1])), results[0][1])
    panels[0].invert_yaxis()
    _legend(figure, panels[0])
    return figure


@_drawn
def published_estimator(table: pd.DataFrame) -> Figure:
    """The published log ratio against the converged one, run by run: equal readings lie on a line of slope 1."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.4), layout="constrained")
    for condition in _conditions(table):
        rows = table[table["condition"] == condition]
        left.plot(
            rows["log_spectral_ratio"],
            rows["log_published_ratio"],
            "o",
            markersize=3,
            alpha=0.7,
            color=colour(condition),
            label=condition,
        )
    left.set(xlabel=LABELS["log_spectral_ratio"] + ", ours", ylabel=LABELS["log_published_ratio"])
    for condition in _conditions(table):
        for _, run in table[table["condition"] == condition].groupby("seed"):
            right.semilogy(run["generation"], run["published_iqr"], color=colour(condition), linewidth=0.7, alpha=0.8)
            right.semilogy(
                run["generation"],
                run["bulk_sigma"],
                color=colour(condition),
                linewidth=1.2,
                alpha=0.8,
                linestyle="--",
            )
    right.plot([], [], color="0.3", linewidth=0.7, label="published IQR")
    right.plot([], [], color="0.3", linewidth=1.2, linestyle="--", label=LABELS["bulk_sigma"])
    right.set(xlabel="generation", ylabel="width of the bulk, each run")
    right.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter(NullFormatter())
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    return figure


TRACK_STYLES = {
    "track_two": ("Track II", "-"),
    "track_one_sharp": ("Track I, sharp", "-."),
    "track_one": ("Track I", "--"),
}


def _draw_drifts(axes: Axes, rows: pd.DataFrame, style: str, shade: str, name: str) -> None:
    """Drift of every run of `rows` with its band, and their mean."""
    for _, run in rows.groupby("seed"):
        run = run.sort_values("generation")
        axes.plot(run["generation"], run["drift"], style, color=shade, linewidth=0.5, alpha=0.45)
        axes.fill_between(run["generation"], run["low"], run["high"], color=shade, alpha=0.12, linewidth=0)
    mean = rows.groupby("generation")["drift"].mean()
    axes.plot(mean.index, mean, style, color=shade, label=name)


def _finish_drifts(figure: Figure, panels: Sequence[Axes], frame: pd.DataFrame) -> None:
    low, high = np.nanmin([frame["low"], frame["drift"]]), np.nanmax([frame["high"], frame["drift"]])
    margin = 0.06 * max(high - low, 1e-9)
    for axes in panels:
        axes.axhline(0, color="0.6", linewidth=0.6)
        axes.set(xlabel="generation", ylim=(low - margin, high + margin))
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    panels[0].set_ylabel("drift (nats)")


@_drawn
def sigma_tracks(drifts: pd.DataFrame) -> Figure:
    """Drift of every SIGMA track (`series.drifts`), one panel a condition, all on one scale; each run has its band."""
    names = _conditions(drifts)
    figure, panels = _grid(len(names), min(4, len(names)), 2.0)
    for axes, condition in zip(panels, names, strict=True):
        rows = drifts[drifts["condition"] == condition]
        for track, (name, style) in TRACK_STYLES.items():
            _draw_drifts(axes, rows[rows["track"] == track], style, colour(condition), name)
        axes.set_title(condition)
    _finish_drifts(figure, panels, drifts)
    panels[0].legend(fontsize=7)
    return figure


@_drawn
def sigma_buckets(drifts: pd.DataFrame) -> Figure:
    """Track II's drift in every prompt bucket (`series.bucket_drifts`), one panel a condition."""
    names, buckets = _conditions(drifts), list(drifts["bucket"].unique())
    figure, panels = _grid(len(names), min(4, len(names)), 2.0)
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(buckets)))
    for axes, condition in zip(panels, names, strict=True):
        rows = drifts[drifts["condition"] == condition]
        for bucket, shade in zip(buckets, shades, strict=True):
            _draw_drifts(axes, rows[rows["bucket"] == bucket], "-", shade, bucket.replace("_", "-"))
        axes.set_title(condition)
    _finish_drifts(figure, panels, drifts)
    _legend(figure, panels[0])
    return figure


@_drawn
def sigma_published(points: pd.DataFrame, drifts: pd.DataFrame, dimension: int = 384, base: int = 977) -> Figure:
    """The published S1 drifts; the gap of their tracks over m log(n_A/n_0); and the tracks of a condition of ours.

    `points` is results/published/sigma_fin_s1_points.csv, `drifts` the condition's part of `series.drifts`, `base` the
    published n_0. The gap consists of whole numbers n_A − n_0: without unobserved embeddings it says nothing else.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(WIDTH, 2.1), layout="constrained")
    left.plot(points["generation"], points["track2_drift"], "-", color="black", label="Track II")
    left.plot(points["generation"], points["track1_drift"], "--", color="black", label="Track I")
    left.set(title="published, S1", xlabel="generation", ylabel="drift (nats)")
    left.axhline(0, color="0.6", linewidth=0.6)
    left.legend(fontsize=7)
    gap = points["track1_drift"] - points["track2_drift"]
    middle.plot(points["generation"], base * np.exp(gap / dimension), "o", color="black", markersize=3)
    middle.set(
        title=f"published, ${base}\\,e^{{(\\mathrm{{I}}-\\mathrm{{II}})/{dimension}}}$",
        xlabel="generation",
        ylabel="blocks $n_A$",
    )
    middle.yaxis.set_major_locator(plt.MaxNLocator(integer=True))
    for track, (name, style) in TRACK_STYLES.items():
        rows = drifts[drifts["track"] == track]
        _draw_drifts(right, rows, style, colour(rows["condition"].iloc[0]), name)
    right.set_title(f"ours, {drifts['condition'].iloc[0]}")
    _finish_drifts(figure, [right], drifts)
    right.legend(fontsize=7)
    return figure


@_drawn
def sigma_overlay(points: Mapping[str, pd.DataFrame]) -> Figure:
    """Tracks and surface proxies of each setting (`sigma_experiment.points`), every series scaled to [0, 1]."""
    signals = {
        "track2_drift": ("Track II drift", "-", "#0072B2"),
        "track1_drift": ("Track I drift", "--", "#56B4E9"),
        "distinct2": ("distinct-2", "-.", "#009E73"),
        "hhi": ("hashed HHI", ":", "#D55E00"),
    }
    figure, panels = _grid(len(points), 2, 2.2)
    for axes, (setting, frame) in zip(panels, points.items(), strict=True):
        for column, (name, style, shade) in signals.items():
            span = frame[column].max() - frame[column].min()
            scaled = (frame[column] - frame[column].min()) / (span if span > 0 else 1)
            axes.plot(frame["generation"], scaled, style, color=shade, label=name)
        axes.set(title=setting, xlabel="generation")
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    panels[0].set_ylabel("each from its least to its greatest")
    _legend(figure, panels[0])
    return figure


@_drawn
def correlations(table: pd.DataFrame, metrics: Sequence[str], condition: str = "recursive") -> Figure:
    """Heat map of Spearman's rho over generations, mean over the runs of a condition."""
    present = [metric for metric in metrics if metric in table]
    pairs = within_run_spearman(table, present, condition=condition)
    matrix = pd.DataFrame(np.eye(len(present)), index=present, columns=present)
    for row in pairs.itertuples():
        matrix.loc[row.metric_a, row.metric_b] = matrix.loc[row.metric_b, row.metric_a] = row.rho
    figure, axes = plt.subplots(figsize=(WIDTH * 0.8, WIDTH * 0.7), layout="constrained")
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    labels = [LABELS.get(metric, metric) for metric in present]
    axes.set_xticks(range(len(present)), labels, rotation=55, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(present)), labels)
    axes.grid(False)
    for (i, j), value in np.ndenumerate(matrix.to_numpy()):
        if np.isfinite(value):
            axes.text(
                j,
                i,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=6,
                color="white" if abs(value) > 0.6 else "black",
            )
    figure.colorbar(image, ax=axes, shrink=0.8, label=r"Spearman's $\rho$ over generations")
    return figure


@_drawn
def alarms(table: pd.DataFrame, metrics: Sequence[str], conditions: Sequence[str] = ("recursive", "fresh")) -> Figure:
    """First generation at which each run leaves the control's band (`early_warning.alarms`): a row a metric, a mark a
    run. Treated runs are full marks, pale where they stay inside, and the control's false alarms hollow ones. Outcomes
    are in the shaded rows on top, the line is the median alarm of the first, and the other metrics are sorted: a mark
    to the line's left warned."""
    last = table["generation"].max()
    never = last + 1.4  # a column of its own, set apart from the generations
    treated, control = conditions
    outcomes = [name for name in early_warning.OUTCOMES if name in table]
    judged = table[table["condition"].isin(conditions)]
    names = outcomes + [name for name in metrics if name in table and name not in outcomes]
    places = {}
    for name in names:
        found = early_warning.alarms(judged, name, control=control).dropna().set_index("condition")["alarm"]
        places[name] = found.clip(upper=never)
    mean = {name: found[found.index == treated].mean() for name, found in places.items()}
    shown = outcomes + sorted(names[len(outcomes) :], key=mean.get)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + 0.2 * len(shown)), layout="constrained")
    axes.axhspan(-0.5, len(outcomes) - 0.5, color="0.93", linewidth=0)
    axes.axvline(last + 0.7, color="0.7", linewidth=0.8)
    if outcomes and len(places[outcomes[0]]):
        median = places[outcomes[0]].loc[[treated]].median()
        label = f"{LABELS.get(outcomes[0], outcomes[0])}: median alarm"
        axes.axvline(median, color=colour(treated), linestyle="--", linewidth=1, label=label)
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
    axes.plot([], [], "o", color=colour(treated), markersize=4.5, label=f"alarm of a {treated} run")
    axes.plot([], [], "o", color=colour(control), markersize=3.2, mfc="white", label=f"false alarm of a {control} run")
    axes.set_yticks(range(len(shown)), [LABELS.get(name, name) for name in shown])
    axes.set_xticks([*range(1, last + 1), never], [*map(str, range(1, last + 1)), "never"])
    axes.set(xlim=(0.5, never + 0.5), ylim=(len(shown) - 0.5, -0.5), xlabel="generation of the alarm")
    axes.grid(axis="x", visible=False)
    _legend(figure, axes)
    return figure


@_drawn
def lagged_correlations(
    table: pd.DataFrame, leading: Sequence[str], following: Sequence[str], condition: str = "recursive"
) -> Figure:
    """Heat maps of `lagged_spearman`, a panel for each metric of `following`: rows lead it by the lag, where that is
    positive. Framed: the 95 % t interval over runs excludes 0."""
    leading, following = ([name for name in names if name in table] for names in (leading, following))
    frame = lagged_spearman(table, leading, following, condition)
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
        axes.set(title=LABELS.get(second, second), xlabel="lag")
        axes.grid(False)
    panels[0, 0].set_yticks(range(len(leading)), [LABELS.get(name, name) for name in leading])
    figure.colorbar(image, ax=panels, shrink=0.9, label=r"Spearman's $\rho$")
    return figure
