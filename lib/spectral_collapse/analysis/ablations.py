"""Ablations and interventions: each factor of a grid of profiles, run over all seeds, its levels against a reference.

A factor is judged by a contrast of changes from generation 0 to the last one, paired by seed, and the claims' rule.
Its study, one record and a table of all runs, is kept in <results>/<grid>/<factor>.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..estimate import Interval
from ..experiment import encoded, measure
from ..experiment import runs as runs_module
from ..machine import devices
from ..paper.formatting import escape, format_interval, format_number
from ..paper.tables import Number, Raw, frame_of, label
from ..record import closure, evidence, params, paths, provenance
from ..record.evidence import Source
from ..record.params import GRID
from ..record.schema import PLACES, Params
from ..sigma import TRACKS
from . import series, statistics
from .statistics import mean_interval

STAGES = ("training", "evaluation", "anchors", "curvature", "sigma")
METRICS = (
    *("log_perplexity", "distinct_2", "rare_token_coverage", "log_spectral_ratio", "lambda_max"),
    *("track_two_drift", "logdet_drift"),
)
TABULATED = ("log_perplexity", "log_spectral_ratio", "track_two_drift")  # what a page is wide enough for
ALL = "all"


@dataclass(frozen=True)
class Factor:
    """A factor of a grid: its levels' parameters and what each changes, and the hypothesis with the test of it."""

    grid: str
    name: str
    question: str
    reference: str
    levels: dict[str, Params]
    changes: dict[str, dict[str, Any]]
    hypothesis: str
    test: dict[str, Any]  # arguments of `contrast`, without the region
    region: tuple[float, float]

    @property
    def control(self) -> str | None:
        """The condition whose change is taken off, if the test has one."""
        return self.test.get("control")


def _level(cell: str, places: dict[str, str | None]) -> Params:
    """Parameters of a level; where it changes no more than the conditions, the runs are those of what it extends."""
    own = params.load(cell, **places)
    if own.base is None:
        return own
    parent = params.base_params(own)
    apart = {key for key in Params.model_fields if getattr(own, key) != getattr(parent, key)}
    return (
        own if apart - {"profile", "base", "conditions"} else parent.model_copy(update={"conditions": own.conditions})
    )


def read(name: str, grid: str = GRID, **places: str | None) -> Factor:
    """A factor of the grid; `places`: where this machine has the text (`schema.PLACES`).

    ValueError with one sentence for an unknown name or level.
    """
    found = params.read_factor(grid, name)
    where = f"factor {name!r} of grid {grid!r}"
    test = dict(found["test"])
    low, high = test.pop("region")
    for level in (found["reference"], test["level"], test.get("against", ALL)):
        if level not in (*found["levels"], ALL):
            raise ValueError(f"{where} has no level {level!r}: there are {', '.join(found['levels'])}.")
    levels = {level: _level(f"{grid}.{name}.{level}", places) for level in found["levels"]}
    region = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    head = [found[key] for key in ("question", "reference")]
    return Factor(grid, name, *head, levels, found["levels"], found["hypothesis"], test, region)


# ---- runs


def run(factor: Factor) -> None:
    """Trains and measures what is missing of all levels, seeds and conditions."""
    for settings in factor.levels.values():
        real = None
        for seed in settings.seeds:
            for condition in settings.conditions:
                one = runs_module.Run(settings, condition, seed, real=real)
                real = one.real
                for generation in range(settings.generations + 1):
                    measure.generation(one, generation, encoded.LIGHT)


def table(factor: Factor) -> pd.DataFrame:
    """All runs of the factor: level, role (treated: a level's first condition; else control), and `series.table`."""
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
    """Change of the metric from generation 0 to the last, by seed; less that of the control where it is given."""
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


def interval_kind(runs: pd.DataFrame, level: str) -> str:
    """What `contrast`'s interval at this level is, in words."""
    kind = f"t, {runs['seed'].nunique()} seeds"
    return f"hull of {runs['level'].nunique()} levels, each {kind}" if level == ALL else kind


