"""Statistics against peer libraries, closed forms and simulation."""

import numpy as np
import pandas as pd
import pingouin
import pytest
from margins import mean_is, rate_at_most, rate_is
from run_tables import METRIC, make_table, noise
from scipy import stats
from spectral_collapse.analysis import statistics
from spectral_collapse.estimate import Estimate

# Completeness


def test_cells_that_are_missing_doubled_or_not_finite_are_named():
    table = make_table(noise(0))
    statistics.require_complete(table, METRIC)
    cells = table.set_index(["condition", "seed", "generation"], drop=False).sort_index()
    cells.index.names = [None] * 3
    cells.loc[("fresh", 10, 5), METRIC] = np.inf
    damaged = pd.concat([cells.drop(("static", 12, 3)), cells.loc[[("mixed", 14, 0)]]])
    with pytest.raises(ValueError) as error:
        statistics.summary(damaged, METRIC)
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
    rate_at_most([statistics.paired_tests(table, METRIC).p_holm.min() < 0.05 for table in tables], 0.05)


def test_differences_without_spread():
    same = statistics.paired_tests(two_conditions([1, 2, 3], [1, 2, 3]), METRIC).iloc[0]
    assert np.isnan(same.t) and same.p == same.p_permutation == 1
    # 0.3 - 0.1 and 0.4 - 0.2 differ in the last bit, which is rounding and no spread.
    shifted = statistics.paired_tests(two_conditions([0.3, 0.4, 0.9], [0.1, 0.2, 0.7]), METRIC).iloc[0]
    assert shifted.t == np.inf and shifted.p == 0 and shifted.p_permutation == 0.25


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_interval_and_p_rest_on_the_same_differences(size):
    """At 1e9 a difference of 3e-4 is 3,000 times the spacing of floats: it is variation, and t says so as the interval
    does; one of a last digit is 0 in both."""
    control = size * np.array([1.0, 2.0, 3.0])
    moved = statistics.paired_tests(two_conditions(control + size * 1e-13 * np.array([2, 3, 4]), control), METRIC).iloc[
        0
    ]
    assert moved.low > 0 and moved.p < 0.05 and moved.t == pytest.approx(np.sqrt(27), rel=0.05)
    same = statistics.paired_tests(two_conditions(np.nextafter(control, np.inf), control), METRIC).iloc[0]
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def carried(**weights: str) -> pd.DataFrame:
    """Conditions recursive, recursive_carry, fresh, static; `weights`, by condition, where the table says it."""
    table = make_table(noise(5))
    table["condition"] = table["condition"].replace("mixed", "recursive_carry")
    return table.assign(weights=table["condition"].map(weights)) if weights else table


def test_a_condition_is_compared_with_a_control_of_its_own_weights():
    matched = {"recursive": "fresh", "fresh": "fresh", "static": "fresh"}
    assert statistics.matched_controls(carried()) == {**matched, "recursive_carry": None}
    restarts = {**dict.fromkeys(("recursive", "fresh", "static"), "restart"), "recursive_carry": "carry"}
    assert statistics.matched_controls(carried(**restarts))["recursive_carry"] is None
    # In a profile that carries weights over anyway `fresh` is the control of `recursive_carry`.
    assert statistics.matched_controls(carried(**dict.fromkeys(restarts, "carry")))["recursive_carry"] == "fresh"
    own = carried().replace({"condition": {"static": "fresh_carry"}})
    assert statistics.matched_controls(own)["recursive_carry"] == "fresh_carry"
    row = statistics.paired_tests(own, METRIC).set_index("condition").loc["recursive_carry"]
    assert row.difference == pytest.approx((noise(5)[3] - noise(5)[2])[:, -1].mean())


def test_what_has_no_matched_control_is_not_tested_and_not_corrected_for():
    found = statistics.paired_tests(carried(), METRIC).set_index("condition")
    assert found.loc["recursive_carry"].isna().all()
    two = statistics.paired_tests(make_table(noise(5)[:3]), METRIC).set_index("condition")
    assert found.p_holm["static"] == two.p_holm["static"]
    equal = statistics.equivalence(carried(), METRIC, 1.0).set_index("condition")
    assert np.isnan(equal.p["recursive_carry"]) and not equal.equivalent["recursive_carry"]
    assert set(statistics.effect_sizes(carried(), METRIC)["condition"]) == {"recursive", "static"}


def test_changes_need_generation_zero():
    table = make_table(noise(3))
    moved = statistics.changes(table, METRIC)
    assert moved.loc[("fresh", 12), 4] == pytest.approx(noise(3)[1, 2, 4] - noise(3)[1, 2, 0])
    assert moved.columns.tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="no generation 0"):
        statistics.changes(table[table.generation > 0], METRIC)


def test_an_unknown_control_or_generation_is_refused():
    table = make_table(noise(0))
    with pytest.raises(ValueError, match="Control 'fresh' is not among the conditions recursive, static, mixed"):
        statistics.paired_tests(table[table["condition"] != "fresh"], METRIC)
    with pytest.raises(ValueError, match="no generation 9"):
        statistics.paired_tests(table, METRIC, generation=9)


# Effect sizes


