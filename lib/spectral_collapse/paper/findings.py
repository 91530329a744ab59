"""The values of the paper that say what the statistics of the runs found, as LaTeX for running text."""

from typing import Any

import numpy as np
import pandas as pd

from ..analysis.claims import VERDICTS
from ..analysis.early_warning import RATE
from ..analysis.report import Analysis
from ..analysis.statistics import ALPHA, MARGIN, TREATMENT
from ..estimate import Estimate
from . import sentences
from .formatting import escape, format_generations, format_interval, format_number, format_p, format_percent
from .tables import filled, interval, label, number, p_value, values_of

NOT_EQUAL = "not shown to be equal"
UNMATCHED = "not tested, for want of a control with as many updates"


def values(analysis: Analysis) -> dict[str, str]:
    """Every value that derives from the `Analysis`; M is a metric, C a condition, A, B metrics, O an outcome.

    seeds, generations (the last one), model, margin; detectable.{d,tests,single} (after Holm's correction over so many
    tests, and of a single one); M.C.{first,last}, means at both ends, and M.C.peak_generation, where the mean is
    greatest, the earlier at a tie; anova.M.{condition,generation,interaction}.{F,p,eta} with Greenhouse–Geisser p.

    Against the matched control at the last generation d.M.C, diff.M.C, equal.M.C, word.M.C (`higher` or `lower` where
    Holm's p is below 0.05) and says.M.C (`sentences.predicate`); slope.M.C; rho.A.B over the generations of treated
    runs.

    alarm.rate, alarm.metrics (tried), alarm.runs (judged, of the treatment), alarm.detecting (metrics with an alarm in
    every judged treated run), alarm.false.share (of all control runs and metrics); alarm.M.{detected,false,auc,p}.
    lead.O.always, metrics that fire before O in every judged run; lead.M.O.{median,bounds,both,earlier,later}, no
    median where no run has both alarms; word.lead.M.O; lead.O.possible, the most generations by which any metric could
    have led in the treated runs, since none alarms before generation 1; lead.least.{p,p_holm}, the least that the sign
    test can give, and after Holm's correction; lead.impossible, where the latter is not below 0.05. For the first
    outcome lag.M.O.{best,rho}, the lag with the greatest |ρ| of M before O.

    Keys that need an absent control or treatment are absent too.
    """
    return {
        **_setup(analysis),
        **_means(analysis),
        **values_of(
            analysis.anova,
            {
                "anova.{metric}.{effect}.F": number("F"),
                "anova.{metric}.{effect}.p": p_value("p"),
                "anova.{metric}.{effect}.eta": number("eta"),
            },
        ),
        **values_of(analysis.effect_sizes, {"d.{metric}.{condition}": interval("d_z")}),
        **values_of(
            analysis.paired,
            {
                "diff.{metric}.{condition}": lambda row: interval("difference")(row) if _compared(row) else None,
                "word.{metric}.{condition}": lambda row: row.verdict if _compared(row) else UNMATCHED,
            },
        ),
        **values_of(analysis.equivalence, {"equal.{metric}.{condition}": _equal}),
        **values_of(analysis.slopes, {"slope.{metric}.{condition}": interval("slope", "slope_low", "slope_high")}),
        **values_of(
            analysis.correlations,
            {"rho.{metric_a}.{metric_b}": interval("rho"), "rho.{metric_b}.{metric_a}": interval("rho")},
        ),
        **sentences.predicates(analysis),
        **_alarms(analysis),
        **_leads(analysis),
        **values_of(
            analysis.best_lags,
            {
                "lag.{leading}.{following}.best": number("lag", format_generations),
                "lag.{leading}.{following}.rho": interval("rho"),
            },
        ),
    }


def _setup(analysis: Analysis) -> dict[str, str]:
    table, design = analysis.table, analysis.design
    return {
        "seeds": str(design["seeds"]),
        "generations": str(table["generation"].max()),
        "model": escape(table["model"].iloc[0]),
        "margin": format_percent(MARGIN),
        "detectable.d": format_number(design["detectable"]),
        "detectable.tests": str(design["tests"]),
        "detectable.single": format_number(design["single"]),
    }


