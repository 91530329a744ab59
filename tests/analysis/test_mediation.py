"""Shares of a known mediation, by simulation and in closed form; what cannot be judged is refused or said."""

import numpy as np
import pandas as pd
import pytest
from margins import rate_at_least, rate_is
from spectral_collapse.analysis.mediation import gaps, mediation, share
from spectral_collapse.paper import mechanism as report


def simulated(seed: int, seeds: int = 3, direct: float = 0.0, through: float = 1.0, noise: float = 0.02):
    """Runs in which x moves by g under recursion, and y by `through` of that plus `direct`, at every generation g."""
    rng, rows = np.random.default_rng(seed), []
    for run in range(seeds):
        pace = rng.uniform(0.6, 1.4)
        level = rng.normal(size=2)
        for condition in ("recursive", "fresh"):
            for generation in range(6):
                treated = condition == "recursive" and generation > 0
                x = treated * pace * generation
                y = through * x + treated * direct + noise * rng.normal() * (generation > 0)
                values = {"x": level[0] + x, "y": level[1] + y, "still": level[0] + 0.0}
                rows.append({"condition": condition, "seed": run, "generation": generation, **values})
    return pd.DataFrame(rows)


def test_gaps_are_paired_by_seed_and_leave_generation_0_out():
    found = gaps(simulated(0), "x")
    assert found.shape == (3, 5) and list(found.columns) == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(found[4], 4 * found[1])


@pytest.mark.parametrize(("direct", "through", "expected"), [(0, 2, 1), (3, 0, 0), (3, 1, 0.5), (-3, 2, 2)])
def test_a_planted_share_is_found(direct, through, expected):
    """The mean of pace times generation is 3: the total gap is 3 through + direct."""
    tables = [simulated(seed, 40, direct, through) for seed in range(3)]
    found = [share(gaps(table, "x"), gaps(table, "y"), 200) for table in tables]
    assert np.mean([one.value for one in found]) == pytest.approx(expected, abs=0.05)
    assert all(one.low <= one.value <= one.high for one in found)


def covered(seeds: int, replicates: int = 200) -> list[bool]:
    """Whether intervals hold a share of one half, where pace and direct effect differ between seeds."""
    held = []
    for replicate in range(replicates):
        rng = np.random.default_rng([seeds, replicate])
        x = rng.uniform(0.6, 1.4, size=(seeds, 1)) * np.arange(1, 6)
        y = 0.5 * x + 1.5 + 0.5 * rng.normal(size=(seeds, 1)) + 0.5 * rng.normal(size=x.shape)
        found = share(pd.DataFrame(x), pd.DataFrame(y), 200)
        held.append(found.low <= 0.5 <= found.high)
    return held


def test_the_interval_of_many_seeds_covers_and_that_of_three_is_too_short():
    rate_at_least(covered(20), 0.89)
    rate_is(covered(3), 0.755, slack=0.02)


def test_a_quantity_that_never_moves_has_no_share():
    table = simulated(0)
    assert np.isnan(share(gaps(table, "still"), gaps(table, "y"))).all()


def test_the_same_table_gives_the_same_interval():
    table = simulated(1, noise=0.5)
    pairs = [share(gaps(table, "x"), gaps(table, "y")) for _ in range(2)]
    assert pairs[0] == pairs[1]


def test_the_table_has_a_row_a_pair_and_shows_both_outcomes():
    table = simulated(2, direct=3, through=0.1).assign(z=lambda frame: 2 * frame["y"])
    found = mediation(table, ["x", "y"], ["y", "z"])
    assert found.shape[0] == 4 and "verdict" not in found
    assert found.set_index(["quantity", "outcome"]).loc[("y", "z"), "share"] == pytest.approx(1)
    shown = report.mediation_table(found)
    assert shown.shape == (2, 3) and shown.iloc[1, 2].startswith("1.00")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[t["condition"] != "fresh"], "the table has no condition 'fresh'"),
        (lambda t: t[t["seed"] == 0], "statistics over runs need at least two"),
        (lambda t: t[(t["seed"] > 0) | (t["generation"] < 3)], "missing: recursive, seed 0, generation 3"),
        (lambda t: t.assign(x=t["x"].where(t["generation"] != 2)), "not finite: recursive, seed 0, generation 2"),
        (lambda t: t.drop(columns="x"), "the table has no metric 'x'"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_a_sentence(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        gaps(change(simulated(0)), "x")
    assert "\n" not in str(caught.value)
