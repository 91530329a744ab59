"""Tables of a profile's runs: each formats a frame of its `Analysis`."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..analysis.metrics import condition_label
from ..analysis.report import Analysis
from ..analysis.statistics import CONTROL
from .formatting import escape, format_generations, format_number, format_p
from .tables import Number, Raw, filled, frame_of, interval, label, metric, number, p_value, paragraph, table_of

P, P_HOLM, P_FLIP = Raw("$p$"), Raw(r"$p_{\mathrm{Holm}}$"), Raw(r"$p_{\mathrm{flip}}$")
CELL = {"Metric": metric(), "Condition": lambda row: condition_label(row.condition)}


def _rows(frame: pd.DataFrame, metrics: Sequence[str] | None) -> pd.DataFrame:
    """Rows of the chosen metrics, in their order; all by default."""
    if metrics is None or frame.empty:
        return frame
    return pd.concat([frame.iloc[:0], *(frame[frame["metric"] == name] for name in metrics)])


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
        [label(name), *(_plus_minus(row.mean, (row.high - row.low) / 2) for row in cells.itertuples())]
        for name, cells in last.groupby("metric", sort=False)
    ]
    return frame_of(rows, ["Metric", *map(condition_label, conditions)])


def anova(analysis: Analysis, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """A row per metric: F and Greenhouse–Geisser p of each effect; η², ε and permutation p of the interaction.

    Subscripts c, g and cg stand for condition, generation and interaction, with uncorrected degrees of freedom, which
    all metrics share.
    """
    rows, headings = [], []
    for name, effects in _rows(analysis.anova, metrics).groupby("metric", sort=False):
        rows.append([label(name)])
        headings = ["Metric"]
        for short, effect in zip(("c", "g", "cg"), effects.itertuples(), strict=True):
            degrees = f"({effect.df1:.0f}, {effect.df2:.0f})" if effect.df1 == effect.df1 else ""
            headings += [Raw(rf"$F_{{{short}}}{degrees}$"), Raw(rf"$p_{{{short}}}$")]
            rows[-1] += [effect.F, Number(format_p(effect.p))]
        headings += [Raw(r"$\eta^2_{cg}$"), Raw(r"$\varepsilon_{cg}$"), Raw(r"$p_{cg}$, perm.")]
        rows[-1] += [effect.eta, effect.epsilon, Number(format_p(effect.p_permutation))]
    return frame_of(rows, headings)


def posthoc(analysis: Analysis, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Paired tests against the matched control at the last generation; dashes without one."""
    columns = {
        f"Difference from {CONTROL}": interval("difference"),
        Raw(rf"$t({analysis.design['seeds'] - 1})$"): "t",
        P_HOLM: p_value("p_holm"),
        P_FLIP: p_value("p_permutation"),
    }
    return table_of(_rows(analysis.paired, metrics), CELL | columns)


