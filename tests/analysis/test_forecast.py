"""Dynamic mode decomposition against known linear systems, and its score against persistence."""

import numpy as np
import pandas as pd
import pytest
from spectral_collapse.analysis.forecast import fit_dynamics, forecasts, score_forecast

pytestmark = pytest.mark.numerics


def test_a_relaxation_gives_its_rate_and_fixed_point():
    series = -150 + 150 * 0.7 ** np.arange(8)
    found = fit_dynamics(series)
    assert found.rate == pytest.approx(0.7)
    assert found.fixed_point == pytest.approx([-150])
    np.testing.assert_allclose(found.forecast(series[-1], 3)[:, 0], -150 + 150 * 0.7 ** np.arange(8, 11))


def test_a_coupled_system_gives_its_spectrum():
    matrix, offset = np.array([[0.9, -0.3], [0.2, 0.8]]), np.array([1.0, -200.0])
    series = [np.array([3.0, 1000.0])]
    for _ in range(9):
        series.append(matrix @ series[-1] + offset)
    found = fit_dynamics(np.array(series))
    np.testing.assert_allclose(found.matrix, matrix, atol=1e-8)
    np.testing.assert_allclose(found.offset, offset, atol=1e-6)
    assert found.rate == pytest.approx(np.abs(np.linalg.eigvals(matrix)).max())
    np.testing.assert_allclose(found.fixed_point, np.linalg.solve(np.eye(2) - matrix, offset), rtol=1e-6)


def test_series_without_a_limit_or_without_movement():
    assert np.isnan(fit_dynamics(np.arange(6.0)).fixed_point).all()  # a steady fall has rate 1 and no fixed point
    assert fit_dynamics(1.1 ** np.arange(8)).rate == pytest.approx(1.1)
    flat = fit_dynamics(np.full(6, 3.0))
    assert flat.rate == 0 and flat.fixed_point == pytest.approx([3.0])


def test_forecasts_use_the_past_alone_and_are_scored_against_persistence():
    series = 5 * 0.6 ** np.arange(10)
    score = score_forecast(series, horizon=2)
    assert score.forecasts == 4  # origins after 5, 6, 7 and 8 known generations
    assert score.model_rmse == pytest.approx([0], abs=1e-9) and score.skill == pytest.approx([1])
    gaps = [series[k + 1] - series[k - 1] for k in (5, 6, 7, 8)]
    assert score.naive_rmse == pytest.approx([np.sqrt(np.mean(np.square(gaps)))])
    # The last generation is never used to forecast itself.
    broken = series.copy()
    broken[-1] = 100
    assert score_forecast(broken).model_rmse[0] > 10


def test_a_random_walk_has_no_skill_on_average():
    rng = np.random.default_rng(0)
    skills = [score_forecast(np.cumsum(rng.normal(size=20))).skill[0] for _ in range(100)]
    # Nine in ten are negative: more than half of a hundred would not be with a probability below 1e-20.
    assert np.median(skills) < 0


def test_short_and_incomplete_series_are_refused():
    with pytest.raises(ValueError, match="3 generations are too few for 1 series"):
        fit_dynamics([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="missing value"):
        fit_dynamics([1.0, np.nan, 2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match="leave none to forecast 4 ahead"):
        score_forecast(np.arange(7.0), horizon=4)


def test_forecast_finds_a_fixed_point_and_its_rate():
    rows = [
        {"condition": "recursive", "seed": seed, "generation": t, "x": -10 * seed * (1 - 0.5**t)}
        for seed in (1, 2)
        for t in range(8)
    ]
    found = forecasts(pd.DataFrame(rows), "x")
    np.testing.assert_allclose(found["rate"], 0.5, rtol=1e-8)
    np.testing.assert_allclose(found["fixed_point"], [-10, -20], rtol=1e-8)
    assert (found["model_rmse"] < 1e-6).all() and (found["naive_rmse"] > 0.05).all()
