"""The leading eigenvectors of generation 0, followed through the generations: do they merge, rotate or rescale?"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from .eigenvectors import SAME

# An eigenvalue is the same while it stays within a factor of this.
FACTOR = 1.25
FATES = ("stays", "rescales", "rotates", "merges")


def partners(overlaps: np.ndarray) -> np.ndarray:
    """The column assigned to every row, (m,), so that no two share one and the sum of squared overlaps is greatest;
    −1 where columns are fewer. Source: Kuhn 1955, by scipy's `linear_sum_assignment`."""
    assigned = np.full(len(overlaps), -1)
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    assigned[rows] = columns
    return assigned


class Spectrum(NamedTuple):
    """What `follow` needs of a generation: leading values (m,), squared overlaps with the generation before (m', m) and
    with generation 0 (m_0, m), and which of the directions before have `merged` into the bulk (m',)."""

    values: Sequence[float]
    from_before: Sequence[Sequence[float]]
    from_start: Sequence[Sequence[float]]
    merged: Sequence[bool]


class Followed(NamedTuple):
    """Where an outlier of generation 0 is in a generation: its fate, value, and squared overlap with its own start;
    both are NaN once it has merged, or has turned away and cannot be told from others."""

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
    - rotates: less than half of its squared length is the direction it had at generation 0. Where less than half of it
      goes to the partner it cannot be followed any further, and counts as rotated from then on.
    - rescales: same direction, and an eigenvalue that changed by more than a factor of 1.25, or its sign.
    - stays: same direction and value.

    A direction that is replaced within one generation by another one counts as merged: overlaps cannot tell that from
    one eigenvalue sinking while another rises. Eigenvalues close to one another mix freely, and so rotate.
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
