"""Notebooks as papermill leaves them: a tagged cell of parameters, and the one that it puts after it."""

from papermill.translators import PythonTranslator


def notebook(*cells: str) -> dict:
    """Globals of a notebook after these cells, as IPython leaves them: `In` begins with an empty entry."""
    namespace = {"In": [""]}
    for cell in cells:
        namespace["In"].append(cell)
        exec(cell, namespace)
    return namespace


def injected(**values) -> str:
    """The cell that papermill puts after the tagged one."""
    return PythonTranslator.codify(values)


TAGGED = 'profile = "smoke"  # overridden by papermill -p\nseed = 1\ncondition = "recursive"'
