"""What a number of seeds can show: detectable effects and least p against peers, closed forms and simulation."""

import math

import numpy as np
import pytest
from margins import rate_is
from run_tables import METRIC, make_table
from scipy import stats
from spectral_collapse.analysis import power, statistics
from statsmodels.stats.power import TTestPower


@pytest.mark.parametrize(("n", "tests"), [(2, 1), (2, 28), (3, 1), (3, 5), (5, 1), (5, 4), (10, 28)])
def test_detectable_effect_reaches_its_power_at_the_corrected_level(n, tests):
    rng = np.random.default_rng(2)
    effect = power.detectable_effect(n, tests)
    draws = rng.normal(effect, 1, (20_000, n))
    rate_is(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05 / tests, 0.8)


def test_detectable_effect_against_published_powers_and_for_one_seed():
    """2.63 and not 1.68 where five tests are corrected by Holm's method; statsmodels agrees where it converges."""
    for n, tests, expected in ((3, 1, 3.264), (5, 1, 1.682), (5, 5, 2.629)):
        assert power.detectable_effect(n, tests) == pytest.approx(expected, abs=1e-3)
        assert TTestPower().solve_power(nobs=n, alpha=0.05 / tests, power=0.8) == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ValueError, match="at least two"):
        power.detectable_effect(1)


@pytest.mark.parametrize(("n", "tests"), [(6, 1), (8, 4), (10, 4)])
def test_what_sign_flips_detect_reaches_its_power_and_is_more_than_a_t_test_needs(n, tests):
    effect = power.detectable_by_signs(n, tests)
    assert effect > power.detectable_effect(n, tests)
    draws = np.random.default_rng(3).normal(effect, 1, (500, n))
    tested = [stats.permutation_test((draw,), np.sum, permutation_type="samples", n_resamples=np.inf) for draw in draws]
    rate_is([found.pvalue < 0.05 / tests for found in tested], 0.8)
    assert power.detectable_by_signs(5, 1) == math.inf and power.detectable_by_signs(20) == power.detectable_effect(20)


def test_the_least_p_of_a_test_is_what_the_clearest_data_give():
    for n in (3, 5, 8):
        clear = make_table(np.array([10 + np.arange(n) ** 0.5, np.arange(n) ** 0.3])[:, :, None])
        assert statistics.paired_tests(clear, METRIC).p_permutation[0] == power.least_p("sign-flip", n)
        assert stats.binomtest(n, n, alternative="greater").pvalue == pytest.approx(power.least_p("sign", n))
    with pytest.raises(ValueError, match="no test 'runs'"):
        power.least_p("runs", 3)


def test_the_range_of_runs_covers_their_median_as_stated():
    rng = np.random.default_rng(0)
    for runs in (2, 3, 5, 6):
        draws = rng.exponential(size=(20_000, runs))
        held = (draws.min(1) <= math.log(2)) & (math.log(2) <= draws.max(1))
        rate_is(held, power.range_coverage(runs))
    assert power.range_coverage(3) == 0.75 and power.range_coverage(5) < 0.95
