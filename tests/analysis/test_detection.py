"""Rates, AUC and permutation p: closed forms, peers, exhaustive checks, and simulation."""

import math

import numpy as np
import pytest
from margins import mean_is, rate_at_most
from run_tables import series, stepped
from scipy import stats
from sklearn.metrics import roc_auc_score
from spectral_collapse.analysis import detection, early_warning


def drawn(rng: np.random.Generator, seeds: int, shift: float = 0.0, generations: int = 6):
    """Independent changes at every generation, treated ones shifted; generation 0 is nil."""
    noise = rng.normal(size=(2, seeds, generations)) * (np.arange(generations) > 0)
    noise[0, :, 1:] += shift
    return series({"recursive": noise[0], "fresh": noise[1]})


def test_exact_interval_by_hand():
    # Three of three: the lower end solves p³ = 0.025.
    assert detection.exact_interval(3, 3) == pytest.approx((1, 0.025 ** (1 / 3), 1))
    assert detection.exact_interval(0, 5) == pytest.approx((0, 0, 1 - 0.025**0.2))
    assert all(map(math.isnan, detection.exact_interval(0, 0)))


def test_auc_against_scikit_learn():
    table = drawn(np.random.default_rng(0), 7, 1.5)
    runs = early_warning.alarms(table, ["ratio"])
    expected = roc_auc_score(runs["condition"] == "recursive", runs["score"])
    assert detection.separation(table, "ratio")[0].value == pytest.approx(expected)


def test_auc_interval_solves_its_equation_and_covers():
    low, high = detection.auc_interval(0.8, 6, 6)[1:]
    for theta in (low, high):
        variance = theta * (1 - theta) * (1 + 5 * (1 - theta) / (2 - theta) + 5 * theta / (1 + theta)) / 36
        assert abs(theta - 0.8) == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(variance))
    assert detection.auc_interval(1.0, 3, 3).low < 0.6 and detection.auc_interval(1.0, 3, 3).high == 1
    rng = np.random.default_rng(1)
    for seeds, shift in ((3, 0.0), (3, 1.0), (5, 0.0), (5, 1.0)):
        runs = rng.normal(size=(2, seeds, 3000, 5))
        runs[0] += shift
        scores = (np.abs(early_warning.band_positions(each, runs[1], 0.95)).max(-1) for each in runs)
        aucs = detection._auc(*scores)
        intervals = {auc: detection.auc_interval(float(auc), seeds, seeds) for auc in np.unique(aucs)}
        missed = np.array([not intervals[auc].low <= aucs.mean() <= intervals[auc].high for auc in aucs])
        rate_at_most(missed, 0.07)


@pytest.mark.parametrize("seeds", [3, 5])
def test_permutation_p_is_exact_without_an_effect(seeds):
    rng = np.random.default_rng(seeds)
    ps = np.array([detection.separation(drawn(rng, seeds), "ratio")[1] for _ in range(80)])
    for level in (0.125, 0.25, 0.5):
        rate_at_most(ps <= level, level)
    assert ps.min() >= 2.0**-seeds - 1e-12


def test_detection_counts_corrects_and_separates():
    table = stepped({"strong": 2, "nothing": 7})
    alarms = early_warning.alarms(table, ["strong", "nothing"], rate=0.01)
    found = detection.detection(table, ["strong", "nothing"], alarms, rate=0.01).set_index("metric")
    assert found.loc["strong", ["runs", "detected", "detected_family", "false_alarms"]].tolist() == [6, 6, 6, 0]
    assert found.loc["nothing", "detected_family"] == 0 and found.auc["strong"] == 1
    assert found.p["strong"] == 2 / 64 and found.p_holm["strong"] == 4 / 64


def test_a_family_of_independent_metrics_raises_a_false_alarm_below_the_stated_rate():
    rng = np.random.default_rng(6)
    anywhere = []
    for _ in range(20):
        tables = [drawn(rng, 4, generations=4) for _ in range(5)]
        table = tables[0].drop(columns="ratio").assign(**{str(i): each["ratio"] for i, each in enumerate(tables)})
        runs = early_warning.alarms(table, list(map(str, range(5))), 0.2 / 5)["alarm"].to_numpy().reshape(5, -1)
        anywhere.append(np.isfinite(runs).any(axis=0).mean())
    mean_is(anywhere, 0.2)


def test_power_is_what_the_docstring_says():
    rng = np.random.default_rng(7)
    for seeds, shift, expected in ((3, 5.0, 0.24), (3, 10.0, 0.43), (5, 5.0, 0.91), (5, 10.0, 1.0)):
        treated, control = rng.normal(size=(2, seeds, 4000, 5))
        level = early_warning.level_of(0.05, 5)
        outside = np.abs(early_warning.band_positions(treated + shift, control, level)) > 1
        mean_is(outside.any(-1).mean(0), expected, slack=0.005)  # the docstring rounds


def test_two_seeds_judge_nothing():
    table = drawn(np.random.default_rng(0), 2)
    found = detection.detection(table, ["ratio"], early_warning.alarms(table, ["ratio"])).iloc[0]
    assert found[["runs", "detected", "false_alarms"]].tolist() == [0, 0, 0]
    assert np.isnan(found[["auc", "p", "p_holm"]].to_numpy(float)).all()
