"""Sentences that say what the runs found: one rule for each outcome, so that the text follows the data."""

import math

import pandas as pd

from ..analysis.report import SAME, Analysis
from ..analysis.statistics import matched_controls
from ..estimate import Estimate
from .formatting import format_interval, format_number


def moved(first: Estimate, last: Estimate) -> str:
    """How a mean moved between two generations: "rose from 2 to 3", "fell from …", "went from …, no further than its
    error", and of a drift, which starts at 0, "rose to 3". The error is the half-width of the last interval."""
    change, half = last.value - first.value, (last.high - last.low) / 2
    end = format_number(last.value)
    if math.isfinite(half) and abs(change) <= half:
        verb, note = "went", ", no further than its error"
    else:
        verb, note = "rose" if change > 0 else "fell", ""
    start = "" if first.value == 0 else f" from {format_number(first.value)}"
    return f"{verb}{start} to {end}{note}"


def predicate(first: Estimate, last: Estimate, control: float, difference: Estimate, verdict: str | None) -> str:
    """What is said of a metric under a condition, after its name: how it moved, where the control ended, and whether
    the paired difference survives correction. verdict: of `report.Analysis.paired`; None without a matched control."""
    start = moved(first, last)
    if verdict is None:
        return f"{start}; no control has had as many updates"
    compared = f"{start}, where the control ended at {format_number(control)}"
    stated = format_interval(difference)
    if verdict == SAME:
        return f"{compared}; the difference, {stated}, cannot be told from zero"
    return f"{compared}; the difference, {stated}, survives correction"


def predicates(analysis: Analysis) -> dict[str, str]:
    """says.M.C, the `predicate` of every metric M under every condition C but the controls."""
    if analysis.paired.empty:
        return {}
    ends = {}
    for (metric, condition), means in analysis.means.groupby(["metric", "condition"], sort=False):
        rows = means.sort_values("generation")[["mean", "low", "high"]].to_numpy(float)
        ends[metric, condition] = Estimate(*rows[0]), Estimate(*rows[-1])
    controls = matched_controls(analysis.table)
    found = {}
    for row in analysis.paired.itertuples():
        control = controls[row.condition]
        verdict = None if control is None or pd.isna(row.p) else row.verdict
        difference = Estimate(row.difference, row.low, row.high)
        reached = ends[row.metric, control][1].value if control else math.nan
        found[f"says.{row.metric}.{row.condition}"] = predicate(
            *ends[row.metric, row.condition], reached, difference, verdict
        )
    return found


def surviving(apart: bool) -> str:
    """An apposition to two values: whether their difference survives correction."""
    return "a difference that survives correction" if apart else "a difference that cannot be told from zero"


def listed(words: list[str]) -> str:
    """Words as a list in a sentence: "a", "a and b", "a, b and c"; "none" of an empty one."""
    if len(words) < 2:
        return words[0] if words else "none"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def decided(verdicts: pd.DataFrame) -> str:
    """The primary hypotheses in one sentence, by their verdicts: "supported is that …; contradicted are that … and that
    …"."""
    groups = verdicts.groupby("verdict", sort=False)["statement"].apply(list)
    parts = []
    for word in ("supported", "contradicted", "undecided", "not judged"):
        if word in groups:
            stated = [f"that {statement}" for statement in groups[word]]
            parts.append(f"{word} {'is' if len(stated) == 1 else 'are'} {listed(stated)}")
    return "; ".join(parts)
