"""Tables of a profile's runs: each formats a frame of its `Analysis`."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..analysis.report import Analysis
from ..analysis.statistics import CONTROL
from .formatting import format_generations, format_interval, format_number, format_p
from .tables import Number, Raw, frame_of, label

P_HOLM, P_FLIP = Raw(r"$p_{\mathrm{Holm}}$"), Raw(r"$p_{\mathrm{flip}}$")


def _rows(frame: pd.DataFrame, metrics: Sequence[str] | None) -> pd.DataFrame:
    """Rows of the chosen metrics, in their order; all by default."""
    if metrics is None or frame.empty:
        return frame
    return pd.concat([frame.iloc[:0], *(frame[frame["metric"] == name] for name in metrics)])


def _interval(*values: float) -> Number:
    return Number(format_interval(values))


def _plus_minus(mean: float, half: float) -> Number:
    """Mean ± half-width to two digits of the half-width, with a common power of ten outside 1e-3 to 1e5."""
    if not np.isfinite(half) or half == 0:
        return Number(rf"{format_number(mean)} $\pm$ {format_number(half)}")
    power, place = (math.floor(math.log10(size)) for size in (max(abs(mean), half), half))
    power = 0 if -3 <= power < 5 else power
    decimals = min(max(0, 1 - place + power), 4)
    text = rf"{mean / 10.0**power:.{decimals}f}\pm{half / 10.0**power:.{decimals}f}"
    return Number(rf"$({text})\times10^{{{power}}}$" if power else f"${text}$")


def last_generation(analysis: Analysis) -> pd.DataFrame:
    """Metrics by conditions: mean at the last generation ± half its 95 % t interval."""
    last = analysis.means[analysis.means["generation"] == analysis.means["generation"].max()]
    conditions = list(last["condition"].unique())
    rows = [
        [label(metric), *(_plus_minus(row.mean, (row.high - row.low) / 2) for row in cells.itertuples())]
        for metric, cells in last.groupby("metric", sort=False)
    ]
    return frame_of(rows, ["Metric", *conditions])


def anova(analysis: Analysis, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """A row per metric: F and Greenhouse–Geisser p of each effect; η², ε and permutation p of the interaction.

    Subscripts c, g and cg stand for condition, generation and interaction, with uncorrected degrees of freedom, which
    all metrics share.
    """
    rows, headings = [], []
    for metric, effects in _rows(analysis.anova, metrics).groupby("metric", sort=False):
        rows.append([label(metric)])
        headings = ["Metric"]
        for short, effect in zip(("c", "g", "cg"), effects.itertuples(), strict=True):
            degrees = f"({effect.df1:.0f}, {effect.df2:.0f})" if effect.df1 == effect.df1 else ""
            headings += [Raw(rf"$F_{{{short}}}{degrees}$"), Raw(rf"$p_{{{short}}}$")]
            rows[-1] += [effect.F, Number(format_p(effect.p))]
        headings += [Raw(r"$\eta^2_{cg}$"), Raw(r"$\varepsilon_{cg}$"), Raw(r"$p_{cg}$, perm.")]
        rows[-1] += [effect.eta, effect.epsilon, Number(format_p(effect.p_permutation))]
    return frame_of(rows, headings)


def posthoc(analysis: Analysis, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Metric and condition: paired tests against the matched control at the last generation; dashes without one."""
    rows = [
        [
            label(row.metric),
            row.condition,
            _interval(row.difference, row.low, row.high),
            row.t,
            *(Number(format_p(p)) for p in (row.p_holm, row.p_permutation)),
        ]
        for row in _rows(analysis.paired, metrics).itertuples()
    ]
    statistic = Raw(rf"$t({analysis.design['seeds'] - 1})$")
    return frame_of(rows, ["Metric", "Condition", f"Difference from {CONTROL}", statistic, P_HOLM, P_FLIP])


