"""When runs leave what their controls ever did."""

import math

import numpy as np
import pytest
from margins import rate_is
from run_tables import series
from spectral_collapse.analysis.sigma_settings import first_beyond


def table(metric: str, **runs):
    return series({name: np.array(values, dtype=float) for name, values in runs.items()}).rename(
        columns={"ratio": metric}
    )


@pytest.mark.parametrize(
    "metric, runs, expected",
    [
        # A rise of perplexity counts, a fall does not; the controls' largest change since generation 0 is 2.
        ("held_out_perplexity", [[5, 7, 7.1, 9], [1, 0, -9, 3]], [2, math.inf]),
        # Diversity falls; the least change of the controls is -1.
        ("distinct_2", [[5, 9, 9, 3.9], [1, 0, -0.1, 1]], [3, 2]),
        # No direction was fixed for anchor entropy.
        ("predictive_entropy", [[5, 7.1, 5, 5], [1, 1, 1, -0.1]], [1, 3]),
    ],
)
def test_the_first_change_beyond_all_of_the_controls(metric, runs, expected):
    found = first_beyond(table(metric, recursive=runs, fresh=[[1, 2, 3, 2], [4, 4, 3, 4]]), [metric])
    assert list(found.columns) == ["metric", "condition", "seed", "generation"]
    assert list(found["generation"]) == expected
    assert set(found["condition"]) == {"recursive"}


def test_a_run_without_effect_is_beyond_as_often_as_stated():
    """Of R + 1 exchangeable runs each has the largest change with probability 1/(R + 1)."""
    rng, controls, trials = np.random.default_rng(0), 2, 600
    beyond = []
    for _ in range(trials):
        noise = rng.normal(size=(controls + 1, 11))
        noise[:, 0] = 0
        rows = table("held_out_perplexity", recursive=noise[:1], fresh=noise[1:])
        beyond.append(math.isfinite(first_beyond(rows, ["held_out_perplexity"])["generation"].iloc[0]))
    rate_is(beyond, 1 / (controls + 1))
