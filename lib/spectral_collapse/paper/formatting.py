"""Numbers and text as LaTeX for running text and cells of tables."""

import math
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "`": r"\textasciigrave{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",  # in braces, or a row that starts with one would be an argument of the \\ before it
        "*": "{*}",
        **{character: "\\" + character for character in "{}$&#%_"},
    }
)
# Whatever pdflatex does not set in the OT1 and T1 encodings alike: both have ASCII, most accented Latin
# letters and the common punctuation.
_NOT_SET_BY_LATEX = re.compile("[^ -~¡-ª¬®-º¼-ÏÑ-Ýß-ïñ-ýÿ-ăĆ-ďĒ-ėĚ-ĥĨ-ĭİ-ķĹ-ľŁ-ňŌ-ťŨ-űŴ-žȘșȚț‐‑–—‘’“”†‡•…‰€™]")


def escape(text: str) -> str:
    """LaTeX that prints `text` on one line, whatever it contains.

    White space becomes single spaces. A character that pdflatex may have no glyph for is printed as its code
    point (U+1F600), so that it neither stops the compilation nor vanishes.
    """
    text = unicodedata.normalize("NFC", " ".join(text.split())).translate(_ESCAPES)
    text = re.sub(r"([-',])(?=\1)", r"\1{}", text)  # no ligatures: -- is two hyphens, not a dash
    return _NOT_SET_BY_LATEX.sub(lambda match: rf"\texttt{{U+{ord(match[0]):04X}}}", text)


def format_number(x: float) -> str:
    """`x` to three significant digits as LaTeX for running text; scientific from 1e5 on and below 1e-3."""
    if np.isnan(x):
        return "--"
    if np.isinf(x):
        return r"$\infty$" if x > 0 else r"$-\infty$"
    digits, exponent = f"{x:.2e}".split("e")
    exponent = int(exponent)
    if x == 0:
        return "0"
    if not -3 <= exponent < 5:
        return rf"${digits}\times10^{{{exponent}}}$"
    text = f"{float(f'{x:.2e}'):.{max(0, 2 - exponent)}f}"
    return f"${text}$" if x < 0 else text


def format_generations(x: float) -> str:
    """A number of generations, whole or half, with its sign in mathematics: `2`, `$-1.5$`."""
    if not np.isfinite(x):
        return format_number(x)
    return f"${x:g}$" if x < 0 else f"{x:g}"


def format_percent(share: float) -> str:
    r"""A share in percent with two significant digits from one on, `4.5\,\%`; `--` where there is none."""
    return rf"{100 * share:.{0 if abs(share) >= 0.0995 else 1}f}\,\%" if np.isfinite(share) else "--"


def format_interval(interval: Sequence[float]) -> str:
    """(value, low, high), such as an `Estimate`: `12.3 [11.1, 13.5]`."""
    value, low, high = map(format_number, interval)
    return f"{value} [{low}, {high}]"


def format_p(p: float) -> str:
    """A p-value to three decimals, `$<0.001$` below that."""
    if np.isnan(p):
        return "--"
    return "$<0.001$" if p < 0.001 else f"{p:.3f}"


# ---- entries of a record, where null stands for what is not finite


def _known(value: float | None, otherwise: float = math.nan) -> float:
    return otherwise if value is None else value


def number_of(value: float | None) -> str:
    """A number of a record, `--` where it is not defined."""
    return format_number(_known(value))


def pair_of(result: dict, name: str, error: str) -> str:
    """A result and the error that stands beside it, as `name_error`; the result alone where there is no error."""
    value, spread = number_of(result[name]), number_of(result[f"{name}_{error}"])
    return value if spread == "--" else rf"{value} $\pm$ {spread}"


def bracket_of(result: dict, name: str) -> str:
    """Both ends of a bracket, infinite where nothing bounds it."""
    low, high = result[name]
    return f"[{format_number(_known(low, -math.inf))}, {format_number(_known(high, math.inf))}]"


def interval_of(result: dict, name: str) -> str:
    """A result with its interval."""
    return format_interval([_known(value) for value in (result[name], *result[f"{name}_interval"])])
