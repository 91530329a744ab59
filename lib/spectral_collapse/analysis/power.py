"""What a number of seeds can show: least p, detectable effects, coverage."""

import numpy as np
from scipy import optimize, special, stats


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

    `sign` (one-sided sign test): 2^{−n}; `sign, two-sided`, `sign-flip` (two-sided) and `exchange` (of the two runs of
    a seed, by which well separated runs stay so when all are exchanged, `detection.separation`): 2^{1−n}. A t test has
    none. ValueError for another name.
    """
    least = {"sign": 2.0**-n, "t": 0.0} | dict.fromkeys(("sign, two-sided", "sign-flip", "exchange"), 2.0 ** (1 - n))
    if test not in least:
        raise ValueError(f"There is no test {test!r}: there are {', '.join(least)}.")
    return least[test]


def range_coverage(runs: int) -> float:
    """Probability 1 − 2^{1−S} that the range of S independent runs holds the population's median: 75 % at three seeds,
    94 % at five, above 95 % from six on."""
    return 1 - 2.0 ** (1 - runs)
