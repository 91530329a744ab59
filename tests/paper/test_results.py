"""Tables of the runs: each shows the numbers of the analysis, and all fit the page."""

import numpy as np
import pandas as pd
import pytest
from run_tables import make_table, noise, series
from spectral_collapse.analysis import metrics, report
from spectral_collapse.paper import findings, formatting, results, tables
from typesetting import T1, typeset

METRICS = [metric.name for metric in metrics.METRICS.values() if metric.stage in metrics.STAGES]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Tidy table with every known metric, the spectral ones over their usual magnitudes."""
    scales = {"lambda_max": 30, "bulk_sigma": 1e-3, "spectral_variance": 1e-6, "effective_rank": 4e4}
    columns = {}
    for place, metric in enumerate(METRICS):
        values = make_table(noise(place, (4, 3, 6)))
        columns[metric] = values.pop("held_out_perplexity") * scales.get(metric, 1)
    return values.assign(**columns)


@pytest.fixture(scope="module")
def analysis(table) -> report.Analysis:
    return report.analyse(table)


def test_every_builder_typesets_within_the_page(tmp_path, analysis):
    few = ["held_out_perplexity", "log_spectral_ratio", "track_two_drift", "spectral_variance"]
    built = {
        "last_generation": results.last_generation(analysis),
        "anova": results.anova(analysis),
        "posthoc": results.posthoc(analysis, few),
        "effect_sizes": results.effect_sizes(analysis, few),
        "correlations": results.correlations(analysis, few[:3], few),
        "equivalence": results.equivalence(analysis, few),
        "slopes": results.slope_tests(analysis, few[:2]),
        "early_warning": results.early_warnings(analysis),
        "leads": results.leads(analysis),
        "published_hessian": tables.published_hessian(),
    }
    for name, frame in built.items():
        tables.write_table(frame, tmp_path / f"{name}.tex")
    values = findings.values(analysis)
    tables.write_values(values, tmp_path / "numbers.tex")
    # Sentences are set in text alone, since a formula of that length cannot be broken.
    shown = {key: "" if key.startswith("says") else rf" $\val{{{key}}}$" for key in values if not key.startswith("rho")}
    every = "\n".join(rf"\val{{{key}}}{formula}" for key, formula in shown.items())
    body = "\n\n".join(rf"\input{{{name}.tex}}" for name in built)
    text = typeset(tmp_path, r"\input{numbers.tex}" + body + r"\par\raggedright " + every, T1)
    assert "65079" in text and "(published)" in text


def test_plus_minus():
    pairs = ((12.345, 0.417), (-1234.5, 345.6), (3.21e-7, 4.5e-8), (5, 0))
    shown = [results._plus_minus(mean, half) for mean, half in pairs]
    assert shown == [r"$12.35\pm0.42$", r"$-1234\pm346$", r"$(3.21\pm0.45)\times10^{-7}$", r"5.00 $\pm$ 0"]


def test_tables_show_the_frames(analysis):
    metric = "held_out_perplexity"

    def rows(frame: pd.DataFrame, key: str = "condition") -> pd.DataFrame:
        return frame[frame["metric"] == metric].set_index(key)

    last = rows(analysis.means).query("generation == 5").loc["static"]
    shown = results.last_generation(analysis)
    assert list(shown.columns) == ["Metric", "recursive", "fresh", "static", "mixed"]
    assert shown.set_index("Metric").loc[tables.label(metric), "static"] == results._plus_minus(
        last["mean"], (last["high"] - last["low"]) / 2
    )
    effects, shown = rows(analysis.anova, "effect"), results.anova(analysis, [metric]).iloc[0]
    assert shown[r"$F_{cg}(12, 24)$"] == effects.F["interaction"]
    assert shown["$p_{c}$"] == formatting.format_p(effects.p["condition"])

    shown = results.posthoc(analysis, [metric])
    assert list(shown["Condition"]) == ["recursive", "static", "mixed"]
    assert list(shown["$t(2)$"]) == list(rows(analysis.paired)["t"])
    sizes, shown = rows(analysis.effect_sizes), results.effect_sizes(analysis, [metric])
    assert shown.iloc[2, 2] == formatting.format_interval(sizes.loc["mixed", ["d_z", "low", "high"]])
    assert list(shown.iloc[0, 3:]) == [sizes.g_z["recursive"], sizes.d_av["recursive"]]
    slopes, shown = rows(analysis.slopes), results.slope_tests(analysis, [metric]).set_index("Condition")
    assert shown.loc["fresh", "Less fresh"] == "--"
    assert shown.loc["mixed", r"$p_{\mathrm{Holm}}$"] == formatting.format_p(slopes.p_holm["mixed"])

    rhos = analysis.correlations.set_index(["metric_a", "metric_b"])["rho"]
    shown = results.correlations(analysis, [metric], [metric, "lambda_max"])
    assert shown.iloc[0, 1] == "--"
    assert shown.iloc[1, 1].startswith(formatting.format_number(rhos[metric, "lambda_max"]))

    found = rows(analysis.detection, "outcome").loc[True]
    shown = results.early_warnings(analysis).set_index("Metric").loc[tables.label(metric)]
    assert shown["Detected"].startswith(f"{found.detected} of 3 [") and shown["AUC"].startswith(f"{found.auc:.2f} [")
    assert shown["$p$"] == formatting.format_p(found.p)
    lead, shown = analysis.leads.iloc[1], results.leads(analysis)
    assert shown["Fired"][1] == f"{lead.both} / {lead.metric_only} / {lead.outcome_only} / {lead.neither}"
    assert set(shown["Outcome"]) == {"Perplexity (held out)", "Training loss"}


def test_what_has_no_control_or_margin_is_not_compared():
    table = make_table(noise(0, (4, 3, 6))).replace({"condition": {"mixed": "recursive_carry"}})
    # A drift is zero at generation 0 and has no margin.
    analysis = report.analyse(table.assign(track_two_drift=table["held_out_perplexity"] * (table["generation"] > 0)))
    for build in (results.posthoc, results.equivalence, results.slope_tests):
        row = build(analysis, ["held_out_perplexity"]).set_index("Condition").loc["recursive, carried"]
        assert "--" in "".join(map(str, row)) or "not tested" in list(row)
    assert set(results.equivalence(analysis)["Metric"]) == {tables.label("held_out_perplexity")}


def test_the_controls_rises_and_falls_are_marked_as_false_alarms():
    quiet = np.random.default_rng(1).normal(0, 0.1, size=(4, 3))
    table = series({"recursive": quiet + np.array([0, 9, -9]), "fresh": quiet})
    frame = results.icarus(report.analyse(table.assign(model="llama").rename(columns={"ratio": "log_spectral_ratio"})))
    assert frame["Condition"].tolist() == ["recursive", "fresh (false alarms)"]
    assert frame["Both"].tolist() == ["4", "0"]
