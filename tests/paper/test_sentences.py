"""Each sentence has one rule for each outcome, and reads as a sentence."""

import math

import numpy as np
import pandas as pd
import pytest
from run_tables import make_table
from spectral_collapse.analysis import report
from spectral_collapse.estimate import Estimate
from spectral_collapse.paper import sentences

START = Estimate(16.4, 16.0, 16.8)


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (START, Estimate(23, 22, 24), "rose from 16.4 to 23.0"),
        (START, Estimate(12, 11, 13), "fell from 16.4 to 12.0"),
        (START, Estimate(16.9, 16, 18), "went from 16.4 to 16.9, no further than its error"),
        (Estimate(0, 0, 0), Estimate(-70, -90, -50), "fell to $-70.0$"),
        (Estimate(0, 0, 0), Estimate(1, -2, 4), "went to 1.00, no further than its error"),
        (Estimate(2.0), Estimate(3.0), "rose from 2.00 to 3.00"),  # one run
    ],
)
def test_how_a_mean_moved(first, last, said):
    assert sentences.moved(first, last) == said


def test_the_verdict_decides_what_is_said_of_the_difference():
    last, difference = Estimate(23, 22, 24), Estimate(6.2, 5.1, 7.3)
    said = "rose from 16.4 to 23.0, where the control ended at 16.8; the difference, 6.20 [5.10, 7.30], "
    assert sentences.predicate(START, last, 16.8, difference, "higher") == said + "survives correction"
    assert sentences.predicate(START, last, 16.8, difference, report.SAME) == said + "cannot be told from zero"
    alone = sentences.predicate(START, last, math.nan, Estimate(math.nan), None)
    assert alone == "rose from 16.4 to 23.0; no control has had as many updates"


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
