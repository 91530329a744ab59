"""The numbers of the paper that derive from the tidy table, as LaTeX for running text."""

import numpy as np
import pandas as pd

from ..analysis import detection, early_warning
from ..analysis.anova import repeated_measures_anova
from ..analysis.correlation import lagged_spearman, within_run_spearman
from ..analysis.slopes import slope_tests
from ..analysis.statistics import (
    CONTROL,
    MARGIN,
    TREATMENT,
    detectable_effect,
    effect_sizes,
    equivalence,
    least_p,
    margin_of,
    matched_controls,
    metric_names,
    paired_tests,
    summary,
)
from ..estimate import Interval
from .formatting import escape, format_generations, format_interval, format_number, format_p, format_percent
from .tables import label

NO_LEAD, NOT_EQUAL = "not shown to be earlier", "not shown to be equal"
UNMATCHED = "not tested, for want of a control with as many updates"


def lead_verdict(p: float, p_holm: float) -> str:
    """`earlier` if the sign test of `lead_summary` rejects at 0.05 after Holm's correction over all metrics tried."""
    if p_holm < 0.05:
        return "earlier"
    return "earlier before correction, not after" if p < 0.05 else NO_LEAD


def _counted(count: int, runs: int) -> str:
    return f"{count} of {runs}"


def warning_values(table: pd.DataFrame) -> dict[str, str]:
    """Numbers of alarms and leads, for tables that hold the control and the treatment (keys as in `values`).

    alarm.rate, alarm.metrics (number tried), alarm.runs (judged, of the treatment), alarm.detecting (metrics with an
    alarm in every judged treated run), alarm.false.share (of all control runs and metrics);
    alarm.M.{detected,false,auc,p}; for every metric M but the outcomes and every outcome O lead.O.always (metrics that
    fire before it in every judged run), lead.M.O.{median,bounds,both,earlier,later,p} (no median where no run has both
    alarms), word.lead.M.O (`lead_verdict`) and, for the first outcome, lag.M.O.{best,rho}: the lag with the greatest
    |ρ| of M before O, and that ρ; lead.least.{p,p_holm}, the least that the sign test can give with so many runs, and
    that after Holm's correction; lead.{possible,impossible}, "yes", whether the latter is below 0.05;
    lead.range.coverage, of the range of the runs' leads for their median.
    """
    metrics = early_warning.candidates(table)
    outcomes = [name for name in early_warning.OUTCOMES if name in table]
    tried = detection.detection(table, metrics)
    judged = int(tried["runs"].max())
    everywhere = (tried["detected"] == tried["runs"]) & (tried["runs"] > 0)
    text = {
        "alarm.rate": format_percent(early_warning.RATE),
        "alarm.metrics": str(len(metrics)),
        "alarm.runs": str(judged),
        "alarm.detecting": str(everywhere.sum()),
        "alarm.false.share": format_percent(
            tried["false_alarms"].sum() / tried["control_runs"].sum() if judged else np.nan
        ),
    }
    if judged:
        least = least_p("sign", judged)
        corrected = min(1.0, least * len(metrics))
        text |= {
            "lead.least.p": format_p(least),
            "lead.least.p_holm": format_p(corrected),
            "lead.possible" if corrected < 0.05 else "lead.impossible": "yes",
            "lead.range.coverage": format_percent(early_warning.range_coverage(judged)),
        }
    for row in pd.concat([tried, detection.detection(table, outcomes)]).itertuples():
        text[f"alarm.{row.metric}.detected"] = _counted(row.detected, row.runs)
        text[f"alarm.{row.metric}.false"] = _counted(row.false_alarms, row.control_runs)
        text[f"alarm.{row.metric}.auc"] = format_interval(Interval(row.auc, row.auc_low, row.auc_high))
        text[f"alarm.{row.metric}.p"] = format_p(row.p)
    for outcome in outcomes:
        leads = early_warning.lead_summary(table, metrics, outcome)
        first = leads.loc[(leads["earlier"] == judged) & (judged > 0), "metric"]
        text[f"lead.{outcome}.always"] = ", ".join(map(label, first)) or "none"
        for row in leads.itertuples():
            key = f"lead.{row.metric}.{outcome}"
            if row.both:
                text[f"{key}.median"] = format_generations(row.median)
            text[f"{key}.bounds"] = f"[{format_generations(row.low)}, {format_generations(row.high)}]"
            for name in ("both", "earlier", "later"):
                text[f"{key}.{name}"] = str(getattr(row, name))
            text[f"{key}.p"] = format_p(row.p)
            text[f"word.{key}"] = lead_verdict(row.p, row.p_holm)
    for metric, rows in lagged_spearman(table, metrics, outcomes[:1]).groupby("leading"):
        best = rows.loc[rows["rho"].abs().fillna(-1).idxmax()]
        key = f"lag.{metric}.{outcomes[0]}"
        text[f"{key}.best"] = format_generations(best["lag"] if np.isfinite(best["rho"]) else np.nan)
        text[f"{key}.rho"] = format_interval(Interval(best["rho"], best["low"], best["high"]))
    return text


