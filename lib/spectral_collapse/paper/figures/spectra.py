"""Hessian spectra: densities, bounds, parts of the network, and the estimators against themselves and each other."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from ...analysis.metrics import condition_label, label
from ...curvature import cumulated_bounds, smoothed_density
from .style import COLOURS, WIDTH, colour, conditions_of, drawn, in_lines, legend_above, linestyle, panels_of

PUBLISHED = ("published_iqr", "published_iqr_pooled")


@drawn
def density(spectra: Sequence[tuple[str, dict]], conditions: Sequence[str] | None = None) -> Figure:
    """Spectral density of each (name, curvature result), smoothed for the eye by a kernel of 1 % of the range, with
    λ_max and λ_min marked, in the colours of their conditions. The width of the central peak is the kernel's, not the
    spectrum's."""
    figure, panels = panels_of(len(spectra), min(3, len(spectra)), 1.9)
    low = min(result["lambda_min"] for _, result in spectra)
    high = max(result["lambda_max"] for _, result in spectra)
    margin = 0.05 * (high - low)
    grid = np.linspace(low - margin, high + margin, 1200)
    shades = map(colour, conditions or ["baseline"] * len(spectra))
    for axes, (name, result), shade in zip(panels, spectra, shades, strict=True):
        values = smoothed_density(result["nodes"], result["weights"], grid, 0.01 * (high - low))
        axes.semilogy(grid, values, color=shade)
        axes.plot([result["lambda_min"], result["lambda_max"]], [3e-7] * 2, "|", color=shade, markersize=9)
        axes.set(title=name, xlabel=r"eigenvalue $\lambda$", ylim=(1e-7, 10 * values.max()))
    panels[0].set_ylabel("density, smoothed")
    return figure


@drawn
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
    legend_above(figure, axes)
    return figure


@drawn
def estimators(frame: pd.DataFrame) -> Figure:
    """Each estimator against itself, `estimators.noise`: one panel a quantity, one column of dots a batch, one dot a
    probe, groups by Lanczos steps, relative to the quantity's median at the most steps."""
    shown = frame["quantity"].cat.categories
    figure, panels = plt.subplots(1, len(shown), figsize=(WIDTH, 2.5), sharey=True, layout="constrained")
    steps, batches = sorted(frame["steps"].unique()), sorted(frame["batch"].unique())
    for axes, name in zip(np.atleast_1d(panels), shown, strict=True):
        part = frame[frame["quantity"] == name]
        part = part.assign(value=part["value"] / part.loc[part["steps"] == steps[-1], "value"].median())
        for (number, batch), dots in part.groupby(["steps", "batch"]):
            place = steps.index(number) + 0.7 * (batches.index(batch) / max(1, len(batches) - 1) - 0.5)
            shade = COLOURS["recursive" if name in PUBLISHED else "static"]
            axes.semilogy([place] * len(dots), dots["value"], "o", color=shade, markersize=2.4, alpha=0.5, mew=0)
        axes.axhline(1, color="0.5", linewidth=0.6)
        axes.yaxis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(plt.NullFormatter())
        axes.set_xticks(range(len(steps)), steps)
        axes.set_title(in_lines(label(name)))
        axes.set_xlabel("Lanczos steps")
        axes.grid(axis="x", visible=False)
    np.atleast_1d(panels)[0].set_ylabel(f"value / median at {steps[-1]} steps")
    return figure


