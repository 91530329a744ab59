"""The sequential rule: its levels sum to the rate, and null runs alarm no more often."""

import math

import numpy as np
import pytest
from margins import rate_at_least, rate_at_most
from spectral_collapse.estimate import Estimate
from spectral_collapse.monitor import Rule, decision


def test_the_levels_of_all_checks_and_signals_sum_to_the_rate():
    endless = sum(4 * Rule(0.1).level(check, 4) for check in range(1, 20_000))
    assert endless == pytest.approx(0.1, rel=1e-3)
    assert sum(3 * Rule(0.05, checks=50).level(check, 3) for check in range(1, 80)) == pytest.approx(0.05)
    for wrong in (0, 1, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Rule(wrong)
    with pytest.raises(ValueError, match="at least one check"):
        Rule(checks=0)


def test_p_is_one_sided_in_the_direction_of_collapse():
    change = Estimate.of_error(-2.0, 1.0)
    assert decision.p_value(change, -1) == pytest.approx(0.02275, abs=1e-5)
    assert decision.p_value(change, 1) == pytest.approx(0.97725, abs=1e-5)
    assert decision.p_value(change, 0) == pytest.approx(0.0455, abs=1e-4)
    assert math.isnan(decision.p_value(Estimate(1.0), 1))
    assert decision.p_value(Estimate.of_error(0.0, 0.0, 5), 1) == 1
    assert decision.p_value(Estimate.of_error(1.0, 0.0, 5), 1) == 0
    for direction in (-1, 0, 1):
        edge = decision.boundary(change, direction, 0.01)
        assert decision.p_value(Estimate.of_error(edge, 1.0), direction) == pytest.approx(0.01)


@pytest.mark.parametrize("rule", [Rule(0.1), Rule(0.1, checks=20)])
def test_runs_without_effect_alarm_at_no_more_than_the_rate_and_a_drift_is_found(rule):
    """Twenty checks of three signals, all against one noisy reference, which makes checks dependent."""
    rng, false, found = np.random.default_rng(0), [], []
    for trial in range(600):
        drift = 0.25 if trial % 6 == 0 else 0.0
        reference = rng.normal(size=(3, 40))
        alarm = False
        for check in range(1, 21):
            for signal in range(3):
                now = rng.normal(-drift * check, 1, 40)
                change = Estimate.jackknife(
                    now.mean() - reference[signal].mean(),
                    (now.sum() - now) / 39 - (reference[signal].sum() - reference[signal]) / 39,
                )
                alarm |= decision.p_value(change, -1) <= rule.level(check, 3)
        (found if drift else false).append(alarm)
    rate_at_most(false, 0.1)
    rate_at_least(found, 0.95)


def test_control_runs_set_the_band_for_one_more_run():
    rng, held = np.random.default_rng(1), []
    for _ in range(4000):
        runs = rng.normal(3, 2, 6)
        change = decision.against_controls(runs[0], runs[1:])
        held.append(decision.p_value(change, 1) <= 0.05)
    rate_at_most(held, 0.05)
    rate_at_least(held, 0.05)
    assert math.isnan(decision.against_controls(1.0, [2.0]).standard_error)
