"""Extensions of papermill, which loads this module through the entry point in pyproject.toml.

Kernels use IPC and draw no progress bars; notebooks with a profile accept every key of it as a parameter; wrong input
ends in one sentence.
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
    """The sentence with which a cell refused its input (`cli.speak_plainly`), if one did."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    errors = (output for output in outputs if output.output_type == "error")
    return next((error.evalue for error in errors if error.traceback == [error.evalue]), None)


class Engine(NBClientEngine):
    """papermill's engine with the kernels of `kernels`; click prints the sentence of a refused input."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: NotebookExecutionManager, kernel_name: str, **options) -> None:
        """Executes the cells; papermill saves the notebook in any case."""
        kernels.over_ipc()
        os.environ["TQDM_DISABLE"] = "1"  # for the kernel; papermill has a bar of its own
        super().execute_managed_notebook(nb_man, kernel_name, **options)
        if sentence := _refusal(nb_man.nb):
            raise click.ClickException(sentence)


class Translator(PythonTranslator):
    """papermill's translator for Python, extended by the keys of profiles."""

    @classmethod
    def inspect(cls, parameters_cell: NotebookNode) -> list[Parameter]:
        """Parameters of the cell and, if `profile` is among them, all keys of profiles."""
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


papermill_engines.register(None, Engine)  # the default engine
papermill_translators.register("python", Translator)
