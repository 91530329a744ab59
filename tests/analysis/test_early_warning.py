"""Control bands and the Icarus detector: planted patterns, and false alarms at the stated rate."""

import math

import numpy as np
import pandas as pd
import pytest
from margins import mean_is, rate_at_most, rate_is
from run_tables import series, stepped
from spectral_collapse.analysis import early_warning


def leads(table: pd.DataFrame, metric: str, outcome: str, rate: float) -> pd.DataFrame:
    found = early_warning.alarms(table, list(dict.fromkeys([metric, outcome])), rate)
    return early_warning.leads(found, metric, outcome, table["generation"].unique())


def lead_summary(table: pd.DataFrame, metrics: list[str], outcome: str, rate: float = 0.05) -> pd.DataFrame:
    found = early_warning.alarms(table, [*metrics, outcome], rate)
    return early_warning.lead_summary(found, metrics, outcome, table["generation"].unique())


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
    for _ in range(80):
        table = series({name: rng.normal(size=(seeds, 3)) for name in rises})
        for name, runs in early_warning.icarus(table, "ratio", level=0.8).groupby("condition"):
            rises[name].append(runs["rise"].mean())
    for found in rises.values():
        mean_is(found, 0.1)


def test_two_control_runs_judge_nothing():
    table = series({"recursive": np.ones((2, 3)), "fresh": np.ones((2, 3))})
    assert early_warning.icarus(table, "ratio")["icarus"].isna().all()
    assert early_warning.icarus_counts(table, "ratio")["runs"].tolist() == [0, 0]


def test_an_absent_control_and_an_incomplete_table_are_refused():
    table = series({"recursive": np.ones((3, 3)), "fresh": np.ones((3, 3))})
    with pytest.raises(ValueError, match="Control 'fresh' is not among"):
        early_warning.icarus(table[table["condition"] != "fresh"], "ratio")
    with pytest.raises(ValueError, match="seed"):
        early_warning.icarus(table.drop(index=4), "ratio")


def walks(rng: np.random.Generator, seeds: int, generations: int = 6, names=("recursive", "fresh")) -> dict:
    """Random walks without an effect: the changes of a run that is trained on, generation by generation."""
    return {name: rng.normal(size=(seeds, generations)).cumsum(1) for name in names}


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_without_an_effect_a_run_raises_an_alarm_at_the_stated_rate(seeds):
    rng = np.random.default_rng(seeds)
    independent = rng.normal(size=(2, seeds, 8000, 5))
    level = early_warning.level_of(0.05, 5)
    for changes, rate, slack in ((independent, 0.05, 0.0), (independent.cumsum(-1), 0.043, 0.01)):
        for judged in changes:  # treated runs, and the control's own
            positions = early_warning.band_positions(judged, changes[1], level)
            mean_is((np.abs(positions) > 1).any(-1).mean(0), rate, slack)  # runs of one table share their control


def test_alarms_count_over_the_generations_as_their_level_says():
    rng = np.random.default_rng(0)
    found = {"recursive": [], "fresh": []}
    for _ in range(60):
        changes = {name: rng.normal(size=(4, 6)) * (np.arange(6) > 0) for name in found}
        for name, alarm in early_warning.alarms(series(changes), ["ratio"], rate=0.3).groupby("condition")["alarm"]:
            found[name].append(np.isfinite(alarm).mean())
    for alarm in found.values():
        mean_is(alarm, 0.3)


def test_a_known_lead_is_recovered_with_its_censoring():
    table = stepped({"first": 2, "outcome": 4, "late": 5, "never": 7})
    found = lead_summary(table, ["first", "late", "never"], "outcome", rate=0.01).set_index("metric")
    assert found.loc["first", ["both", "median", "low", "high", "earlier", "later"]].tolist() == [6, 2, 2, 2, 6, 0]
    assert found.loc["late", ["both", "median", "earlier", "later"]].tolist() == [6, -1, 0, 6]
    assert found.loc["never", ["both", "outcome_only", "neither", "later"]].tolist() == [0, 6, 0, 6]
    assert math.isnan(found.loc["never", "median"])
    assert found.loc["never", ["low", "high"]].tolist() == [-math.inf, 4 - 7]
    assert found.p["first"] == 1 / 64 and found.p_holm["first"] == 3 / 64 and found.p["late"] == 1
    alone = leads(table, "first", "never", rate=0.01)
    assert alone["low"].tolist() == [7 - 2] * 6 and alone["high"].tolist() == [math.inf] * 6
    neither = leads(table, "never", "never", rate=0.01)
    assert neither[["low", "high"]].to_numpy().tolist() == [[-math.inf, math.inf]] * 6


def test_alarms_are_two_sided_and_say_which_side():
    found = early_warning.alarms(stepped({"ratio": 3}), ["ratio"], rate=0.01).set_index("condition")
    assert found.loc["recursive", "alarm"].tolist() == [3] * 6
    assert found.loc["recursive", "direction"].tolist() == [-1] * 6
    assert (found["score"] > 1).equals(np.isfinite(found["alarm"]))


