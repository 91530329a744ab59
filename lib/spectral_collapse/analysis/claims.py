"""The seeds' claims, each held against the runs by one rule: supported, contradicted, inconclusive, or not tested."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import yaml

from ..estimate import Estimate
from ..experiment.factors import ALL
from ..record import paths
from . import ablations, early_warning, mechanism, studies
from .metrics import condition_label
from .power import range_coverage
from .report import Analysis
from .statistics import CONTROL, TREATMENT, matched_controls, verdict

CLAIMS = paths.PUBLISHED / "claims.yaml"
VERDICTS = ("supported", "contradicted", "inconclusive", "not tested")
LEVEL = 0.95  # an interval that covers with less than this decides nothing


class NotTested(Exception):
    """The runs cannot test a claim; the message says what they lack."""


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
class Quantity:
    """A quantity's estimate: the kind of its interval in words, what was compared, and how probably it holds the truth;
    `LEVEL` but where it says otherwise."""

    estimate: Estimate
    kind: str
    compared: str
    coverage: float = LEVEL


@dataclass(frozen=True)
class Evidence:
    """What quantities are computed from: the tidy table of the runs and its alarms (`early_warning.alarms`); and of the
    studies that come with the project the coverage of SIGMA's intervals, the ablations by factor, the share of Hessian
    eigenvectors that merged, and last drifts of SIGMA's settings, S2 less S1 by seed, by track."""

    table: pd.DataFrame
    alarms: pd.DataFrame
    coverage: pd.DataFrame
    ablated: dict[str, ablations.Study] = field(default_factory=dict)
    merging: Estimate | None = None
    settings: pd.DataFrame | None = None

    @property
    def _names(self) -> dict[str, str]:
        """Conditions by their own names, and `recursive` also as the one whose weights do what the profile's do."""
        names = {name: name for name in self.table["condition"].unique()}
        if TREATMENT in names and "weights" in self.table:
            weights = self.table.loc[self.table["condition"] == TREATMENT, "weights"].iloc[0]
            names.setdefault(f"{TREATMENT}_{weights}", TREATMENT)
        return names

    def condition(self, preferred: Sequence[str]) -> str:
        """The first of the conditions that the profile has."""
        for condition in preferred:
            if condition in self._names:
                return self._names[condition]
        raise NotTested(f"no {' or '.join(preferred)} condition")

    def pair(self, preferred: Sequence[str], control: str) -> tuple[str, str]:
        """The first of the conditions that has a matched control (`matched_controls`), and that control."""
        self.condition(preferred)
        try:
            controls = matched_controls(self.table, control)
        except ValueError:
            raise NotTested(f"no {control} condition") from None
        for condition in (self._names[name] for name in preferred if name in self._names):
            if matched := controls[condition]:
                return condition, matched
        raise NotTested(f"no {control} condition with as many updates")

    def values(self, metric: str, condition: str, generation: int | None) -> pd.Series:
        """The metric of every seed at a generation, the last if None; indexed by seed."""
        if metric not in self.table:
            raise NotTested(f"no metric {metric}")
        generation = self.table["generation"].max() if generation is None else generation
        if generation not in set(self.table["generation"]):
            raise NotTested(f"no generation {generation}")
        rows = self.table[(self.table["condition"] == condition) & (self.table["generation"] == generation)]
        return rows.set_index("seed")[metric].sort_index()


# ---- quantities


def _over_seeds(values: pd.Series, compared: str) -> Quantity:
    """Mean over seeds with its t interval."""
    values = values.dropna()
    return Quantity(Estimate.mean(values), f"t, {len(values)} seeds", compared)


def change(evidence: Evidence, metric: str, conditions: Sequence[str], first: int = 0) -> Quantity:
    """Mean over seeds of the metric at the last generation less that at `first`."""
    condition = evidence.condition(conditions)
    moved = evidence.values(metric, condition, None) - evidence.values(metric, condition, first)
    return _over_seeds(moved, f"{condition_label(condition)}, since generation {first}")


