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
from statsmodels.formula.api import ols
from statsmodels.stats.anova import AnovaRM, anova_lm


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
        if seed < 10:
            assert anova.mixed_anova(make_table(noise(seed, shape)), METRIC, 1).p.notna().all()


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


def unpaired(seed: int, sizes: tuple[int, ...] = (5, 4, 6), generations: int = 5) -> pd.DataFrame:
    """Runs of `CONDITIONS` with seeds of their own, as many as `sizes` say: normal with an offset for each run."""
    rng = np.random.default_rng(seed)
    rows, number = [], itertools.count()
    for condition, size in zip(("recursive", "fresh", "static"), sizes, strict=False):
        for _ in range(size):
            run, offset = next(number), 2 * rng.normal()
            rows += [(condition, run, generation, offset + rng.normal()) for generation in range(generations)]
    return pd.DataFrame(rows, columns=["condition", "seed", "generation", METRIC])


def residuals(values: pd.Series, *factors: pd.Series) -> tuple[float, int]:
    """Sum of squared residuals of the linear model with these factors, and its degrees of freedom."""
    design = np.column_stack([pd.get_dummies(factor.to_numpy()).to_numpy(float) for factor in factors])
    solution, _, rank, _ = np.linalg.lstsq(design, values.to_numpy())
    return float(((values - design @ solution) ** 2).sum()), len(values) - rank


def test_mixed_anova_agrees_with_nested_linear_models():
    table = unpaired(0)
    found = anova.mixed_anova(table, METRIC).set_index("effect")
    later = table[table.generation > 0]
    cells = later.condition + later.generation.astype(str)
    runs_only, parallel, full = (
        residuals(later[METRIC], later.seed, *terms) for terms in ((), (later.generation,), (later.generation, cells))
    )
    runs = later.groupby(["condition", "seed"], as_index=False)[METRIC].mean()
    between = anova_lm(ols(f"{METRIC} ~ C(condition)", runs).fit())
    assert found.F["condition"] == pytest.approx(between["F"].iloc[0])
    assert found.p["condition"] == pytest.approx(between["PR(>F)"].iloc[0])
    error = full[0] / full[1]
    for effect, small, large in (("generation", runs_only, parallel), ("interaction", parallel, full)):
        df = small[1] - large[1]
        assert found.F[effect] == pytest.approx((small[0] - large[0]) / df / error)
        assert found.p_uncorrected[effect] == pytest.approx(stats.f.sf(found.F[effect], df, full[1]))
        row = found.loc[effect]
        assert row.p == pytest.approx(stats.f.sf(row.F, row.epsilon * row.df1, row.epsilon * row.df2))
    assert list(found.df2) == [12, 36, 36]


def test_mixed_anova_and_both_permutation_tests_hold_their_level():
    mixed = pd.concat(anova.mixed_anova(unpaired(seed, (4, 3, 4), 4), METRIC, 99) for seed in range(50))
    paired = pd.concat(
        anova.repeated_measures_anova(make_table(noise(seed, (3, 4, 4))), METRIC, 99) for seed in range(50)
    )
    for effect in ("condition", "interaction"):
        rows = mixed[mixed.effect == effect]
        uniform(rows.p_uncorrected)
        for found in (rows, paired[paired.effect == effect]):
            rate_at_most(found.p_permutation < 0.05, 0.05)
            mean_is(found.p_permutation, 0.5, slack=0.02)  # p is at least 0.01 and ties count


def test_mixed_anova_sees_a_planted_effect_and_the_permutation_too():
    table = unpaired(3)
    table.loc[table.condition == "recursive", METRIC] += 2 * table.generation
    found = anova.mixed_anova(table, METRIC).set_index("effect")
    assert found.p["interaction"] < 0.001 and found.p_permutation["interaction"] == pytest.approx(0.001, abs=0.003)


def test_mixed_anova_names_what_is_missing():
    table = unpaired(0)
    with pytest.raises(ValueError, match=r"missing: fresh, seed 6, generation 2\."):
        anova.mixed_anova(table[(table.seed != 6) | (table.generation != 2)], METRIC)
    with pytest.raises(ValueError, match=r"doubled: static, seed 9, generation 0\."):
        anova.mixed_anova(pd.concat([table, table[(table.seed == 9) & (table.generation == 0)]]), METRIC)
    with pytest.raises(ValueError, match="one seed in condition 'static'"):
        anova.mixed_anova(unpaired(0, (3, 3, 1)), METRIC)


def test_mixed_anova_without_variation_or_with_two_generations():
    constant = anova.mixed_anova(unpaired(0).assign(**{METRIC: 1.5}), METRIC)
    assert constant[["F", "p", "p_permutation"]].isna().all(axis=None)
    two = anova.mixed_anova(unpaired(0, generations=3), METRIC)
    assert two.p.notna().all() and list(two.p) == pytest.approx(list(two.p_uncorrected))