def effect_sizes(analysis: Analysis, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Metric and condition: Cohen's d against the matched control at the last generation, d_z with its interval."""
    rows = [
        [label(row.metric), row.condition, _interval(row.d_z, row.low, row.high), row.g_z, row.d_av]
        for row in _rows(analysis.effect_sizes, metrics).itertuples()
    ]
    headings = [Raw(rf"${letter}_{{\mathrm{{{kind}}}}}$") for letter, kind in (("d", "z"), ("g", "z"), ("d", "av"))]
    return frame_of(rows, ["Metric", "Condition", *headings])


def equivalence(analysis: Analysis, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Metric and condition: two one-sided tests at the last generation, of metrics that have a margin."""
    rows = [
        [
            label(row.metric),
            row.condition,
            _interval(row.difference, row.low, row.high),
            Number(rf"$\pm$ {format_number(row.margin)}"),
            Number(format_p(row.p_holm)),
            "not tested" if np.isnan(row.p) else "yes" if row.equivalent else "not shown",
        ]
        for row in _rows(analysis.equivalence, metrics).itertuples()
    ]
    return frame_of(rows, ["Metric", "Condition", f"Less {CONTROL}", "Margin", P_HOLM, "Equal"])


def slope_tests(analysis: Analysis, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Metric and condition: slope over generations, its paired difference from the control's, the mixed model's p."""
    rows = []
    for row in _rows(analysis.slopes, metrics).itertuples():
        slope = _interval(row.slope, row.slope_low, row.slope_high)
        ps = (Number(format_p(p)) for p in (row.p_holm, row.p_permutation, row.p_mixed))
        compared = [_interval(row.difference, row.low, row.high), *ps] if not row.is_control else [Number("--")] * 4
        rows.append([label(row.metric), row.condition, slope, *compared])
    headings = ["Slope per generation", f"Less {CONTROL}", P_HOLM, P_FLIP, Raw(r"$p_{\mathrm{mixed}}$")]
    return frame_of(rows, ["Metric", "Condition", *headings])


def _ends(low: float, high: float) -> str:
    """The interval of a probability, to two decimals."""
    return f"[{low:.2f}, {high:.2f}]" if np.isfinite(low) else "[--, --]"


def early_warnings(analysis: Analysis) -> pd.DataFrame:
    """Metric by metric, outcomes first: runs with an alarm, treated and control, uncorrected and at the family's rate;
    AUC."""
    rows = []
    for row in analysis.detection.sort_values("outcome", ascending=False, kind="stable").itertuples():
        auc = f"{row.auc:.2f} {_ends(row.auc_low, row.auc_high)}" if np.isfinite(row.auc) else "--"
        cells = [
            f"{row.detected} of {row.runs} {_ends(row.detected_low, row.detected_high)}",
            f"{row.false_alarms} of {row.control_runs} {_ends(row.false_alarms_low, row.false_alarms_high)}",
            f"{row.detected_family} of {row.runs}",
            auc,
            *map(format_p, (row.p, row.p_holm)),
        ]
        rows.append([label(row.metric), *map(Number, cells)])
    return frame_of(rows, ["Metric", "Detected", "False alarms", "Family-wise", "AUC", Raw("$p$"), P_HOLM])


def leads(analysis: Analysis) -> pd.DataFrame:
    """Metric by metric, for every outcome: runs in which both / the metric alone / the outcome alone / neither fired,
    lead in generations with its bounds, sign test."""
    rows = []
    for row in analysis.leads.itertuples():
        median, low, high = map(format_generations, (row.median, row.low, row.high))
        cells = [
            f"{row.both} / {row.metric_only} / {row.outcome_only} / {row.neither}",
            median,
            f"[{low}, {high}]",
            f"{row.earlier} : {row.later}",
            *map(format_p, (row.p, row.p_holm)),
        ]
        rows.append([label(row.outcome), label(row.metric), *map(Number, cells)])
    headings = ["Outcome", "Metric", "Fired", "Median", "Bounds", "Earlier : later"]
    return frame_of(rows, [*headings, Raw("$p$"), P_HOLM])


def icarus(analysis: Analysis) -> pd.DataFrame:
    """Metric and condition: runs that could be judged, and how many rise, fall, and do both."""
    rows = []
    for row in analysis.icarus.itertuples():
        name = f"{row.condition} (false alarms)" if row.condition == CONTROL else row.condition
        counts = (Number(str(count)) for count in (row.runs, row.rise, row.fall, row.icarus))
        rows.append([label(row.metric), name, *counts])
    return frame_of(rows, ["Metric", "Condition", "Runs", "Rise", "Fall", "Both"])


def correlations(analysis: Analysis, against: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Metrics by a few others (`against`): mean Spearman ρ within treated runs with its interval."""
    cells = {
        pair: _interval(row.rho, row.low, row.high)
        for row in analysis.correlations.itertuples()
        for pair in [(row.metric_a, row.metric_b), (row.metric_b, row.metric_a)]
    }
    rows = [[label(row), *(cells.get((row, column), Number("--")) for column in against)] for row in metrics]
    return frame_of(rows, ["Metric", *map(label, against)])


def sigma_drifts(analysis: Analysis) -> pd.DataFrame:
    """Condition and track at the last generation: mean drift over runs with its t interval, least and greatest run,
    median standard error of a run, and in how many runs the drift is not 0."""
    rows = []
    for row in analysis.drifts.itertuples():
        numbers = (Number(format_number(x)) for x in (row.least, row.greatest, row.error))
        moved = Number(f"{row.moved} of {row.runs}" if row.tested else "--")
        mean = _interval(row.mean, row.low, row.high)
        rows.append([row.condition, label(f"{row.track}_drift"), mean, *numbers, moved])
    return frame_of(rows, ["Condition", "Track", "Mean over runs", "Least", "Greatest", "s.e.", Raw("$p<0.05$")])


def forecasts(analysis: Analysis) -> pd.DataFrame:
    """Metric and condition: rate, fixed point and skill of the tracks' linear dynamics."""
    rows = [
        [
            label(row.metric),
            row.condition,
            Number(format_number(row.rate)),
            Number(f"{row.with_limit} of {row.runs}"),
            *(Number(format_number(x)) for x in (row.fixed_point, row.model_rmse, row.naive_rmse, row.skill)),
        ]
        for row in analysis.forecasts.itertuples()
    ]
    return frame_of(rows, ["Metric", "Condition", "Rate", "With a limit", "Limit", "RMSE", "RMSE, naive", "Skill"])
