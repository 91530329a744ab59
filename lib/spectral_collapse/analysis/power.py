"""What a number of seeds can show: least p, detectable effects, coverage."""

import functools

import numpy as np
from scipy import optimize, special, stats

from ..estimate import generator

DRAWS = 10_000  # of simulated differences: 0.4 % of power
EXACT = 10  # seeds up to which all assignments of signs are drawn up


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


@functools.cache
def detectable_by_signs(n: int, tests: int = 1, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest d_z of normal differences that the two-sided sign-flip test of `n` seeds detects, as
    `detectable_effect` for the t-test: 1.34 instead of 1.28 with ten seeds and four tests, 1.93 instead of 1.53 with
    eight. By simulation of the exact test, on the same draws for every d; beyond `EXACT` seeds the t-test's. inf where
    no effect is detected."""
    if n > EXACT:
        return detectable_effect(n, tests, alpha, power)
    if least_p("sign-flip", n) > alpha / tests:
        return np.inf
    noise = generator("power of sign flips", n).normal(size=(n, DRAWS))
    signs = 1 - 2 * (np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1)  # the other half only mirrors them

    def missing(d: float) -> float:
        sums = np.abs(signs @ (noise + d))
        return float(((sums >= sums[0] * (1 - 1e-12)).mean(0) <= alpha / tests).mean()) - power

    return float(optimize.brentq(missing, 0, 20, xtol=1e-3))


def least_p(test: str, n: int) -> float:
    """The least p that a test can give with `n` seeds, whatever the data; after Holm's correction times the tests.

    `sign` (one-sided sign test): 2^{−n}; `sign, two-sided` and `sign-flip` (two-sided): 2^{1−n}. ValueError for another
    name.
    """
    least = {"sign": 2.0**-n} | dict.fromkeys(("sign, two-sided", "sign-flip"), 2.0 ** (1 - n))
    if test not in least:
        raise ValueError(f"There is no test {test!r}: there are {', '.join(least)}.")
    return least[test]


def range_coverage(runs: int) -> float:
    """Probability 1 − 2^{1−S} that the range of S independent runs holds the population's median: 75 % at three seeds,
    94 % at five, above 95 % from six on."""
    return 1 - 2.0 ** (1 - runs)