def difference(
    evidence: Evidence, metric: str, conditions: Sequence[str], control: str, generation: int | None = None
) -> Quantity:
    """Mean over seeds of the metric of a condition less that of its matched control, at one generation."""
    names = evidence.pair(conditions, control)
    treated, untreated = (evidence.values(metric, name, generation) for name in names)
    return _over_seeds(treated - untreated, " less ".join(map(condition_label, names)))


def settings(evidence: Evidence, track: str) -> Quantity:
    """Last drift of a track where weights are carried over (S2) less that where they restart (S1): of the profile's
    runs if it has both, else of the committed runs of SIGMA's settings.

    S2's weights have had g times the updates of S1's at generation g, which is a part of what is compared.
    """
    names = [f"{TREATMENT}_{weights}" for weights in ("carry", "restart")]
    try:
        carried, restarted = (evidence.values(f"{track}_drift", evidence.condition([name]), None) for name in names)
    except NotTested:
        if evidence.settings is None:
            raise
        return _over_seeds(evidence.settings[track], "S2 less S1, their own runs")
    return _over_seeds(carried - restarted, "S2 less S1")


def share(evidence: Evidence, metric: str, of: str, conditions: Sequence[str]) -> Quantity:
    """Mean over seeds of the ratio of two metrics at the last generation."""
    condition = evidence.condition(conditions)
    return _over_seeds(
        evidence.values(metric, condition, None) / evidence.values(of, condition, None), condition_label(condition)
    )


def lead(evidence: Evidence, metric: str, outcome: str, conditions: Sequence[str]) -> Quantity:
    """Generations by which the metric's alarm precedes the outcome's (`early_warning.leads`): the median of the runs in
    which both fire, and the range of what the leads of all runs may be, censored ones at their bounds, with its
    coverage (`power.range_coverage`)."""
    condition, control = evidence.pair(conditions, CONTROL)
    for name in (metric, outcome):
        evidence.values(name, condition, 0)
    generations = evidence.table["generation"].unique()
    runs = early_warning.leads(evidence.alarms, metric, outcome, generations, condition).dropna()
    if runs.empty:
        return Quantity(Estimate(math.nan), "", condition_label(condition))
    known = runs.loc[runs["low"] == runs["high"], "low"]
    covered = range_coverage(len(runs))
    kind = f"range of {len(runs)} runs, covers {100 * covered:.0f} %"
    return Quantity(
        Estimate(known.median(), runs["low"].min(), runs["high"].max()),
        kind,
        f"{condition_label(condition)}, band of {condition_label(control)}",
        covered,
    )


def _hull(found: np.ndarray, kind: str, compared: str) -> Quantity:
    """Median of estimates, from the lowest lower to the highest upper end of their intervals, rows (estimate, low,
    high). What holds of it holds of each at its own level, so that "of all" is tested at no more than that."""
    return Quantity(Estimate(float(np.median(found[:, 0])), found[:, 1].min(), found[:, 2].max()), kind, compared)


def error_exponent(evidence: Evidence) -> Quantity:
    """b of RMSE ∝ n_A^b for the published plug-in in the coverage study: one slope for each kind of columns and m, with
    its Monte Carlo interval. Theorem 3 is asymptotic: only n_A > 10 m is taken."""
    cells = evidence.coverage[evidence.coverage["correction"] == "none"]
    cells = cells[cells["n_observed"] > 10 * cells["dimensions"]]
    found = []
    for _, group in cells.groupby(["population", "m"]):
        squares = group["mean_error"] ** 2 + group["sd_error"] ** 2
        variances = (4 * group["mean_error"] ** 2 + 2 * group["sd_error"] ** 2) * group["sd_error"] ** 2
        errors = np.sqrt(variances / group["replicates"]) / (2 * squares)  # of log RMSE
        x = np.log(group["n_observed"]) - np.log(group["n_observed"]).mean()
        if len(group) > 1:
            slope = float((x * np.log(squares)).sum() / 2 / (x * x).sum())
            half = float(scipy.stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(((x * errors) ** 2).sum()) / (x * x).sum())
            found.append((slope, slope - half, slope + half))
    if not found:
        raise NotTested("asymptotic, and the study ends at ten embeddings a dimension")
    return _hull(np.array(found), f"hull of {len(found)} Monte Carlo intervals", "plug-in")


