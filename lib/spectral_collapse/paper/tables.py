"""Tables and values as LaTeX: cells, the tabular, the file of values; and two tables that come with the project."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..analysis import metrics
from ..record import paths, provenance
from .formatting import escape, format_interval, format_number, format_p, format_percent


class Raw(str):
    """Text that is LaTeX already and is written as it is.

    Only object columns keep it: build frames with `dtype=object`, since pandas' own string type turns it
    into plain text, which is then escaped.
    """


class Number(Raw):
    """A formatted number: LaTeX already, and set to the right of its column."""


def paragraph(text: str, width: int) -> Raw:
    """LaTeX in lines of so many millimetres."""
    return Raw(rf"\parbox[t]{{{width}mm}}{{\raggedright {text}\strut}}")


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


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Writes a complete booktabs tabular, without float or caption, headed by the names of the columns.

    The first column and every column of text are set left, numbers and `Number`s right.
    """
    cells = [list(frame[heading]) for heading in frame.columns]
    is_text = [any(isinstance(x, str) and not isinstance(x, Number) for x in column) for column in cells]
    alignment = "l" + "".join("l" if text else "r" for text in is_text[1:])

    def line(row: Sequence[Any]) -> str:
        return " & ".join(map(_cell, row)) + r" \\"

    rows = [line(row) for row in zip(*cells, strict=True)]
    body = [r"\toprule", line(list(frame.columns)), r"\midrule", *rows, r"\bottomrule"]
    text = "\n".join([rf"\begin{{tabular}}{{{alignment}}}", *body, r"\end{tabular}"])
    provenance.write_text(path, text + "\n")


def frame_of(rows: Sequence[Sequence[Any]], headings: Sequence[str]) -> pd.DataFrame:
    """Frame of display cells under display headings; objects throughout, so that `Raw` survives."""
    return pd.DataFrame(rows, columns=pd.Index(headings, dtype=object), dtype=object)


# ---- what a row of a frame shows, in a cell of a table or in a value

Cell = Callable[[Any], Any]


def metric(column: str = "metric") -> Cell:
    """The `label` of the metric that a column names."""
    return lambda row: label(getattr(row, column))


def number(column: str, show: Callable[[Any], str] = format_number) -> Cell:
    """The number of a column."""
    return lambda row: Number(show(getattr(row, column)))


def p_value(column: str) -> Cell:
    """The p-value of a column."""
    return number(column, format_p)


def interval(value: str, low: str = "low", high: str = "high") -> Cell:
    """The estimate of three columns."""
    return lambda row: Number(format_interval([getattr(row, column) for column in (value, low, high)]))


def filled(template: str) -> Cell:
    """A template with names of columns in braces, such as `{detected} of {runs}`."""
    return lambda row: Number(template.format_map(row._asdict()))


def table_of(frame: pd.DataFrame, columns: Mapping[str, str | Cell]) -> pd.DataFrame:
    """Display cells of a frame, row by row: headings to a column's name or a `Cell`."""
    rows = [
        [getattr(row, cell) if isinstance(cell, str) else cell(row) for cell in columns.values()]
        for row in frame.itertuples()
    ]
    return frame_of(rows, list(columns))


def values_of(frame: pd.DataFrame, entries: Mapping[str, Cell]) -> dict[str, str]:
    """Values of a frame, row by row: keys with names of columns in braces to `Cell`s; without those that give None."""
    found = {key.format_map(row._asdict()): cell(row) for row in frame.itertuples() for key, cell in entries.items()}
    return {key: text for key, text in found.items() if text is not None}


def estimators(summary: pd.DataFrame) -> pd.DataFrame:
    """`estimators.noise_summary`, a row a quantity: variation over probes and batches, and ratios to the most steps."""
    variation = {"CV, probes": number("cv_probes", format_percent), "CV, batches": number("cv_batches", format_percent)}
    steps = {f"{at.removeprefix('at_')} steps": number(at) for at in summary.columns if at.startswith("at_")}
    return table_of(summary, {"Quantity": metric("Index"), **variation, **steps})


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
