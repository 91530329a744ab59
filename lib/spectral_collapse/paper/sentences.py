"""Sentences that say what the runs found: one rule for each outcome, so that the text follows the data."""

import math

import pandas as pd

from ..analysis.report import Analysis
from ..analysis.statistics import SAME, changes, matched_controls
from ..estimate import Estimate
from .formatting import format_interval, format_number


def moved(first: float, last: float, change: Estimate) -> str:
    """How a mean moved, by the interval of its paired change: "rose from 2 to 3", "fell from …", "went from …, no
    further than its error", and of a drift, which starts at 0, "rose to 3"."""
    if math.isfinite(change.low) and not change.apart:
        verb, note = "went", ", no further than its error"
    else:
        verb, note = "rose" if change.value > 0 else "fell", ""
    start = "" if first == 0 else f" from {format_number(first)}"
    return f"{verb}{start} to {format_number(last)}{note}"


def predicate(movement: str, control: float, difference: Estimate, verdict: str | None) -> str:
    """What is said of a metric under a condition, after its name: how it `moved`, where the control ended, and whether
    the paired difference survives correction. verdict: of `report.Analysis.paired`; None without a matched control."""
    if verdict is None:
        return f"{movement}; no control has had as many updates"
    compared = f"{movement}, where the control ended at {format_number(control)}"
    stated = format_interval(difference)
    if verdict == SAME:
        return f"{compared}; the difference, {stated}, cannot be told from zero"
    return f"{compared}; the difference, {stated}, survives correction"


def predicates(analysis: Analysis) -> dict[str, str]:
    """says.M.C, the `predicate` of every metric M under every condition C but the controls."""
    if analysis.paired.empty:
        return {}
    ends = {}
    for cell, means in analysis.means.groupby(["metric", "condition"], sort=False):
        values = means.sort_values("generation")["mean"].to_numpy(float)
        ends[cell] = values[0], values[-1]
    controls = matched_controls(analysis.table)
    found = {}
    for row in analysis.paired.itertuples():
        control = controls[row.condition]
        verdict = None if control is None or pd.isna(row.p) else row.verdict
        difference = Estimate(row.difference, row.low, row.high)
        reached = ends[row.metric, control][1] if control else math.nan
        change = Estimate.mean(changes(analysis.table, row.metric).loc[row.condition].iloc[:, -1])
        movement = moved(*ends[row.metric, row.condition], change)
        found[f"says.{row.metric}.{row.condition}"] = predicate(movement, reached, difference, verdict)
    return found


def surviving(apart: bool) -> str:
    """An apposition to two values: whether their difference survives correction."""
    return "a difference that survives correction" if apart else "a difference that cannot be told from zero"


def uncorrected(difference: Estimate) -> str:
    """The same of a difference that is tested alone."""
    return f"a difference {'whose interval excludes zero' if difference.apart else 'that cannot be told from zero'}"


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
