"""Analyses of variance against statsmodels, closed forms, exhaustive permutation and simulation."""

import itertools

import numpy as np
import pandas as pd
import pingouin
import pytest
from margins import mean_is, rate_at_most, uniform
from run_tables import METRIC, make_table, noise
from scipy import stats
from spectral_collapse.analysis import anova
from statsmodels.stats.anova import AnovaRM


def test_anova_agrees_with_statsmodels_and_leaves_generation_zero_out():
    values = noise(1)
    later = make_table(values).query("generation > 0")
    expected = AnovaRM(later, METRIC, "seed", within=["condition", "generation"]).fit().anova_table
    values[:, :, 0] = 1e3
    found = anova.repeated_measures_anova(make_table(values), METRIC)
    np.testing.assert_allclose(found["F"], expected["F Value"], rtol=1e-9)
    np.testing.assert_allclose(found["p_uncorrected"], expected["Pr > F"], rtol=1e-9)
    np.testing.assert_array_equal(found[["df1", "df2"]], expected[["Num DF", "Den DF"]])


def test_anova_correction_and_eta_by_hand():
    values = noise(2, (3, 6, 4))
    found = anova.repeated_measures_anova(make_table(values), METRIC).set_index("effect")
    y = values[:, :, 1:].transpose(1, 0, 2)  # (seeds, conditions, generations)
    by_condition = y.mean(2)
    covariance = np.cov(by_condition.T)
    centre = np.eye(3) - 1 / 3
    centred = centre @ covariance @ centre
    epsilon = np.trace(centred) ** 2 / (2 * np.trace(centred @ centred))
    row = found.loc["condition"]
    assert row.epsilon == pytest.approx(epsilon)
    assert row.p == pytest.approx(stats.f.sf(row.F, epsilon * row.df1, epsilon * row.df2))
    # Generalised η² keeps every sum of squares that involves seeds in the denominator.
    effect = 6 * 3 * ((by_condition.mean(0) - y.mean()) ** 2).sum()
    assert row.eta == pytest.approx(effect / (effect + ((y - y.mean(0)) ** 2).sum()))


FIGURES = ["df1", "df2", "F", "p_uncorrected", "epsilon", "p", "eta"]


@pytest.mark.parametrize("shape", [(3, 6, 4), (4, 5, 6), (2, 3, 4), (2, 4, 3)])
def test_anova_agrees_with_pingouin_where_that_works(shape):
    table = make_table(noise(5, shape))
    peer = pingouin.rm_anova(table[table.generation > 0], dv=METRIC, within=["condition", "generation"], subject="seed")
    found = anova.repeated_measures_anova(table, METRIC, 1)
    expected = peer[["ddof1", "ddof2", "F", "p_unc", "eps", "p_GG_corr", "ng2"]].to_numpy(float)
    np.testing.assert_allclose(found[FIGURES].to_numpy(float), expected, rtol=1e-8)


def test_two_seeds_have_an_anova_whatever_their_values():
    """With two subjects the covariance of an effect has rank one: ε is its lower bound, and no test divides by it."""
    shapes = itertools.cycle([(2, 2, 4), (3, 2, 4), (3, 2, 3), (2, 2, 3), (4, 2, 6)])
    for seed, shape in zip(range(50), shapes, strict=False):
        found = anova.repeated_measures_anova(make_table(noise(seed, shape)), METRIC, 1)
        assert np.isfinite(found[FIGURES].to_numpy(float)).all()
        assert found.epsilon.to_numpy() == pytest.approx(1 / found.df1.to_numpy(), rel=1e-9)


def test_anova_holds_its_level_under_the_null():
    tables = (make_table(noise(seed, (4, 5, 4))) for seed in range(60))
    anovas = pd.concat(anova.repeated_measures_anova(table, METRIC, 1) for table in tables)
    for _, rows in anovas.groupby("effect"):
        uniform(rows.p_uncorrected)
        rate_at_most(rows.p < 0.05, 0.05)


def test_anova_recovers_a_planted_interaction_only():
    values = noise(3, (4, 8, 6)) * 0.3
    values[..., 1:] -= values[..., 1:].mean((1, 2), keepdims=True)  # no effect of condition …
    values[..., 1:] -= values[..., 1:].mean((0, 1), keepdims=True)  # … nor of generation is left of the noise
    generations = np.arange(6) - 3  # centred over generations 1-5: no main effect of the condition
    values[0] += generations
    values[1] -= generations
    found = anova.repeated_measures_anova(make_table(values), METRIC).set_index("effect")
    assert found.loc["interaction", "p"] < 1e-4
    assert found.loc[["condition", "generation"], "p"].min() > 0.99


def test_epsilon_is_bounded_by_the_number_of_seeds():
    for seed in range(20):
        found = anova.repeated_measures_anova(make_table(noise(seed, (4, 3, 6))), METRIC)
        epsilon = found.set_index("effect").epsilon["interaction"]
        assert 1 / 12 <= epsilon <= 2 / 12 + 1e-12


def test_anova_without_variation_or_without_levels_is_undefined():
    constant = anova.repeated_measures_anova(make_table(np.ones((4, 3, 6))), METRIC)
    alike = np.broadcast_to(noise(4, (4, 1, 6)), (4, 3, 6)) + np.arange(3)[:, None]
    parallel = anova.repeated_measures_anova(make_table(alike), METRIC)
    short = anova.repeated_measures_anova(make_table(noise(4, (4, 3, 2))), METRIC)
    for result in (constant, parallel, short):
        assert list(result["effect"]) == ["condition", "generation", "interaction"]
        assert result[["F", "p", "p_uncorrected", "epsilon"]].isna().all(axis=None)
    assert constant.eta.isna().all() and parallel.eta.between(0, 1).all()


def test_permutations_of_the_paired_anova_are_those_of_runs_within_seeds():
    values = noise(11, (2, 5, 4))
    values[0, :, 1:] += 0.8
    found = anova.repeated_measures_anova(make_table(values), METRIC, permutations=20_000).set_index("effect")
    exhaustive = []
    for flips in itertools.product((0, 1), repeat=5):
        swapped = values.copy()
        for seed in np.flatnonzero(flips):
            swapped[:, seed] = values[::-1, seed]
        later = make_table(swapped).query("generation > 0")
        table = AnovaRM(later, METRIC, "seed", within=["condition", "generation"]).fit().anova_table
        exhaustive.append(table["F Value"].to_numpy())
    exact = (np.array(exhaustive) >= exhaustive[0] - 1e-9).mean(0)  # condition, generation, interaction
    # 20,000 draws: five standard errors of a share are at most 0.018.
    assert found.p_permutation["condition"] == pytest.approx(exact[0], abs=0.018)
    assert found.p_permutation["interaction"] == pytest.approx(exact[2], abs=0.018)
    assert np.isnan(found.p_permutation["generation"])


def test_the_permutation_test_holds_its_level():
    found = pd.concat(
        anova.repeated_measures_anova(make_table(noise(seed, (3, 4, 4))), METRIC, 99) for seed in range(50)
    )
    for effect in ("condition", "interaction"):
        rows = found[found.effect == effect]
        rate_at_most(rows.p_permutation < 0.05, 0.05)
        mean_is(rows.p_permutation, 0.5, slack=0.02)  # p is at least 0.01 and ties count
