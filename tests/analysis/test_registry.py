"""The registry: names that LaTeX and matplotlib set, and a new metric that is one entry and one function."""

import math

from matplotlib.mathtext import MathTextParser
from spectral_collapse.analysis import metrics, report, series
from spectral_collapse.analysis.metrics import Metric
from spectral_collapse.paper import figures, findings, results
from spectral_collapse.record import params


def test_every_entry_is_whole_and_its_label_is_matplotlib_text():
    parser = MathTextParser("path")
    for metric in metrics.METRICS.values():
        parser.parse(metric.label)
        assert metric.description.endswith(".") and metric.stage
    assert metrics.label("tail_coverage") == "Tail coverage" and metrics.label("new_one") == "new one"
    assert set(metrics.OUTCOMES) <= set(metrics.METRICS) and set(metrics.COLLAPSE.values()) == {-1, 1}


def test_columns_are_read_or_computed_and_what_a_result_lacks_is_left_out(monkeypatch):
    twice = Metric("twice", "Twice", "Of a test.", value=lambda r: 2 * r["predictive_entropy"], stage="anchors")
    monkeypatch.setitem(metrics.METRICS, "twice", twice)
    assert metrics.columns("anchors", {"predictive_entropy": 1.5, "other": 1}) == {
        "predictive_entropy": 1.5,
        "twice": 3,
    }


def test_a_new_metric_is_an_entry_and_a_function_and_is_seen_in_table_figure_and_values(monkeypatch):
    """From the records on: nothing but the registry knows it."""
    entry = Metric(
        "story_length", "Length of a story", "Mean number of words.", "words", collapse=-1,
        value=lambda result: result["words_per_text"], stage="evaluation",
    )  # fmt: skip
    monkeypatch.setitem(metrics.METRICS, "story_length", entry)
    settings = params.load("smoke").model_copy(update={"seeds": [1, 2, 3], "generations": 2})

    def records(params, stage, conditions, seeds, **_):
        for condition in params.conditions:
            for seed in params.seeds:
                for generation in range(3):
                    noise = math.sin(5 * seed + 3 * generation)
                    fall = 10 * generation * (condition == "recursive")
                    yield condition, seed, generation, {"held_out_perplexity": 20 + noise, "words_per_text": 90 - fall}

    monkeypatch.setattr(series, "results", records)
    analysis = report.analyse(series.table(settings, stages=("evaluation",)))
    assert "story_length" in analysis.candidates
    assert "Length of a story" in list(results.last_generation(analysis)["Metric"])
    assert "Length of a story" in list(results.early_warnings(analysis)["Metric"])
    titles = [axes.get_title() for axes in figures.series(analysis.table, ["story_length"]).axes]
    assert titles == ["Length of a story"]
    names = [label.get_text() for label in figures.alarms(analysis).axes[0].get_yticklabels()]
    assert names == ["Perplexity (held out)", "Length of a story"]
    assert findings.values(analysis)["diff.story_length.recursive"].startswith("$-20.0$")
