"""Statistics against peer libraries, closed forms and simulation."""

import itertools

import numpy as np
import pandas as pd
import pingouin
import pytest
from scipy import stats
from spectral_collapse import statistics
from statsmodels.stats.anova import AnovaRM

CONDITIONS = ("recursive", "fresh", "static", "mixed")
METRIC = "held_out_perplexity"


def make_table(values: np.ndarray) -> pd.DataFrame:
    """Tidy table of `METRIC` from `values` (conditions, seeds, generations)."""
    rows = [
        ("llama", CONDITIONS[c], 10 + s, g, values[c, s, g]) for c, s, g in itertools.product(*map(range, values.shape))
    ]
    return pd.DataFrame(rows, columns=["model", "condition", "seed", "generation", METRIC])


def noise(seed: int, shape: tuple[int, ...] = (4, 5, 6)) -> np.ndarray:
    """Independent normal noise plus an offset for each seed, on (conditions, seeds, generations)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) + 2 * rng.normal(size=(1, shape[1], 1))


# Completeness


def test_cells_that_are_missing_doubled_or_not_finite_are_named():
    table = make_table(noise(0))
    statistics.require_complete(table, METRIC)
    cells = table.set_index(["condition", "seed", "generation"], drop=False).sort_index()
    cells.index.names = [None] * 3
    cells.loc[("fresh", 10, 5), METRIC] = np.inf
    damaged = pd.concat([cells.drop(("static", 12, 3)), cells.loc[[("mixed", 14, 0)]]])
    with pytest.raises(ValueError) as error:
        statistics.repeated_measures_anova(damaged, METRIC)
    message = str(error.value)
    assert "missing: static, seed 12, generation 3." in message
    assert "doubled: mixed, seed 14, generation 0." in message
    assert "not finite: fresh, seed 10, generation 5." in message


def test_one_seed_an_absent_metric_and_two_models_are_refused():
    table = make_table(noise(0))
    with pytest.raises(ValueError, match="at least two"):
        statistics.summary(table[table.seed == 10], METRIC)
    with pytest.raises(ValueError, match="no column 'lambda_max'"):
        statistics.summary(table, "lambda_max")
    with pytest.raises(ValueError, match="llama, opt"):
        statistics.summary(pd.concat([table, table.assign(model="opt")]), METRIC)


# ANOVA


def test_anova_agrees_with_statsmodels_and_leaves_generation_zero_out():
    values = noise(1)
    later = make_table(values).query("generation > 0")
    expected = AnovaRM(later, METRIC, "seed", within=["condition", "generation"]).fit().anova_table
    values[:, :, 0] = 1e3
    found = statistics.repeated_measures_anova(make_table(values), METRIC)
    np.testing.assert_allclose(found["F"], expected["F Value"], rtol=1e-9)
    np.testing.assert_allclose(found["p_uncorrected"], expected["Pr > F"], rtol=1e-9)
    np.testing.assert_array_equal(found[["df1", "df2"]], expected[["Num DF", "Den DF"]])


def test_anova_correction_and_eta_by_hand():
    values = noise(2, (3, 6, 4))
    found = statistics.repeated_measures_anova(make_table(values), METRIC).set_index("effect")
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


def test_anova_holds_its_level_under_the_null():
    tables = (make_table(noise(seed, (4, 5, 4))) for seed in range(120))
    anovas = pd.concat(statistics.repeated_measures_anova(table, METRIC) for table in tables)
    for _, rows in anovas.groupby("effect"):
        assert stats.kstest(rows.p_uncorrected, "uniform").pvalue > 0.001
        assert (rows.p < 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 120)


def test_anova_recovers_a_planted_interaction_only():
    values = noise(3, (4, 8, 6)) * 0.3
    generations = np.arange(6) - 3  # centred over generations 1-5: no main effect of the condition
    values[0] += generations
    values[1] -= generations
    found = statistics.repeated_measures_anova(make_table(values), METRIC).set_index("effect")
    assert found.loc["interaction", "p"] < 1e-4
    assert found.loc[["condition", "generation"], "p"].min() > 0.01


def test_epsilon_is_bounded_by_the_number_of_seeds():
    for seed in range(20):
        found = statistics.repeated_measures_anova(make_table(noise(seed, (4, 3, 6))), METRIC)
        epsilon = found.set_index("effect").epsilon["interaction"]
        assert 1 / 12 <= epsilon <= 2 / 12 + 1e-12


def test_anova_without_variation_or_without_levels_is_undefined():
    constant = statistics.repeated_measures_anova(make_table(np.ones((4, 3, 6))), METRIC)
    alike = np.broadcast_to(noise(4, (4, 1, 6)), (4, 3, 6)) + np.arange(3)[:, None]
    parallel = statistics.repeated_measures_anova(make_table(alike), METRIC)
    short = statistics.repeated_measures_anova(make_table(noise(4, (4, 3, 2))), METRIC)
    for result in (constant, parallel, short):
        assert list(result["effect"]) == ["condition", "generation", "interaction"]
        assert result[["F", "p", "p_uncorrected", "epsilon"]].isna().all(axis=None)
    assert constant.eta.isna().all() and parallel.eta.between(0, 1).all()


# Paired comparisons


def two_conditions(a: list[float], b: list[float]) -> pd.DataFrame:
    return make_table(np.array([a, b], dtype=float)[:, :, None])


def test_paired_t_on_the_sleep_data():
    # Student (1908), extra hours of sleep under two drugs: t = -4.0621 on 9 degrees of freedom, p = 0.002833.
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    row = statistics.paired_tests(two_conditions(first, second), METRIC).iloc[0]
    assert (row.condition, row.df) == ("recursive", 9)
    assert row.difference == pytest.approx(-1.58)
    assert row.t == pytest.approx(-4.0621, abs=1e-4)
    assert row.p == row.p_holm == pytest.approx(0.002833, abs=1e-6)
    assert (row.low, row.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)


def test_paired_tests_against_scipy():
    values = noise(5)
    found = statistics.paired_tests(make_table(values), METRIC, generation=2).set_index("condition")
    for place, condition in ((0, "recursive"), (2, "static"), (3, "mixed")):
        a, b = values[[place, 1], :, 2]
        expected = stats.ttest_rel(a, b)
        flips = stats.permutation_test((a - b,), np.sum, permutation_type="samples", n_resamples=np.inf)
        row = found.loc[condition]
        assert (row.t, row.p) == pytest.approx((expected.statistic, expected.pvalue))
        assert row.p_permutation == pytest.approx(flips.pvalue)


def test_permutation_floor_with_three_seeds():
    table = two_conditions([11, 12.5, 12], [1, 2, 3])
    assert statistics.paired_tests(table, METRIC).p_permutation[0] == 0.25


def test_holm_by_hand():
    found = statistics.paired_tests(make_table(noise(6)), METRIC).sort_values("p")
    stepped = np.maximum.accumulate(found.p.to_numpy() * [3, 2, 1]).clip(max=1)
    np.testing.assert_allclose(found.p_holm, stepped)


def test_holm_controls_the_familywise_error():
    tables = (make_table(noise(seed, (4, 5, 1))) for seed in range(300))
    wrong = [statistics.paired_tests(table, METRIC).p_holm.min() < 0.05 for table in tables]
    assert np.mean(wrong) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_differences_without_spread():
    same = statistics.paired_tests(two_conditions([1, 2, 3], [1, 2, 3]), METRIC).iloc[0]
    assert np.isnan(same.t) and same.p == same.p_permutation == 1
    # 0.3 - 0.1 and 0.4 - 0.2 differ in the last bit, which is rounding and no spread.
    shifted = statistics.paired_tests(two_conditions([0.3, 0.4, 0.9], [0.1, 0.2, 0.7]), METRIC).iloc[0]
    assert shifted.t == np.inf and shifted.p == 0 and shifted.p_permutation == 0.25


def test_an_unknown_control_or_generation_is_refused():
    table = make_table(noise(0))
    with pytest.raises(ValueError, match="Control 'placebo'"):
        statistics.paired_tests(table, METRIC, control="placebo")
    with pytest.raises(ValueError, match="no generation 9"):
        statistics.paired_tests(table, METRIC, generation=9)


# Effect sizes and intervals


def test_cohen_d_by_hand_and_against_pingouin():
    a, b = [1.0, 2.0, 6.0], [0.0, 3.0, 3.0]
    size = statistics.cohen_d(a, b)
    assert size.d_z.estimate == pytest.approx(1 / 2)  # differences 1, -1, 3: mean 1, sd 2
    assert size.d_av.estimate == pytest.approx(1 / np.sqrt((7 + 3) / 2))
    assert size.g_z == pytest.approx(0.5 / np.sqrt(np.pi))  # J(2) = Γ(1)/Γ(1/2)
    assert size.d_z.estimate == pytest.approx(pingouin.compute_effsize(a, b, paired=True, eftype="cohen_dz"))
    assert size.d_av.estimate == pytest.approx(pingouin.compute_effsize(a, b, paired=True, eftype="cohen"))


def test_hedges_correction_is_unbiased():
    rng = np.random.default_rng(0)
    sizes = [statistics.cohen_d(rng.normal(0.8, 1, 5), np.zeros(5), resamples=1).g_z for _ in range(4000)]
    assert np.mean(sizes) == pytest.approx(0.8, abs=3 * np.std(sizes) / np.sqrt(4000))


def test_d_z_interval_covers_and_agrees_with_the_noncentral_t():
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(1000):
        interval = statistics.cohen_d(rng.normal(1.5, 1, 3), np.zeros(3), resamples=1).d_z
        covered.append(interval.low <= 1.5 <= interval.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / 1000))
    estimate, low, high = statistics.cohen_d([1.0, 2.0, 6.0, 4.0], [0.0, 3.0, 3.0, 1.0]).d_z
    tails = stats.nct([3, 3], np.array([low, high]) * 2).cdf(estimate * 2)
    assert tails == pytest.approx([0.975, 0.025], abs=1e-6)


def test_d_av_bootstrap_is_the_exact_one():
    a, b = np.array([1.0, 2.0, 6.0, 4.0]), np.array([0.0, 3.0, 3.0, 1.0])
    replicates = []
    for pick in itertools.product(range(4), repeat=4):
        x, y = a[list(pick)], b[list(pick)]
        spread = np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
        if spread:
            replicates.append((x.mean() - y.mean()) / spread)
    size = statistics.cohen_d(a, b, resamples=100_000).d_av
    # The distribution is discrete, and no step of it lies at the two quantiles: they are met exactly.
    assert size[1:] == pytest.approx(tuple(np.quantile(replicates, [0.025, 0.975])))
    assert size == statistics.cohen_d(a, b, resamples=100_000).d_av
    assert size != statistics.cohen_d(a, b, resamples=50, seed=1).d_av


def test_d_av_bootstrap_covers_as_little_as_documented():
    rng = np.random.default_rng(4)
    for n, shift, expected in ((3, 2.0, 0.56), (3, 0.0, 0.60), (5, 2.0, 0.75), (5, 0.0, 0.83)):
        covered = []
        for seed in range(500):
            shared, a, b = rng.normal(scale=np.sqrt(0.5), size=(3, n))
            interval = statistics.cohen_d(shared + a + shift, shared + b, resamples=500, seed=seed).d_av
            covered.append(interval.low <= shift <= interval.high)
        assert np.mean(covered) == pytest.approx(expected, abs=3 * np.sqrt(0.25 / 500))


def test_cohen_d_without_spread_or_with_two_seeds():
    zero = statistics.cohen_d([1, 2, 3], [1, 2, 3])
    assert np.isnan(zero.d_z).all() and np.isnan(zero.g_z) and zero.d_av.estimate == 0
    shifted = statistics.cohen_d([0.3, 0.4, 0.9], [0.1, 0.2, 0.7])
    assert shifted.d_z.estimate == np.inf and np.isnan(shifted.d_z[1:]).all()
    assert np.isfinite(shifted.d_av).all()
    flat = statistics.cohen_d([1, 1, 1], [2, 2, 2])
    assert flat.d_z.estimate == flat.d_av.estimate == -np.inf and np.isnan(flat.d_av[1:]).all()
    pair = statistics.cohen_d([1, 2], [0, 4])
    assert np.isfinite(pair.d_z).all() and np.isnan(pair.d_av[1:]).all() and pair.g_z == 0
    with pytest.raises(ValueError, match="two or more finite pairs"):
        statistics.cohen_d([1, 2, 3], [1, 2])


def test_mean_interval_against_scipy():
    values = [3.1, 2.7, 4.4, 3.9]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert statistics.mean_interval(values, 0.9)[1:] == pytest.approx(tuple(expected))
    assert np.isnan(statistics.mean_interval([2.0])[1:]).all()


def test_summary_keeps_the_order_of_conditions_and_means():
    values = noise(7)
    found = statistics.summary(make_table(values).sample(frac=1, random_state=0), METRIC)
    cell = found[(found.condition == "static") & (found.generation == 4)].iloc[0]
    assert tuple(cell[["mean", "low", "high"]]) == pytest.approx(statistics.mean_interval(values[2, :, 4]))
    assert len(found) == 24


def test_detectable_effect_reaches_its_power():
    rng = np.random.default_rng(2)
    for n, expected in ((3, 3.264), (5, 1.682)):
        effect = statistics.detectable_effect(n)
        assert effect == pytest.approx(expected, abs=1e-3)
        rejected = stats.ttest_1samp(rng.normal(effect, 1, (20_000, n)), 0, axis=1).pvalue < 0.05
        assert rejected.mean() == pytest.approx(0.8, abs=0.01)
    with pytest.raises(ValueError, match="at least two"):
        statistics.detectable_effect(1)


# Correlations


def test_within_run_spearman_against_scipy():
    first, second = noise(8), noise(9)
    table = make_table(first).assign(lambda_max=make_table(second)[METRIC], flat=1.0)
    metrics = [METRIC, "lambda_max", "flat"]
    found = statistics.within_run_spearman(table.sample(frac=1, random_state=1), metrics)
    found = found.set_index(["metric_a", "metric_b"])
    rhos = [stats.spearmanr(first[0, s], second[0, s]).statistic for s in range(5)]
    row = found.loc[(METRIC, "lambda_max")]
    assert (row.rho, row.low, row.high) == pytest.approx(statistics.mean_interval(rhos)) and row.runs == 5
    flat = found.loc[("lambda_max", "flat")]
    assert np.isnan(flat.rho) and flat.runs == 0
    with pytest.raises(ValueError, match="Condition 'accumulate'"):
        statistics.within_run_spearman(table, metrics, "accumulate")


def test_spearman_of_monotone_series_and_of_a_constant_run():
    rising = np.broadcast_to(np.arange(6.0), (4, 3, 6))
    other = np.exp(-rising).copy()
    table = make_table(rising).assign(other=make_table(other)[METRIC])
    found = statistics.within_run_spearman(table, [METRIC, "other"])
    assert tuple(found.iloc[0, 2:]) == (-1, -1, -1, 3)
    table.loc[(table.seed == 10) & (table.condition == "recursive"), "other"] = 0.0
    assert statistics.within_run_spearman(table, [METRIC, "other"]).runs[0] == 2


# Text


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0, "0"),
        (12.345, "12.3"),
        (2.1, "2.10"),
        (0.0012345, "0.00123"),
        (99.96, "100"),
        (12345, "12300"),
        (-0.5, "$-0.500$"),
        (123456, r"$1.23\times10^{5}$"),
        (99999, r"$1.00\times10^{5}$"),
        (-0.00099, r"$-9.90\times10^{-4}$"),
        (0.00099999, "0.00100"),
        (np.nan, "--"),
        (-np.inf, r"$-\infty$"),
    ],
)
def test_format_number(x, text):
    assert statistics.format_number(x) == text


def test_format_p():
    assert [statistics.format_p(p) for p in (0.0131, 0.0009, np.nan)] == ["0.013", "$<0.001$", "--"]


def test_values_hold_every_key_and_the_right_words():
    rng = np.random.default_rng(3)
    first = rng.normal(10, 0.1, (4, 3, 6))
    first[:, :, 0] = first[:1, :, 0]
    first[0] += np.arange(6)
    first[2, :, 5] -= 4
    first[3] = first[1] + rng.normal(0, 0.1, (3, 6))
    table = make_table(first).assign(lambda_max=lambda t: t[METRIC] * 2, empty=np.nan, model="llama_1m")
    text = statistics.values(table)
    assert text["seeds"] == "3" and text["generations"] == "5" and text["model"] == r"llama\_1m"
    assert text["detectable.d"] == "3.26"
    assert not any("empty" in key for key in text)
    words = [text[f"word.held_out_perplexity.{condition}"] for condition in ("recursive", "static", "mixed")]
    assert words == ["higher", "lower", "not distinguishable"]
    assert "word.held_out_perplexity.fresh" not in text
    assert text["held_out_perplexity.recursive.peak_generation"] == "5"
    mean, low, high = statistics.mean_interval(first[0, :, 5])
    assert text["held_out_perplexity.recursive.last"] == f"{mean:.1f} [{low:.1f}, {high:.1f}]"
    assert text["anova.lambda_max.interaction.df"] == "12, 24"
    assert text["rho.lambda_max.held_out_perplexity"] == "1.00 [1.00, 1.00]"
    effect = statistics.cohen_d(2 * first[0, :, 5], 2 * first[1, :, 5]).d_av
    assert text["d.lambda_max.recursive"] == statistics.format_interval(effect)
    for effect, figure in itertools.product(statistics.EFFECTS, ("F", "p", "df", "eta")):
        assert f"anova.lambda_max.{effect}.{figure}" in text
    assert {"diff.lambda_max.static", "lambda_max.mixed.first"} <= text.keys()


def test_the_verdict_follows_the_adjusted_p():
    candidates = (make_table(noise(seed, (4, 4, 1))) for seed in range(100))
    rows = ((table, statistics.paired_tests(table, METRIC).iloc[0]) for table in candidates)
    table, row = next((table, row) for table, row in rows if row.p < 0.05 < row.p_holm)
    assert statistics.values(table)[f"word.{METRIC}.{row.condition}"] == "not distinguishable"


def test_values_of_a_minimal_and_of_a_constant_design():
    small = make_table(noise(10, (1, 2, 2)))  # one condition, two seeds, one generation after the base model
    text = statistics.values(small)
    assert text["anova.held_out_perplexity.interaction.p"] == "--"
    assert not any(key.startswith(("d.", "word.")) for key in text)
    constant = statistics.values(make_table(np.ones((4, 3, 6))))
    assert constant["word.held_out_perplexity.recursive"] == "not distinguishable"
    assert constant["d.held_out_perplexity.recursive"] == "-- [--, --]"
