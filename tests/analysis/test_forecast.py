"""Linear dynamics against known series, and their forecasts against persistence."""

import numpy as np
import pandas as pd
import pytest
from spectral_collapse.analysis.forecast import fit_dynamics, forecast_errors, forecasts

pytestmark = pytest.mark.numerics


def table(series: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"condition": "recursive", "seed": 1, "generation": range(len(series)), "x": series})


def test_a_relaxation_gives_its_rate_and_offset():
    assert fit_dynamics(-150 + 150 * 0.7 ** np.arange(8)) == pytest.approx((0.7, -45))
    assert fit_dynamics(4 + 2 * (-0.5) ** np.arange(8)) == pytest.approx((-0.5, 6))


def test_series_without_a_limit_or_without_movement():
    assert np.isnan(forecasts(table(1.1 ** np.arange(8)), "x")["fixed_point"][0])
    assert fit_dynamics(1.1 ** np.arange(8))[0] == pytest.approx(1.1)
    assert fit_dynamics(np.full(6, 3.0)) == (0, 3)


def test_forecasts_use_the_past_alone_and_are_scored_against_persistence():
    series = 5 * 0.6 ** np.arange(10)
    model, naive = forecast_errors(series)
    gaps = [series[known] - series[known - 1] for known in range(5, 10)]
    assert model == pytest.approx(0, abs=1e-9) and naive == pytest.approx(np.sqrt(np.mean(np.square(gaps))))
    # The last generation is never used to forecast itself.
    series[-1] = 100
    assert forecast_errors(series)[0] > 10


def test_a_random_walk_has_no_skill_on_average():
    rng = np.random.default_rng(0)
    errors = np.array([forecast_errors(np.cumsum(rng.normal(size=20))) for _ in range(100)])
    # In nine of ten the model is worse: less than half of a hundred would be with a probability below 1e-20.
    assert np.median(errors[:, 0] / errors[:, 1]) > 1


def test_short_series_have_no_dynamics():
    with pytest.raises(ValueError, match="3 generations are too few"):
        fit_dynamics(np.array([1.0, 2.0, 3.0]))
    assert forecasts(table(np.arange(4.0)), "x").iloc[0, 2:].isna().all()


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
