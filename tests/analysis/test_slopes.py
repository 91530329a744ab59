"""Slopes against polyfit, the mixed model against closed forms, and both under simulation."""

import numpy as np
import pandas as pd
import pytest
from margins import rate_at_most
from run_tables import METRIC, make_table
from scipy import optimize, stats
from spectral_collapse.analysis import slopes
from statsmodels.regression.mixed_linear_model import MixedLM

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
    assert row.difference == pytest.approx(fitted[0].mean() - fitted[1].mean(), rel=1e-9)
    assert row.t == pytest.approx(row.difference / pooled, rel=1e-9) and row.df == 12
    assert row.p == pytest.approx(2 * stats.t.sf(abs(row.t), 12), rel=1e-9) and row.note == ""
    assert row.low < row.difference < row.high


def criterion(covariance, noise, between, residual, df, df_noise):
    """−2 log of the restricted likelihood of the runs' fitted lines and residuals, up to a constant."""
    lines = np.linalg.slogdet(covariance)[1] + np.trace(np.linalg.solve(covariance, between))
    return df * lines + df_noise * (np.log(noise) + residual / noise)


@pytest.mark.parametrize("inner", [3.0, 0.5, 0.0])
def test_the_variance_of_slopes_maximises_the_restricted_likelihood(inner):
    """Interior, with one variance component 0, and with both: against a search over Ψ = L Lᵀ and σ²."""
    rng = np.random.default_rng(int(10 * inner))
    within = np.linalg.inv([[6.0, 1.0], [1.0, 17.5]])
    root = np.linalg.cholesky(within)
    between = root @ np.diag([inner, inner / 2 + 0.1]) @ root.T + 0.02 * np.eye(2) * (inner > 1)
    df, df_noise, residual = 6, 36, 1.0

    def loss(x):
        lower = np.array([[x[0], 0.0], [x[1], x[2]]])
        return criterion(lower @ lower.T + np.exp(x[3]) * within, np.exp(x[3]), between, residual, df, df_noise)

    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 20_000, "maxfev": 20_000}
    searches = [optimize.minimize(loss, rng.normal(size=4), method="Nelder-Mead", options=options) for _ in range(6)]
    best = min(searches, key=lambda found: found.fun)
    lower = np.array([[best.x[0], 0.0], [best.x[1], best.x[2]]])
    expected = (lower @ lower.T + np.exp(best.x[3]) * within)[1, 1]
    assert slopes._slope_variance(between, within, residual, df, df_noise) == pytest.approx(expected, rel=1e-3)


def test_the_mixed_model_agrees_with_statsmodels_where_that_converges():
    table = make_table(trends(4, spread=1.0))
    code = pd.Categorical(table["condition"], ["fresh", "recursive", "static"]).codes
    members = np.eye(3)[code]
    time = table["generation"].to_numpy(float) - 2.5
    fixed = np.column_stack([members, members * time[:, None]])
    fixed[:, 3] = time
    random = np.column_stack([np.ones_like(time), time])
    groups = table["condition"] + table["seed"].astype(str)
    fit = MixedLM(table[METRIC], fixed, groups=groups, exog_re=random).fit()
    assert slopes.mixed_model(table, METRIC).t.to_numpy() == pytest.approx(fit.tvalues.to_numpy()[4:6], rel=1e-2)


def test_the_mixed_model_rejects_where_the_closed_form_does_and_finds_a_slope():
    """Its p is that of the runs' slopes to a last digit, so that its level is the t test's: no optimiser tips it."""
    for seed in range(40):
        values = trends(seed)
        fitted = np.polyfit(np.arange(6), values.reshape(15, 6).T, 1)[0].reshape(3, 5)
        t = (fitted[0].mean() - fitted[1].mean()) / np.sqrt(fitted.var(axis=1, ddof=1).mean() * 2 / 5)
        assert slopes.mixed_model(make_table(values), METRIC).p[0] == pytest.approx(
            2 * stats.t.sf(abs(t), 12), rel=1e-7
        )
    assert slopes.mixed_model(make_table(trends(0, shift=6.0)), METRIC).p[0] < 0.001


def test_the_mixed_model_is_conservative_where_slopes_do_not_vary_between_runs():
    found = pd.concat(slopes.mixed_model(make_table(trends(seed, 3, 0.0)), METRIC)[:1] for seed in range(100))
    assert found.p.notna().all() and found.note.eq("").all()
    rate_at_most(found.p < 0.05, 0.05)


def test_a_condition_without_a_control_of_its_weights_has_no_slope_difference():
    table = make_table(trends(0))
    table["condition"] = table["condition"].replace("static", "recursive_carry")
    found = slopes.mixed_model(table, METRIC).set_index("condition")
    assert np.isnan(found.p["recursive_carry"]) and "same weights" in found.note["recursive_carry"]
    assert np.isfinite(found.p["recursive"])
    tests = slopes.slope_tests(table, METRIC).set_index("condition")
    assert np.isnan(tests.p["recursive_carry"]) and np.isfinite(tests.slope["recursive_carry"])


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
    with pytest.raises(ValueError, match="Control 'fresh'"):
        slopes.mixed_model(make_table(trends(0)[:1]), METRIC)
