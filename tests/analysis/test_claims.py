"""Claims: the file is whole, and each verdict follows from where an interval lies."""

import dataclasses
import inspect
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from spectral_collapse.analysis import claims, early_warning
from spectral_collapse.analysis.claims import Claim, Evidence, NotTested
from spectral_collapse.record import paths

COVERAGE = pd.DataFrame(
    {
        "population": "gaussian",
        "m": np.repeat([8, 32], 3),
        "dimensions": np.repeat([8, 32], 3),
        "n_observed": np.tile([400, 1600, 6400], 2),
        "correction": "none",
        "replicates": 2000,
        "mean_error": 0.0,
        "sd_error": np.repeat([1.0, 5.0], 3) / np.tile([20, 40, 80], 2),
        "coverage": [0.2, 0.3, 0.4, 0.1, 0.2, 0.5],
        "coverage_low": [0.19, 0.29, 0.39, 0.09, 0.19, 0.49],
        "coverage_high": [0.21, 0.31, 0.41, 0.11, 0.21, 0.51],
    }
)


def evidence(**metrics: dict[str, list[float]]) -> Evidence:
    """Seeds 1 to 4 and generations 0 to 2: of each metric {condition: the seeds' mean by generation}; seeds differ."""
    rows = []
    conditions = next(iter(metrics.values()))
    for condition in conditions:
        for seed in (1, 2, 3, 4):
            for generation in range(3):
                noise = 0.01 * math.sin(7 * seed + 3 * generation)
                values = {name: means[condition][generation] + noise for name, means in metrics.items()}
                rows.append({"condition": condition, "seed": seed, "generation": generation, **values})
    return Evidence(pd.DataFrame(rows), pd.DataFrame(), COVERAGE)


@dataclasses.dataclass
class Found:
    """What `judge` says of a claim."""

    verdict: str
    reason: str
    quantity: claims.Quantity | None

    @property
    def estimate(self):
        return self.quantity.estimate


def judge(claim: Claim, evidence: Evidence) -> Found:
    return Found(*claims.judge(claim, evidence))


def claim(quantity: str, region: tuple[float, float], **arguments) -> Claim:
    return Claim("one", "A claim.", "a source", "1", quantity, region, arguments)


def test_the_file_has_every_claim_whole_and_its_arguments_fit():
    found = claims.read()
    assert len(found) >= 15
    for one in found:
        inspect.signature(claims.QUANTITIES[one.quantity]).bind(None, **one.arguments)
        assert one.claim.endswith(".") and one.source and one.region[0] < one.region[1]


@pytest.mark.parametrize(
    ("region", "verdict"),
    [
        ((-math.inf, 0), "supported"),
        ((0, math.inf), "contradicted"),
        ((-math.inf, -1), "inconclusive"),
        ((-1.5, -0.5), "supported"),
        ((-0.5, 0.5), "contradicted"),
    ],
)
def test_the_verdict_is_where_the_interval_lies(region, verdict):
    seen = evidence(ratio={"recursive": [5.0, 4.5, 4.0]})
    found = judge(claim("change", region, metric="ratio", conditions=["recursive"]), seen)
    assert found.verdict == verdict
    assert found.estimate.low < -1 < found.estimate.high
    assert (found.quantity.kind, found.quantity.compared) == ("t, 4 seeds", "recursive, since generation 0")


def test_differences_are_paired_and_changes_start_where_they_are_told_to():
    seen = evidence(ratio={"recursive": [5.0, 9.0, 4.0], "fresh": [5.0, 6.0, 5.0]})
    arguments = {"metric": "ratio", "conditions": ["recursive"]}
    spike = judge(claim("difference", (0, math.inf), **arguments, control="fresh", generation=1), seen)
    assert spike.verdict == "supported" and spike.estimate == pytest.approx((3, 3, 3))  # one noise for both
    later = judge(claim("change", (-math.inf, 0), **arguments, first=1), seen)
    assert later.estimate.value == pytest.approx(-5, abs=0.05)


