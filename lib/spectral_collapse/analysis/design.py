"""What a design can show, known before anything is trained: least p, detectable effects, and what is not judged."""

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

from ..record.schema import Params, split_condition
from .statistics import CONTROL, TREATMENT, matched_controls


def limits(params: Params) -> list[str]:
    """What the statistics of a profile's runs will not judge, a sentence each; known before anything is trained.

    ValueError where there is nothing to judge at all: fewer than two seeds, no treatment, or no control.
    """
    seeds, conditions = len(params.seeds), params.conditions
    if seeds < 2:
        raise ValueError(f"seeds: statistics over runs need at least two, and there is {seeds}: add one.")
    for name in (TREATMENT, CONTROL):
        if name not in conditions:
            raise ValueError(f"conditions: statistics need {name!r}, and there is {', '.join(conditions)}: add it.")
    weights = {"condition": conditions, "weights": [split_condition(name, params.weights)[1] for name in conditions]}
    unmatched = [name for name, control in matched_controls(pd.DataFrame(weights)).items() if control is None]
    found = []
    if unmatched:
        found.append(
            f"{', '.join(unmatched)}: no control has the same weights ({CONTROL}_carry or {CONTROL}_restart), so that "
            "nothing is compared."
        )
    if seeds < 3:
        found.append("Two seeds: a band of one control run has no width, so that no alarm, lead or rescue is judged.")
    if params.generations < 2:
        found.append("One generation: there is no analysis of variance and no correlation over generations.")
    least = least_p("sign", seeds)
    if seeds > 2:
        several = "" if least >= 0.05 else f" after Holm's correction over more than {int(0.05 / least)} metrics"
        found.append(f"{seeds} seeds: the sign test gives p ≥ {least:.2g}: no lead can be called earlier{several}.")
    return found


def detectable_effect(n: int, tests: int = 1, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest d_z that a two-sided paired t-test with `n` seeds detects at level `alpha` with this power.

    Of several `tests` corrected by Holm's method, what the first step detects, at level alpha/tests: with five seeds
    1.68 for one test and 2.63 for five; with three 3.26 and 7.32. The power is integrated over the spread s that the
    seeds may show, P(|Z + d√n| > t_{1−α/2, n−1} s); where libraries evaluate the noncentral t distribution it is NaN,
    or off, at these degrees of freedom.
    """
    if n < 2:
        raise ValueError(f"A paired t-test needs at least two seeds, not {n}.")
    critical = stats.t.isf(alpha / tests / 2, n - 1)
    nodes, weights = np.polynomial.legendre.leggauss(500)
    bounds = critical * np.sqrt(stats.chi2.ppf((nodes + 1) / 2, n - 1) / (n - 1))

    def missing(d: float) -> float:
        rejected = special.ndtr(d * np.sqrt(n) - bounds) + special.ndtr(-bounds - d * np.sqrt(n))
        return float(rejected @ weights) / 2 - power

    return float(optimize.brentq(missing, 0, 2 * critical))


def least_p(test: str, n: int) -> float:
    """The least p that a test can give with `n` seeds, whatever the data; after Holm's correction times the tests.

    `sign` (one-sided sign test): 2^{−n}; `sign-flip` (two-sided): 2^{1−n}; `exchange` (of the two runs of a seed, by
    which well separated runs stay so when all are exchanged, `detection.separation`): 2^{1−n}. A t test has none.
    ValueError for another name.
    """
    least = {"sign": 2.0**-n, "sign-flip": 2.0 ** (1 - n), "exchange": 2.0 ** (1 - n), "t": 0.0}
    if test not in least:
        raise ValueError(f"There is no test {test!r}: there are {', '.join(least)}.")
    return least[test]


def range_coverage(runs: int) -> float:
    """Probability 1 − 2^{1−S} that the range of S independent runs holds the population's median: 75 % at three seeds,
    94 % at five, above 95 % from six on."""
    return 1 - 2.0 ** (1 - runs)
