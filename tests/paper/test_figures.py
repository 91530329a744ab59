"""Pictures of alarms and lags show the numbers they are drawn from."""

import numpy as np
import pandas as pd
from run_tables import stepped
from spectral_collapse.analysis import report
from spectral_collapse.paper import figures


def outcome_table(**shifts: int) -> pd.DataFrame:
    return stepped({"held_out_perplexity": 4, **shifts}).assign(model="llama")


def test_alarms_have_a_row_a_metric_and_a_mark_a_run_sorted_by_alarm():
    analysis = report.analyse(outcome_table(late=5, never=7, first=2))
    axes = figures.alarms(analysis).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Perplexity (held out)", "first", "late", "never"]
    shade = figures.colour("recursive")
    marks = [line.get_xydata() for line in axes.lines if line.get_marker() == "o" and line.get_mfc() == shade]
    marks = pd.DataFrame(np.concatenate(marks), columns=["alarm", "row"]).clip(upper=7)
    for row, name in enumerate(["held_out_perplexity", "first", "late", "never"]):
        treated = analysis.alarms[analysis.alarms["condition"] == "recursive"].set_index("metric")
        found = treated.loc[name, "alarm"].clip(upper=7)
        assert sorted(marks.loc[marks.row == row, "alarm"].round()) == sorted(found)


def test_a_design_that_cannot_be_judged_has_rows_without_marks():
    table = outcome_table(first=2)
    axes = figures.alarms(report.analyse(table[table["seed"] < 2])).axes[0]
    assert len(axes.get_yticks()) == 2
    assert not any(len(line.get_xdata()) for line in axes.lines if line.get_marker() == "o")


def test_lagged_correlations_are_those_of_the_frame():
    analysis = report.analyse(outcome_table(first=2, distinct_2=5))
    figure = figures.lagged_correlations(analysis, ["first", "absent"])
    frame = analysis.lagged.set_index(["leading", "following"])["rho"]
    for axes, second in zip(figure.axes, ["held_out_perplexity", "distinct_2"], strict=False):
        shown = np.asarray(axes.images[0].get_array(), dtype=float)
        np.testing.assert_allclose(shown[0], frame["first", second])


def test_alarms_that_cannot_be_judged_say_so():
    rows = [
        (condition, seed, generation, 1.0 + seed + generation)
        for condition in ("recursive", "fresh")
        for seed in (1, 2)
        for generation in range(3)
    ]
    table = pd.DataFrame(rows, columns=["condition", "seed", "generation", "distinct_2"])
    (axes,) = figures.alarms(report.analyse(table.assign(model="llama"))).axes
    assert "with fewer than three seeds there is no band to judge by" in [text.get_text() for text in axes.texts]
