"""The study for readers: tables, and the numbers of the paper's section."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pingouin

from ..analysis.mechanism import QUANTITIES, Study
from ..analysis.mediation import MINOR, MOST, NO_EFFECT, OPEN, gaps
from ..analysis.statistics import CONTROL, TREATMENT, mean_interval, paired_tests
from ..estimate import Interval
from ..mechanism import outputs
from ..mechanism.tracking import FACTOR, FATES
from ..record.schema import Params
from .formatting import format_interval, format_number, format_p, format_percent
from .tables import Number, Raw, frame_of, label

SAME_WORD = "not distinguishable"


def differences(quantities: pd.DataFrame, names: Sequence[str] = QUANTITIES) -> pd.DataFrame:
    """Treatment less control at the last generation, paired by seed: columns quantity, recursive, fresh (means),
    difference, low, high (95 % t interval), p, p_holm (over all quantities), word: `higher` or `lower` where p_holm is
    below 0.05, else `not distinguishable`."""
    last = quantities[quantities["generation"] == quantities["generation"].max()]
    pair = last[last["condition"].isin([TREATMENT, CONTROL])]
    rows = []
    for name in names:
        gaps(quantities, name)  # refuses, in a sentence, what cannot be compared
        test = paired_tests(pair, name).iloc[0]
        means = pair.groupby("condition")[name].mean()
        rows.append((name, means[TREATMENT], means[CONTROL], test["difference"], test["low"], test["high"], test["p"]))
    frame = pd.DataFrame(rows, columns=["quantity", "recursive", "fresh", "difference", "low", "high", "p"])
    frame["p_holm"] = pingouin.multicomp(frame["p"].to_numpy(), method="holm")[1]
    signs = np.where(frame["difference"] > 0, "higher", "lower")
    return frame.assign(word=np.where(frame["p_holm"] < 0.05, signs, SAME_WORD))


def differences_table(found: pd.DataFrame) -> pd.DataFrame:
    """`differences` for readers."""
    rows = [
        [
            label(row.quantity),
            Number(format_number(row.recursive)),
            Number(format_number(row.fresh)),
            Number(format_interval(Interval(row.difference, row.low, row.high))),
            Number(format_p(row.p_holm)),
        ]
        for row in found.itertuples()
    ]
    return frame_of(rows, ["Quantity", "Recursive", "Fresh", "Difference", Raw("$p$ (Holm)")])


def mediation_table(found: pd.DataFrame) -> pd.DataFrame:
    """`mediation` for readers: a row a quantity, for each outcome the share with its interval, and the verdict."""
    outcomes = list(found["outcome"].unique())
    rows = []
    for quantity, group in found.groupby("quantity", sort=False):
        by_outcome = group.set_index("outcome")
        cells = []
        for outcome in outcomes:
            row = by_outcome.loc[outcome]
            cells += [Number(format_interval(Interval(row["share"], row["low"], row["high"]))), row["verdict"]]
        rows.append([label(quantity), *cells])
    # Columns need names of their own; LaTeX does not print trailing spaces.
    headings = ["Quantity"]
    for place, outcome in enumerate(outcomes):
        headings += [label(outcome), "accounts for" + " " * place]
    return frame_of(rows, headings)


def fate_counts(outliers: pd.DataFrame) -> pd.DataFrame:
    """How many of the outliers of generation 0, over all seeds, met each fate by the last generation: a row a
    condition, a column a fate, and their number `all`."""
    last = outliers[outliers["generation"] == outliers["generation"].max()]
    counts = pd.crosstab(last["condition"], last["fate"]).reindex(columns=list(FATES), fill_value=0)
    return counts.assign(all=counts.sum(axis=1))


def merging(outliers: pd.DataFrame) -> Interval:
    """Share of the leading eigenvectors of generation 0 that merged by the last generation, recursive less fresh: mean
    over seeds with its 95 % t interval."""
    last = outliers[outliers["generation"] == outliers["generation"].max()]
    merged = (last["fate"] == "merges").groupby([last["condition"], last["seed"]]).mean()
    return mean_interval(merged[TREATMENT] - merged[CONTROL])


def fates_table(outliers: pd.DataFrame) -> pd.DataFrame:
    """`fate_counts` for readers, with the median factor by which eigenvalues changed that have not merged."""
    rows = []
    for condition, counts in fate_counts(outliers).iterrows():
        runs = outliers[outliers["condition"] == condition].set_index(["seed", "outlier", "generation"])["value"]
        wide = runs.unstack()
        factor = (wide[wide.columns.max()] / wide[0]).median()
        rows.append(
            [condition, *(Number(str(counts[name])) for name in (*FATES, "all")), Number(format_number(factor))]
        )
    return frame_of(rows, ["Condition", *FATES, "all", "median factor"])


def _listed(count: int, total: int) -> str:
    return f"{count} of {total}"


def values(study: Study, mediated: pd.DataFrame, settings: Params) -> dict[str, str]:
    """Numbers of the paper's section, as LaTeX for running text.

    Keys of the set-up: mechanism.{parameters,seeds,generations,blocks,held_out,eigenvectors,bins,rare,factor}.
    For a quantity Q and a condition C: mechanism.Q.C.{first,last}, mean over seeds with its t interval;
    mechanism.diff.Q and word.mechanism.Q of `differences`. For an outcome O: mechanism.total.O, mechanism.share.Q.O and
    word.mechanism.Q.O of `mediation`; mechanism.{most,minor,open}.O, the number of quantities with each verdict;
    mechanism.none.O only where the outcome has no gap to account for.
    mechanism.fate.F.C, "2 of 15"; mechanism.merging and word.mechanism.merging of `merging`;
    mechanism.noise.{start,C}, the median noise scale in blocks at generation 0 and at the last;
    mechanism.aligned.chance, and mechanism.aligned.C over chance; mechanism.barrier.C, the largest over seeds from
    generation 0 to the last, and mechanism.step_barrier.C, from one generation to the next; mechanism.rises.C, runs
    whose loss rises all along the line to the last.
    """
    quantities = study.quantities
    last = quantities["generation"].max()
    text = {
        "mechanism.parameters": f"{quantities['parameters'].iloc[0] / 1e6:.2f} million",
        "mechanism.seeds": str(quantities["seed"].nunique()),
        "mechanism.generations": str(last),
        "mechanism.blocks": str(settings.mechanism_blocks),
        "mechanism.held_out": str(settings.held_out_blocks),
        "mechanism.eigenvectors": str(settings.eigenvectors),
        "mechanism.bins": str(outputs.BINS),
        "mechanism.rare": format_percent(outputs.RARE_SHARE),
        "mechanism.factor": f"{FACTOR:g}",
        "mechanism.quantities": str(len(QUANTITIES)),
    }
    for condition, runs in quantities.groupby("condition"):
        for name in QUANTITIES:
            for key, generation in (("first", 0), ("last", last)):
                found = mean_interval(runs.loc[runs["generation"] == generation, name])
                text[f"mechanism.{name}.{condition}.{key}"] = format_interval(found)
        final = runs[runs["generation"] == last]
        start = runs.loc[runs["generation"] == 0, "noise_scale_blocks"]
        text["mechanism.noise.start"] = format_number(start.median())
        text[f"mechanism.noise.{condition}"] = format_number(final["noise_scale_blocks"].median())
        chance = final["drift_aligned_by_chance"].iloc[0]
        text["mechanism.aligned.chance"] = format_number(chance)
        text[f"mechanism.aligned.{condition}"] = format_number(final["drift_aligned"].mean() / chance)
    for row in differences(quantities).itertuples():
        text[f"mechanism.diff.{row.quantity}"] = format_interval(Interval(row.difference, row.low, row.high))
        text[f"word.mechanism.{row.quantity}"] = row.word
    for row in mediated.itertuples():
        text[f"mechanism.total.{row.outcome}"] = format_interval(Interval(row.total, row.total_low, row.total_high))
        text[f"mechanism.share.{row.quantity}.{row.outcome}"] = format_interval(Interval(row.share, row.low, row.high))
        text[f"word.mechanism.{row.quantity}.{row.outcome}"] = row.verdict
    for outcome, verdicts in mediated.groupby("outcome")["verdict"]:
        for key, verdict in (("most", MOST), ("minor", MINOR), ("open", OPEN)):
            text[f"mechanism.{key}.{outcome}"] = str((verdicts == verdict).sum())
        if (verdicts == NO_EFFECT).any():
            text[f"mechanism.none.{outcome}"] = NO_EFFECT
    for condition, counts in fate_counts(study.outliers).iterrows():
        for fate in FATES:
            text[f"mechanism.fate.{fate}.{condition}"] = _listed(counts[fate], counts["all"])
    found = merging(study.outliers)
    text["mechanism.merging"] = format_interval(found)
    text["word.mechanism.merging"] = "higher" if found.low > 0 else "lower" if found.high < 0 else SAME_WORD
    for condition, runs in study.lines.groupby("condition"):
        whole = runs[(runs["since"] == "start") & (runs["generation"] == last)]
        along = whole[whole["t"].between(0, 1)].pivot(index="t", columns="seed", values="loss")
        rising = (along.diff().dropna() > 0).all()
        text[f"mechanism.barrier.{condition}"] = format_number(whole["barrier"].max())
        text[f"mechanism.step_barrier.{condition}"] = format_number(
            runs.loc[runs["since"] == "before", "barrier"].max()
        )
        text[f"mechanism.rises.{condition}"] = _listed(rising.sum(), len(rising))
    return text