def _means(analysis: Analysis) -> dict[str, str]:
    text = {}
    for (metric, condition), means in analysis.means.groupby(["metric", "condition"], sort=False):
        for name, place in (("first", 0), ("last", -1)):
            text[f"{metric}.{condition}.{name}"] = format_interval(means[["mean", "low", "high"]].iloc[place])
        text[f"{metric}.{condition}.peak_generation"] = str(means["generation"].iloc[means["mean"].argmax()])
    return text


def _compared(row: Any) -> bool:
    return isinstance(row.verdict, str)


def _equal(row: Any) -> str:
    if np.isnan(row.p):
        return UNMATCHED
    return f"equal within {format_percent(MARGIN)}" if row.equivalent else NOT_EQUAL


def _alarms(analysis: Analysis) -> dict[str, str]:
    if analysis.detection.empty:
        return {}
    tried = analysis.detection[~analysis.detection["outcome"]]
    everywhere = (tried["detected"] == tried["runs"]) & (tried["runs"] > 0)
    judged = tried["control_runs"].sum()
    return {
        "alarm.rate": format_percent(RATE),
        "alarm.metrics": str(len(tried)),
        "alarm.runs": str(analysis.design["judged"]),
        "alarm.detecting": str(everywhere.sum()),
        "alarm.false.share": format_percent(tried["false_alarms"].sum() / judged if judged else np.nan),
        **values_of(
            analysis.detection,
            {
                "alarm.{metric}.detected": filled("{detected} of {runs}"),
                "alarm.{metric}.false": filled("{false_alarms} of {control_runs}"),
                "alarm.{metric}.auc": interval("auc", "auc_low", "auc_high"),
                "alarm.{metric}.p": p_value("p"),
            },
        ),
    }


def _leads(analysis: Analysis) -> dict[str, str]:
    design, text = analysis.design, {}
    if design["judged"]:
        text |= {f"lead.least.{name}": format_p(design[f"least_{name}"]) for name in ("p", "p_holm")}
        if design["least_p_holm"] >= ALPHA:
            text["lead.impossible"] = "yes"
    if analysis.leads.empty:
        return text
    for outcome, leads in analysis.leads.groupby("outcome", sort=False):
        first = leads.loc[(leads["earlier"] == design["judged"]) & (design["judged"] > 0), "metric"]
        text[f"lead.{outcome}.always"] = sentences.listed(list(map(label, first)))
        rows = (analysis.alarms["metric"] == outcome) & (analysis.alarms["condition"] == TREATMENT)
        raised = analysis.alarms.loc[rows, "alarm"]
        if len(raised) and np.isfinite(raised).all():  # an outcome that stays silent leaves room in that run
            text[f"lead.{outcome}.possible"] = f"{raised.max() - 1:g}"
    key = "lead.{metric}.{outcome}"
    return text | values_of(
        analysis.leads,
        {
            f"{key}.median": lambda row: format_generations(row.median) if row.both else None,
            f"{key}.bounds": lambda row: f"[{format_generations(row.low)}, {format_generations(row.high)}]",
            **{f"{key}.{count}": number(count, str) for count in ("both", "earlier", "later")},
            f"word.{key}": lambda row: row.verdict,
        },
    )


def sigma_values(checkpoints: dict[str, int | str], analysis: Analysis) -> dict[str, str]:
    """sigma.<name> of `report.checkpoints`; moved.<track>.<condition>, "2 of 3" runs whose last drift has p < 0.05, for
    tracks with bands."""
    tested = analysis.drifts[analysis.drifts["tested"] > 0]
    moved = values_of(tested, {"moved.{track}.{condition}": filled("{moved} of {tested}")})
    return {f"sigma.{name}": str(value) for name, value in checkpoints.items()} | moved