def effect_sizes(analysis: Analysis, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Cohen's d against the matched control at the last generation, d_z with its interval."""
    sizes = interval("d_z"), "g_z", "d_av"
    letters = (("d", "z"), ("g", "z"), ("d", "av"))
    headings = [Raw(rf"${letter}_{{\mathrm{{{kind}}}}}$") for letter, kind in letters]
    return table_of(_rows(analysis.effect_sizes, metrics), CELL | dict(zip(headings, sizes, strict=True)))


def equivalence(analysis: Analysis, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Two one-sided tests at the last generation, of metrics that have a margin."""
    columns = {
        f"Less {CONTROL}": interval("difference"),
        "Margin": number("margin", lambda margin: rf"$\pm$ {format_number(margin)}"),
        P_HOLM: p_value("p_holm"),
        "Equal": lambda row: "not tested" if np.isnan(row.p) else "yes" if row.equivalent else "not shown",
    }
    return table_of(_rows(analysis.equivalence, metrics), CELL | columns)


def slope_tests(analysis: Analysis, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Slope over generations, its paired difference from the control's, the mixed model's p."""
    compared = {
        f"Less {CONTROL}": interval("difference"),
        P_HOLM: p_value("p_holm"),
        P_FLIP: p_value("p_permutation"),
        Raw(r"$p_{\mathrm{mixed}}$"): p_value("p_mixed"),
    }
    slope = {"Slope per generation": interval("slope", "slope_low", "slope_high")}
    found = _rows(analysis.slopes, metrics)
    shown = table_of(found, CELL | slope | compared)
    if len(found):
        shown.loc[found["is_control"].to_numpy(), list(compared)] = Number("--")
    return shown


def _ends(row: Any, name: str) -> str:
    """The interval of a probability, to two decimals."""
    low, high = getattr(row, f"{name}_low"), getattr(row, f"{name}_high")
    return f"[{low:.2f}, {high:.2f}]" if np.isfinite(low) else "[--, --]"


def early_warnings(analysis: Analysis) -> pd.DataFrame:
    """Metric by metric, outcomes first: runs with an alarm, treated and control, uncorrected and at the family's rate;
    AUC."""

    def auc(row: Any) -> Number:
        return Number(f"{row.auc:.2f} {_ends(row, 'auc')}" if np.isfinite(row.auc) else "--")

    columns = {
        "Metric": metric(),
        "Detected": lambda row: Number(f"{row.detected} of {row.runs} {_ends(row, 'detected')}"),
        "False alarms": lambda row: Number(f"{row.false_alarms} of {row.control_runs} {_ends(row, 'false_alarms')}"),
        "Family-wise": filled("{detected_family} of {runs}"),
        "AUC": auc,
        P: p_value("p"),
        P_HOLM: p_value("p_holm"),
    }
    return table_of(analysis.detection.sort_values("outcome", ascending=False, kind="stable"), columns)


def primary(verdicts: pd.DataFrame, capable: pd.DataFrame) -> pd.DataFrame:
    """The primary hypotheses (`primary.verdicts`) beside what the design can find of each (`primary.capabilities`)."""
    found = verdicts.merge(capable[["hypothesis", "test", "least_p_holm", "detectable"]], on="hypothesis")
    columns = {
        "Hypothesis": lambda row: paragraph(escape(row.statement[0].upper() + row.statement[1:]), 36),
        "Test": "test",
        "Least $p$": p_value("least_p_holm"),
        "Finds": "detectable",
        "Runs for : against": filled("{held} : {failed}"),
        "Estimate": interval("value"),
        "p_holm": p_value("p_holm"),
        "Verdict": "verdict",
    }
    columns = {
        Raw(name) if "$" in name else P_HOLM if name == "p_holm" else name: cell for name, cell in columns.items()
    }
    return table_of(found, columns)


def warnings(found: pd.DataFrame) -> pd.DataFrame:
    """Of each metric the price of a check, its lead, its alarms, and how far it stands out at generation 1, of
    `warning.warnings`."""
    columns = {
        "Metric": metric(),
        "Seconds": number("seconds"),
        "Passes": number("passes"),
        "Median lead": lambda row: Number(format_generations(row.median) if row.both else "--"),
        "Earlier : later": filled("{earlier} : {later}"),
        "Alarms": filled("{detected} of {runs}"),
        "False alarms": filled("{false_alarms} of {control_runs}"),
        Raw(r"$d'$ at generation 1"): interval("first", "first_low", "first_high"),
    }
    return table_of(found, columns)


def leads(analysis: Analysis) -> pd.DataFrame:
    """Metric by metric, for every outcome: runs in which both / the metric alone / the outcome alone / neither fired,
    lead in generations with its bounds, sign test."""
    columns = {
        "Outcome": metric("outcome"),
        "Metric": metric(),
        "Fired": filled("{both} / {metric_only} / {outcome_only} / {neither}"),
        "Median": number("median", format_generations),
        "Bounds": lambda row: Number(f"[{format_generations(row.low)}, {format_generations(row.high)}]"),
        "Earlier : later": filled("{earlier} : {later}"),
        P: p_value("p"),
        P_HOLM: p_value("p_holm"),
    }
    return table_of(analysis.leads, columns)


def icarus(analysis: Analysis) -> pd.DataFrame:
    """Runs that could be judged, and how many rise, fall, and do both."""
    marked = analysis.icarus.replace({"condition": {CONTROL: f"{CONTROL} (false alarms)"}})
    counts = {name.capitalize(): number(name, str) for name in ("runs", "rise", "fall")}
    return table_of(marked, CELL | counts | {"Both": number("icarus", str)})


def correlations(analysis: Analysis, against: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Metrics by a few others (`against`): mean Spearman ρ within treated runs with its interval."""
    rho = interval("rho")
    cells = {
        pair: rho(row)
        for row in analysis.correlations.itertuples()
        for pair in [(row.metric_a, row.metric_b), (row.metric_b, row.metric_a)]
    }
    rows = [[label(row), *(cells.get((row, column), Number("--")) for column in against)] for row in metrics]
    return frame_of(rows, ["Metric", *map(label, against)])


def sigma_drifts(analysis: Analysis) -> pd.DataFrame:
    """Condition and track at the last generation: mean drift over runs with its t interval, least and greatest run,
    median standard error of a run, and in how many runs the drift is not 0."""
    columns = {
        "Condition": lambda row: condition_label(row.condition),
        "Track": lambda row: label(f"{row.track}_drift"),
        "Mean over runs": interval("mean"),
        "Least": number("least"),
        "Greatest": number("greatest"),
        "s.e.": number("error"),
        Raw("$p<0.05$"): lambda row: Number(f"{row.moved} of {row.runs}" if row.tested else "--"),
    }
    return table_of(analysis.drifts, columns)


def forecasts(analysis: Analysis) -> pd.DataFrame:
    """Rate, fixed point and skill of the tracks' linear dynamics."""
    columns = {
        "Rate": number("rate"),
        "With a limit": filled("{with_limit} of {runs}"),
        "Limit": number("fixed_point"),
        "RMSE": number("model_rmse"),
        "RMSE, naive": number("naive_rmse"),
        "Skill": number("skill"),
    }
    return table_of(analysis.forecasts, CELL | columns)


def separation(separated: pd.DataFrame) -> pd.DataFrame:
    """`rescue.separation`, of one condition or several."""
    columns = {
        "Condition": lambda row: condition_label(row.condition),
        "Metric": metric(),
        "Said to": lambda row: "rises" if row.direction > 0 else "falls",
        "AUC": number("auc"),
        Raw("Threshold (change)"): number("threshold"),
        "Models": filled("{models} in {runs} runs"),
    }
    return table_of(separated, columns)


def claims(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Every claim (`claims.verdicts`) with its source, the figure printed there, our estimate with its interval, what
    was compared and what kind of interval that is, and the verdict."""
    estimate = interval("value")
    columns = {
        "Claim": lambda row: paragraph(escape(row.claim), 72),
        "Source": lambda row: paragraph(escape(row.source), 34),
        # A minus sign, not a hyphen, before a number.
        "Figure there": lambda row: paragraph(re.sub(r"(?<![\w.])-(?=\d)", "$-$", escape(row.figure)), 29),
        "Here": lambda row: estimate(row) if row.kind else Number("--"),
        "Compared; kind of interval": lambda row: paragraph(
            escape(f"{row.compared}; {row.kind}" if row.kind else row.reason), 42
        ),
        "Verdict": lambda row: Raw(row.verdict),
    }
    return table_of(verdicts, columns)
