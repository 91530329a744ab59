"""The mechanism in LaTeX: tables, and the numbers of the section."""

import pandas as pd

from ..analysis import mechanism, mediation
from ..estimate import Estimate
from ..mechanism.outputs import BINS, RARE_SHARE
from ..mechanism.tracking import FACTOR, FATES
from ..record.schema import Params
from .formatting import format_interval, format_number, format_p, format_percent
from .tables import Number, Raw, frame_of, label


def differences_table(differences: pd.DataFrame) -> pd.DataFrame:
    """`mechanism.differences`, a row a quantity."""
    rows = [
        [
            label(row.quantity),
            Number(format_number(row.recursive)),
            Number(format_number(row.fresh)),
            Number(format_interval(Estimate(row.difference, row.low, row.high))),
            Number(format_p(row.p_holm)),
        ]
        for row in differences.itertuples()
    ]
    return frame_of(rows, ["Quantity", "Recursive", "Fresh", "Difference", Raw("$p$ (Holm)")])


def mediation_table(mediated: pd.DataFrame) -> pd.DataFrame:
    """`mediation.mediation`, a row a quantity: for each outcome the share with its interval, and the verdict."""
    rows: dict[str, list] = {}
    headings = ["Quantity"]
    for place, (outcome, found) in enumerate(mediated.groupby("outcome", sort=False)):
        # Columns need names of their own; LaTeX does not print trailing spaces.
        headings += [label(outcome), "accounts for" + " " * place]
        for row in found.itertuples():
            cells = rows.setdefault(row.quantity, [label(row.quantity)])
            cells += [Number(format_interval(Estimate(row.share, row.low, row.high))), row.verdict]
    return frame_of(list(rows.values()), headings)


def fates_table(counts: pd.DataFrame) -> pd.DataFrame:
    """`mechanism.fate_counts`, a row a condition."""
    names = [*FATES, "all"]
    rows = [
        [row.Index, *(Number(str(getattr(row, name))) for name in names), Number(format_number(row.factor))]
        for row in counts.itertuples()
    ]
    return frame_of(rows, ["Condition", *names, "median factor"])


def values(
    study: mechanism.Study, differences: pd.DataFrame, mediated: pd.DataFrame, counts: pd.DataFrame, settings: Params
) -> dict[str, str]:
    """Numbers of the paper's section, as LaTeX for running text.

    Set-up: mechanism.{parameters,seeds,generations,blocks,held_out,eigenvectors,bins,rare,factor,quantities}. For a
    quantity Q, a condition C and an outcome O: mechanism.Q.C.{first,last} of `mechanism.means`; word.mechanism.Q of the
    differences; of the mediation mechanism.total.O and mechanism.{most,minor,open}.O, the number of quantities with
    each verdict, and mechanism.none.O only where the outcome has no gap. mechanism.fate.F.C, "2 of 15";
    mechanism.merging and word.mechanism.merging. Of `mechanism.conditions`: mechanism.noise.{start,C},
    mechanism.aligned.{chance,C}, mechanism.{barrier,step_barrier,rises}.C.
    """
    quantities = study.quantities
    text = {
        "mechanism.parameters": f"{quantities['parameters'].iloc[0] / 1e6:.2f} million",
        "mechanism.seeds": str(quantities["seed"].nunique()),
        "mechanism.generations": str(quantities["generation"].max()),
        "mechanism.blocks": str(settings.mechanism_blocks),
        "mechanism.held_out": str(settings.held_out_blocks),
        "mechanism.eigenvectors": str(settings.eigenvectors),
        "mechanism.bins": str(BINS),
        "mechanism.rare": format_percent(RARE_SHARE),
        "mechanism.factor": f"{FACTOR:g}",
        "mechanism.quantities": str(len(mechanism.QUANTITIES)),
    }
    for row in mechanism.means(quantities).itertuples():
        key = f"mechanism.{row.quantity}.{row.condition}.{row.at}"
        text[key] = format_interval(Estimate(row.mean, row.low, row.high))
    text |= {f"word.mechanism.{row.quantity}": row.word for row in differences.itertuples()}
    words = {"most": mediation.MOST, "minor": mediation.MINOR, "open": mediation.OPEN}
    for outcome, found in mediated.groupby("outcome"):
        total = Estimate(*found[["total", "total_low", "total_high"]].iloc[0])
        text[f"mechanism.total.{outcome}"] = format_interval(total)
        text |= {f"mechanism.{key}.{outcome}": str((found["verdict"] == word).sum()) for key, word in words.items()}
        if (found["verdict"] == mediation.NO_EFFECT).any():
            text[f"mechanism.none.{outcome}"] = mediation.NO_EFFECT
    for condition, found in counts.iterrows():
        text |= {f"mechanism.fate.{fate}.{condition}": f"{found[fate]:.0f} of {found['all']:.0f}" for fate in FATES}
    merging = mechanism.merging(study.outliers)
    text["mechanism.merging"] = format_interval(merging)
    apart = {1: "higher", -1: "lower", 0: mechanism.SAME}
    text["word.mechanism.merging"] = apart[int(merging.low > 0) - int(merging.high < 0)]
    for row in mechanism.conditions(study).itertuples():
        text |= {
            "mechanism.noise.start": format_number(row.noise_start),
            f"mechanism.noise.{row.Index}": format_number(row.noise),
            "mechanism.aligned.chance": format_number(row.chance),
            f"mechanism.aligned.{row.Index}": format_number(row.aligned),
            f"mechanism.barrier.{row.Index}": format_number(row.barrier),
            f"mechanism.step_barrier.{row.Index}": format_number(row.step_barrier),
            f"mechanism.rises.{row.Index}": f"{row.rises} of {row.runs}",
        }
    return text
