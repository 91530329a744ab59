"""Limits of simulations: a right result passes one for fewer than a millionth of all choices of seeds.

A test whose fixed seeds lie within these limits and not at one holds on every processor: rounding moves no count.
Trials are independent; where runs share a control, the trial is the table of runs, not the run.
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


def rate_is(hits: np.ndarray, rate: float, slack: float = 0.0) -> None:
    """Hits (n,), booleans, agree with the rate, or with one that is off by at most `slack`."""
    fewest, most = binomial_limits(len(hits), rate - slack, rate + slack)
    assert fewest <= np.sum(hits) <= most, f"{np.sum(hits)} of {len(hits)} is not {rate}"


def rate_at_most(hits: np.ndarray, rate: float) -> None:
    """Hits (n,), booleans, do not exceed the rate."""
    assert np.sum(hits) <= binomial_limits(len(hits), rate)[1], f"{np.sum(hits)} of {len(hits)} is more than {rate}"


def mean_is(draws: np.ndarray, mean: float, slack: float = 0.0) -> None:
    """The mean of draws (n,) agrees with the one expected, or with one within `slack` of it."""
    error = mean_error(draws) + slack
    assert abs(np.mean(draws) - mean) <= error, f"{np.mean(draws)} is not {mean} ± {error}"


def uniform(p: np.ndarray) -> None:
    """p-values (n,) of a continuous test without an effect are uniform."""
    assert stats.kstest(p, "uniform").pvalue > FALSE_FAILURE
