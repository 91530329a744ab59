"""The house style: colours, sizes, and what every picture shares. `save` alone writes files."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...record import provenance
from ...record.schema import CONDITIONS, split_condition

WIDTH = 6.5  # inches, the paper's text width
LETTERS = 110  # of a legend's type that fit into it
# Okabe & Ito's palette, told apart by most colour-blind readers.
COLOURS = {
    "recursive": "#D55E00",
    "fresh": "#009E73",
    "static": "#0072B2",
    "mixed": "#CC79A7",
    "accumulate": "#E69F00",
    "baseline": "#000000",
}
MARKERS = {"recursive": "o", "fresh": "s", "static": "^", "mixed": "D", "accumulate": "v"}  # told apart in grey too
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.03,
    "figure.dpi": 110,
}


def colour(condition: str) -> str:
    """Colour of a condition, the same in every figure."""
    return COLOURS[split_condition(condition, "")[0]]


def linestyle(condition: str) -> str:
    """Line of a condition: dotted where its name says that weights restart, dashed where it says that they carry."""
    return {"restart": ":", "carry": "--"}.get(split_condition(condition, "")[1], "-")


def marker(condition: str) -> dict[str, str]:
    """Marks of a condition: its shape says where the text comes from, hollow that weights are carried by name."""
    source, weights = split_condition(condition, "")
    return {"marker": MARKERS[source], "markerfacecolor": "white" if weights == "carry" else colour(condition)}


def in_lines(label: str) -> str:
    """A label in two lines, broken at its comma, for the title of a narrow panel."""
    return label.replace(", ", ",\n", 1)


def drawn(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws in the house style, and closes the figure so that a notebook shows it once, as a cell's value."""

    @functools.wraps(draw)
    def wrapped(*args, **kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
        plt.close(figure)
        return figure

    return wrapped


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PDF or SVG, by the path's suffix, without a creation date, so that equal figures are equal
    files."""
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of the dates inside matplotlib's own fonts
    kind = path.suffix[1:]
    undated = {"metadata": {{"pdf": "CreationDate", "svg": "Date"}[kind]: None}, "format": kind}
    with plt.rc_context(STYLE | {"svg.hashsalt": path.stem}):
        provenance.write_atomically(path, lambda temporary: figure.savefig(temporary, **undated))


def panels_of(count: int, columns: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure and `count` axes in rows of `columns`, each `height` inches high."""
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height * rows), squeeze=False, layout="constrained")
    for spare in axes.flat[count:]:
        spare.set_visible(False)
    return figure, axes.flat[:count]


def conditions_of(table: pd.DataFrame) -> list[str]:
    """The table's conditions in the order of the design."""
    return sorted(table["condition"].unique(), key=lambda name: CONDITIONS.index(name))


def legend_above(figure: Figure, axes: Axes) -> None:
    """What the axes name, above the figure: in one row if it fits."""
    handles, names = axes.get_legend_handles_labels()
    widths = [len(name) + 6 for name in names]  # in letters, with the handle
    ncols = len(names) if sum(widths) <= LETTERS else max(1, LETTERS // max(widths))
    figure.legend(handles, names, loc="outside upper center", ncols=ncols, handlelength=2.4, columnspacing=1.4)
