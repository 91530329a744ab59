"""What papermill does differently where this package is installed, loaded by papermill itself (pyproject.toml).

Kernels talk over IPC and draw no progress bars, every key of a profile is a known parameter of a notebook that has one,
and wrong input ends in its sentence alone.
"""

import os

import click
from nbformat import NotebookNode
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines
from papermill.models import Parameter
from papermill.translators import PythonTranslator, papermill_translators

from ..record.schema import Params
from . import kernels


def _refusal(notebook: NotebookNode) -> str | None:
    """The sentence with which a cell refused its input (`cli.speak_plainly`), None where no cell did."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    errors = (output for output in outputs if output.output_type == "error")
    return next((error.evalue for error in errors if error.traceback == [error.evalue]), None)


class Engine(NBClientEngine):
    """papermill's own engine, with the kernels of `kernels`; click prints the sentence of an input that was refused."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: NotebookExecutionManager, kernel_name: str, **options) -> None:
        """Executes the cells; papermill saves what they gave, whatever it was."""
        kernels.over_ipc()
        os.environ["TQDM_DISABLE"] = "1"  # for the kernel: papermill's own bar is there already
        super().execute_managed_notebook(nb_man, kernel_name, **options)
        if sentence := _refusal(nb_man.nb):
            raise click.ClickException(sentence)


class Translator(PythonTranslator):
    """papermill's own for Python, which also knows the keys of a profile."""

    @classmethod
    def inspect(cls, parameters_cell: NotebookNode) -> list[Parameter]:
        """Parameters of the cell; where `profile` is one of them, followed by every key that may be given with it."""
        named = super().inspect(parameters_cell)
        names = {parameter.name for parameter in named}
        if "profile" not in names:
            return named
        keys = {name: (field.annotation, field.description or "") for name, field in Params.model_fields.items()}
        keys["extends"] = (str, "a profile of which the others are taken, in a file behind -f")
        further = [(name, *about) for name, about in keys.items() if name not in names]
        return named + [
            Parameter(name, getattr(kind, "__name__", str(kind)), "that of the profile", about)
            for name, kind, about in further
        ]


papermill_engines.register(None, Engine)  # the one that is taken where none is named
papermill_translators.register("python", Translator)
