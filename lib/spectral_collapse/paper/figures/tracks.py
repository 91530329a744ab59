"""SIGMA's tracks and their proxies."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...analysis import sigma_settings
from ...analysis.metrics import condition_label, label
from .style import WIDTH, colour, conditions_of, drawn, in_lines, legend_above, linestyle, panels_of

TRACK_STYLES = {
    "track_two": ("Track II", "-"),
    "logdet": ("log det, corrected", ":"),
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


def _drawn_tracks(drifts: pd.DataFrame) -> list[tuple[pd.DataFrame, str, str]]:
    """Rows, name and style of every track that has a drift."""
    tracks = [(drifts[drifts["track"] == track], name, style) for track, (name, style) in TRACK_STYLES.items()]
    return [(rows, name, style) for rows, name, style in tracks if rows["drift"].notna().any()]


def _finish_drifts(figure: Figure, panels: Sequence[Axes], frame: pd.DataFrame) -> None:
    low, high = np.nanmin([frame["low"], frame["drift"]]), np.nanmax([frame["high"], frame["drift"]])
    margin = 0.06 * max(high - low, 1e-9)
    for axes in panels:
        axes.axhline(0, color="0.6", linewidth=0.6)
        axes.set(xlabel="generation", ylim=(low - margin, high + margin))
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    panels[0].set_ylabel("drift (nats)")


@drawn
def sigma_tracks(drifts: pd.DataFrame) -> Figure:
    """Drift of every SIGMA track (`series.drifts`), one panel a condition, all on one scale; each run has its band."""
    names = conditions_of(drifts)
    figure, panels = panels_of(len(names), min(4, len(names)), 2.0)
    for axes, condition in zip(panels, names, strict=True):
        rows = drifts[drifts["condition"] == condition]
        for own, name, style in _drawn_tracks(rows):
            _draw_drifts(axes, own, style, colour(condition), name)
        axes.set_title(in_lines(condition_label(condition)))
    _finish_drifts(figure, panels, drifts)
    legend_above(figure, panels[0])
    return figure


@drawn
def sigma_buckets(drifts: pd.DataFrame) -> Figure:
    """Track II's drift in every prompt bucket (`series.bucket_drifts`), one panel a condition."""
    names, buckets = conditions_of(drifts), list(drifts["bucket"].unique())
    figure, panels = panels_of(len(names), min(4, len(names)), 2.0)
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(buckets)))
    for axes, condition in zip(panels, names, strict=True):
        rows = drifts[drifts["condition"] == condition]
        for bucket, shade in zip(buckets, shades, strict=True):
            _draw_drifts(axes, rows[rows["bucket"] == bucket], "-", shade, bucket.replace("_", "-"))
        axes.set_title(in_lines(condition_label(condition)))
    _finish_drifts(figure, panels, drifts)
    legend_above(figure, panels[0])
    return figure


