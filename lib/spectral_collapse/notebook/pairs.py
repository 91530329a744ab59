"""Pairs of notebooks: `python -m spectral_collapse.notebook.pairs convert` writes an .ipynb for every .py, `… run` with
the outputs of its execution. Neither overwrites cells that only the .ipynb has."""

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jupytext
import nbclient
import nbformat
from nbformat import NotebookNode

from ..record import cli, paths, provenance
from . import kernels

NOTEBOOKS = paths.ROOT / "notebooks"


def cells(notebook: NotebookNode) -> list[tuple[str, str, tuple[str, ...]]]:
    """(type, source, tags) of every cell, which both files of a pair must share."""
    return [(cell.cell_type, cell.source, tuple(cell.metadata.get("tags", []))) for cell in notebook.cells]


def _id(source: str, before: int = 0) -> str:
    """Id of a cell with this source after `before` cells with the same source."""
    return hashlib.sha256(f"{before}{source}".encode()).hexdigest()[:12]


def from_script(script: Path) -> NotebookNode:
    """The script as a notebook without outputs. A cell's id is a hash of its source, where jupytext draws one at
    random: conversion is then deterministic, and cells edited in Jupyter are recognised."""
    notebook = jupytext.read(script)
    sources = [cell.source for cell in notebook.cells]
    for index, cell in enumerate(notebook.cells):
        cell.id = _id(cell.source, sources[:index].count(cell.source))
    notebook.metadata = nbformat.from_dict({"kernelspec": dict(notebook.metadata["kernelspec"])})
    return notebook


def unsaved(script: Path) -> str | None:
    """A sentence on what the .ipynb has and its script lacks; None if conversion loses nothing.

    A cell that differs is the .ipynb's own if its id is not that of its source, or if the .ipynb is newer.
    """
    half = script.with_suffix(".ipynb")
    if not half.exists():
        return None
    theirs, ours = nbformat.read(half, as_version=4), jupytext.read(script)
    if cells(theirs) == cells(ours):
        return None
    newer = half.stat().st_mtime > script.stat().st_mtime
    known = cells(ours)
    for number, (cell, content) in enumerate(zip(theirs.cells, cells(theirs), strict=True), start=1):
        converted = cell.get("id") in {_id(cell.source, before) for before in range(len(known))}
        if content not in known and (newer or not converted):
            where = f"cell {number} ({paths.shown(cell.source.splitlines()[0] if cell.source else '')})"
            break
    else:
        if not newer:
            return None
        where = "the order or number of cells"
    return (
        f"{half.name} differs from {script.name} in {where}, and would be overwritten: to keep it, run "
        f"`.venv/bin/jupytext --to py:percent notebooks/{half.name}`; to keep the script, delete {half.name}."
    )


def executed(script: Path) -> NotebookNode:
    """The script's notebook with its outputs, without execution times and progress bars."""
    notebook = from_script(script)
    kernels.over_ipc()
    os.environ["TQDM_DISABLE"] = "1"
    nbclient.NotebookClient(
        notebook, timeout=None, record_timing=False, resources={"metadata": {"path": str(script.parent)}}
    ).execute()
    return notebook


def write(make: Callable[[Path], NotebookNode], folder: Path = NOTEBOOKS) -> str:
    """Writes `make(script)` for every script of the folder. ValueError, before anything is written, if a notebook would
    lose cells."""
    scripts = sorted(folder.glob("*.py"))
    if lost := [sentence for script in scripts if (sentence := unsaved(script))]:
        raise ValueError("\n".join(lost))
    for script in scripts:
        print(script.name, flush=True)
        provenance.write_text(script.with_suffix(".ipynb"), nbformat.writes(make(script)) + "\n")
    return f"{len(scripts)} notebooks agree with their scripts."


def main(arguments: list[str]) -> int:
    """Writes every notebook: `convert` without outputs, `run` with them."""
    make = {("convert",): from_script, ("run",): executed}.get(tuple(arguments))
    if make is None:
        print("usage: python -m spectral_collapse.notebook.pairs convert|run")
        return 2
    return cli.outcome(lambda: write(make))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
