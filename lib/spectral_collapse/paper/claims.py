"""The claims' verdicts (`analysis.claims`) for readers: what they are judged by, the table, and the values."""

import re

import pandas as pd

from ..analysis.claims import VERDICTS
from .formatting import escape, format_interval
from .tables import Number, Raw, frame_of


def _minus(text: str) -> str:
    """The text with a minus sign, not a hyphen, before a number."""
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", text)


def _paragraph(text: str, width: int) -> Raw:
    return Raw(rf"\parbox[t]{{{width}mm}}{{\raggedright {text}\strut}}")


def table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Every claim with its source, the figure printed there, our estimate with its interval, what was compared and what
    kind of interval that is, and the verdict."""
    rows = []
    for row in verdicts.itertuples():
        known = row.kind != ""
        how = f"{row.compared}; {row.kind}" if known else row.reason
        texts = (escape(row.claim), 72), (escape(row.source), 34), (_minus(escape(row.figure)), 29)
        here = Number(format_interval((row.value, row.low, row.high)) if known else "--")
        rows.append([*(_paragraph(*each) for each in texts), here, _paragraph(escape(how), 42), Raw(row.verdict)])
    return frame_of(rows, ["Claim", "Source", "Figure there", "Here", "Compared; kind of interval", "Verdict"])


def values(verdicts: pd.DataFrame) -> dict[str, str]:
    """claim.<id>, its verdict; where there is an estimate claim.<id>.estimate, .kind and .compared; claims.all and
    claims.<verdict>, counts, blanks as underscores."""
    text = {f"claim.{row.id}": row.verdict for row in verdicts.itertuples()}
    for row in verdicts[verdicts["kind"] != ""].itertuples():
        text[f"claim.{row.id}.estimate"] = format_interval((row.value, row.low, row.high))
        text |= {f"claim.{row.id}.{name}": escape(getattr(row, name)) for name in ("kind", "compared")}
    counts = {name.replace(" ", "_"): (verdicts["verdict"] == name).sum() for name in VERDICTS}
    return text | {"claims.all": str(len(verdicts))} | {f"claims.{name}": str(count) for name, count in counts.items()}
