"""Rank correlations against scipy, and their intervals against simulation."""

import numpy as np
import pytest
from margins import mean_is, rate_at_most
from run_tables import METRIC, make_table, noise
from scipy import stats
from spectral_collapse.analysis import correlation
from spectral_collapse.estimate import Estimate


def test_within_run_spearman_against_scipy():
    first, second = noise(8), noise(9)
    table = make_table(first).assign(lambda_max=make_table(second)[METRIC], flat=1.0)
    metrics = [METRIC, "lambda_max", "flat"]
    found = correlation.within_run_spearman(table.sample(frac=1, random_state=1), metrics)
    found = found.set_index(["metric_a", "metric_b"])
    rhos = [stats.spearmanr(first[0, s], second[0, s]).statistic for s in range(5)]
    row = found.loc[(METRIC, "lambda_max")]
    assert (row.rho, row.low, row.high) == pytest.approx(Estimate.mean(rhos)) and row.runs == 5
    flat = found.loc[("lambda_max", "flat")]
    assert np.isnan(flat.rho) and flat.runs == 0
    with pytest.raises(ValueError, match="Condition 'accumulate'"):
        correlation.within_run_spearman(table, metrics, "accumulate")


def test_spearman_of_monotone_series_and_of_a_constant_run():
    rising = np.broadcast_to(np.arange(6.0), (4, 3, 6))
    other = np.exp(-rising).copy()
    table = make_table(rising).assign(other=make_table(other)[METRIC])
    found = correlation.within_run_spearman(table, [METRIC, "other"])
    assert tuple(found.iloc[0, 2:]) == (-1, -1, -1, 3)
    table.loc[(table.seed == 10) & (table.condition == "recursive"), "other"] = 0.0
    assert correlation.within_run_spearman(table, [METRIC, "other"]).runs[0] == 2


def test_a_metric_that_is_another_shifted_correlates_fully_at_that_lag_only():
    rng = np.random.default_rng(0)
    leader = rng.normal(size=(4, 3, 12))
    follower = np.roll(leader, 2, axis=-1)  # what led at generation g follows at g + 2
    follower[..., :2] = rng.normal(size=(4, 3, 2))
    table = make_table(leader).assign(follower=make_table(follower)[METRIC])
    found = correlation.lagged_spearman(table, [METRIC], ["follower"]).set_index("lag")
    assert found.index.tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert tuple(found.loc[2, ["rho", "low", "high"]]) == pytest.approx((1, 1, 1))
    assert found.rho.drop(2).abs().max() < 0.8
    reverse = correlation.lagged_spearman(table, ["follower"], [METRIC]).set_index("lag")
    np.testing.assert_allclose(reverse.rho[::-1], found.rho)


def test_lagged_spearman_against_scipy_and_without_lag():
    table = make_table(noise(8)).assign(other=make_table(noise(9))[METRIC], flat=1.0)
    found = correlation.lagged_spearman(table, [METRIC], ["other", "flat"]).set_index(["following", "lag"])
    rhos = [stats.spearmanr(noise(8)[0, s, :4], noise(9)[0, s, 2:]).statistic for s in range(5)]
    assert tuple(found.loc[("other", 2), ["rho", "low", "high"]]) == pytest.approx(
        tuple(np.clip(Estimate.mean(rhos), -1, 1))
    )
    unlagged = correlation.within_run_spearman(table, [METRIC, "other"]).iloc[0]
    assert found.loc[("other", 0), "rho"] == pytest.approx(unlagged.rho)
    assert found.loc["flat", "runs"].eq(0).all() and found.loc["flat", "rho"].isna().all()
    short = correlation.lagged_spearman(table[table.generation < 4], [METRIC], ["other"]).set_index("lag")
    assert short.runs[[-2, -1, 0, 1, 2]].tolist() == [0, 5, 5, 5, 0]


@pytest.mark.parametrize(("runs", "least"), [(3, 0.87), (5, 0.89)])
def test_intervals_cover_as_little_as_documented(runs, least):
    rng = np.random.default_rng(runs)
    found = []
    for _ in range(50):
        first = rng.normal(size=(1, runs, 6))
        table = make_table(first).assign(other=make_table(0.8 * first + 0.6 * rng.normal(size=first.shape))[METRIC])
        found.append(correlation.lagged_spearman(table, [METRIC], ["other"], lags=(0,)).iloc[0])
    truth = 0.70  # the mean ρ of six pairs of standard normal numbers correlated by 0.8
    mean_is([row.rho for row in found], truth, slack=0.005)
    rate_at_most([not row.low <= truth <= row.high for row in found], 1 - least)