@drawn
def sigma_published(points: pd.DataFrame, drifts: pd.DataFrame) -> Figure:
    """The published S1 drifts; the gap of their tracks over m log(n_A/n_0); and the tracks of a condition of ours.

    `points` is results/published/sigma_fin_s1_points.csv, `drifts` the condition's part of `series.drifts`, n_0 that of
    `sigma_settings.published_counts`. The gap consists of whole numbers n_A − n_0: without unobserved embeddings it
    says nothing else.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(WIDTH, 2.1), layout="constrained")
    left.plot(points["generation"], points["track2_drift"], "-", color="black", label="Track II")
    left.plot(points["generation"], points["track1_drift"], "--", color="black", label="Track I")
    left.set(title="published, S1", xlabel="generation", ylabel="drift (nats)")
    left.axhline(0, color="0.6", linewidth=0.6)
    left.legend(fontsize=7)
    gap, dimension = points["track1_drift"] - points["track2_drift"], sigma_settings.PUBLISHED_DIMENSION
    base = sigma_settings.published_counts(points)["base"]
    middle.plot(points["generation"], base * np.exp(gap / dimension), "o", color="black", markersize=3)
    middle.set(
        title=f"published, ${base}\\,e^{{(\\mathrm{{I}}-\\mathrm{{II}})/{dimension}}}$",
        xlabel="generation",
        ylabel="blocks $n_A$",
    )
    middle.yaxis.set_major_locator(plt.MaxNLocator(integer=True))
    for rows, name, style in _drawn_tracks(drifts):
        _draw_drifts(right, rows, style, colour(rows["condition"].iloc[0]), name)
    right.set_title(f"ours, {condition_label(drifts['condition'].iloc[0])}")
    _finish_drifts(figure, [right], drifts)
    right.legend(fontsize=7)
    return figure


@drawn
def sigma_fifty(table: pd.DataFrame, points: pd.DataFrame) -> Figure:
    """Track II and Track I on one scale, perplexity, anchor entropy, distinct-2 and the concentration of the responses'
    n-grams, by condition of `series.table`: means over seeds, and single runs; beside the tracks the published S1
    series (results/published/sigma_fin_s1_points.csv)."""
    published = {"track_two_drift": "track2_drift", "track_one_drift": "track1_drift"}
    shown = [*published, "held_out_perplexity", "predictive_entropy", "distinct_2", "hashed_ngram_hhi"]
    figure, panels = panels_of(len(shown), 3, 1.9)
    for axes, metric in zip(panels, shown, strict=True):
        for condition in conditions_of(table):
            own = table[table["condition"] == condition].pivot(index="generation", columns="seed", values=metric)
            style = {"color": colour(condition), "linestyle": linestyle(condition)}
            axes.plot(own.index, own, **style, linewidth=0.5, alpha=0.45)
            axes.plot(own.index, own.mean(axis=1), **style, label=condition_label(condition))
        if metric in published:
            axes.plot(points["generation"], points[published[metric]], ".-", color="0.35", lw=0.8, label="published S1")
        axes.set(title=label(metric), xlabel="generation")
    panels[1].sharey(panels[0])
    for axes in (panels[2], panels[5]):
        axes.set_yscale("log")
    legend_above(figure, panels[0])
    return figure


@drawn
def sigma_overlay(points: Mapping[str, pd.DataFrame], drifts: Mapping[str, pd.DataFrame]) -> Figure:
    """Tracks and surface proxies of each setting (`analysis.sigma_settings.points`), every series scaled to [0, 1].

    Tracks are means over runs; their bands, from the setting's `series.drifts`, are 95 % by the runs' bootstraps over
    prompts: mean ± 1.96 √(Σ s_r²)/R of R runs with standard errors s_r.
    """
    tracks = {"track2_drift": "track_two", "track1_drift": "track_one"}
    signals = {
        "track2_drift": ("Track II drift", "-", "#0072B2"),
        "track1_drift": ("Track I drift", "--", "#56B4E9"),
        "distinct2": ("distinct-2", "-.", "#009E73"),
        "hhi": ("hashed HHI", ":", "#D55E00"),
    }
    figure, panels = panels_of(len(points), 2, 2.2)
    for axes, (setting, frame) in zip(panels, points.items(), strict=True):
        for column, (name, style, shade) in signals.items():
            span = frame[column].max() - frame[column].min()
            span = span if span > 0 else 1
            scaled = (frame[column] - frame[column].min()) / span
            axes.plot(frame["generation"], scaled, style, color=shade, label=name)
            if column in tracks:
                runs = drifts[setting].loc[drifts[setting]["track"] == tracks[column]].groupby("generation")
                errors = runs["standard_error"].agg(lambda s: np.sqrt((s**2).sum()) / len(s))
                half = 1.96 * errors.reindex(frame["generation"]).to_numpy() / span
                axes.fill_between(frame["generation"], scaled - half, scaled + half, color=shade, alpha=0.15, lw=0)
        axes.set(title=setting, xlabel="generation")
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    panels[0].set_ylabel("scaled to [0, 1]")
    legend_above(figure, panels[0])
    return figure
