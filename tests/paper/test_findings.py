"""The paper's numbers: every key, and words that follow the tests."""

import itertools

import numpy as np
import pandas as pd
from run_tables import METRIC, make_table, noise
from spectral_collapse.analysis import anova, report, statistics
from spectral_collapse.estimate import Estimate
from spectral_collapse.paper import findings, formatting, tables


def values_of(table: pd.DataFrame) -> dict[str, str]:
    return findings.values(report.analyse(table))


def test_values_hold_every_key_and_the_right_words():
    rng = np.random.default_rng(3)
    first = rng.normal(10, 0.1, (4, 3, 6))
    first[:, :, 0] = first[:1, :, 0]
    first[0] += np.arange(6)
    first[2, :, 5] -= 4
    first[3] = first[1] + rng.normal(0, 0.1, (3, 6))
    table = make_table(first).assign(lambda_max=lambda t: t[METRIC] * 2, empty=np.nan, model="llama_1m")
    text = values_of(table)
    assert text["seeds"] == "3" and text["generations"] == "5" and text["model"] == r"llama\_1m"
    assert (text["detectable.d"], text["detectable.tests"], text["detectable.single"]) == ("5.67", "3", "3.26")
    assert not any("empty" in key for key in text)
    words = [text[f"word.held_out_perplexity.{condition}"] for condition in ("recursive", "static", "mixed")]
    assert words == ["higher", "lower", "not distinguishable"]
    assert "word.held_out_perplexity.fresh" not in text
    assert text["held_out_perplexity.recursive.peak_generation"] == "5"
    mean, low, high = Estimate.mean(first[0, :, 5])
    assert text["held_out_perplexity.recursive.last"] == f"{mean:.1f} [{low:.1f}, {high:.1f}]"
    assert text["rho.lambda_max.held_out_perplexity"] == "1.00 [1.00, 1.00]"
    effect = statistics.cohen_d(2 * first[0, :, 5], 2 * first[1, :, 5]).d_z
    assert text["d.lambda_max.recursive"] == formatting.format_interval(effect)
    for effect, figure in itertools.product(anova.EFFECTS, ("F", "p", "eta")):
        assert f"anova.lambda_max.{effect}.{figure}" in text
    assert {"diff.lambda_max.static", "lambda_max.mixed.first"} <= text.keys()


def test_the_verdict_follows_the_adjusted_p():
    candidates = (make_table(noise(seed, (4, 4, 2))) for seed in range(100))
    rows = ((table, statistics.paired_tests(table, METRIC).iloc[0]) for table in candidates)
    table, row = next((table, row) for table, row in rows if row.p < 0.05 < row.p_holm)
    assert values_of(table)[f"word.{METRIC}.{row.condition}"] == "not distinguishable"


def test_values_of_a_minimal_and_of_a_constant_design():
    small = make_table(noise(10, (1, 2, 2)))  # one condition, two seeds, one generation after the base model
    text = values_of(small)
    assert text["anova.held_out_perplexity.interaction.p"] == "--"
    assert not any(key.startswith(("d.", "word.")) for key in text)
    constant = values_of(make_table(np.ones((4, 3, 6))))
    assert constant["word.held_out_perplexity.recursive"] == "not distinguishable"
    assert constant["d.held_out_perplexity.recursive"] == "-- [--, --]"


def test_values_of_alarms_and_leads():
    rng = np.random.default_rng(2)
    values = {name: rng.normal(20, 0.1, (2, 6, 6)) for name in (METRIC, "training_loss", "lambda_max")}
    for name, at in ((METRIC, 4), ("lambda_max", 2)):
        values[name][0, :, at:] += 20
    table = make_table(values[METRIC]).assign(**{n: make_table(v)[METRIC] for n, v in values.items() if n != METRIC})
    text = values_of(table)
    assert text["alarm.metrics"] == "1" and text["alarm.rate"] == r"5.0\,\%"
    assert text["alarm.lambda_max.detected"] == "6 of 6"
    assert text[f"lead.lambda_max.{METRIC}.median"] == "2"
    assert text[f"word.lead.lambda_max.{METRIC}"] == "earlier"
    assert (text["lead.least.p"], text["lead.least.p_holm"]) == ("0.016", "0.016") and "lead.impossible" not in text
    assert text[f"lead.{METRIC}.always"] == tables.label("lambda_max")
    assert {"slope.lambda_max.fresh", "equal.lambda_max.recursive"} <= text.keys()
    assert report.analyse(table).candidates == ["lambda_max"]
    still = values_of(table.assign(lambda_max=values["lambda_max"][1, 0, 0]))
    assert still[f"lead.lambda_max.{METRIC}.both"] == "0" and f"lead.lambda_max.{METRIC}.median" not in still


def test_a_lead_that_no_data_could_show_is_said_to_be_impossible():
    """Three runs: the sign test's least p is 1/8, and three metrics make 3/8 of it."""
    rng = np.random.default_rng(2)
    values = {name: rng.normal(20, 0.1, (2, 3, 4)) for name in (METRIC, "lambda_max", "bulk_sigma", "slot_kl")}
    table = make_table(values[METRIC]).assign(**{n: make_table(v)[METRIC] for n, v in values.items() if n != METRIC})
    text = values_of(table)
    assert (text["lead.least.p"], text["lead.least.p_holm"], text["lead.impossible"]) == ("0.125", "0.375", "yes")


def test_a_condition_without_a_control_of_its_weights_has_no_word_of_comparison():
    table = make_table(noise(1, (3, 3, 4)))
    table["condition"] = table["condition"].replace("static", "recursive_carry")
    text = values_of(table)
    assert text[f"word.{METRIC}.recursive_carry"] == text[f"equal.{METRIC}.recursive_carry"] == findings.UNMATCHED
    assert f"d.{METRIC}.recursive_carry" not in text
    assert f"diff.{METRIC}.recursive_carry" not in text and text["detectable.tests"] == "1"
