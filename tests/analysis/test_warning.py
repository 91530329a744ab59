"""What a warning is worth: d' against its definition and in simulation, control runs needed, prices of records."""

import math

import numpy as np
import pytest
from margins import rate_at_least
from run_tables import series, stepped
from spectral_collapse.analysis import early_warning, report, warning
from spectral_collapse.paper import figures, findings, results
from spectral_collapse.record import evidence, params


def test_the_distance_is_that_of_the_means_in_deviations_of_the_control_with_an_interval_that_covers():
    rng, covered = np.random.default_rng(1), []
    for _ in range(400):
        base = rng.normal(size=(8, 1))
        treated, fresh = (base + rng.normal(size=(8, 3)) for _ in range(2))
        treated[:, 2] += 4 * math.sqrt(2)  # changes have a variance of 2
        table = series({"recursive": treated, "fresh": fresh})
        row = warning.detection_curve(table, ["ratio"]).set_index("generation").loc[2]
        covered.append(row["low"] < 4 < row["high"])
    rate_at_least(covered, 0.92)
    moved = treated[:, 2] - treated[:, 0], fresh[:, 2] - fresh[:, 0]
    assert row["value"] == pytest.approx((moved[0].mean() - moved[1].mean()) / moved[1].std(ddof=1))


def test_control_runs_that_an_alarm_needs():
    for distance, generations in ((8.0, 6), (4.0, 6), (3.0, 8)):
        runs = warning.runs_needed(distance, generations)
        needed = [early_warning.excursion(int(n), generations) for n in (runs, runs - 1)]
        assert needed[0] <= distance < needed[1]
    assert warning.runs_needed(0.5, 6) == warning.runs_needed(float("nan"), 6) == math.inf


def test_the_table_puts_lead_alarms_distance_and_price_beside_each_other():
    table = stepped({"held_out_perplexity": 3, "predictive_entropy": 1, "distinct_2": 5})
    analysis = report.analyse(table)
    curve = warning.detection_curve(table, ["predictive_entropy", "distinct_2"])
    prices = warning.costs(params.load("tinystories"), ["recursive"], evidence.PACKS).query("metric in @table.columns")
    found = warning.warnings(analysis, curve, prices).set_index("metric")
    assert found["median"].tolist() == [2.0, -2.0] and found.loc["predictive_entropy", "passes"] == 1
    assert found.loc["predictive_entropy", "first"] < -10 and abs(found.loc["distinct_2", "first"]) < 3
    shown = figures.warnings(analysis, found.reset_index())
    assert len(shown.axes[0].collections) > 10
    assert len(results.warnings(found.reset_index())) == 2
    assert findings.finding(analysis) == (
        "held-out perplexity raised an alarm in all 6 recursive runs (median generation 3), anchor entropy in all 6 "
        "(median generation 1), the share of distinct word pairs in all 6 (median generation 5)"
    )


def test_prices_are_those_of_the_records():
    settings = params.load("tinystories")
    prices = warning.costs(settings, ["fresh"], evidence.PACKS).set_index("metric")
    assert prices.loc["held_out_perplexity", "passes"] == 1 < prices.loc["lambda_max", "passes"]
    assert prices.loc["bleu", "seconds"] == prices.loc["rouge_l", "seconds"]
    of_study = warning.costs(params.load("study"), ["fresh"], evidence.PACKS).set_index("metric")["seconds"]
    assert of_study["response_distinct_2"] < of_study["track_two_drift"]
    assert of_study["coherence"] < of_study["prompt_similarity"]
    place = "tinystories/llama-1.6m/fresh/seed_1/generation_1/anchors.json"
    assert evidence.PACKS.record(place)["timing"]["wall_seconds"] > 0


def test_a_run_without_bands_is_said_to_raise_no_alarm():
    assert findings.finding(report.analyse(stepped({"held_out_perplexity": 1}, seeds=2))) == (
        "over so few runs no metric can raise an alarm"
    )