@drawn
def batch_sizes(found: pd.DataFrame) -> Figure:
    """σ_bulk and λ_max against the number of blocks, a column a model (`batch_sizes.draws`): a mark a batch, lines
    through the means; of the expected loss σ_bulk is an estimate and λ_max a bound from below."""
    names = {"bulk_sigma": ("bulk_sigma", "population_bulk_sigma"), "lambda_max": ("lambda_max", "held_out_lambda_max")}
    models = list(found["model"].unique())
    figure, panels = plt.subplots(
        2, len(models), figsize=(WIDTH, 4.0), sharex=True, squeeze=False, layout="constrained"
    )
    kinds = (("batch", "#D55E00", -1), ("expected loss (of the eigenvalue, a lower bound)", "#0072B2", 1))
    for column, model in enumerate(models):
        rows = found[found["model"] == model]
        for axes, (quantity, columns) in zip(panels[:, column], names.items(), strict=True):
            for name, (kind, shade, side) in zip(columns, kinds, strict=True):
                shown = rows[rows[name] > 0]  # of few blocks a lower bound can be negative
                axes.plot(shown["blocks"] * 1.04**side, shown[name], "o", color=shade, markersize=2.5, alpha=0.5)
                means = shown.groupby("blocks")[name].mean()
                axes.plot(means.index, means, color=shade, label=kind)
            axes.set(xscale="log", yscale="log", ylabel=label(quantity))
        panels[0, column].set_title(model)
        panels[1, column].set_xlabel("blocks in the batch")
        sizes = sorted(rows["blocks"].unique())
        panels[1, column].set_xticks(sizes, list(map(str, sizes)))
        panels[1, column].xaxis.set_minor_locator(NullLocator())
    legend_above(figure, panels[0, 0])
    return figure


@drawn
def layers(results: Sequence[tuple[str, dict]], metrics: Sequence[str] = ("lambda_max", "bulk_sigma")) -> Figure:
    """Where curvature sits: each metric of every part of the network, for each (name, result of the stage `layers`)."""
    apart = 0.06  # inches between two results in one part
    height = 1.1 + max(0.19, apart * (len(results) + 1)) * len(results[0][1])
    figure, panels = plt.subplots(1, len(metrics), figsize=(WIDTH, height), sharey=True, layout="constrained")
    for axes, metric in zip(panels, metrics, strict=True):
        for index, (name, parts) in enumerate(results):
            error = "lambda_max_batch_error" if metric == "lambda_max" else f"{metric}_standard_error"
            values = [part[metric] for part in parts.values()]
            errors = [part[error] or 0.0 for part in parts.values()]
            places = np.arange(len(parts)) + (index - (len(results) - 1) / 2) / (len(results) + 1)
            shade = plt.get_cmap("viridis")(0.85 * index / max(1, len(results) - 1))
            axes.errorbar(values, places, xerr=errors, fmt="o", color=shade, markersize=3, linewidth=0.8, label=name)
        axes.set(title=label(metric), xscale="log")
    panels[0].set_yticks(range(len(results[0][1])), results[0][1])
    panels[0].invert_yaxis()
    legend_above(figure, panels[0])
    return figure


@drawn
def published_estimator(table: pd.DataFrame) -> Figure:
    """The published log ratio against the converged one, run by run: equal readings lie on a line of slope 1."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.4), layout="constrained")
    for condition in conditions_of(table):
        rows = table[table["condition"] == condition]
        style = {"color": colour(condition), "alpha": 0.7, "markersize": 3, "label": condition_label(condition)}
        style["fillstyle"] = "full" if linestyle(condition) == "-" else "none"  # as a line would be dashed or dotted
        left.plot(rows["log_spectral_ratio"], rows["log_published_ratio"], "o", **style)
        for _, run in rows.groupby("seed"):
            style = {"color": colour(condition), "alpha": 0.8}
            right.semilogy(run["generation"], run["published_iqr"], linewidth=0.7, **style)
            right.semilogy(run["generation"], run["bulk_sigma"], linewidth=1.2, linestyle="--", **style)
    left.set(xlabel=label("log_spectral_ratio") + ", ours", ylabel=label("log_published_ratio"))
    right.plot([], [], color="0.3", linewidth=0.7, label="published IQR")
    right.plot([], [], color="0.3", linewidth=1.2, linestyle="--", label=label("bulk_sigma"))
    right.set(xlabel="generation", ylabel="width of the bulk, each run")
    right.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter(NullFormatter())
    legend_above(figure, left)
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=7)  # lines leave no room inside
    return figure
