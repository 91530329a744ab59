"""The ablations in LaTeX: effects of levels, hypotheses, and the numbers of the section."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pandas as pd

from ..analysis.ablations import Study
from ..estimate import Estimate
from .formatting import escape, format_interval
from .tables import Number, Raw, frame_of, label

TABULATED = ("log_perplexity", "log_spectral_ratio", "track_two_drift")  # as many as fit on the page


def described(changes: dict[str, Any]) -> str:
    """What a level changes, in words: `dropout 0.1`; a dash where it changes nothing."""
    shown = [
        f"{name.replace('_', ' ')} {', '.join(value) if isinstance(value, list) else value}"
        for name, value in changes.items()
        if name not in ("base", "model")
    ]
    return "; ".join(shown) or "–"


def effects_table(studies: Iterable[Study], metrics: Sequence[str] = TABULATED) -> pd.DataFrame:
    """Factor, level and what it changes: difference from the reference level by metric, and d_z of the first metric."""
    rows = []
    for study in studies:
        cells = study.effects.set_index(["level", "metric"])
        for level, at_level in cells[cells.index.isin(metrics, "metric")].groupby("level", sort=False):
            at_level = at_level.droplevel("level")
            numbers = [
                Number(format_interval(Estimate(*at_level.loc[metric, ["difference", "low", "high"]])))
                if metric in at_level.index
                else Number("--")
                for metric in metrics
            ]
            d = Number(format_interval(Estimate(*at_level.loc[metrics[0], ["d_z", "d_low", "d_high"]])))
            names = [name.replace("_", " ") for name in (study.factor.name, level)]
            rows.append([*names, described(study.factor.changes[level]), *numbers, d])
    return frame_of(rows, ["Factor", "Level", "Changes", *map(label, metrics), Raw(rf"$d_z$, {label(metrics[0])}")])


def hypotheses_table(studies: Iterable[Study]) -> pd.DataFrame:
    """Factor, hypothesis, the contrast that tests it, and the verdict."""
    rows = [
        [
            study.factor.name.replace("_", " "),
            Raw(rf"\parbox[t]{{95mm}}{{\raggedright {escape(study.factor.hypothesis)}\strut}}"),
            Number(format_interval(study.estimate)),
            study.verdict,
        ]
        for study in studies
    ]
    return frame_of(rows, ["Factor", "Hypothesis", "Contrast", "Verdict"])


def values(studies: Collection[Study]) -> dict[str, str]:
    """ablation.<factor>.{verdict,estimate}; ablation.<factor>.<level>.<metric>, the difference from the reference;
    counts ablations.{factors,cells,seeds,generations,supported,contradicted,inconclusive}; {} without studies."""
    text = {}
    for study in studies:
        own = f"ablation.{study.factor.name}"
        text |= {f"{own}.verdict": study.verdict, f"{own}.estimate": format_interval(study.estimate)}
        for row in study.effects.itertuples():
            difference = Estimate(row.difference, row.low, row.high)
            text[f"{own}.{row.level}.{row.metric}"] = format_interval(difference)
    if not studies:
        return text
    verdicts = [study.verdict for study in studies]
    return text | {
        "ablations.factors": str(len(studies)),
        "ablations.cells": str(sum(study.runs["level"].nunique() for study in studies)),
        "ablations.seeds": str(len({seed for study in studies for seed in study.runs["seed"]})),
        "ablations.generations": str(max(study.runs["generation"].max() for study in studies)),
        **{f"ablations.{word}": str(verdicts.count(word)) for word in ("supported", "contradicted", "inconclusive")},
    }
