"""The ablations in LaTeX: effects of levels, hypotheses, and the numbers of the section."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pandas as pd

from ..analysis.ablations import Study
from .formatting import escape, format_interval
from .tables import Number, Raw, frame_of, interval, label, paragraph, values_of

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
    difference, d_z, rows = interval("difference"), interval("d_z", "d_low", "d_high"), []
    for study in studies:
        for level, at_level in study.effects.groupby("level", sort=False):
            cells = {row.metric: row for row in at_level.itertuples()}
            numbers = [difference(cells[metric]) if metric in cells else Number("--") for metric in metrics]
            names = [name.replace("_", " ") for name in (study.factor.name, level)]
            rows.append([*names, described(study.factor.changes[level]), *numbers, d_z(cells[metrics[0]])])
    return frame_of(rows, ["Factor", "Level", "Changes", *map(label, metrics), Raw(rf"$d_z$, {label(metrics[0])}")])


def hypotheses_table(studies: Iterable[Study]) -> pd.DataFrame:
    """Factor, hypothesis, the contrast that tests it, and the verdict."""
    rows = [
        [
            study.factor.name.replace("_", " "),
            paragraph(escape(study.factor.hypothesis), 95),
            Number(format_interval(study.estimate)),
            study.verdict,
        ]
        for study in studies
    ]
    return frame_of(rows, ["Factor", "Hypothesis", "Contrast", "Verdict"])


def values(studies: Collection[Study]) -> dict[str, str]:
    """ablation.<factor>.{verdict,estimate}; ablation.<factor>.<level>.<metric>, the difference from the reference;
    counts ablations.{factors,cells,seeds,generations,supported,contradicted,inconclusive}; {} without studies."""
    if not studies:
        return {}
    text = {}
    for study in studies:
        own = f"ablation.{study.factor.name}"
        text |= {f"{own}.verdict": study.verdict, f"{own}.estimate": format_interval(study.estimate)}
        text |= values_of(study.effects, {own + ".{level}.{metric}": interval("difference")})
    verdicts = [study.verdict for study in studies]
    return text | {
        "ablations.factors": str(len(studies)),
        "ablations.cells": str(sum(study.runs["level"].nunique() for study in studies)),
        "ablations.seeds": str(len({seed for study in studies for seed in study.runs["seed"]})),
        "ablations.generations": str(max(study.runs["generation"].max() for study in studies)),
        **{f"ablations.{word}": str(verdicts.count(word)) for word in ("supported", "contradicted", "inconclusive")},
    }
