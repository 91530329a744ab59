"""Primary hypotheses: what a profile's runs are to decide, what they can decide, and what they decided.

A profile names at most four (`primary`), and Holm's correction runs over these. A design whose clearest outcome would
not be significant after it is refused before anything runs; a profile that names none is a demonstration.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, stats

from ..record.schema import Params, unknown_name
from . import early_warning, power
from .statistics import ALPHA, TREATMENT, holm, matched_controls, paired_tests

WORDS = ("supported", "contradicted", "undecided", "not judged")


@dataclass(frozen=True)
class Warns:
    """The metric's alarm comes at least `lead` generations before the first alarm of `outcomes`, in most runs.

    Sign test, two-sided: a run counts for it or against it where that is certain (`early_warning.leads`), and not at
    all where nothing fires. `share` is its estimate.
    """

    statement: str
    metric: str
    outcomes: tuple[str, ...]
    lead: int = 1
    test = "sign, two-sided"

    def judged(self, table: pd.DataFrame, alarms: pd.DataFrame) -> tuple[float, float, float, float, int, int]:
        """(share for it, low, high, p, runs for it, runs against it)."""
        ends = []
        for outcome in self.outcomes:
            runs = early_warning.leads(alarms, self.metric, outcome, table["generation"].unique()).dropna()
            ends.append(runs.set_index("seed")[["low", "high"]])
        # Before all outcomes is before the first of them.
        low, high = (
            pd.concat([runs[end] for runs in ends], axis=1).min(axis=1, skipna=False) for end in ("low", "high")
        )
        held, failed = int((low >= self.lead).sum()), int((high < self.lead).sum())
        if not held + failed:
            return math.nan, math.nan, math.nan, math.nan, 0, 0
        test = stats.binomtest(held, held + failed)
        return held / (held + failed), *test.proportion_ci(), test.pvalue, held, failed

    def supports(self, share: float) -> bool:
        """Whether an estimate lies on the side of the hypothesis."""
        return share > 0.5

    def detectable(self, seeds: int, tests: int) -> str:
        """The least share of such runs in the population that is found with a power of 80 %, after correction, if every
        run is decided."""
        counts = np.arange(seeds + 1)
        rejected = np.array([stats.binomtest(int(k), seeds).pvalue < ALPHA / tests for k in counts])

        def missing(share: float) -> float:
            return float(stats.binom.pmf(counts, seeds, share)[rejected & (counts > seeds / 2)].sum()) - 0.8

        if missing(1 - 1e-12) < 0:
            return "none"
        return f"{100 * optimize.brentq(missing, 0.5, 1 - 1e-12):.0f} % of runs"


@dataclass(frozen=True)
class Moves:
    """At the last generation the metric lies on one side of the matched control's: −1 below, 1 above.

    Sign-flip test of the paired differences, two-sided, which needs no normality. Their mean is its estimate.
    """

    statement: str
    metric: str
    direction: int
    test = "sign-flip"

    def judged(self, table: pd.DataFrame, alarms: pd.DataFrame) -> tuple[float, float, float, float, int, int]:
        """(mean difference, low, high, p, runs on the side of the hypothesis, runs on the other)."""
        control = matched_controls(table)[TREATMENT]
        if control is None:
            return math.nan, math.nan, math.nan, math.nan, 0, 0
        test = paired_tests(table, self.metric).set_index("condition").loc[TREATMENT]
        last = table[table["generation"] == table["generation"].max()]
        values = last.pivot(index="seed", columns="condition", values=self.metric)
        sides = np.sign(values[TREATMENT] - values[control]) * self.direction
        found = map(float, test[["difference", "low", "high", "p_permutation"]])
        return *found, int((sides > 0).sum()), int((sides < 0).sum())

    def supports(self, difference: float) -> bool:
        """Whether an estimate lies on the side of the hypothesis."""
        return difference * self.direction > 0

    def detectable(self, seeds: int, tests: int) -> str:
        """The least effect that is found with a power of 80 %, after correction."""
        found = power.detectable_by_signs(seeds, tests)
        return f"d = {found:.1f}" if math.isfinite(found) else "none"


HYPOTHESES: dict[str, Warns | Moves] = {
    "ratio_warns": Warns(
        "the converged log ratio warns at least two generations before perplexity",
        "log_spectral_ratio", ("held_out_perplexity",), lead=2,
    ),
    "track_two_warns": Warns(
        "Track II warns before the surface proxies", "track_two_drift", ("hashed_ngram_hhi", "response_distinct_2")
    ),
    "entropy_warns": Warns("anchor entropy warns before perplexity", "predictive_entropy", ("held_out_perplexity",)),
    "ratio_falls": Moves("recursion lowers the converged log ratio", "log_spectral_ratio", -1),
}  # fmt: skip


def named(params: Params) -> dict[str, Warns | Moves]:
    """The profile's primary hypotheses. ValueError for an unknown name."""
    for name in params.primary:
        if name not in HYPOTHESES:
            raise unknown_name("primary hypothesis", name, HYPOTHESES)
    return {name: HYPOTHESES[name] for name in params.primary}


