"""The notebooks' two halves: `python -m spectral_collapse.pairs convert` writes an .ipynb for every .py,
`… run` does so with the outputs of its execution. The .py is the half that is edited by hand."""

import hashlib
import os
import sys
from pathlib import Path

import jupytext
import nbclient
import nbformat
from nbformat import NotebookNode

from . import paths, provenance

NOTEBOOKS = paths.ROOT / "notebooks"


def cells(notebook: NotebookNode) -> list[tuple[str, str, tuple[str, ...]]]:
    """(type, source, tags) of every cell: what the two halves of a pair must share."""
    return [(cell.cell_type, cell.source, tuple(cell.metadata.get("tags", []))) for cell in notebook.cells]


def from_script(script: Path) -> NotebookNode:
    """The script as a notebook without outputs. A cell's id is a hash of its place and source, so that
    two conversions of one script are one file; jupytext would draw it at random."""
    notebook = jupytext.read(script)
    for index, cell in enumerate(notebook.cells):
        cell.id = hashlib.sha256(f"{index}{cell.source}".encode()).hexdigest()[:12]
    notebook.metadata = nbformat.from_dict({"kernelspec": dict(notebook.metadata["kernelspec"])})
    return notebook


def executed(script: Path) -> NotebookNode:
    """The script's notebook with the outputs of a run with its own parameters, without times of execution
    and progress bars."""
    notebook = from_script(script)
    os.environ["TQDM_DISABLE"] = "1"
    nbclient.NotebookClient(
        notebook, timeout=None, record_timing=False, resources={"metadata": {"path": str(script.parent)}}
    ).execute()
    return notebook


def main(arguments: list[str]) -> int:
    """Writes every notebook: `convert` without outputs, `run` with them."""
    make = {("convert",): from_script, ("run",): executed}.get(tuple(arguments))
    if make is None:
        print("usage: python -m spectral_collapse.pairs convert|run")
        return 2
    for script in sorted(NOTEBOOKS.glob("*.py")):
        print(script.name, flush=True)
        provenance.write_text(script.with_suffix(".ipynb"), nbformat.writes(make(script)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