def values(table: pd.DataFrame) -> dict[str, str]:
    """Every number of the paper that derives from the tidy table, as LaTeX for running text.

    Keys (M metric, C condition, A, B metrics): seeds, generations (the last one), model, detectable.{d,tests,single}
    (after Holm's correction over so many tests, and of a single one);
    M.C.first, M.C.last (mean at the first and last generation with t interval), M.C.peak_generation (where
    the mean is greatest, the earlier at a tie); anova.M.{condition,generation,interaction}.{F,p,df,eta} with
    Greenhouse-Geisser p; against the matched `fresh` at the last generation d.M.C (d_z with its noncentral t interval),
    diff.M.C (mean difference with t interval) and word.M.C: `higher` or `lower` if the Holm-adjusted paired
    t-test gives p < 0.05, else `not distinguishable`, or that there is no such control; rho.A.B over the generations of
    `recursive` runs.
    Keys that need an absent control or treatment are absent too.
    """
    if table.empty:
        raise ValueError("The table holds no runs.")
    conditions, metrics = list(table["condition"].unique()), metric_names(table)
    seeds = table["seed"].nunique()
    controls = matched_controls(table) if CONTROL in conditions else {}
    tests = max(1, sum(control not in (None, name) for name, control in controls.items()))
    text = {
        "seeds": str(seeds),
        "generations": str(table["generation"].max()),
        "model": escape(table["model"].iloc[0]),
        "margin": format_percent(MARGIN),
        "detectable.d": format_number(detectable_effect(seeds, tests)),
        "detectable.tests": str(tests),
        "detectable.single": format_number(detectable_effect(seeds)),
    }
    for metric in metrics:
        for condition, series in summary(table, metric).groupby("condition"):
            intervals = [Interval(*row) for row in series[["mean", "low", "high"]].to_numpy()]
            text[f"{metric}.{condition}.first"] = format_interval(intervals[0])
            text[f"{metric}.{condition}.last"] = format_interval(intervals[-1])
            text[f"{metric}.{condition}.peak_generation"] = str(series["generation"].iloc[series["mean"].argmax()])
        for row in repeated_measures_anova(table, metric).itertuples():
            key = f"anova.{metric}.{row.effect}"
            text[f"{key}.F"], text[f"{key}.p"] = format_number(row.F), format_p(row.p)
            text[f"{key}.df"] = f"{row.df1:.0f}, {row.df2:.0f}" if np.isfinite(row.df1) else "--"
            text[f"{key}.eta"] = format_number(row.eta)
        if CONTROL not in conditions:
            continue
        for condition, effect in effect_sizes(table, metric).items():
            text[f"d.{metric}.{condition}"] = format_interval(effect.d_z)
        for row in paired_tests(table, metric).itertuples():
            if controls[row.condition] is None:
                text[f"word.{metric}.{row.condition}"] = UNMATCHED
                continue
            difference = Interval(row.difference, row.low, row.high)
            text[f"diff.{metric}.{row.condition}"] = format_interval(difference)
            word = "higher" if row.difference > 0 else "lower"
            text[f"word.{metric}.{row.condition}"] = word if row.p_holm < 0.05 else "not distinguishable"
        margin = margin_of(table, metric)
        for row in equivalence(table, metric, margin).itertuples() if margin > 0 else ():
            word = f"equal within {text['margin']}" if row.equivalent else NOT_EQUAL
            text[f"equal.{metric}.{row.condition}"] = UNMATCHED if controls[row.condition] is None else word
        for row in slope_tests(table, metric).itertuples() if table["generation"].nunique() > 1 else ():
            text[f"slope.{metric}.{row.condition}"] = format_interval(
                Interval(row.slope, row.slope_low, row.slope_high)
            )
            if controls[row.condition] not in (None, row.condition):
                difference = Interval(row.difference, row.low, row.high)
                text[f"slope_diff.{metric}.{row.condition}"] = format_interval(difference)
    if TREATMENT in conditions:
        for row in within_run_spearman(table, metrics).itertuples():
            rho = format_interval(Interval(row.rho, row.low, row.high))
            text[f"rho.{row.metric_a}.{row.metric_b}"] = text[f"rho.{row.metric_b}.{row.metric_a}"] = rho
    if {CONTROL, TREATMENT} <= set(conditions) and early_warning.candidates(table):
        text |= warning_values(table)
    return text
