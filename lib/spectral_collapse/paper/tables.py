"""Tables and values as LaTeX: cells, the tabular, the file of values; and two tables that come with the project."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..analysis import metrics
from ..record import paths, provenance
from .formatting import escape, format_number, format_percent


class Raw(str):
    """Text that is LaTeX already and is written as it is.

    Only object columns keep it: build frames with `dtype=object`, since pandas' own string type turns it
    into plain text, which is then escaped.
    """


class Number(Raw):
    """A formatted number: LaTeX already, and set to the right of its column."""


def label(metric: str) -> Raw:
    """Name of a metric for readers (`metrics.label`) as LaTeX."""
    return Raw(metrics.label(metric) if metric in metrics.METRICS else escape(metrics.label(metric)))


def write_values(mapping: Mapping[str, str], path: Path) -> None:
    r"""Writes numbers.tex, a line `\setval{key}{text}` for each entry; the texts are LaTeX already.

    Mathematics in dollars is written with \ensuremath and the dash -- in a box, so that \val{key} works in
    running text and inside a formula alike.

    ValueError for a key with other characters than A-Z a-z 0-9 _ . - and for a text that would break the
    lines after it: unbalanced braces or dollars, a comment or parameter sign, a line break.
    """
    lines = []
    for key, text in mapping.items():
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
            raise ValueError(f"The key {key!r} of a value may hold letters, digits, '_', '.' and '-' only.")
        bare = re.sub(r"\\.", "", text)
        depths = [bare.count("{", 0, end) - bare.count("}", 0, end) for end in range(len(bare) + 1)]
        if min(depths) < 0 or depths[-1] or bare.count("$") % 2 or re.search(r"[%#\n\r]|\\$", bare):
            raise ValueError(f"The text {text!r} of the value {key!r} is not LaTeX of one line: escape it.")
        text = re.sub(r"(?<!\\)\$(.*?)(?<!\\)\$", r"\\ensuremath{\1}", text)
        text = re.sub(r"(?<!-)--(?!-)", r"\\mbox{--}", text)
        lines.append(f"\\setval{{{key}}}{{{text}}}\n")
    provenance.write_text(path, "".join(lines))


def _cell(value: Any) -> str:
    """LaTeX of one cell or heading: `Raw` as it is, other text escaped, numbers formatted, missing as --."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, str):
        return escape(value)
    if pd.isna(value):
        return "--"
    if pd.api.types.is_integer(value):
        return f"${value}$" if value < 0 else str(value)
    return format_number(value) if pd.api.types.is_float(value) else escape(str(value))


def write_table(frame: pd.DataFrame, path: Path, columns: Mapping[str, str] | None = None) -> None:
    """Writes a complete booktabs tabular, without float or caption.

    `columns` chooses and orders columns and gives their headings, {column: heading}; by default all, under
    their own names. The first column and every column of text are set left, numbers and `Number`s right.
    """
    columns = columns or {name: name for name in frame.columns}
    for name in columns:
        if name not in frame.columns:
            raise ValueError(f"The table has no column {name!r}; it has {', '.join(frame.columns)}.")
    cells = [list(frame[name]) for name in columns]
    is_text = [any(isinstance(x, str) and not isinstance(x, Number) for x in column) for column in cells]
    alignment = "l" + "".join("l" if text else "r" for text in is_text[1:])

    def line(row: Sequence[Any]) -> str:
        return " & ".join(map(_cell, row)) + r" \\"

    rows = [line(row) for row in zip(*cells, strict=True)]
    body = [r"\toprule", line(list(columns.values())), r"\midrule", *rows, r"\bottomrule"]
    text = "\n".join([rf"\begin{{tabular}}{{{alignment}}}", *body, r"\end{tabular}"])
    provenance.write_text(path, text + "\n")


def frame_of(rows: Sequence[Sequence[Any]], headings: Sequence[str]) -> pd.DataFrame:
    """Frame of display cells under display headings; objects throughout, so that `Raw` survives."""
    return pd.DataFrame(rows, columns=pd.Index(headings, dtype=object), dtype=object)


def estimators(summary: pd.DataFrame) -> pd.DataFrame:
    """`estimators.summary`, a row a quantity: variation over probes and batches, and ratios to the most steps."""
    steps = [name for name in summary.columns if name.startswith("at_")]
    rows = [
        [
            label(row.Index),
            *(Number(format_percent(getattr(row, name))) for name in ("cv_probes", "cv_batches")),
            *(Number(format_number(getattr(row, name))) for name in steps),
        ]
        for row in summary.itertuples()
    ]
    headings = [f"{name.removeprefix('at_')} steps" for name in steps]
    return frame_of(rows, ["Quantity", "CV, probes", "CV, batches", *headings])


def published_hessian(folder: Path = paths.PUBLISHED) -> pd.DataFrame:
    """The published spectral ratios and training losses, digit for digit and labelled as published."""
    large = pd.read_csv(folder / "hessian_smollm2_135m.csv", dtype=str)
    small = pd.read_csv(folder / "hessian_llama_100m.csv", dtype=str)
    merged = large.merge(small, on="generation", how="outer", validate="one_to_one")
    stacks = [("SmolLM2-135M", f"ratio, {condition}") for condition in ("recursive", "fresh", "static")]
    stacks += [("Llama 100M", "training loss"), ("Llama 100M", "ratio")]
    headings = [Raw(rf"\shortstack[r]{{{model}\\{name}\\(published)}}") for model, name in stacks]
    columns = ["generation", "recursive", "fresh", "static", "training_loss", "spectral_ratio"]
    rows = [[Number(figure) for figure in row] for row in merged[columns].to_numpy()]
    return frame_of(rows, ["Generation", *headings])
