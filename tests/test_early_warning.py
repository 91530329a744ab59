"""Control bands and the Icarus detector: planted patterns, and false alarms at the stated rate."""

import math

import numpy as np
import pandas as pd
import pytest
from spectral_collapse import early_warning, tables


def series(values: dict[str, np.ndarray]) -> pd.DataFrame:
    """Tidy table from arrays (seeds, generations), one a condition."""
    rows = [
        (condition, seed, generation, value)
        for condition, array in values.items()
        for seed, run in enumerate(array)
        for generation, value in enumerate(run)
    ]
    return pd.DataFrame(rows, columns=["condition", "seed", "generation", "ratio"])


def test_band_holds_one_more_draw_at_its_level():
    rng = np.random.default_rng(0)
    for n, level in ((2, 0.9), (4, 0.95), (9, 0.8)):
        draws = rng.normal(3, 2, size=(4000, n + 1))
        bands = np.array([early_warning.prediction_band(draw[:-1], level) for draw in draws])
        inside = (bands[:, 0] < draws[:, -1]) & (draws[:, -1] < bands[:, 1])
        assert inside.mean() == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 4000))
    assert all(map(math.isnan, early_warning.prediction_band([1.0])))


def test_a_planted_rise_and_fall_is_found_and_its_halves_are_told_apart():
    quiet = np.random.default_rng(1).normal(0, 0.1, size=(6, 4))
    table = series(
        {
            "recursive": quiet + np.array([0, 5, 0, -5]),
            "mixed": quiet + np.array([0, 5, 0, 5]),
            "static": quiet + np.array([0, 0, 0, -5]),
            "fresh": quiet,
        }
    )
    counts = early_warning.icarus_counts(table, "ratio").set_index("condition")
    assert counts.loc["recursive"].tolist() == [6, 6, 6, 6]
    assert counts.loc["mixed"].tolist() == [6, 6, 0, 0]
    assert counts.loc["static"].tolist() == [6, 0, 6, 0]
    assert counts.loc["fresh", "icarus"] == 0


def test_changes_count_and_not_levels():
    quiet = np.random.default_rng(2).normal(0, 0.1, size=(5, 3))
    table = series({"recursive": 100 + quiet, "fresh": quiet})
    assert early_warning.icarus(table, "ratio")[["rise", "fall"]].to_numpy().sum() == 0


@pytest.mark.parametrize("seeds", [3, 5])
def test_without_an_effect_alarms_come_at_the_stated_rate_in_control_and_treatment(seeds):
    rng = np.random.default_rng(seeds)
    rises = {"recursive": [], "fresh": []}
    for _ in range(400):
        table = series({name: rng.normal(size=(seeds, 3)) for name in rises})
        for name, runs in early_warning.icarus(table, "ratio", level=0.8).groupby("condition"):
            rises[name] += runs["rise"].tolist()
    for found in rises.values():
        # Runs of one table share their control, so that fewer than 400 × seeds are independent.
        assert np.mean(found) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 400))


def test_two_control_runs_judge_nothing():
    table = series({"recursive": np.ones((2, 3)), "fresh": np.ones((2, 3))})
    assert early_warning.icarus(table, "ratio")["icarus"].isna().all()
    assert early_warning.icarus_counts(table, "ratio")["runs"].tolist() == [0, 0]


def test_an_absent_control_and_an_incomplete_table_are_refused():
    table = series({"recursive": np.ones((3, 3)), "fresh": np.ones((3, 3))})
    with pytest.raises(ValueError, match="no condition 'static'"):
        early_warning.icarus(table, "ratio", control="static")
    with pytest.raises(ValueError, match="seed"):
        early_warning.icarus(table.drop(index=4), "ratio")


def test_the_table_marks_the_controls_alarms():
    quiet = np.random.default_rng(1).normal(0, 0.1, size=(4, 3))
    frame = tables.icarus(series({"recursive": quiet + np.array([0, 9, -9]), "fresh": quiet}), ["ratio"])
    assert frame["Condition"].tolist() == ["fresh (false alarms)", "recursive"]
    assert frame["Both"].tolist() == ["0", "4"]
