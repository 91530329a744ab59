"""Rescue in LaTeX: which metric separates irreversible models, and the numbers of the section."""

import math

import pandas as pd

from .formatting import format_number
from .tables import Number, Raw, frame_of, label


def separation_table(separated: pd.DataFrame) -> pd.DataFrame:
    """`rescue.separation`, of one condition or several."""
    rows = [
        [
            row.condition,
            label(row.metric),
            "rises" if row.direction > 0 else "falls",
            Number(format_number(row.auc)),
            Number(format_number(row.threshold)),
            Number(f"{row.models} of {row.runs} runs"),
        ]
        for row in separated.itertuples()
    ]
    return frame_of(rows, ["Condition", "Metric", "Said to", "AUC", Raw("Threshold (change)"), "Models"])


def values(counts: pd.DataFrame) -> dict[str, str]:
    """`rescue.reversibility_counts`. Of every condition C with judged models: rescue.models.C, rescue.reversible.C,
    rescue.runs.C, rescue.lost.C, and rescue.turning.C if runs are lost. Of one without: rescue.unjudged.C, its models.
    """
    text = {}
    for row in counts.itertuples():
        if not row.judged:
            text[f"rescue.unjudged.{row.Index}"] = str(row.rescued)
            continue
        names = {"models": row.judged, "reversible": row.reversible, "runs": row.runs, "lost": row.lost}
        text |= {f"rescue.{name}.{row.Index}": str(count) for name, count in names.items()}
        if math.isfinite(row.turning):
            text[f"rescue.turning.{row.Index}"] = f"{row.turning:g}"
    return text
