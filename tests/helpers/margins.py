"""Tolerances of simulations: each check fails on a right result with a probability below 1e-6, whatever its seeds.

Trials are independent; where runs share a control, the trial is the table of runs, not the run.
"""

import numpy as np
from scipy import stats

FALSE_FAILURE = 1e-6


def rate_is(hits: np.ndarray, rate: float, slack: float = 0.0) -> None:
    """Hits (n,), booleans, agree with the rate, or with one that is off by at most `slack`."""
    count, n = int(np.sum(np.asarray(hits))), len(hits)
    assert stats.binom.cdf(count, n, rate - slack) > FALSE_FAILURE / 2, f"{count} of {n} is less than {rate} allows"
    assert stats.binom.sf(count - 1, n, rate + slack) > FALSE_FAILURE / 2, f"{count} of {n} is more than {rate} allows"


def rate_at_most(hits: np.ndarray, rate: float) -> None:
    """Hits (n,), booleans, do not exceed the rate."""
    count, n = int(np.sum(np.asarray(hits))), len(hits)
    assert stats.binom.sf(count - 1, n, rate) > FALSE_FAILURE, f"{count} of {n} is more than {rate} allows"


def rate_at_least(hits: np.ndarray, rate: float) -> None:
    """Hits (n,), booleans, are no rarer than the rate."""
    count, n = int(np.sum(np.asarray(hits))), len(hits)
    assert stats.binom.cdf(count, n, rate) > FALSE_FAILURE, f"{count} of {n} is less than {rate} allows"


def standard_errors(n: int) -> float:
    """How many of its standard errors the mean of n normal draws may lie off: t of n − 1 degrees of freedom."""
    return float(stats.t.isf(FALSE_FAILURE / 2, n - 1))


def mean_is(draws: np.ndarray, mean: float, slack: float = 0.0) -> None:
    """The mean of draws (n,) agrees with the one expected, or with one within `slack` of it."""
    error = standard_errors(len(draws)) * stats.sem(draws)
    assert abs(np.mean(draws) - mean) <= error + slack, f"{np.mean(draws)} is not {mean} ± {error}"


def spread_is(draws: np.ndarray, deviation: float) -> None:
    """The standard deviation of normal draws (n,) agrees with the one expected, relatively to z/√(2n)."""
    error = stats.norm.isf(FALSE_FAILURE / 2) / np.sqrt(2 * len(draws))
    assert abs(np.std(draws, ddof=1) / deviation - 1) <= error, f"{np.std(draws, ddof=1)} is not {deviation} ± {error}"


def uniform(p: np.ndarray) -> None:
    """p-values (n,) of a continuous test without an effect are uniform."""
    assert stats.kstest(p, "uniform").pvalue > FALSE_FAILURE
