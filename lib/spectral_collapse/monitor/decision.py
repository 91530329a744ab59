"""When a change is an alarm: one rate of false alarms for a whole run, over all its checks and signals together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..estimate import Estimate


@dataclass(frozen=True)
class Rule:
    """The sequential test. Check k of S signals spends the share w_k of the rate, and a signal alarms where
    p ≤ rate · w_k/S: a union bound over checks and signals, valid however they depend on each other, as they do, since
    all compare with one reference.

    checks: how many there will be, w_k = 1/checks; None, for a run without end: w_k = 1/(k(k + 1)), which sums to 1.
    """

    rate: float = 0.05
    checks: int | None = None

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise ValueError(f"rate: a rate of false alarms lies between 0 and 1, and {self.rate} does not.")
        if self.checks is not None and self.checks < 1:
            raise ValueError(f"checks: a run has at least one check, not {self.checks}.")

    def level(self, check: int, signals: int) -> float:
        """The p at which one of so many signals alarms at a check, counted from 1; 0 beyond the planned checks.

        >>> Rule(0.05).level(1, 5), Rule(0.05, checks=10).level(3, 5), Rule(0.05, checks=10).level(11, 5)
        (0.005, 0.001, 0.0)
        """
        if self.checks is not None:
            share = 1 / self.checks if check <= self.checks else 0.0
        else:
            share = 1 / (check * (check + 1))
        return round(self.rate * share / signals, 15)


def p_value(change: Estimate, direction: int) -> float:
    """One-sided p of a change by Student's t, in the direction of collapse (1 up, −1 down; 0: two-sided). NaN without
    a standard error; 1 where nothing changed and nothing varies."""
    error, df = change.standard_error, change.df
    if math.isnan(error) or math.isnan(change.value):
        return math.nan
    if error == 0:
        against = change.value * direction if direction else abs(change.value)
        return 0.0 if against > 0 else 1.0
    t = change.value / error
    if direction == 0:
        return float(2 * stats.t.sf(abs(t), df))
    return float(stats.t.sf(direction * t, df))


def boundary(change: Estimate, direction: int, level: float) -> float:
    """The change at which the signal would alarm; of a two-sided test the upper one."""
    if not level > 0 or math.isnan(change.standard_error):
        return math.nan
    share = level if direction else level / 2
    return (direction or 1) * float(stats.t.isf(share, change.df)) * change.standard_error


def against_controls(change: float, controls: Sequence[float]) -> Estimate:
    """A run's change less the mean of control runs' at the same check, with the error of one more control run:
    s √(1 + 1/n), n − 1 degrees of freedom. NaN errors below two runs."""
    values = np.asarray(controls, dtype=float)
    n = len(values)
    if n < 2:
        return Estimate(change)
    return Estimate.of_error(change - values.mean(), float(values.std(ddof=1)) * math.sqrt(1 + 1 / n), n - 1)
