"""Rescued models: judged by the fresh control's band, and separated by a metric."""

import math

import numpy as np
import pandas as pd
import pytest
from spectral_collapse.analysis import rescue
from spectral_collapse.paper import figures, findings


def series(treated: list[float], seeds: int = 5, slope: float = 0.0) -> pd.DataFrame:
    """Perplexity of `recursive` by generation, of `fresh` 10 throughout; a metric that follows the treated change."""
    rows = []
    for seed in range(1, seeds + 1):
        for generation, value in enumerate(treated):
            noise = 0.05 * math.sin(5 * seed + 3 * generation) * (generation > 0)
            for condition, level in (("recursive", value), ("fresh", 10.0)):
                rows.append(
                    {
                        "condition": condition,
                        "seed": seed,
                        "generation": generation,
                        "held_out_perplexity": level + noise,
                        "follows": (level - 10) * slope + noise,
                        "constant": 1.0,
                    }
                )
    return pd.DataFrame(rows)


def after(values: list[float], seeds: int = 5) -> pd.DataFrame:
    """Perplexity after rescue from generations 1, 2, …, the same for every seed."""
    rows = [("recursive", s, g + 1, v) for s in range(1, seeds + 1) for g, v in enumerate(values)]
    return pd.DataFrame(rows, columns=["condition", "seed", "generation", "perplexity"])


def test_reversible_is_what_returns_into_the_control_band_and_the_turning_point_follows():
    table = series([10.0, 11.0, 12.0, 14.0], slope=-1.0)
    found = rescue.reversibility(table, after([10.0, 10.1, 13.0]))
    by_generation = found.groupby("generation")["reversible"].mean()
    assert list(by_generation) == [1.0, 1.0, 0.0]
    assert rescue.turning_point(found) == dict.fromkeys(range(1, 6), 3.0)
    np.testing.assert_allclose(found.loc[found["generation"] == 3, "after"], 3.0, atol=1e-9)
    assert (found["high"] > 0).all()


@pytest.fixture
def directions(monkeypatch):
    """The columns of `series`, the first of which is said to fall in a collapsing model."""
    monkeypatch.setattr(rescue, "COLLAPSE", {"follows": -1, "constant": 1})


def test_a_metric_that_follows_the_damage_separates_and_a_constant_one_does_not(directions):
    table = series([10.0, 11.0, 12.0, 14.0], slope=-1.0)
    found = rescue.reversibility(table, after([10.0, 10.1, 13.0]))
    result = rescue.separation(table, found, ["follows", "constant"]).set_index("metric")
    assert result.loc["follows", "auc"] == 1.0 and -4 < result.loc["follows", "threshold"] < -2
    assert result.loc["constant", "auc"] == 0.5
    assert result.loc["follows", ["models", "runs"]].tolist() == [15, 5]


def test_a_metric_that_moves_to_the_other_side_has_an_auc_below_a_half(directions):
    """The direction is fixed beforehand: what separates well the other way round is not turned over in sample."""
    table = series([10.0, 11.0, 12.0, 14.0], slope=1.0)
    found = rescue.reversibility(table, after([10.0, 10.1, 13.0]))
    assert rescue.separation(table, found, ["follows"])["auc"][0] == 0.0
    with pytest.raises(ValueError, match="No direction is fixed for slot_kl"):
        rescue.separation(table, found, ["slot_kl"])


def test_a_condition_without_a_control_of_its_weights_is_not_judged(directions):
    table = series([10.0, 11.0, 12.0, 14.0]).replace({"condition": {"recursive": "recursive_carry"}})
    rescued = after([10.0, 10.1, 13.0]).replace({"condition": {"recursive": "recursive_carry"}})
    found = rescue.reversibility(table, rescued)
    assert found["reversible"].isna().all() and found["after"].notna().all()
    assert findings.rescue_values(rescue.reversibility_counts(found)) == {"rescue.unjudged.recursive_carry": "15"}
    assert rescue.separation(table, found, ["follows"], "recursive_carry")["auc"].isna().all()


def test_without_both_kinds_there_is_no_threshold(directions):
    table = series([10.0, 11.0, 12.0], slope=1.0)
    found = rescue.reversibility(table, after([10.0, 10.0]))
    assert rescue.turning_point(found) == dict.fromkeys(range(1, 6), math.inf)
    assert rescue.separation(table, found, ["follows"]).filter(regex="auc|threshold").isna().all().all()


def test_with_two_seeds_nothing_is_judged(directions):
    table = series([10.0, 11.0, 12.0], seeds=2)
    found = rescue.reversibility(table, after([10.0, 20.0], seeds=2))
    assert found["reversible"].isna().all() and rescue.turning_point(found) == {}
    assert rescue.separation(table, found, ["constant"])["auc"].isna().all()


def test_conditions_are_counted_apart():
    """A run whose weights carry may be lost where one of the same seed, restarted, is not."""
    found = pd.DataFrame(
        [
            (condition, seed, generation, float(condition == "recursive" or generation == 1))
            for condition in ("recursive", "recursive_carry")
            for seed in (1, 2)
            for generation in (1, 2, 3)
        ],
        columns=["condition", "seed", "generation", "reversible"],
    )
    values = findings.rescue_values(rescue.reversibility_counts(found))
    assert (values["rescue.reversible.recursive"], values["rescue.reversible.recursive_carry"]) == ("6", "2")
    assert (values["rescue.lost.recursive"], values["rescue.lost.recursive_carry"]) == ("0", "2")
    assert "rescue.turning.recursive" not in values
    assert values["rescue.turning.recursive_carry"] == "2" and values["rescue.runs.recursive_carry"] == "2"


def test_a_run_that_recovers_later_is_not_past_its_turning_point():
    table = series([10.0, 11.0, 12.0, 14.0])
    found = rescue.reversibility(table, after([13.0, 10.0, 13.0]))
    assert set(rescue.turning_point(found).values()) == {3.0}


def test_the_share_recovered_is_that_of_the_gap_to_the_control_after_the_same_dose():
    perplexity = {"recursive": 8.0, "fresh": 4.0, "recursive_carry": 9.0}
    rows = [(c, s, g, p if g else 3.0) for c, p in perplexity.items() for s in (1, 2) for g in (0, 2)]
    table = pd.DataFrame(rows, columns=["condition", "seed", "generation", "held_out_perplexity"])
    table["weights"] = np.where(table["condition"] == "recursive_carry", "carry", "restart")
    after = {"recursive": [8.0, 4.0, 3.0], "fresh": [4.0, 4.0, 3.0], "recursive_carry": [5.0, 4.0, 3.0]}
    results = [
        (condition, seed, 2, {"doses": [1, 4, 16], "steps": [10, 40, 160], "held_out_perplexity": values})
        for condition, values in after.items()
        for seed in (1, 2)
    ]
    found = rescue.recovered(table, results)
    assert set(found["condition"]) == {"recursive"}  # the other has no control of its weights
    shares = found[found["seed"] == 1].set_index("dose")["share"]
    assert shares.tolist() == pytest.approx([0.0, 1.0, 1.0]) and found["steps"].max() == 160
    assert len(figures.doses(found).axes[0].lines) > 0
    assert findings.dose_values(found)["dose.recursive.4"].startswith("1.00")
    assert findings.dose_values(pd.DataFrame()) == {}