def test_the_sign_test_of_leads_without_a_lead_errs_at_its_level():
    rng = np.random.default_rng(5)
    ps = []
    for _ in range(50):
        tables = [series(walks(rng, 6)) for _ in range(2)]
        table = tables[0].assign(outcome=tables[1]["ratio"])
        ps.append(lead_summary(table, ["ratio"], "outcome", rate=0.5).p[0])
    rate_at_most(np.array(ps) < 0.05, 0.05)


def test_a_metric_that_does_not_vary_never_alarms_and_two_seeds_judge_nothing():
    flat = series({"recursive": np.ones((3, 4)), "fresh": np.ones((3, 4))})
    runs = early_warning.alarms(flat, ["ratio"])
    assert np.isinf(runs["alarm"]).all() and runs["score"].eq(0).all()
    pair = series(walks(np.random.default_rng(0), 2))
    assert early_warning.alarms(pair, ["ratio"])["alarm"].isna().all()
    summary = lead_summary(pair.assign(outcome=pair["ratio"]), ["ratio"], "outcome").iloc[0]
    assert summary[["both", "metric_only", "outcome_only", "neither", "earlier"]].tolist() == [0] * 5


def labelled(table: pd.DataFrame, generations: list[int]) -> pd.DataFrame:
    """The table's generations 0, 1, 2, … under other numbers."""
    return table.assign(generation=table["generation"].map(dict(enumerate(generations))))


def test_alarms_and_leads_are_in_the_generations_of_the_table():
    """Measured at 0, 2, 5, 6, 7, 9 and 12: an alarm at the third of them is one of generation 5."""
    numbers = [0, 2, 5, 6, 7, 9, 12]
    table = labelled(stepped({"ratio": 2, "outcome": 4, "never": 7}), numbers)
    found = early_warning.alarms(table, ["ratio"], rate=0.01).set_index("condition")["alarm"]
    assert found["recursive"].tolist() == [5] * 6
    assert leads(table, "ratio", "outcome", rate=0.01)["low"].tolist() == [7 - 5] * 6
    assert leads(table, "never", "outcome", rate=0.01)["high"].tolist() == [7 - 13] * 6
    short = labelled(stepped({"ratio": 2}, last=2), [0, 2, 5])
    assert early_warning.alarms(short, ["ratio"], rate=0.01)["alarm"].tolist()[:6] == [5] * 6
    assert early_warning.icarus(short, "ratio")["icarus"].isna().all()  # there is no generation 1


@pytest.mark.parametrize("mean", [0.3, 1.0, 4.0])
def test_a_metric_that_counts_raises_false_alarms_no_more_often_than_stated(mean):
    """With three control seeds a band rests on two runs, which often tie where a metric counts: it has no width."""
    rng = np.random.default_rng(int(10 * mean))
    alarms = []
    for _ in range(60):
        counts = {name: rng.poisson(mean, size=(3, 6)).astype(float) for name in ("recursive", "fresh")}
        table = series({name: runs * (np.arange(6) > 0) for name, runs in counts.items()})
        alarms.append(np.isfinite(early_warning.alarms(table, ["ratio"])["alarm"]).any())
    rate_at_most(alarms, 6 * 0.05)  # any of a table's six runs


def test_a_band_without_width_leaves_a_run_open_unless_the_run_ties_too():
    tied = np.zeros((4, 4))
    moved = tied + np.array([0, 0, 3, 3])
    found = early_warning.alarms(series({"recursive": moved, "fresh": tied}), ["ratio"]).set_index("condition")
    assert found.loc["recursive", "alarm"].isna().all() and np.isinf(found.loc["fresh", "alarm"]).all()
    wide = tied + 0.1 * np.random.default_rng(0).normal(size=(4, 1)) * (np.arange(4) == 1)
    early = early_warning.alarms(series({"recursive": moved + 9 * (np.arange(4) == 1), "fresh": wide}), ["ratio"])
    assert early.set_index("condition").loc["recursive", "alarm"].tolist() == [1] * 4  # before any band without width


def test_a_condition_without_a_control_of_its_weights_raises_no_alarm():
    quiet = np.random.default_rng(1).normal(0, 0.1, size=(4, 3))
    table = series({"recursive": quiet, "recursive_carry": quiet + np.array([0, 9, -9]), "fresh": quiet})
    found = early_warning.alarms(table, ["ratio"]).set_index("condition")["alarm"]
    assert found["recursive_carry"].isna().all() and np.isinf(found["recursive"]).all()
    assert early_warning.icarus_counts(table, "ratio").set_index("condition")["runs"].to_dict() == {
        "recursive": 4, "recursive_carry": 0, "fresh": 4,
    }  # fmt: skip


def test_without_generation_zero_there_is_no_change_to_judge():
    table = series({"recursive": np.ones((3, 3)), "fresh": np.ones((3, 3))})
    with pytest.raises(ValueError, match="no generation 0"):
        early_warning.alarms(table[table.generation > 0], ["ratio"])


@pytest.mark.parametrize(
    ("p", "p_holm", "word"), [(0.01, 0.04, "earlier"), (0.01, 0.2, "earlier before correction, not after")]
)
def test_the_verdict_on_a_lead_follows_the_adjusted_p(p, p_holm, word):
    assert early_warning.lead_verdict(p, p_holm) == word
    assert early_warning.lead_verdict(0.2, 0.2) == early_warning.NO_LEAD
