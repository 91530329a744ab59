"""Control bands and the Icarus detector: planted patterns, and false alarms at the stated rate."""

import math

import numpy as np
import pandas as pd
import pytest
from margins import mean_is, rate_at_most, rate_is
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
        rate_is(inside, level)
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
    for _ in range(200):
        table = series({name: rng.normal(size=(seeds, 3)) for name in rises})
        for name, runs in early_warning.icarus(table, "ratio", level=0.8).groupby("condition"):
            rises[name].append(runs["rise"].mean())
    for by_table in rises.values():  # runs of one table share their control
        mean_is(by_table, 0.1)


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
    assert frame["Condition"].tolist() == ["recursive", "fresh (false alarms)"]
    assert frame["Both"].tolist() == ["4", "0"]


def walks(rng: np.random.Generator, seeds: int, generations: int = 6, names=("recursive", "fresh")) -> dict:
    """Random walks without an effect: the changes of a run that is trained on, generation by generation."""
    return {name: rng.normal(size=(seeds, generations)).cumsum(1) for name in names}


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_without_an_effect_a_run_raises_an_alarm_at_the_stated_rate(seeds):
    rng = np.random.default_rng(seeds)
    independent = rng.normal(size=(2, seeds, 8000, 5))
    level = early_warning.level_of(0.05, 5)
    for changes, least in ((independent, 0.05), (independent.cumsum(-1), 0.035)):
        for judged in changes:  # treated runs, and the control's own
            positions = early_warning.band_positions(judged, changes[1], level)
            by_table = (np.abs(positions) > 1).any(-1).mean(0)  # runs of one table share their control
            mean_is(by_table, (least + 0.05) / 2, slack=(0.05 - least) / 2)


def test_alarms_count_over_the_generations_as_their_level_says():
    rng = np.random.default_rng(0)
    found = {"recursive": [], "fresh": []}
    for _ in range(150):
        changes = {name: rng.normal(size=(4, 6)) * (np.arange(6) > 0) for name in found}
        for name, alarm in early_warning.alarms(series(changes), "ratio", rate=0.3).groupby("condition")["alarm"]:
            found[name].append(np.isfinite(alarm).mean())
    for by_table in found.values():  # runs of one table share their control
        mean_is(by_table, 0.3)


def stepped(shifts: dict[str, int], size: float = 40.0, seeds: int = 6, last: int = 6) -> pd.DataFrame:
    """Metrics whose treated runs leave the control by `size` at a generation of its own, `last + 1`: never."""
    rng = np.random.default_rng(4)
    columns = {}
    for name, at in shifts.items():
        quiet = {condition: rng.normal(size=(seeds, last + 1)) for condition in ("recursive", "fresh")}
        quiet["recursive"][:, at:] -= size
        columns[name] = series(quiet)
    table = next(iter(columns.values())).drop(columns="ratio")
    return table.assign(**{name: frame["ratio"] for name, frame in columns.items()})


def test_a_known_lead_is_recovered_with_its_censoring():
    table = stepped({"first": 2, "outcome": 4, "late": 5, "never": 7})
    found = early_warning.lead_summary(table, ["first", "late", "never"], "outcome", rate=0.01).set_index("metric")
    assert found.loc["first", ["both", "median", "low", "high", "earlier", "later"]].tolist() == [6, 2, 2, 2, 6, 0]
    assert found.loc["late", ["both", "median", "earlier", "later"]].tolist() == [6, -1, 0, 6]
    assert found.loc["never", ["both", "outcome_only", "neither", "later"]].tolist() == [0, 6, 0, 6]
    assert math.isnan(found.loc["never", "median"])
    assert found.loc["never", ["low", "high"]].tolist() == [-math.inf, 4 - 7]
    assert found.p["first"] == 1 / 64 and found.p_holm["first"] == 3 / 64 and found.p["late"] == 1
    alone = early_warning.leads(table, "first", "never", rate=0.01)
    assert alone["low"].tolist() == [7 - 2] * 6 and alone["high"].tolist() == [math.inf] * 6
    neither = early_warning.leads(table, "never", "never", rate=0.01)
    assert neither[["low", "high"]].to_numpy().tolist() == [[-math.inf, math.inf]] * 6


def test_alarms_are_two_sided_and_say_which_side():
    found = early_warning.alarms(stepped({"ratio": 3}), "ratio", rate=0.01).set_index("condition")
    assert found.loc["recursive", "alarm"].tolist() == [3] * 6
    assert found.loc["recursive", "direction"].tolist() == [-1] * 6
    assert (found["score"] > 1).equals(np.isfinite(found["alarm"]))


def test_the_sign_test_of_leads_without_a_lead_errs_at_its_level():
    rng = np.random.default_rng(5)
    ps = []
    for _ in range(100):
        tables = [series(walks(rng, 6)) for _ in range(2)]
        table = tables[0].assign(outcome=tables[1]["ratio"])
        ps.append(early_warning.lead_summary(table, ["ratio"], "outcome", rate=0.5).p[0])
    rate_at_most(np.array(ps) < 0.05, 0.05)


def test_a_metric_that_does_not_vary_never_alarms_and_two_seeds_judge_nothing():
    flat = series({"recursive": np.ones((3, 4)), "fresh": np.ones((3, 4))})
    runs = early_warning.alarms(flat, "ratio")
    assert np.isinf(runs["alarm"]).all() and runs["score"].eq(0).all()
    pair = series(walks(np.random.default_rng(0), 2))
    assert early_warning.alarms(pair, "ratio")["alarm"].isna().all()
    summary = early_warning.lead_summary(pair.assign(outcome=pair["ratio"]), ["ratio"], "outcome").iloc[0]
    assert summary[["both", "metric_only", "outcome_only", "neither", "earlier"]].tolist() == [0] * 5
