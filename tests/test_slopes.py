"""Slopes against polyfit, the mixed model against closed forms, and both under simulation."""

import numpy as np
import pytest
from scipy import stats
from spectral_collapse import slopes
from test_statistics import METRIC, make_table

pytestmark = pytest.mark.numerics


def trends(seed: int, runs: int = 5, spread: float = 1.0, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """(conditions, seeds, generations): slopes that vary between runs by `spread`, treated ones `shift` higher."""
    rng = np.random.default_rng(seed)
    slope = spread * rng.normal(size=(3, runs, 1)) + np.array([shift, 0, 0])[:, None, None]
    return scale * (slope * np.arange(6) + 2 * rng.normal(size=(3, runs, 1)) + rng.normal(size=(3, runs, 6)))


def test_run_slopes_are_those_of_polyfit():
    values = trends(0)
    found = slopes.run_slopes(make_table(values), METRIC).set_index(["condition", "seed"])
    for seed in range(5):
        assert found.loc[("fresh", 10 + seed), "slope"] == pytest.approx(
            np.polyfit(np.arange(6), values[1, seed], 1)[0]
        )


def test_slope_tests_are_paired_tests_of_slopes():
    values = trends(1)
    found = slopes.slope_tests(make_table(values), METRIC).set_index("condition")
    fitted = np.polyfit(np.arange(6), values.reshape(15, 6).T, 1)[0].reshape(3, 5)
    assert found.slope["static"] == pytest.approx(fitted[2].mean())
    assert found.p["recursive"] == pytest.approx(stats.ttest_rel(fitted[0], fitted[1]).pvalue)
    assert np.isnan(found.p["fresh"]) and found.slope["fresh"] == pytest.approx(fitted[1].mean())


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_the_mixed_model_of_a_balanced_design_is_an_analysis_of_the_runs_slopes(scale):
    values = trends(2, scale=scale)
    found = slopes.mixed_model(make_table(values), METRIC).set_index("condition")
    fitted = np.polyfit(np.arange(6), values.reshape(15, 6).T, 1)[0].reshape(3, 5)
    pooled = np.sqrt(fitted.var(axis=1, ddof=1).mean() * 2 / 5)
    row = found.loc["recursive"]
    assert row.difference == pytest.approx(fitted[0].mean() - fitted[1].mean(), rel=1e-4)
    assert row.t == pytest.approx(row.difference / pooled, rel=1e-3) and row.df == 12
    assert row.p == pytest.approx(2 * stats.t.sf(abs(row.t), 12)) and row.note == ""
    assert row.low < row.difference < row.high


def test_the_mixed_model_holds_its_level_and_finds_a_slope():
    null = [slopes.mixed_model(make_table(trends(seed)), METRIC).p[0] for seed in range(40)]
    assert np.mean(np.array(null) < 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40)
    assert stats.kstest(null, "uniform").pvalue > 0.001
    assert slopes.mixed_model(make_table(trends(0, shift=6.0)), METRIC).p[0] < 0.001


def test_the_mixed_model_can_be_fitted_where_slopes_do_not_vary_between_runs():
    for seed in range(12):  # statsmodels' default optimisers give half of these up
        found = slopes.mixed_model(make_table(trends(seed, runs=3, spread=0.0)), METRIC)
        assert found.p.notna().all() and found.note.eq("").all()


def test_a_slope_needs_two_generations():
    with pytest.raises(ValueError, match="one generation"):
        slopes.run_slopes(make_table(trends(0)[..., :1]), METRIC)


def test_what_cannot_be_fitted_says_so_in_a_row():
    constant = slopes.mixed_model(make_table(np.ones((3, 3, 5))), METRIC)
    assert constant[["difference", "p"]].isna().all(axis=None) and set(constant.note) == {"the metric does not vary."}
    short = slopes.mixed_model(make_table(trends(0)[..., :2]), METRIC)
    assert short.p.isna().all() and short.note.str.contains("three generations").all()
    exact = slopes.mixed_model(make_table(np.broadcast_to(np.arange(5.0), (3, 3, 5)).copy()), METRIC)
    assert exact.p.isna().all() and exact.note.str.len().gt(0).all()
    with pytest.raises(ValueError, match="Control 'placebo'"):
        slopes.mixed_model(make_table(trends(0)), METRIC, control="placebo")
