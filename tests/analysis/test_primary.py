"""Primary hypotheses: planted outcomes are decided either way, and a true null is rejected at the stated rate."""

import math

import numpy as np
import pandas as pd
import pytest
from margins import rate_at_least, rate_at_most
from run_tables import stepped
from spectral_collapse.analysis import early_warning, primary
from spectral_collapse.record import params

NAMES = list(primary.HYPOTHESES)
COLUMNS = ("log_spectral_ratio", "held_out_perplexity", "track_two_drift", "hashed_ngram_hhi", "response_distinct_2")


def profile(names=NAMES, seeds=8):
    return params.load("smoke").model_copy(update={"seeds": list(range(seeds)), "primary": list(names)})


def judged(table, names=NAMES):
    metrics = [name for name in (*COLUMNS, "predictive_entropy") if name in table]
    found = primary.verdicts(profile(names), table, early_warning.alarms(table, metrics, 1e-6))
    return found.set_index("hypothesis")


def planted(**alarms):
    """Tables whose treated runs leave the control at the generation of each metric; 7 is never."""
    return stepped({"predictive_entropy": 7, **{name: 7 for name in COLUMNS}, **alarms}, size=400, seeds=8)


def test_clear_runs_decide_each_hypothesis_for_it_and_against_it():
    early = judged(planted(log_spectral_ratio=1, held_out_perplexity=3, track_two_drift=2, hashed_ngram_hhi=4,
                           response_distinct_2=3, predictive_entropy=2))  # fmt: skip
    assert early["verdict"].tolist() == ["supported"] * 4
    assert early["held"].tolist() == [8] * 4 and early.loc["ratio_falls", "value"] < -300
    late = judged(planted(log_spectral_ratio=2, held_out_perplexity=3, track_two_drift=3, hashed_ngram_hhi=4,
                          response_distinct_2=3, predictive_entropy=3))  # fmt: skip
    assert late.loc[["ratio_warns", "track_two_warns", "entropy_warns"], "verdict"].tolist() == ["contradicted"] * 3


def test_what_never_fires_is_not_judged_and_censored_runs_count_where_they_are_certain():
    quiet = judged(planted())
    assert quiet.loc[["ratio_warns", "entropy_warns"], "verdict"].tolist() == ["not judged"] * 2
    # Perplexity fires after the last generation, 6, or never: a ratio at 5 leads by two at least.
    assert judged(planted(log_spectral_ratio=5)).loc["ratio_warns", ["held", "failed"]].tolist() == [8, 0]
    assert judged(planted(log_spectral_ratio=6)).loc["ratio_warns", ["held", "failed"]].tolist() == [0, 0]


def test_without_a_matched_control_nothing_is_judged():
    table = planted(held_out_perplexity=2)
    weights = np.where(table["condition"] == "fresh", "restart", "carry")
    found = judged(table.assign(weights=weights))
    assert set(found["verdict"]) == {"not judged"} and found["p"].isna().all()


def test_a_true_null_of_the_difference_is_rejected_at_no_more_than_the_level():
    rng, rejected, found = np.random.default_rng(0), [], []
    for shift in [0.0] * 300 + [-2.0] * 100:
        columns = ["condition", "seed", "generation", "log_spectral_ratio"]
        rows = [
            (condition, seed, g, rng.standard_t(3) + shift * (condition == "recursive") * g)
            for condition in ("recursive", "fresh")
            for seed in range(8)
            for g in (0, 1)
        ]
        table = pd.DataFrame(rows, columns=columns)
        row = primary.verdicts(profile(["ratio_falls"]), table, pd.DataFrame()).iloc[0]
        (found if shift else rejected).append(row["p_holm"] < primary.ALPHA)
    rate_at_most(rejected, primary.ALPHA)
    rate_at_least(found, 0.5)


def test_the_least_p_is_attained_and_the_power_of_the_sign_test_is_its_own():
    found = primary.capabilities(profile(seeds=10)).set_index("hypothesis")
    assert found["least_p_holm"].tolist() == [4 * 2.0**-9] * 4
    clear = judged(planted(predictive_entropy=1, held_out_perplexity=3))
    assert clear.loc["entropy_warns", "p"] == 2.0**-7  # eight seeds
    # After correction over four only ten of ten rejects: share^10 = 0.8.
    assert found.loc["entropy_warns", "detectable"] == f"{100 * 0.8**0.1:.0f} % of runs"
    assert primary.capabilities(profile(["entropy_warns"], seeds=4))["detectable"].tolist() == ["none"]


def test_verdicts_of_a_profile_without_hypotheses_are_an_empty_frame():
    found = primary.verdicts(profile([]), planted(), pd.DataFrame())
    assert found.empty and "verdict" in found
    with pytest.raises(ValueError, match="primary: the same entry stands twice"):
        params.load("smoke", primary=["ratio_falls", "ratio_falls"])
    assert math.isinf(early_warning.excursion(1, 5))
