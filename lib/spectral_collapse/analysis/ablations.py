"""Ablations and interventions: the effect of every level of a factor (`experiment.factors`), and its hypothesis.

A factor is judged by a contrast of changes from generation 0 to the last, paired by seed. Its study, one record and a
table of all runs, is kept in <results>/<grid>/<factor>.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..estimate import Estimate
from ..experiment.factors import ALL, Factor, read
from ..machine import devices
from ..record import closure, evidence, params, paths, provenance
from ..record.evidence import Source
from ..record.params import GRID
from ..record.schema import PLACES
from ..sigma import TRACKS
from . import series, statistics

STAGES = ("training", "evaluation", "anchors", "curvature", "sigma")
METRICS = (
    *("log_perplexity", "distinct_2", "rare_token_coverage", "log_spectral_ratio", "lambda_max"),
    *("track_two_drift", "logdet_drift"),
)


def table(factor: Factor) -> pd.DataFrame:
    """All runs of the factor: level, role (treated: the first condition of a level; else control), `series.table`."""
    parts = []
    for level, settings in factor.levels.items():
        part = series.table(settings, stages=STAGES).drop(columns=["model", "weights"])
        part["log_perplexity"] = np.log(part["held_out_perplexity"])
        role = np.where(part["condition"] == settings.conditions[0], "treated", "control")
        part.insert(0, "role", role)
        part.insert(0, "level", level)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


# ---- contrasts


def _changes(runs: pd.DataFrame, metric: str, level: str, control: str | None) -> pd.Series:
    """Change of the metric from generation 0 to the last, by seed; less that of the control where one is given."""
    at_level = runs[runs["level"] == level]
    if at_level.empty:
        raise ValueError(f"there is no level {level!r}: the levels are {', '.join(runs['level'].unique())}.")

    def change(rows: pd.DataFrame) -> pd.Series:
        wide = rows.pivot(index="seed", columns="generation", values=metric)
        return wide[wide.columns.max()] - wide[0]

    treated = change(at_level[at_level["role"] == "treated"])
    if control is None:
        return treated
    untreated = at_level[(at_level["role"] == "control") & (at_level["condition"] == control)]
    if untreated.empty:
        raise ValueError(f"level {level!r} has no control {control!r}.")
    return treated - change(untreated)


def contrast(
    runs: pd.DataFrame, metric: str, level: str, against: str | None = None, control: str | None = None
) -> Estimate:
    """Mean over seeds of the metric's change from generation 0 at a level, with its 95 % t interval.

    Less the change of the `control` condition at the same level, and less the same at the level `against`, where they
    are given; differences are paired by seed. Level `all`: the median over levels, from the lowest lower end to the
    highest upper end, so that what holds of this interval holds of the interval of every level.
    """
    if level == ALL:
        found = np.array([contrast(runs, metric, each, against, control) for each in runs["level"].unique()])
        return Estimate(*map(float, (np.median(found[:, 0]), found[:, 1].min(), found[:, 2].max())))
    values = _changes(runs, metric, level, control)
    if against is not None:
        values = values - _changes(runs, metric, against, control)
    return Estimate.mean(values.dropna())


def interval_kind(runs: pd.DataFrame, level: str) -> str:
    """What kind of interval `contrast` gives at this level."""
    kind = f"t, {runs['seed'].nunique()} seeds"
    return f"hull of {runs['level'].nunique()} levels, each {kind}" if level == ALL else kind


def effects(
    runs: pd.DataFrame, reference: str, control: str | None = None, metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """`contrast` of every level against the reference.

    Columns level, metric, change (mean at the level), difference, low, high, and d_z of the difference with its
    interval d_low, d_high (`statistics.cohen_d`). A metric that the runs do not have has no row.
    """
    rows = []
    for metric in (name for name in metrics if name in runs):
        base = _changes(runs, metric, reference, control)
        for level in runs["level"].unique():
            own = _changes(runs, metric, level, control)
            pairs = pd.concat([own, base], axis=1).dropna().to_numpy()
            if level == reference or len(pairs) < 2:
                continue
            d = statistics.cohen_d(*pairs.T).d_z
            rows.append((level, metric, own.mean(), *contrast(runs, metric, level, reference, control), *d))
    names = ["level", "metric", "change", "difference", "low", "high", "d_z", "d_low", "d_high"]
    return pd.DataFrame(rows, columns=names)


# ---- studies


@dataclass(frozen=True)
class Study:
    """A factor with the table of its runs, and what they say, computed once."""

    factor: Factor
    runs: pd.DataFrame

    @functools.cached_property
    def effects(self) -> pd.DataFrame:
        """`effects` on all METRICS."""
        return effects(self.runs, self.factor.reference, self.factor.control)

    @functools.cached_property
    def estimate(self) -> Estimate:
        """The contrast that tests the hypothesis."""
        return contrast(self.runs, **self.factor.test)

    @property
    def verdict(self) -> str:
        """On the hypothesis: supported, contradicted, inconclusive, or not tested (`statistics.verdict`)."""
        return statistics.verdict(self.estimate, self.factor.region)


def write(study: Study) -> Path:
    """Writes runs.csv and its record study.json into <results>/<grid>/<factor>, and returns that folder."""
    factor, folder = study.factor, paths.results_root() / study.factor.grid / study.factor.name
    levels = {level: settings.model_dump(exclude=set(PLACES)) for level, settings in factor.levels.items()}
    said = {name: getattr(factor, name) for name in ("question", "reference", "control", "changes", "hypothesis")}
    provenance.write_study(
        folder,
        {"runs": study.runs},
        said | {"estimate": study.estimate, "verdict": study.verdict},
        key={
            "parameters": levels,
            "code": closure.code_hash(table, contrast),
            "inputs": {"test": factor.test, "region": factor.region},
        },
        about={"stage": "ablation", "grid": factor.grid, "factor": factor.name},
        seconds=series.seconds(factor.levels.values(), STAGES),
        device=str(devices.pick_device(factor.levels[factor.reference].device)),
    )
    return folder


def studies(grid: str = GRID, source: Source | None = None) -> dict[str, Study]:
    """The studies of a grid by factor, made here or packed, in the grid's order.

    Drifts of SIGMA's tracks and the published ratio are read again from the records of the runs, which allow their
    correction (`series.track_drifts`, `series.log_published_ratio`). ValueError for a table that is not the one that
    its record describes.
    """
    found = {}
    for name in params.studied_factors(grid):
        held = source or evidence.of_study(f"{grid}/{name}")
        if held.has(f"{grid}/{name}/study.json"):
            runs = evidence.read_study(f"{grid}/{name}", ["runs"], {"level": str}, held)[1]["runs"]
            # A packed study is of packed runs; one made here may be of both.
            own = source or (held if held is evidence.PACKS else None)
            factor = read(name, grid)
            found[name] = Study(factor, _corrected(runs, factor, own))
    return found


def _corrected(runs: pd.DataFrame, factor: Factor, source: Source | None) -> pd.DataFrame:
    parts = []
    for level, settings in factor.levels.items():
        part = series.table(settings, stages=("curvature", "sigma"), source=source)
        parts.append(
            part.filter(regex="^(condition|seed|generation|log_published_ratio|.*_drift)$").assign(level=level)
        )
    corrected = pd.concat(parts, ignore_index=True)
    cell = ["level", "condition", "seed", "generation"]
    names = ("log_published_ratio", *(f"{track}_drift" for track in TRACKS))
    stale = [name for name in names if name in runs]
    return runs.drop(columns=stale).merge(corrected, on=cell, how="left", validate="one_to_one")