def test_the_first_condition_that_exists_is_taken():
    seen = evidence(ratio={"recursive": [1.0, 2.0, 3.0], "fresh": [1.0, 1.0, 1.0]})
    assert seen.condition(["recursive_carry", "recursive", "fresh"]) == "recursive"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"metric": "ratio", "conditions": ["static"]}, "no static condition"),
        ({"metric": "ratio", "conditions": ["mixed", "static"]}, "no mixed or static condition"),
        ({"metric": "tail", "conditions": ["recursive"]}, "no metric tail"),
        ({"metric": "ratio", "conditions": ["recursive"], "first": 7}, "no generation 7"),
    ],
)
def test_what_the_runs_lack_is_not_tested(arguments, reason):
    found = judge(claim("change", (0, 1), **arguments), evidence(ratio={"recursive": [1.0, 2.0, 3.0]}))
    assert (found.verdict, found.reason) == ("not tested", reason)


def test_recursion_is_named_by_what_the_profiles_weights_do():
    """S1 of a profile that restarts is its `recursive`; S2 is what it has besides, or nothing."""
    seen = evidence(ratio={"recursive": [1.0, 2.0, 3.0]})
    restarts = dataclasses.replace(seen, table=seen.table.assign(weights="restart"))
    assert restarts.condition(["recursive_restart"]) == restarts.condition(["recursive"]) == "recursive"
    for one, name in ((restarts, "recursive_carry"), (seen, "recursive_restart")):
        with pytest.raises(NotTested, match=name):
            one.condition([name])
    both = evidence(ratio={"recursive": [1.0, 2.0, 3.0], "recursive_carry": [1.0, 2.0, 3.0]})
    weights = both.table["condition"].map({"recursive": "restart", "recursive_carry": "carry"})
    both = dataclasses.replace(both, table=both.table.assign(weights=weights))
    assert both.condition(["recursive_carry"]) == "recursive_carry"


def test_one_seed_gives_no_verdict():
    seen = evidence(ratio={"recursive": [1.0, 2.0, 3.0]})
    seen = Evidence(seen.table[seen.table["seed"] == 1], pd.DataFrame(), COVERAGE)
    found = judge(claim("change", (0, 9), metric="ratio", conditions=["recursive"]), seen)
    assert (found.verdict, found.reason) == ("not tested", "no interval")


def test_shares_are_ratios_at_the_last_generation():
    seen = evidence(one={"s2": [0.0, 0.0, -10.0]}, two={"s2": [0.0, 0.0, -1000.0]})
    found = judge(claim("share", (-0.1, 0.1), metric="one", of="two", conditions=["s2"]), seen)
    assert found.verdict == "supported" and found.estimate.value == pytest.approx(0.01, abs=1e-4)


def test_the_error_exponent_of_a_power_law_is_found_and_of_cells_the_hull_is_judged():
    seen = evidence(ratio={"recursive": [1.0, 2.0, 3.0]})
    found = judge(claim("error_exponent", (-0.6, -0.4)), seen)
    # The log RMSE of 2,000 draws has a standard error of 1/√4000, and the slope over log 1, log 4, log 16 follows.
    half = stats.norm.isf(0.025) / math.sqrt(4000) / (math.log(4) * math.sqrt(2))
    assert found.estimate == pytest.approx((-0.5, -0.5 - half, -0.5 + half))
    assert found.verdict == "supported" and found.quantity.kind == "hull of 2 Monte Carlo intervals"
    found = judge(claim("coverage", (0.9, 1.0)), seen)
    assert found.verdict == "contradicted" and found.estimate[1:] == (0.09, 0.51)
    assert found.quantity.kind == "hull of 6 Wilson intervals"


def test_an_asymptotic_statement_is_not_judged_where_its_premise_fails():
    seen = dataclasses.replace(evidence(ratio={"recursive": [1.0, 2.0, 3.0]}), coverage=COVERAGE.assign(dimensions=640))
    found = judge(claim("error_exponent", (-0.6, -0.4)), seen)
    assert found.verdict == "not tested" and "ten embeddings a dimension" in found.reason


