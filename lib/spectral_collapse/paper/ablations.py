"""The ablations in LaTeX: effects of levels, hypotheses, and the numbers of the section."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pandas as pd

from ..analysis.ablations import Study
from ..estimate import Interval
from .formatting import escape, format_interval, format_number
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
                Number(format_interval(Interval(*at_level.loc[metric, ["difference", "low", "high"]])))
                if metric in at_level.index
                else Number("--")
                for metric in metrics
            ]
            d = Number(format_interval(Interval(*at_level.loc[metrics[0], ["d_z", "d_low", "d_high"]])))
            names = [name.replace("_", " ") for name in (study.name, level)]
            rows.append([*names, described(study.changes[level]), *numbers, d])
    return frame_of(rows, ["Factor", "Level", "Changes", *map(label, metrics), Raw(rf"$d_z$, {label(metrics[0])}")])


def hypotheses_table(studies: Iterable[Study]) -> pd.DataFrame:
    """Factor, hypothesis, the contrast that tests it, and the verdict."""
    rows = [
        [
            study.name.replace("_", " "),
            Raw(rf"\parbox[t]{{95mm}}{{\raggedright {escape(study.judged.hypothesis)}\strut}}"),
            Number(format_interval(study.judged.estimate)),
            study.judged.verdict,
        ]
        for study in studies
    ]
    return frame_of(rows, ["Factor", "Hypothesis", "Contrast", "Verdict"])


def values(studies: Collection[Study]) -> dict[str, str]:
    """ablation.<factor>.verdict and .estimate; ablation.<factor>.<level>.<metric>, the difference from the reference,
    and .<metric>.d, its d_z; ablations.{factors,cells,seeds,generations} and
    ablations.{supported,contradicted,inconclusive}, counts; {} without studies."""
    text = {}
    for study in studies:
        text[f"ablation.{study.name}.verdict"] = study.judged.verdict
        text[f"ablation.{study.name}.estimate"] = format_interval(study.judged.estimate)
        for row in study.effects.itertuples():
            key = f"ablation.{study.name}.{row.level}.{row.metric}"
            text |= {
                key: format_interval(Interval(row.difference, row.low, row.high)),
                f"{key}.d": format_number(row.d_z),
            }
    if not studies:
        return text
    verdicts = [study.judged.verdict for study in studies]
    return text | {
        "ablations.factors": str(len(studies)),
        "ablations.cells": str(sum(study.runs["level"].nunique() for study in studies)),
        "ablations.seeds": str(len({seed for study in studies for seed in study.runs["seed"]})),
        "ablations.generations": str(max(study.runs["generation"].max() for study in studies)),
        **{f"ablations.{word}": str(verdicts.count(word)) for word in ("supported", "contradicted", "inconclusive")},
    }
