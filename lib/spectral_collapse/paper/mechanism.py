"""The mechanism in LaTeX: tables, and the numbers of the section."""

import pandas as pd

from ..analysis import mechanism, power
from ..analysis.statistics import SAME
from ..estimate import Estimate
from ..mechanism.outputs import BINS, RARE_SHARE
from ..mechanism.tracking import FACTOR, FATES
from ..record.schema import Params
from . import sentences
from .formatting import format_interval, format_number, format_percent
from .tables import Raw, filled, frame_of, interval, label, metric, number, p_value, table_of, values_of


def differences_table(differences: pd.DataFrame) -> pd.DataFrame:
    """`mechanism.differences`, a row a quantity."""
    columns = {
        "Quantity": metric("quantity"),
        "Recursive": number("recursive"),
        "Fresh": number("fresh"),
        "Difference": interval("difference"),
        Raw("$p$ (Holm)"): p_value("p_holm"),
    }
    return table_of(differences, columns)


def mediation_table(mediated: pd.DataFrame) -> pd.DataFrame:
    """`mediation.mediation`, a row a quantity: for each outcome the share with its interval."""
    rows: dict[str, list] = {}
    headings = ["Quantity"]
    for outcome, found in mediated.groupby("outcome", sort=False):
        headings.append(label(outcome))
        for row in found.itertuples():
            rows.setdefault(row.quantity, [label(row.quantity)]).append(interval("share")(row))
    return frame_of(list(rows.values()), headings)


def fates_table(counts: pd.DataFrame) -> pd.DataFrame:
    """`mechanism.fate_counts`, a row a condition."""
    numbers = {name: number(name, str) for name in (*FATES, "all")}
    return table_of(counts, {"Condition": "Index", **numbers, "median factor": number("factor")})


def values(
    study: mechanism.Study, differences: pd.DataFrame, mediated: pd.DataFrame, counts: pd.DataFrame, settings: Params
) -> dict[str, str]:
    """Numbers of the paper's section, as LaTeX for running text.

    Set-up: mechanism.{parameters,seeds,generations,blocks,held_out,eigenvectors,bins,rare,factor,quantities}. For a
    quantity Q, a condition C and an outcome O: mechanism.Q.C.{first,last} of `mechanism.means`; word.mechanism.Q of the
    differences; mechanism.total.O of the mediation, and mechanism.none.O only where the outcome may have no gap.
    mechanism.detectable, the least d that the tests of all quantities find; mechanism.fate.F.C, "2 of 15";
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
        "mechanism.detectable": format_number(
            power.detectable_effect(quantities["seed"].nunique(), len(mechanism.QUANTITIES))
        ),
    }
    text |= values_of(mechanism.means(quantities), {"mechanism.{quantity}.{condition}.{at}": interval("mean")})
    text |= values_of(differences, {"word.mechanism.{quantity}": lambda row: sentences.surviving(row.word != SAME)})
    for outcome, found in mediated.groupby("outcome"):
        total = Estimate(*found[["total", "total_low", "total_high"]].iloc[0])
        text[f"mechanism.total.{outcome}"] = format_interval(total)
        if not total.apart:
            text[f"mechanism.none.{outcome}"] = "yes"
    text |= values_of(counts, {f"mechanism.fate.{fate}.{{Index}}": filled(f"{{{fate}}} of {{all}}") for fate in FATES})
    merging = mechanism.merging(study.outliers)
    text["mechanism.merging"] = format_interval(merging)
    text["word.mechanism.merging"] = sentences.uncorrected(merging)
    return text | values_of(
        mechanism.conditions(study),
        {
            "mechanism.noise.start": number("noise_start"),
            "mechanism.aligned.chance": number("chance"),
            **{f"mechanism.{name}.{{Index}}": number(name) for name in ("noise", "aligned", "barrier", "step_barrier")},
            "mechanism.rises.{Index}": filled("{rises} of {runs}"),
        },
    )
