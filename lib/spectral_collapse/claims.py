"""The seeds' claims, each held against the runs by one rule: supported, contradicted, inconclusive, or not tested."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import yaml

from . import ablations, early_warning, mechanism, paths, studies
from .formatting import escape, format_interval
from .mechanism import report
from .statistics import CONTROL, TREATMENT, Interval, mean_interval, verdict
from .tables import Number, Raw, frame_of

CLAIMS = paths.PUBLISHED / "claims.yaml"
VERDICTS = ("supported", "contradicted", "inconclusive", "not tested")


class NotTested(Exception):
    """The runs cannot speak to a claim; the message says what they lack."""


@dataclass(frozen=True)
class Claim:
    """One row of claims.yaml: who claims what, the `quantity` that tests it, and the region [low, high] it claims."""

    id: str
    claim: str
    source: str
    figure: str
    quantity: str
    region: tuple[float, float]
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """A claim, the quantity's 95 % interval in the runs, one of VERDICTS, and why where it was not tested."""

    claim: Claim
    estimate: Interval
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class Evidence:
    """What quantities are computed from: the tidy table of the runs, and the committed studies: of SIGMA's intervals,
    of the ablations by factor, and of the Hessian's outliers. `weights` of the profile says what its `recursive` is."""

    table: pd.DataFrame
    coverage: pd.DataFrame
    ablated: dict[str, ablations.Study] = field(default_factory=dict)
    outliers: pd.DataFrame | None = None
    weights: str | None = None

    def condition(self, preferred: Sequence[str]) -> str:
        """The first of the conditions that the profile has: by its name, or `recursive` as the one whose weights do
        what the profile's do."""
        names = {name: name for name in set(self.table["condition"])}
        if TREATMENT in names:
            names.setdefault(f"{TREATMENT}_{self.weights}", TREATMENT)
        for condition in preferred:
            if condition in names:
                return names[condition]
        raise NotTested(f"no {' or '.join(preferred)} condition")

    def values(self, metric: str, condition: str, generation: int | None) -> pd.Series:
        """The metric of every seed at a generation, the last if None; indexed by seed."""
        if metric not in self.table:
            raise NotTested(f"no metric {metric}")
        last = self.table["generation"].max()
        generation = last if generation is None else generation
        if generation > last:
            raise NotTested(f"no generation {generation}")
        rows = self.table[(self.table["condition"] == condition) & (self.table["generation"] == generation)]
        return rows.set_index("seed")[metric].sort_index()


# ---- quantities: intervals over seeds at 95 %


def change(evidence: Evidence, metric: str, conditions: Sequence[str], first: int = 0) -> Interval:
    """Mean over seeds of the metric at the last generation less that at `first`."""
    condition = evidence.condition(conditions)
    return mean_interval(evidence.values(metric, condition, None) - evidence.values(metric, condition, first))


def difference(
    evidence: Evidence, metric: str, conditions: Sequence[str], control: str, generation: int | None = None
) -> Interval:
    """Mean over seeds of the metric of a condition less that of the control, at one generation."""
    names = evidence.condition(conditions), evidence.condition([control])
    treated, untreated = (evidence.values(metric, name, generation) for name in names)
    return mean_interval((treated - untreated).dropna())


def share(evidence: Evidence, metric: str, of: str, conditions: Sequence[str]) -> Interval:
    """Mean over seeds of the ratio of two metrics at the last generation."""
    condition = evidence.condition(conditions)
    return mean_interval(evidence.values(metric, condition, None) / evidence.values(of, condition, None))


def lead(evidence: Evidence, metric: str, outcome: str, conditions: Sequence[str]) -> Interval:
    """Generations by which the metric's alarm precedes the outcome's (`early_warning.leads`): the median of the runs in
    which both fire, and the range of what the leads of all runs may be, censored ones at their bounds.

    The range of S runs holds the median of all runs with probability 1 − 2^{1−S}: 75 % at three seeds, 94 % at five.
    """
    condition = evidence.condition(conditions)
    evidence.condition([CONTROL])
    for name in (metric, outcome):
        evidence.values(name, condition, 0)
    runs = early_warning.leads(evidence.table, metric, outcome, condition=condition).dropna()
    if runs.empty:
        return Interval(math.nan, math.nan, math.nan)
    known = runs.loc[runs["low"] == runs["high"], "low"]
    return Interval(known.median(), runs["low"].min(), runs["high"].max())


def error_exponent(evidence: Evidence) -> Interval:
    """b of RMSE ∝ n_A^b for the published plug-in in the coverage study, one level for each kind of columns and m."""
    cells = evidence.coverage[evidence.coverage["correction"] == "none"]
    rmse = np.log(np.hypot(cells["mean_error"], cells["sd_error"]))
    sizes = np.log(cells["n_observed"])
    groups = [cells["population"], cells["m"]]
    x, y = (values - values.groupby(groups).transform("mean") for values in (sizes, rmse))
    slope = float((x * y).sum() / (x * x).sum())
    freedom = len(cells) - cells.groupby(["population", "m"]).ngroups - 1
    error = math.sqrt(float(((y - slope * x) ** 2).sum()) / freedom / float((x * x).sum()))
    half = float(scipy.stats.t.ppf(0.975, freedom)) * error
    return Interval(slope, slope - half, slope + half)


