"""The analysis computes everything once, and its frames are those of the functions that it names."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from run_tables import make_table, noise
from spectral_collapse.analysis import (
    anova,
    correlation,
    detection,
    early_warning,
    forecast,
    report,
    slopes,
    statistics,
)
from spectral_collapse.estimate import Estimate

METRICS = ("held_out_perplexity", "training_loss", "lambda_max", "track_two_drift")
# What a paper shows, and how often it is computed for one: per metric, or for all of them at once.
PER_METRIC = {
    anova: ("repeated_measures_anova",),
    statistics: ("summary", "effect_sizes", "equivalence"),
    slopes: ("slope_tests", "mixed_model"),
    detection: ("separation",),
}
PER_TABLE = {
    early_warning: {"alarms": 3, "lead_summary": 2},
    correlation: dict(within_run_spearman=1, lagged_spearman=1),
}


@pytest.fixture
def table() -> pd.DataFrame:
    columns = {name: make_table(noise(place, (3, 4, 5)))["held_out_perplexity"] for place, name in enumerate(METRICS)}
    return make_table(noise(0, (3, 4, 5))).assign(**columns)


def test_nothing_is_computed_twice(table, monkeypatch):
    calls = Counter()

    def count(module, name):
        function = getattr(module, name)
        for where in (module, report, detection):
            if getattr(where, name, None) is function:
                monkeypatch.setattr(
                    where, name, lambda *args, **kwargs: (calls.update([name]), function(*args, **kwargs))[1]
                )

    for module, names in {**PER_METRIC, **PER_TABLE}.items():
        for name in names:
            count(module, name)
    report.analyse(table)
    assert calls == {name: len(METRICS) for names in PER_METRIC.values() for name in names} | {
        name: times for names in PER_TABLE.values() for name, times in names.items()
    }  # alarms: at the rate of a metric, and at that of either family


def test_frames_have_a_row_for_every_metric_and_what_is_compared(table):
    found = report.analyse(table)
    for frame in (found.means, found.anova, found.paired, found.effect_sizes, found.slopes, found.alarms):
        assert list(frame["metric"].unique()) == list(METRICS)
    assert list(found.leads["metric"].unique()) == ["lambda_max", "track_two_drift"] == found.candidates
    assert list(found.detection["outcome"]) == [False, False, True, True]
    assert list(found.forecasts["metric"].unique()) == ["track_two_drift"]
    one = (
        found.paired[found.paired["metric"] == "lambda_max"].drop(columns=["metric", "verdict"]).reset_index(drop=True)
    )
    pd.testing.assert_frame_equal(one, statistics.paired_tests(table, "lambda_max"))


def test_verdicts_follow_the_adjusted_p(table):
    paired = report.analyse(table).paired
    assert set(paired.loc[paired["p_holm"] >= 0.05, "verdict"]) <= {statistics.SAME}
    moved = table.assign(lambda_max=table["lambda_max"] + 50.0 * (table["condition"] == "recursive"))
    paired = report.analyse(moved).paired.set_index(["metric", "condition"])
    assert paired["verdict"]["lambda_max", "recursive"] == "higher"


def test_without_a_control_or_a_treatment_there_is_nothing_to_compare_or_to_warn_of(table):
    alone = report.analyse(table[table["condition"] == "recursive"])
    assert (
        alone.paired.empty and alone.alarms.empty and alone.leads.empty and len(alone.means) and len(alone.correlations)
    )
    controls = report.analyse(table[table["condition"] != "recursive"])
    assert len(controls.paired) and controls.leads.empty and controls.lagged.empty
    with pytest.raises(ValueError, match="no runs"):
        report.analyse(table.iloc[:0])


def test_the_best_lag_has_the_greatest_correlation(table):
    found = report.analyse(table)
    lagged, best = found.lagged, found.best_lags.set_index("leading")
    rows = lagged[(lagged["leading"] == "lambda_max") & (lagged["following"] == "held_out_perplexity")]
    assert abs(best["rho"]["lambda_max"]) == rows["rho"].abs().max()


def test_last_drifts_are_summed_up_over_runs():
    runs = pd.DataFrame({"condition": "recursive", "track": "track_two", "seed": [1, 2, 3], "generation": 4})
    runs = runs.assign(drift=[-1.0, -2.0, -6.0], standard_error=[0.1, 0.2, 0.3], p_value=[0.2, 0.01, np.nan])
    row = report.drift_summary(pd.concat([runs.assign(generation=3, drift=9.0), runs])).iloc[0]
    assert row[["mean", "low", "high"]].tolist() == pytest.approx(list(Estimate.mean([-1, -2, -6])))
    assert row[["least", "greatest", "error"]].tolist() == [-6, -1, 0.2]
    assert row[["runs", "tested", "moved"]].tolist() == [3, 2, 1]


def test_forecasts_are_summed_up_over_runs(table):
    row = report.analyse(table).forecasts.iloc[0]
    runs = forecast.forecasts(table, "track_two_drift").query("condition == 'recursive'")
    assert row["rate"] == pytest.approx(runs["rate"].mean()) and row["runs"] == 4
    assert row["skill"] == pytest.approx(1 - (runs["model_rmse"] ** 2).sum() / (runs["naive_rmse"] ** 2).sum())