def test_cohen_d_by_hand_and_against_pingouin():
    a, b = [1.0, 2.0, 6.0], [0.0, 3.0, 3.0]
    size = statistics.cohen_d(a, b)
    assert size.d_z.value == pytest.approx(1 / 2)  # differences 1, -1, 3: mean 1, sd 2
    assert size.d_av == pytest.approx(1 / np.sqrt((7 + 3) / 2))
    assert size.g_z == pytest.approx(0.5 / np.sqrt(np.pi))  # J(2) = Γ(1)/Γ(1/2)
    assert size.d_z.value == pytest.approx(pingouin.compute_effsize(a, b, paired=True, eftype="cohen_dz"))
    assert size.d_av == pytest.approx(pingouin.compute_effsize(a, b, paired=True, eftype="cohen"))


def test_hedges_correction_is_unbiased():
    rng = np.random.default_rng(0)
    mean_is([statistics.cohen_d(rng.normal(0.8, 1, 5), np.zeros(5)).g_z for _ in range(1000)], 0.8)


def test_d_z_interval_covers_and_agrees_with_the_noncentral_t():
    rng = np.random.default_rng(1)
    intervals = [statistics.cohen_d(rng.normal(1.5, 1, 3), np.zeros(3)).d_z for _ in range(400)]
    rate_is([low <= 1.5 <= high for _, low, high in intervals], 0.95)
    estimate, low, high = statistics.cohen_d([1.0, 2.0, 6.0, 4.0], [0.0, 3.0, 3.0, 1.0]).d_z
    tails = stats.nct([3, 3], np.array([low, high]) * 2).cdf(estimate * 2)
    assert tails == pytest.approx([0.975, 0.025], abs=1e-6)


def test_cohen_d_without_spread_or_with_two_seeds():
    zero = statistics.cohen_d([1, 2, 3], [1, 2, 3])
    assert np.isnan(zero.d_z).all() and np.isnan(zero.g_z) and zero.d_av == 0
    shifted = statistics.cohen_d([0.3, 0.4, 0.9], [0.1, 0.2, 0.7])
    assert shifted.d_z.value == np.inf and np.isnan(shifted.d_z[1:]).all()
    assert np.isfinite(shifted.d_av)
    flat = statistics.cohen_d([1, 1, 1], [2, 2, 2])
    assert flat.d_z.value == flat.d_av == -np.inf
    pair = statistics.cohen_d([1, 2], [0, 4])
    assert np.isfinite(pair.d_z).all() and np.isnan(pair.g_z)
    with pytest.raises(ValueError, match="two or more finite pairs"):
        statistics.cohen_d([1, 2, 3], [1, 2])


def test_summary_keeps_the_order_of_conditions_and_means():
    values = noise(7)
    found = statistics.summary(make_table(values).sample(frac=1, random_state=0), METRIC)
    cell = found[(found.condition == "static") & (found.generation == 4)].iloc[0]
    assert tuple(cell[["mean", "low", "high"]]) == pytest.approx(Estimate.mean(values[2, :, 4]))
    assert len(found) == 24


# Equivalence


def test_equivalence_against_two_tests_of_scipy():
    values = noise(12)
    found = statistics.equivalence(make_table(values), METRIC, 1.5, generation=3).set_index("condition")
    for place, condition in ((0, "recursive"), (2, "static"), (3, "mixed")):
        differences = values[place, :, 3] - values[1, :, 3]
        lower = stats.ttest_1samp(differences, -1.5, alternative="greater").pvalue
        upper = stats.ttest_1samp(differences, 1.5, alternative="less").pvalue
        row = found.loc[condition]
        assert row.p == pytest.approx(max(lower, upper))
        interval = stats.ttest_1samp(differences, 0).confidence_interval(0.9)
        assert (row.low, row.high) == pytest.approx(tuple(interval))
        assert (row.p < 0.05) == (row.low > -1.5 and row.high < 1.5)
        assert row.equivalent == (row.p_holm < 0.05)


def test_equivalence_errs_at_its_level_on_the_margin_and_sees_equality():
    rng = np.random.default_rng(0)
    for n, width in ((3, 2.66), (5, 1.6)):
        for shift, share in ((width, 0.05), (0.0, 0.8)):
            # A condition for each draw, against a control that is 0.
            differences = pd.DataFrame(rng.normal(shift, 1, (n, 300))).add_prefix("draw ").assign(fresh=0.0)
            table = (
                differences.rename_axis(index="seed")
                .melt(var_name="condition", value_name=METRIC, ignore_index=False)
                .reset_index()
            )
            found = statistics.equivalence(table.assign(generation=1), METRIC, width)
            rate_is(found.p < 0.05, share, slack=0.01 * (shift == 0))


def test_equivalence_without_spread_and_with_a_margin_that_is_none():
    table = two_conditions([0.3, 0.4, 0.9], [0.1, 0.2, 0.7])
    assert statistics.equivalence(table, METRIC, 0.3).equivalent[0]
    assert not statistics.equivalence(table, METRIC, 0.1).equivalent[0]
    for margin in (0, -1, np.nan):
        with pytest.raises(ValueError, match="positive number"):
            statistics.equivalence(table, METRIC, margin)


def test_margins_are_shares_of_the_base_model():
    table = make_table(np.full((2, 2, 2), -20.0)).assign(log_spectral_ratio=3.0, drift=0.0)
    margins = [statistics.margin_of(table, name) for name in (METRIC, "log_spectral_ratio", "drift")]
    assert margins[:2] == pytest.approx([1.0, np.log(1.05)]) and np.isnan(margins[2])
