"""The values of the paper that say what the statistics of the runs found, as LaTeX for running text."""

from collections.abc import Iterator

import numpy as np

from ..analysis.early_warning import RATE
from ..analysis.report import Analysis
from ..analysis.statistics import MARGIN
from .formatting import escape, format_generations, format_interval, format_number, format_p, format_percent
from .tables import label

NOT_EQUAL = "not shown to be equal"
UNMATCHED = "not tested, for want of a control with as many updates"


def values(analysis: Analysis) -> dict[str, str]:
    """Every value that derives from the `Analysis`; M is a metric, C a condition, A, B metrics, O an outcome.

    seeds, generations (the last one), model, margin; detectable.{d,tests,single} (after Holm's correction over so many
    tests, and of a single one); M.C.{first,last}, means at both ends, and M.C.peak_generation, where the mean is
    greatest, the earlier at a tie; anova.M.{condition,generation,interaction}.{F,p,eta} with Greenhouse–Geisser p.

    Against the matched control at the last generation d.M.C, diff.M.C, equal.M.C, and word.M.C, `higher` or `lower`
    where Holm's p is below 0.05; slope.M.C; rho.A.B over the generations of treated runs.

    alarm.rate, alarm.metrics (tried), alarm.runs (judged, of the treatment), alarm.detecting (metrics with an alarm in
    every judged treated run), alarm.false.share (of all control runs and metrics); alarm.M.{detected,false,auc,p}.
    lead.O.always, metrics that fire before O in every judged run; lead.M.O.{median,bounds,both,earlier,later}, no
    median where no run has both alarms; word.lead.M.O; lead.least.{p,p_holm}, the least that the sign test can give,
    and after Holm's correction; lead.impossible, where the latter is not below 0.05. For the first outcome
    lag.M.O.{best,rho}, the lag with the greatest |ρ| of M before O.

    Keys that need an absent control or treatment are absent too.
    """
    return dict(
        pair
        for part in (_setup, _means, _anova, _comparisons, _slopes, _correlations, _alarms, _leads, _lags)
        for pair in part(analysis)
    )


Pairs = Iterator[tuple[str, str]]


def _setup(analysis: Analysis) -> Pairs:
    table, design = analysis.table, analysis.design
    yield "seeds", str(design["seeds"])
    yield "generations", str(table["generation"].max())
    yield "model", escape(table["model"].iloc[0])
    yield "margin", format_percent(MARGIN)
    yield "detectable.d", format_number(design["detectable"])
    yield "detectable.tests", str(design["tests"])
    yield "detectable.single", format_number(design["single"])


def _means(analysis: Analysis) -> Pairs:
    for (metric, condition), means in analysis.means.groupby(["metric", "condition"], sort=False):
        for name, place in (("first", 0), ("last", -1)):
            yield f"{metric}.{condition}.{name}", format_interval(means[["mean", "low", "high"]].iloc[place])
        yield f"{metric}.{condition}.peak_generation", str(means["generation"].iloc[means["mean"].argmax()])


def _anova(analysis: Analysis) -> Pairs:
    for row in analysis.anova.itertuples():
        key = f"anova.{row.metric}.{row.effect}"
        yield f"{key}.F", format_number(row.F)
        yield f"{key}.p", format_p(row.p)
        yield f"{key}.eta", format_number(row.eta)


def _comparisons(analysis: Analysis) -> Pairs:
    for row in analysis.effect_sizes.itertuples():
        yield f"d.{row.metric}.{row.condition}", format_interval((row.d_z, row.low, row.high))
    for row in analysis.paired.itertuples():
        compared = isinstance(row.verdict, str)
        if compared:
            yield f"diff.{row.metric}.{row.condition}", format_interval((row.difference, row.low, row.high))
        yield f"word.{row.metric}.{row.condition}", row.verdict if compared else UNMATCHED
    for row in analysis.equivalence.itertuples():
        word = f"equal within {format_percent(MARGIN)}" if row.equivalent else NOT_EQUAL
        yield f"equal.{row.metric}.{row.condition}", UNMATCHED if np.isnan(row.p) else word


def _slopes(analysis: Analysis) -> Pairs:
    for row in analysis.slopes.itertuples():
        yield f"slope.{row.metric}.{row.condition}", format_interval((row.slope, row.slope_low, row.slope_high))


def _correlations(analysis: Analysis) -> Pairs:
    for row in analysis.correlations.itertuples():
        rho = format_interval((row.rho, row.low, row.high))
        yield f"rho.{row.metric_a}.{row.metric_b}", rho
        yield f"rho.{row.metric_b}.{row.metric_a}", rho


def _alarms(analysis: Analysis) -> Pairs:
    if analysis.detection.empty:
        return
    tried = analysis.detection[~analysis.detection["outcome"]]
    everywhere = (tried["detected"] == tried["runs"]) & (tried["runs"] > 0)
    judged = tried["control_runs"].sum()
    yield "alarm.rate", format_percent(RATE)
    yield "alarm.metrics", str(len(tried))
    yield "alarm.runs", str(analysis.design["judged"])
    yield "alarm.detecting", str(everywhere.sum())
    yield "alarm.false.share", format_percent(tried["false_alarms"].sum() / judged if judged else np.nan)
    for row in analysis.detection.itertuples():
        yield f"alarm.{row.metric}.detected", f"{row.detected} of {row.runs}"
        yield f"alarm.{row.metric}.false", f"{row.false_alarms} of {row.control_runs}"
        yield f"alarm.{row.metric}.auc", format_interval((row.auc, row.auc_low, row.auc_high))
        yield f"alarm.{row.metric}.p", format_p(row.p)


def _leads(analysis: Analysis) -> Pairs:
    design = analysis.design
    if design["judged"]:
        yield "lead.least.p", format_p(design["least_p"])
        yield "lead.least.p_holm", format_p(design["least_p_holm"])
        if design["least_p_holm"] >= 0.05:
            yield "lead.impossible", "yes"
    if analysis.leads.empty:
        return
    for outcome, leads in analysis.leads.groupby("outcome", sort=False):
        first = leads.loc[(leads["earlier"] == design["judged"]) & (design["judged"] > 0), "metric"]
        yield f"lead.{outcome}.always", ", ".join(map(label, first)) or "none"
    for row in analysis.leads.itertuples():
        key = f"lead.{row.metric}.{row.outcome}"
        if row.both:
            yield f"{key}.median", format_generations(row.median)
        yield f"{key}.bounds", f"[{format_generations(row.low)}, {format_generations(row.high)}]"
        for name in ("both", "earlier", "later"):
            yield f"{key}.{name}", str(getattr(row, name))
        yield f"word.{key}", row.verdict


def _lags(analysis: Analysis) -> Pairs:
    for row in analysis.best_lags.itertuples():
        key = f"lag.{row.leading}.{row.following}"
        yield f"{key}.best", format_generations(row.lag)
        yield f"{key}.rho", format_interval((row.rho, row.low, row.high))


def sigma_values(checkpoints: dict[str, int | str], analysis: Analysis) -> dict[str, str]:
    """sigma.<name> of `report.checkpoints`; moved.<track>.<condition>, "2 of 3" runs whose last drift has p < 0.05, for
    tracks with bands."""
    tested = analysis.drifts[analysis.drifts["tested"] > 0]
    moved = {f"moved.{row.track}.{row.condition}": f"{row.moved} of {row.tested}" for row in tested.itertuples()}
    return {f"sigma.{name}": str(value) for name, value in checkpoints.items()} | moved
