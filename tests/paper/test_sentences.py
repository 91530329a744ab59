"""Each sentence has one rule for each outcome, and reads as a sentence."""

import math

import numpy as np
import pandas as pd
import pytest
from run_tables import make_table
from spectral_collapse.analysis import report
from spectral_collapse.analysis.statistics import SAME
from spectral_collapse.estimate import Estimate
from spectral_collapse.paper import sentences


@pytest.mark.parametrize(
    ("first", "last", "change", "said"),
    [
        (16.4, 23, Estimate(6.6, 6, 7), "rose from 16.4 to 23.0"),
        (16.4, 12, Estimate(-4.4, -5, -4), "fell from 16.4 to 12.0"),
        (16.4, 16.9, Estimate(0.5, -1, 2), "went from 16.4 to 16.9, no further than its error"),
        (0, -70, Estimate(-70, -90, -50), "fell to $-70.0$"),
        (0, 1, Estimate(1, -2, 4), "went to 1.00, no further than its error"),
        (2, 3, Estimate(1.0), "rose from 2.00 to 3.00"),  # one run
    ],
)
def test_how_a_mean_moved(first, last, change, said):
    assert sentences.moved(first, last, change) == said


def test_the_verdict_decides_what_is_said_of_the_difference():
    movement, difference = "rose from 16.4 to 23.0", Estimate(6.2, 5.1, 7.3)
    said = f"{movement}, where the control ended at 16.8; the difference, 6.20 [5.10, 7.30], "
    assert sentences.predicate(movement, 16.8, difference, "higher") == said + "survives correction"
    assert sentences.predicate(movement, 16.8, difference, SAME) == said + "cannot be told from zero"
    alone = sentences.predicate(movement, math.nan, Estimate(math.nan), None)
    assert alone == "rose from 16.4 to 23.0; no control has had as many updates"
    assert sentences.uncorrected(difference) == "a difference whose interval excludes zero"
    assert sentences.uncorrected(Estimate(1, -1, 3)) == "a difference that cannot be told from zero"


def test_a_change_is_judged_by_its_pairs_and_not_by_the_spread_of_the_ends():
    rng = np.random.default_rng(1)
    offsets = rng.normal(10, 3, 6)[:, None]
    risen = offsets + np.array([0, 0.5, 1]) + rng.normal(0, 0.01, (6, 3))
    values = np.stack([risen, np.repeat(offsets, 3, 1)])
    found = sentences.predicates(report.analyse(make_table(values)))["says.held_out_perplexity.recursive"]
    assert found.startswith("rose from ")


def test_every_metric_and_condition_of_an_analysis_has_its_predicate():
    rng = np.random.default_rng(0)
    values = 10 + rng.normal(0, 0.01, (2, 5, 3))
    values[0, :, 1:] += 5
    values[:, :, 0] = values[:1, :, 0]
    found = sentences.predicates(report.analyse(make_table(values)))
    assert list(found) == ["says.held_out_perplexity.recursive"]
    assert found["says.held_out_perplexity.recursive"].startswith(
        "rose from 10.0 to 15.0, where the control ended at 10"
    )
    assert found["says.held_out_perplexity.recursive"].endswith("survives correction")


def test_lists_and_primary_verdicts():
    assert [sentences.listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "none", "a", "a and b", "a, b and c",
    ]  # fmt: skip
    verdicts = pd.DataFrame(
        {
            "statement": ["the ratio warns", "Track II warns", "entropy falls"],
            "verdict": ["contradicted", "supported", "contradicted"],
        }
    )
    assert sentences.decided(verdicts) == (
        "supported is that Track II warns; contradicted are that the ratio warns and that entropy falls"
    )
