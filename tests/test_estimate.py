"""Seeds have frozen values, since a silent change would change every text of every run; intervals, by closed forms."""

import math
import pickle

import numpy as np
import pytest
from margins import uniform
from scipy import stats
from spectral_collapse.estimate import Estimate, generator, stable_seed, uniforms


# Leading 16 hexadecimal digits of `printf '%s' '<JSON>' | sha256sum`, halved.
@pytest.mark.parametrize(
    ("parts", "digits"),
    [
        ((1, "TinyStories", 0, 3), 0x440E39E5931AB6DD),
        ((7, "weights"), 0x4FE8FAEC35D892DC),
        ((), 0x4F53CDA18C2BAA0C),
        (("größe", -1), 0x84E04A1D4F3B926E),
    ],
)
def test_stable_seed_is_frozen(parts, digits):
    assert stable_seed(*parts) == digits // 2


def test_parts_are_told_apart():
    parts = [(1, 12), (11, 2), ("1", 12), (1, "12"), (112,), ("1", "12"), (1, 12, "")]
    assert len({stable_seed(*each) for each in parts}) == len(parts)


def test_generator_draws_are_frozen():
    assert generator(1, "documents").permutation(8).tolist() == [4, 6, 1, 7, 3, 2, 0, 5]
    expected = [0.7337459554446363, 0.5905206445727093, 0.20780894066207112]
    np.testing.assert_array_equal(uniforms([5], 3)[0], expected)


def test_row_of_uniforms_depends_on_its_seed_alone():
    seeds = [stable_seed("row", i) for i in range(6)]
    rows = uniforms(seeds, 50)
    assert rows.shape == (6, 50) and rows.dtype == np.float64
    np.testing.assert_array_equal(uniforms(seeds[::-1], 50), rows[::-1])
    np.testing.assert_array_equal(uniforms([seeds[3]], 20)[0], rows[3, :20])
    assert len(np.unique(rows)) == rows.size


def test_uniforms_are_uniform_within_and_across_rows():
    rows = uniforms([stable_seed(1, "storyworld", i, 0) for i in range(400)], 400)
    uniform(rows.ravel())
    uniform(rows[:, 0])
    # Neighbouring seeds, as the rows of one batch are, give uncorrelated rows: r² n is near χ²(1), and the mean
    # of so many of them within 0.5 % of 1 with probability 0.68.
    correlations = np.corrcoef(rows)[np.triu_indices(400, 1)]
    assert np.mean(correlations**2) * 400 == pytest.approx(1, rel=0.05)


def test_the_interval_of_a_mean_is_students_and_one_value_has_none():
    values = [3.1, 2.7, 4.4, 3.9]
    found = Estimate.mean(values, 0.9)
    assert found[1:] == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval(0.9)))
    assert found.df == 3 and found.standard_error == pytest.approx(stats.sem(values))
    assert np.isnan(Estimate.mean([2.0])[1:]).all() and np.isnan(Estimate.mean([])).all()


def test_the_jackknife_of_a_mean_is_its_t_interval():
    values = np.random.default_rng(0).normal(size=9)
    without = (values.sum() - values) / 8
    found = Estimate.jackknife(values.mean(), without)
    assert found == pytest.approx(Estimate.mean(values)) and found.df == 8
    assert np.isnan(Estimate.jackknife(1.0, [2.0])[1:]).all()


def test_an_estimate_is_a_row_and_keeps_its_error():
    found = Estimate.of_error(2.0, 0.5)
    assert found == pytest.approx((2, 2 - 0.5 * stats.norm.ppf(0.975), 2 + 0.5 * stats.norm.ppf(0.975)))
    assert pickle.loads(pickle.dumps(found)).standard_error == 0.5


def test_a_change_of_independent_estimates_has_welchs_degrees_of_freedom():
    one, other = Estimate.of_error(3.0, 0.3, 5), Estimate.of_error(1.0, 0.4, 9)
    change = one.change_from(other, paired=False)
    assert change.value == 2 and change.standard_error == pytest.approx(0.5)
    assert change.df == pytest.approx(0.25**2 / (0.09**2 / 5 + 0.16**2 / 9))
    assert math.isinf(Estimate.of_error(3.0, 0.3).change_from(Estimate.of_error(1.0, 0.4), paired=False).df)
    assert math.isnan(one.change_from(Estimate(1.0), paired=False).standard_error)
    assert math.isnan(Estimate.jackknife(1.0, [1.0]).change_from(Estimate.jackknife(1.0, [1.0, 2.0]), paired=True).df)
    assert [one.apart, Estimate.of_error(0.1, 1, 5).apart, Estimate(1.0).apart] == [True, False, False]


def test_a_paired_change_leaves_out_the_same_part_of_both():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=30)
    now, then = shared + 1, shared + rng.normal(0, 0.01, 30)
    means = [Estimate.jackknife(v.mean(), (v.sum() - v) / 29) for v in (now, then)]
    change = means[0].change_from(means[1], paired=True)
    assert change.standard_error == pytest.approx((now - then).std(ddof=1) / math.sqrt(30))
    assert means[0].change_from(means[1], paired=False).standard_error > 10 * change.standard_error
