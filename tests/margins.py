"""Limits of simulations: chance alone passes one for fewer than a millionth of all choices of seeds.

A test whose fixed seeds lie within these limits and not at one holds on every processor: rounding moves no count.
"""

import numpy as np
from scipy import stats

FALSE_FAILURE = 1e-6  # of one comparison: the least p-value of a true null hypothesis, too


def binomial_limits(n: int, least: float, most: float | None = None) -> tuple[int, int]:
    """Fewest and most successes in n independent trials of rate `least`, or of a rate between `least` and `most`."""
    most = least if most is None else most
    fewest, largest = stats.binom.ppf(FALSE_FAILURE / 2, n, least), stats.binom.isf(FALSE_FAILURE / 2, n, most)
    return int(fewest), int(largest)


def mean_error(values: np.ndarray) -> float:
    """How far the mean of n independent values may lie from its expectation: t of n − 1 degrees of freedom, 5 to 7
    standard errors."""
    return float(stats.t.isf(FALSE_FAILURE / 2, len(values) - 1) * stats.sem(values))


def spread_error(n: int) -> float:
    """How far, relatively, the standard deviation of n normal values may lie from the true one: 4.9/√(2n)."""
    return float(stats.norm.isf(FALSE_FAILURE / 2) / np.sqrt(2 * n))
