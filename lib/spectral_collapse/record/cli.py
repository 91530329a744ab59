"""Formats messages of commands and notebooks: a result on success, one sentence for input that is refused."""

import argparse
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

PACKAGE = Path(__file__).parents[1]


def outcome(command: Callable[[], str]) -> int:
    """Prints what the command returns, or the message of its ValueError; returns the exit status, 0 or 1."""
    try:
        print(command())
    except ValueError as error:
        print(error)
        return 1
    return 0


def of_profile(module: str, about: str, command: Callable[[str], str], arguments: Sequence[str] | None = None) -> int:
    """`outcome` of a module's command that takes the name of a profile and nothing else."""
    parser = argparse.ArgumentParser(prog=f"python -m spectral_collapse.{module}", description=about.split("\n")[0])
    parser.add_argument("profile")
    profile = parser.parse_args(arguments).profile
    return outcome(lambda: command(profile))


def assignments(given: Iterable[str]) -> dict[str, str]:
    """`key=value` arguments as a dictionary. ValueError for any other."""
    found = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign:
            raise ValueError(f"{text!r}: write key=value.")
        found[key] = value
    return found


def on_purpose(trace: TracebackType) -> bool:
    """Whether a `raise` statement of this package raised the error."""
    last = traceback.extract_tb(trace)[-1]
    return Path(last.filename).is_relative_to(PACKAGE) and (last.line or "").startswith("raise ")


def _show(shell: Any, kind: type, error: ValueError, trace: TracebackType, tb_offset: int | None = None) -> None:
    """IPython's error handler: shows input errors of this package as their message alone, others as usual."""
    if on_purpose(trace):
        error._render_traceback_ = lambda: [str(error)]
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def notebook() -> Any:
    """The IPython shell of this process; None where there is none."""
    ipython = sys.modules.get("IPython")
    return ipython and ipython.get_ipython()


def speak_plainly() -> None:
    """In a notebook, from here on, an input error of this package shows its sentence without a traceback."""
    if shell := notebook():
        shell.set_custom_exc((ValueError,), _show)