def contrast(
    runs: pd.DataFrame, metric: str, level: str, against: str | None = None, control: str | None = None
) -> Interval:
    """Mean over seeds of the metric's change from generation 0 at a level, with its 95 % t interval.

    Less the change of the `control` condition of the same level, and less the same at the level `against`, where they
    are given: differences are paired by seed. Level `all`: the median over levels, from the lowest lower end to the
    highest upper end, so that what holds of this interval holds of every level's.
    """
    if level == ALL:
        found = np.array([contrast(runs, metric, each, against, control) for each in runs["level"].unique()])
        return Interval(*map(float, (np.median(found[:, 0]), found[:, 1].min(), found[:, 2].max())))
    values = _changes(runs, metric, level, control)
    if against is not None:
        values = values - _changes(runs, metric, against, control)
    return mean_interval(values.dropna())


def effects(
    runs: pd.DataFrame, reference: str, control: str | None = None, metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """Every level against the reference: changes from generation 0 at the last one, paired by seed.

    Columns level, metric, change (mean at the level), difference with its 95 % t interval low, high, and d_z of the
    difference with its interval d_low, d_high (`statistics.cohen_d`). A metric that there is not has no row.
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
            rows.append((level, metric, own.mean(), *mean_interval(pairs[:, 0] - pairs[:, 1]), *d))
    names = ["level", "metric", "change", "difference", "low", "high", "d_z", "d_low", "d_high"]
    return pd.DataFrame(rows, columns=names)


@dataclass(frozen=True)
class Judged:
    """A factor's hypothesis with the contrast that tests it and its verdict."""

    hypothesis: str
    estimate: Interval
    verdict: str

    def __str__(self) -> str:
        low, high = (f"{end:.3g}" for end in self.estimate[1:])
        return f"{self.hypothesis} {self.verdict.capitalize()}: {self.estimate.estimate:.3g} [{low}, {high}]."


def judge(factor: Factor, runs: pd.DataFrame) -> Judged:
    """The hypothesis by `statistics.verdict`: supported, contradicted, inconclusive, or not tested."""
    estimate = contrast(runs, **factor.test)
    return Judged(factor.hypothesis, estimate, statistics.verdict(estimate, factor.region))


# ---- studies


def write_study(factor: Factor, runs: pd.DataFrame) -> Path:
    """Writes runs.csv and its record study.json into <results>/<grid>/<factor>, and returns that folder."""
    folder = paths.results_root() / factor.grid / factor.name
    judged = judge(factor, runs)
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
            "parameters": {
                level: settings.model_dump(exclude=set(PLACES)) for level, settings in factor.levels.items()
            },
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
    """A study as its files say it."""

    name: str
    question: str
    reference: str
    control: str | None
    changes: dict[str, dict[str, Any]]
    judged: Judged
    runs: pd.DataFrame

    def effects(self, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
        """`effects` of its runs."""
        return effects(self.runs, self.reference, self.control, metrics)


def read_study(grid: str, name: str, source: Source | None = None) -> Study:
    """The study of a factor. ValueError where it is missing, or its table is not the one that its record describes."""
    record, tables = evidence.read_study(f"{grid}/{name}", ["runs"], {"level": str}, source)
    estimate = Interval(*(math.nan if end is None else end for end in record["estimate"]))
    judged = Judged(record["hypothesis"], estimate, record["verdict"])
    rest = (record[key] for key in ("question", "reference", "control", "changes"))
    return Study(name, *rest, judged, tables["runs"])


def studies(grid: str = GRID, source: Source | None = None) -> dict[str, Study]:
    """The studies of a grid by factor, made here or committed, in the grid's order; empty where there are none.

    Drifts of SIGMA's tracks and the published ratio are read again from the records of the runs, which allow their
    correction (`series.track_drifts`, `series.log_published_ratio`), and a hypothesis of theirs is judged again.
    """
    found = {}
    for name in params.studied_factors(grid):
        held = source or evidence.of_study(f"{grid}/{name}")
        if held.has(f"{grid}/{name}/study.json"):
            # A packed study is of packed runs; one made here may be of both.
            runs = source or (held if held is evidence.PACKS else None)
            found[name] = _corrected(read_study(grid, name, held), read(name, grid), runs)
    return found


def _corrected(study: Study, factor: Factor, source: Source | None) -> Study:
    parts = []
    for level, settings in factor.levels.items():
        part = series.table(settings, stages=("curvature", "sigma"), source=source)
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


# ---- for the paper


def described(changes: dict[str, Any]) -> str:
    """What a level changes, in words: `dropout 0.1`; a dash where it changes nothing."""
    hidden = ("base", "model")
    shown = [
        f"{name.replace('_', ' ')} {', '.join(value) if isinstance(value, list) else value}"
        for name, value in changes.items()
        if name not in hidden
    ]
    return "; ".join(shown) or "–"


def effects_table(found: Iterable[Study], metrics: Sequence[str] = TABULATED) -> pd.DataFrame:
    """Factors and levels with what they change: difference from the reference level with its interval, metric by
    metric, and d_z of the first metric."""
    rows = []
    for study in found:
        cells = study.effects(metrics).set_index(["level", "metric"])
        for level in dict.fromkeys(cells.index.get_level_values("level")):
            at_level = cells.loc[level]
            numbers = [
                Number(format_interval(Interval(*at_level.loc[metric, ["difference", "low", "high"]])))
                if metric in at_level.index
                else Number("--")
                for metric in metrics
            ]
            d = Number(format_interval(Interval(*at_level.loc[metrics[0], ["d_z", "d_low", "d_high"]])))
            names = [name.replace("_", " ") for name in (study.name, level)]
            rows.append([*names, described(study.changes[level]), *numbers, d])
    return frame_of(rows, ["Factor", "Level", "Changes", *map(label, metrics), Raw(rf"$d_z$, {label(metrics[0])}")])


def hypotheses_table(found: Iterable[Study]) -> pd.DataFrame:
    """Factor, hypothesis, the contrast that tests it, and the verdict."""
    rows = [
        [
            study.name.replace("_", " "),
            Raw(rf"\parbox[t]{{95mm}}{{\raggedright {escape(study.judged.hypothesis)}\strut}}"),
            Number(format_interval(study.judged.estimate)),
            study.judged.verdict,
        ]
        for study in found
    ]
    return frame_of(rows, ["Factor", "Hypothesis", "Contrast", "Verdict"])


def values(found: dict[str, Study]) -> dict[str, str]:
    """ablation.<factor>.verdict and .estimate; ablation.<factor>.<level>.<metric>, the difference from the reference
    with its interval, and .<metric>.d, its d_z; counts ablations.{factors,cells,seeds,generations} and
    ablations.{supported,contradicted,inconclusive}; nothing where there is no study."""
    text = {}
    for name, study in found.items():
        text[f"ablation.{name}.verdict"] = study.judged.verdict
        text[f"ablation.{name}.estimate"] = format_interval(study.judged.estimate)
        for row in study.effects().itertuples():
            key = f"ablation.{name}.{row.level}.{row.metric}"
            text[key] = format_interval(Interval(row.difference, row.low, row.high))
            text[f"{key}.d"] = format_number(row.d_z)
    if not found:
        return text
    runs = pd.concat([study.runs for study in found.values()])
    verdicts = [study.judged.verdict for study in found.values()]
    return text | {
        "ablations.factors": str(len(found)),
        "ablations.cells": str(sum(study.runs["level"].nunique() for study in found.values())),
        "ablations.seeds": str(runs["seed"].nunique()),
        "ablations.generations": str(runs["generation"].max()),
        **{f"ablations.{word}": str(verdicts.count(word)) for word in ("supported", "contradicted", "inconclusive")},
    }