def coverage(evidence: Evidence) -> Quantity:
    """Coverage of the published interval in every cell of the study, with its Wilson interval."""
    cells = evidence.coverage[evidence.coverage["correction"] == "none"]
    found = cells[["coverage", "coverage_low", "coverage_high"]].to_numpy(float)
    return _hull(found, f"hull of {len(cells)} Wilson intervals", "plug-in")


def ablation(
    evidence: Evidence, factor: str, metric: str, level: str, against: str | None = None, control: str | None = None
) -> Quantity:
    """`ablations.contrast` in the committed study of a factor."""
    if factor not in evidence.ablated:
        raise NotTested(f"no study of {factor}")
    runs = evidence.ablated[factor].runs
    interval = ablations.contrast(runs, metric, level, against, control)
    compared = (
        (f"all levels of {factor}" if level == ALL else f"{factor} {level}")
        + (f" less {against}" if against else "")
        + (f", less {control}" if control else "")
    )
    return Quantity(interval, ablations.interval_kind(runs, level), compared)


def merging(evidence: Evidence) -> Quantity:
    """Share of generation 0's leading Hessian eigenvectors that merged with the bulk, recursive less fresh."""
    if evidence.merging is None:
        raise NotTested("no study of the mechanism")
    return Quantity(evidence.merging, f"t, {evidence.merging.df + 1:.0f} seeds", f"{TREATMENT} less {CONTROL}")


QUANTITIES: dict[str, Callable[..., Quantity]] = {
    function.__name__: function
    for function in (change, difference, settings, share, lead, error_exponent, coverage, ablation, merging)
}


# ---- verdicts


def gather(analysis: Analysis) -> Evidence:
    """A profile's runs beside the studies that come with the project."""
    shown = studies.shown()
    merging = mechanism.merging(studies.mechanism_study(shown["mechanism"]).outliers)
    settings = studies.sigma_differences(shown["settings"]["stories"])
    return Evidence(analysis.table, analysis.alarms, studies.sigma_coverage(), ablations.studies(), merging, settings)


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


def judge(claim: Claim, evidence: Evidence) -> tuple[str, str, Quantity | None]:
    """(verdict, reason, quantity): supported if the interval lies in the claim's region, contradicted if it lies
    outside, else inconclusive; where the interval covers with less than `LEVEL` it decides nothing.

    Not tested, without a quantity, where the runs lack what it needs, or give no interval (one seed, for instance).
    """
    try:
        found = QUANTITIES[claim.quantity](evidence, **claim.arguments)
    except NotTested as reason:
        return "not tested", str(reason), None
    word = verdict(found.estimate, claim.region)
    if word == "not tested":
        return word, "no interval", None
    if found.coverage < LEVEL:
        return "inconclusive", f"its interval covers less than {LEVEL:.0%}", found
    return word, "", found


def verdicts(evidence: Evidence, path: Path = CLAIMS) -> pd.DataFrame:
    """`judge` of every claim of the file, in its order: columns id, claim, source, figure; verdict, one of `VERDICTS`,
    and reason, why none could be given; value, low, high, kind, compared, of the quantity if there is one."""
    rows = []
    for claim in read(path):
        word, reason, found = judge(claim, evidence)
        value, low, high = found.estimate if found else Estimate(math.nan)
        rows.append(
            {
                **{name: getattr(claim, name) for name in ("id", "claim", "source", "figure")},
                "verdict": word,
                "reason": reason,
                "value": value,
                "low": low,
                "high": high,
                "kind": found.kind if found else "",
                "compared": found.compared if found else "",
            }
        )
    return pd.DataFrame(rows)
