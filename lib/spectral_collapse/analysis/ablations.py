"""Ablations and interventions: the effect of every level of a factor (`experiment.factors`), and its hypothesis.

A factor is judged by a contrast of changes from generation 0 to the last, paired by seed. Its study, one record and a
table of all runs, is kept in <results>/<grid>/<factor>.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..estimate import Interval
from ..experiment.factors import ALL, Factor, read
from ..machine import devices
from ..record import closure, params, paths, provenance
from ..record.params import GRID
from ..record.schema import PLACES
from ..sigma import TRACKS
from . import series, statistics
from .statistics import mean_interval

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
) -> Interval:
    """Mean over seeds of the metric's change from generation 0 at a level, with its 95 % t interval.

    Less the change of the `control` condition at the same level, and less the same at the level `against`, where they
    are given; differences are paired by seed. Level `all`: the median over levels, from the lowest lower end to the
    highest upper end, so that what holds of this interval holds of the interval of every level.
    """
    if level == ALL:
        found = np.array([contrast(runs, metric, each, against, control) for each in runs["level"].unique()])
        return Interval(*map(float, (np.median(found[:, 0]), found[:, 1].min(), found[:, 2].max())))
    values = _changes(runs, metric, level, control)
    if against is not None:
        values = values - _changes(runs, metric, against, control)
    return mean_interval(values.dropna())


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


@dataclass(frozen=True)
class Judged:
    """A factor's hypothesis, the contrast that tests it, and the verdict."""

    hypothesis: str
    estimate: Interval
    verdict: str

    def __str__(self) -> str:
        value, low, high = (f"{number:.3g}" for number in self.estimate)
        return f"{self.hypothesis} {self.verdict.capitalize()}: {value} [{low}, {high}]."


def judge(factor: Factor, runs: pd.DataFrame) -> Judged:
    """The hypothesis by `statistics.verdict`: supported, contradicted, inconclusive, or not tested."""
    estimate = contrast(runs, **factor.test)
    return Judged(factor.hypothesis, estimate, statistics.verdict(estimate, factor.region))


# ---- studies


def write_study(factor: Factor, runs: pd.DataFrame, judged: Judged) -> Path:
    """Writes runs.csv and its record study.json into <results>/<grid>/<factor>, and returns that folder."""
    folder = paths.results_root() / factor.grid / factor.name
    levels = {level: settings.model_dump(exclude=set(PLACES)) for level, settings in factor.levels.items()}
    provenance.write_study(
        folder,
        {"runs": runs},
        {
            "question": factor.question,
            "reference": factor.reference,
            "control": factor.control,
            "changes": factor.changes,
            "hypothesis": judged.hypothesis,
            "estimate": judged.estimate,
            "verdict": judged.verdict,
        },
        key={
            "parameters": levels,
            "code": closure.code_hash(table, judge),
            "inputs": {"test": factor.test, "region": factor.region},
        },
        about={"stage": "ablation", "grid": factor.grid, "factor": factor.name},
        seconds=series.seconds(factor.levels.values(), STAGES),
        device=str(devices.pick_device(factor.levels[factor.reference].device)),
    )
    return folder


@dataclass(frozen=True)
class Study:
    """The study of a factor: what its record says, and the table of its runs."""

    name: str
    question: str
    reference: str
    control: str | None
    changes: dict[str, dict[str, Any]]
    judged: Judged
    runs: pd.DataFrame

    @functools.cached_property
    def effects(self) -> pd.DataFrame:
        """`effects` of its runs on all METRICS."""
        return effects(self.runs, self.reference, self.control)


def read_study(folder: Path) -> Study:
    """The study in a folder. ValueError where it is missing, or its table is not the one that its record describes."""
    record, tables = provenance.read_study(folder, ["runs"], {"level": str})
    estimate = Interval(*(math.nan if end is None else end for end in record["estimate"]))
    judged = Judged(record["hypothesis"], estimate, record["verdict"])
    rest = (record[key] for key in ("question", "reference", "control", "changes"))
    return Study(folder.name, *rest, judged, tables["runs"])


def studies(grid: str = GRID, root: Path | None = None) -> dict[str, Study]:
    """The studies of a grid by factor, made here or committed, in the grid's order; empty where there are none.

    Drifts of SIGMA's tracks and the published ratio are read again from the records of the runs, which allow their
    correction (`series.track_drifts`, `series.log_published_ratio`), and a hypothesis of theirs is judged again.
    """
    names = params.studied_factors(grid)
    folders = {name: root / grid / name if root else paths.study_folder(grid, name) for name in names}
    committed = {name: paths.COMMITTED / grid / name for name in names}
    found = {name: read_study(folder) for name, folder in folders.items() if (folder / "study.json").exists()}
    return {
        name: _corrected(
            study, read(name, grid), root or (paths.COMMITTED if folders[name] == committed[name] else None)
        )
        for name, study in found.items()
    }


def _corrected(study: Study, factor: Factor, root: Path | None) -> Study:
    parts = []
    for level, settings in factor.levels.items():
        part = series.table(settings, stages=("curvature", "sigma"), root=root)
        parts.append(
            part.filter(regex="^(condition|seed|generation|log_published_ratio|.*_drift)$").assign(level=level)
        )
    corrected = pd.concat(parts, ignore_index=True)
    cell = ["level", "condition", "seed", "generation"]
    names = ("log_published_ratio", *(f"{track}_drift" for track in TRACKS))
    stale = [name for name in names if name in study.runs]
    runs = study.runs.drop(columns=stale).merge(corrected, on=cell, how="left", validate="one_to_one")
    again = factor.test["metric"] in corrected
    return replace(study, runs=runs, judged=judge(factor, runs) if again else study.judged)