def primary_values(verdicts: pd.DataFrame) -> dict[str, str]:
    """Of `primary.verdicts`: primary.count, and of each hypothesis H primary.H.{verdict,estimate,held,failed,p};
    `demonstration` where there is none."""
    if verdicts.empty:
        return {"demonstration": "yes"}
    entries = {
        "primary.{hypothesis}.verdict": number("verdict", str),
        "primary.{hypothesis}.estimate": interval("value"),
        "primary.{hypothesis}.held": number("held", str),
        "primary.{hypothesis}.failed": number("failed", str),
        "primary.{hypothesis}.p": p_value("p_holm"),
    }
    counted = {"primary.count": str(len(verdicts)), "primary.decided": sentences.decided(verdicts)}
    return counted | values_of(verdicts, entries)


# How the finding names its metrics, in its order.
NAMED = {
    "held_out_perplexity": "held-out perplexity",
    "predictive_entropy": "anchor entropy",
    "distinct_2": "the share of distinct word pairs",
    "track_two_drift": "SIGMA's Track II",
    "log_spectral_ratio": "the converged log spectral ratio",
    "log_published_ratio": "the published one",
}


def finding(analysis: Analysis) -> str:
    """The early warnings in one sentence: in how many treated runs each metric of `NAMED` raised an alarm, and when.

    Without bands it says why there is none.
    """
    alarms = analysis.alarms
    alarms = alarms[(alarms["condition"] == TREATMENT) & alarms["alarm"].notna()] if len(alarms) else alarms
    parts = []
    for name, words in NAMED.items():
        runs = alarms.loc[alarms["metric"] == name, "alarm"] if len(alarms) else []
        if len(runs):
            raised = runs[np.isfinite(runs)]
            count = f"all {len(runs)}" if len(raised) == len(runs) else f"{len(raised)} of {len(runs)}"
            when = f"{count} (median generation {raised.median():g})" if len(raised) else "none"
            parts.append((words, when))
    if not parts:
        return "over so few runs no metric can raise an alarm"
    (first, when), *others = parts
    start = (
        f"{first} raised an alarm in {when.replace(' (', ' recursive runs (') if '(' in when else 'no recursive run'}"
    )
    return ", ".join([start, *(f"{words} in {when}" for words, when in others)])


def rescue_values(counts: pd.DataFrame) -> dict[str, str]:
    """`rescue.reversibility_counts`. Of every condition C with judged models: rescue.models.C, rescue.reversible.C,
    rescue.runs.C, rescue.lost.C, and rescue.turning.C if runs are lost. Of one without: rescue.unjudged.C, its models.
    """
    names = {"models": "judged", "reversible": "reversible", "runs": "runs", "lost": "lost"}
    entries = {f"rescue.{name}.{{Index}}": number(count, str) for name, count in names.items()}
    entries["rescue.turning.{Index}"] = lambda row: f"{row.turning:g}" if np.isfinite(row.turning) else None
    unjudged = values_of(counts[counts["judged"] == 0], {"rescue.unjudged.{Index}": number("rescued", str)})
    return unjudged | values_of(counts[counts["judged"] > 0], entries)


def dose_values(closed: pd.DataFrame) -> dict[str, str]:
    """dose.C.D, mean share of the gap that the dose D closed in condition C, with its t interval over the seeds that
    have a gap (`rescue.recovered`); dose.least and dose.most."""
    if closed.empty:
        return {}
    groups = closed.dropna(subset="share").groupby(["condition", "dose"])["share"]
    found = {f"dose.{condition}.{dose}": format_interval(Estimate.mean(runs)) for (condition, dose), runs in groups}
    return found | {"dose.least": str(closed["dose"].min()), "dose.most": str(closed["dose"].max())}


def claims_values(verdicts: pd.DataFrame) -> dict[str, str]:
    """claim.<id>, its verdict; where there is an estimate claim.<id>.estimate and .compared; claims.all and
    claims.<verdict>, counts, blanks as underscores."""
    counts = {name.replace(" ", "_"): (verdicts["verdict"] == name).sum() for name in VERDICTS}
    estimated = {"claim.{id}.estimate": interval("value"), "claim.{id}.compared": number("compared", escape)}
    return {
        **values_of(verdicts, {"claim.{id}": number("verdict", str)}),
        **values_of(verdicts[verdicts["kind"] != ""], estimated),
        "claims.all": str(len(verdicts)),
        **{f"claims.{name}": str(count) for name, count in counts.items()},
    }