def test_what_carries_weights_is_held_against_a_control_that_does():
    """Not against one that had a fraction of its updates; where there is none the next condition is taken."""
    means = {"recursive_carry": [0.0, -5.0, -9.0], "recursive": [0.0, -2.0, -3.0], "fresh": [0.0, -1.0, -1.0]}
    arguments = {"metric": "track_two_drift", "conditions": ["recursive_carry", "recursive"], "control": "fresh"}
    found = judge(claim("difference", (-math.inf, 0), **arguments), evidence(track_two_drift=means))
    assert found.quantity.compared == "recursive less fresh"
    assert found.estimate.value == pytest.approx(-2, abs=0.05)
    own = evidence(track_two_drift=means | {"fresh_carry": [0.0, -1.0, -2.0]})
    found = judge(claim("difference", (-math.inf, 0), **arguments), own)
    assert found.quantity.compared == "recursive, carried less fresh, carried"
    alone = evidence(track_two_drift={name: means[name] for name in ("recursive_carry", "fresh")})
    found = judge(claim("difference", (-math.inf, 0), **arguments), alone)
    assert (found.verdict, found.reason) == ("not tested", "no fresh condition with as many updates")


def test_the_settings_are_those_of_the_profile_or_of_their_own_runs():
    means = {"recursive_carry": [0.0, -5.0, -9.0], "recursive_restart": [0.0, -2.0, -3.0]}
    found = judge(claim("settings", (-math.inf, 0), track="track_two"), evidence(track_two_drift=means))
    assert found.estimate.value == pytest.approx(-6, abs=0.05) and found.quantity.compared == "S2 less S1"
    own = pd.DataFrame({"track_two": [-30.0] * 3})
    lone = evidence(track_two_drift={"recursive": [0.0, -2.0, -3.0]})
    found = judge(claim("settings", (-math.inf, 0), track="track_two"), dataclasses.replace(lone, settings=own))
    assert found.estimate == (-30, -30, -30) and "their own runs" in found.quantity.compared
    assert judge(claim("settings", (-math.inf, 0), track="track_two"), lone).verdict == "not tested"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {id: a, claim: c, source: s, figure: f, quantity: change}", "claim 'a' has no region"),
        ("- {id: a, claim: c, source: s, figure: f, quantity: wish, region: [0, 1]}", "claim 'a' asks for 'wish'"),
        (2 * "- {id: a, claim: c, source: s, figure: f, quantity: coverage, region: [0, 1]}\n", "'a' stands twice"),
    ],
)
def test_a_broken_row_is_named(tmp_path, text, message):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        claims.read(path)


def test_all_claims_are_judged_on_the_committed_file():
    assert claims.CLAIMS == paths.PUBLISHED / "claims.yaml"
    seen = evidence(training_loss={"recursive": [3.0, 2.0, 1.0], "fresh": [3.0, 2.5, 2.4]})
    found = claims.verdicts(seen).set_index("id")
    assert found.verdict["loss_improves"] == "supported" and found.value["loss_improves"] < 0
    assert found.reason["ratio_below_baseline"] == "no metric log_published_ratio"
    assert np.isnan(found.value["ratio_below_baseline"]) and set(found.verdict) <= set(claims.VERDICTS)


@pytest.mark.parametrize(
    ("late", "seeds", "verdict", "ends"),
    [
        (3, 6, "supported", (2, 2, 2)),
        (2, 6, "contradicted", (1, 1, 1)),
        (None, 6, "supported", (math.nan, 4, math.inf)),
        (3, 5, "inconclusive", (2, 2, 2)),  # the range of five runs covers 94 %
    ],
)
def test_a_lead_is_the_range_over_runs_with_censored_ones_at_their_bounds(late, seeds, verdict, ends):
    rows = []
    for seed in range(1, seeds + 1):
        for condition in ("recursive", "fresh"):
            for generation in range(5):
                noise = 0.1 * math.sin(11 * seed + 5 * generation) * (generation > 0)
                treated = condition == "recursive"
                early = 50.0 * (treated and generation >= 1)
                outcome = 50.0 * (treated and late is not None and generation >= late)
                rows.append((condition, seed, generation, early + noise, outcome + noise))
    names = ["condition", "seed", "generation", "ratio", "held_out_perplexity"]
    table = pd.DataFrame(rows, columns=names)
    seen = Evidence(table, early_warning.alarms(table, names[3:]), COVERAGE)
    arguments = {"metric": "ratio", "outcome": "held_out_perplexity", "conditions": ["recursive"]}
    found = judge(claim("lead", (2, math.inf), **arguments), seen)
    assert found.verdict == verdict
    assert found.estimate == pytest.approx(ends, nan_ok=True)
    assert found.quantity.kind == f"range of {seeds} runs, covers {100 * (1 - 2 ** (1 - seeds)):.0f} %"
    assert bool(found.reason) == (seeds == 5)
