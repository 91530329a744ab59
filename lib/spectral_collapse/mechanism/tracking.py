"""Leading eigenvectors of generation 0 tracked through the generations: do they merge, rotate or rescale?"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from .eigenvectors import SAME

# An eigenvalue counts as the same within this factor.
FACTOR = 1.25
FATES = ("stays", "rescales", "rotates", "merges")


def partners(overlaps: np.ndarray) -> np.ndarray:
    """The column assigned to each row, (m,), one to one with the greatest sum of squared overlaps; −1 without a column.
    Source: Kuhn 1955, by scipy's `linear_sum_assignment`."""
    assigned = np.full(len(overlaps), -1)
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    assigned[rows] = columns
    return assigned


class Spectrum(NamedTuple):
    """Input of `follow` for a generation: leading values (m,), squared overlaps with the generation before (m', m) and
    with generation 0 (m_0, m), and which of the directions before have `merged` into the bulk (m',)."""

    values: Sequence[float]
    from_before: Sequence[Sequence[float]]
    from_start: Sequence[Sequence[float]]
    merged: Sequence[bool]


class Followed(NamedTuple):
    """An outlier of generation 0 in a later generation: fate, value, and squared overlap with its own start; both NaN
    once it has merged or can no longer be tracked."""

    outlier: int
    generation: int
    fate: str
    value: float
    overlap: float


def _fate(ratio: float, overlap: float) -> str:
    if overlap < SAME:
        return "rotates"
    return "stays" if 1 / FACTOR <= ratio <= FACTOR else "rescales"


def follow(generations: Sequence[Spectrum], count: int) -> list[Followed]:
    """The first `count` eigenvectors of generation 0 in every generation from 0 on.

    From one generation to the next each goes to its partner (`partners`), and its fate is the first that holds:

    - merges: it has `merged` into the bulk, and counts as merged from then on.
    - rotates: less than half of its squared length is its direction at generation 0. If less than half of it goes to
      the partner, it can be tracked no further and counts as rotated from then on.
    - rescales: same direction, and an eigenvalue that changed by more than a factor of 1.25, or its sign.
    - stays: same direction and value.

    A direction that is replaced by another within one generation counts as merged: overlaps cannot distinguish this
    from one eigenvalue falling while another rises. Close eigenvalues mix freely, and so rotate.
    """
    start = generations[0]
    found = []
    for outlier in range(min(count, len(start.values))):
        place, lost = outlier, None
        for number, now in enumerate(generations):
            if number and lost is None:
                overlaps = np.asarray(now.from_before)
                partner = partners(overlaps)[place]
                if now.merged[place]:
                    lost = "merges"
                elif partner < 0 or overlaps[place, partner] < SAME:
                    lost = "rotates"
                place = int(partner)
            if lost is not None:
                found.append(Followed(outlier, number, lost, math.nan, math.nan))
                continue
            value, overlap = float(now.values[place]), float(now.from_start[outlier][place])
            found.append(Followed(outlier, number, _fate(value / start.values[outlier], overlap), value, overlap))
    return found