def capabilities(params: Params) -> pd.DataFrame:
    """What the design can say of each primary hypothesis: columns hypothesis, statement, test, least_p, least_p_holm
    (the least p that any data could give, and after Holm's correction), detectable (in words)."""
    chosen, seeds = named(params), len(params.seeds)
    rows = []
    for name, hypothesis in chosen.items():
        least = power.least_p(hypothesis.test, seeds)
        detectable = hypothesis.detectable(seeds, len(chosen))
        corrected = min(1.0, least * len(chosen))
        rows.append((name, hypothesis.statement, hypothesis.test, least, corrected, detectable))
    names = ["hypothesis", "statement", "test", "least_p", "least_p_holm", "detectable"]
    return pd.DataFrame(rows, columns=names)


def require_answerable(params: Params) -> None:
    """ValueError where the clearest outcome of a primary hypothesis would not be significant after correction, or where
    its lead is longer than the runs: an alarm at generation 1 leads an outcome that stays silent by all of them."""
    for name, each in named(params).items():
        if isinstance(each, Warns) and each.lead > params.generations:
            raise ValueError(
                f"primary: in {params.generations} generations no run can support {name!r}, whose lead is {each.lead}: "
                f"take {each.lead} generations or more."
            )
    found = capabilities(params)
    if not (found["least_p_holm"] >= ALPHA).any():
        return
    row = found.loc[found["least_p_holm"].idxmax()]
    needed = next(n for n in range(2, 100) if power.least_p(row["test"], n) * len(found) < ALPHA)
    raise ValueError(
        f"primary: with {len(params.seeds)} seeds no outcome of {row['hypothesis']!r} gives p below "
        f"{row['least_p_holm']:.2g} after Holm's correction over {len(found)}, so that the design cannot answer: take "
        f"{needed} seeds or more, or leave `primary` out, which makes the runs a demonstration."
    )


def verdicts(params: Params, table: pd.DataFrame, alarms: pd.DataFrame) -> pd.DataFrame:
    """What the runs say of the profile's primary hypotheses: columns hypothesis, statement, value, low, high (share of
    runs, or difference), p, p_holm, held, failed (runs), verdict of `WORDS`.

    table and alarms: those of `report.analyse`. `supported` or `contradicted` where p_holm is below 0.05, by the side
    of the estimate; `not judged` where no run can be.
    """
    rows = []
    for name, hypothesis in named(params).items():
        rows.append((name, hypothesis.statement, *hypothesis.judged(table, alarms)))
    names = ["hypothesis", "statement", "value", "low", "high", "p", "held", "failed"]
    frame = pd.DataFrame(rows, columns=names)
    frame["p_holm"] = holm(frame["p"]) if len(frame) else []
    words = [
        WORDS[3] if math.isnan(row.p) else WORDS[2] if not row.p_holm < ALPHA
        else WORDS[not HYPOTHESES[row.hypothesis].supports(row.value)]
        for row in frame.itertuples()
    ]  # fmt: skip
    return frame.assign(verdict=words)