def coverage(evidence: Evidence) -> Interval:
    """Coverage of the published interval over all cells of the study: mean, least and largest."""
    shares = evidence.coverage.loc[evidence.coverage["correction"] == "none", "coverage"]
    return Interval(shares.mean(), shares.min(), shares.max())


def ablation(
    evidence: Evidence, factor: str, metric: str, level: str, against: str | None = None, control: str | None = None
) -> Interval:
    """`ablations.contrast` in the committed study of a factor."""
    if factor not in evidence.ablated:
        raise NotTested(f"no study of {factor}")
    return ablations.contrast(evidence.ablated[factor].runs, metric, level, against, control)


def merging(evidence: Evidence) -> Interval:
    """Share of generation 0's leading Hessian eigenvectors that merged with the bulk, recursive less fresh
    (`mechanism.report.merging`)."""
    if evidence.outliers is None:
        raise NotTested("no study of the mechanism")
    return report.merging(evidence.outliers)


QUANTITIES: dict[str, Callable[..., Interval]] = {
    function.__name__: function
    for function in (change, difference, share, lead, error_exponent, coverage, ablation, merging)
}


# ---- verdicts


def gather(table: pd.DataFrame, weights: str) -> Evidence:
    """The table of a profile's runs, and its weights, beside the studies that come with the project."""
    outliers = mechanism.committed()[0].outliers
    return Evidence(table, studies.sigma_coverage(), ablations.studies(), outliers, weights)


def read(path: Path = CLAIMS) -> list[Claim]:
    """The claims of the file. ValueError for a row without a needed key, an unknown quantity or a repeated id."""
    claims: list[Claim] = []
    for row in yaml.safe_load(path.read_text(encoding="utf-8")):
        known, who = {}, repr(row.get("id", len(claims) + 1))
        for name in ("id", "claim", "source", "figure", "quantity", "region"):
            if name not in row:
                raise ValueError(f"{path}: claim {who} has no {name}.")
            known[name] = row.pop(name)
        if known["quantity"] not in QUANTITIES:
            raise ValueError(f"{path}: claim {who} asks for {known['quantity']!r}; there is {', '.join(QUANTITIES)}.")
        if known["id"] in {claim.id for claim in claims}:
            raise ValueError(f"{path}: the id {who} stands twice.")
        low, high = known.pop("region")
        region = (-math.inf if low is None else low, math.inf if high is None else high)
        claims.append(Claim(**known, region=region, arguments=row))
    return claims


def judge(claim: Claim, evidence: Evidence) -> Verdict:
    """Supported if the interval lies in the claim's region, contradicted if it lies outside, else inconclusive.

    Not tested where the runs lack what the quantity needs, or give no interval (one seed, for instance).
    """
    try:
        estimate = QUANTITIES[claim.quantity](evidence, **claim.arguments)
    except NotTested as reason:
        return Verdict(claim, Interval(math.nan, math.nan, math.nan), "not tested", str(reason))
    word = verdict(estimate, claim.region)
    return Verdict(claim, estimate, word, "no interval" if word == "not tested" else "")


def verdicts(evidence: Evidence, path: Path = CLAIMS) -> list[Verdict]:
    """`judge` of every claim of the file, in its order."""
    return [judge(claim, evidence) for claim in read(path)]


# ---- for the paper


def _minus(text: str) -> str:
    """The text with a minus sign, not a hyphen, before a number."""
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", text)


def table(found: Sequence[Verdict]) -> pd.DataFrame:
    """Every claim with its source, the figure printed there, our estimate with its interval, and the verdict."""
    rows = [
        [
            Raw(rf"\parbox[t]{{80mm}}{{\raggedright {escape(one.claim.claim)}\strut}}"),
            Raw(rf"\parbox[t]{{40mm}}{{\raggedright {escape(one.claim.source)}\strut}}"),
            Raw(rf"\parbox[t]{{31mm}}{{\raggedright {_minus(escape(one.claim.figure))}\strut}}"),
            Number(format_interval(one.estimate) if one.verdict != "not tested" else escape(one.reason)),
            one.verdict,
        ]
        for one in found
    ]
    return frame_of(rows, ["Claim", "Source", "Figure there", "Here", "Verdict"])


def values(found: Sequence[Verdict]) -> dict[str, str]:
    """claim.<id>, its verdict; claim.<id>.estimate; claims.all and claims.<verdict>, counts, blanks as underscores."""
    text = {f"claim.{one.claim.id}": one.verdict for one in found}
    text |= {f"claim.{one.claim.id}.estimate": format_interval(one.estimate) for one in found}
    counts = {name.replace(" ", "_"): sum(one.verdict == name for one in found) for name in VERDICTS}
    return text | {"claims.all": str(len(found))} | {f"claims.{name}": str(count) for name, count in counts.items()}
