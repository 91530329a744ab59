"""Tables and numbers: what is written, what survives LaTeX, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.mathtext import MathTextParser
from run_tables import make_table, noise
from spectral_collapse.analysis import anova, correlation, detection, early_warning, mechanism, slopes, statistics
from spectral_collapse.paper import findings, formatting, tables
from spectral_collapse.paper.tables import Number, Raw
from typesetting import T1, typeset

# What the tables of the runs show; the mechanism has tables of its own.
METRICS = [name for name in tables.LABELS if name not in mechanism.QUANTITIES]
# What goes in, and what a reader of the PDF must see.
NASTY = {
    r"\input{secret} \end{tabular}": r"\input{secret} \end{tabular}",
    "100% of A&B cost $5 #1 a_b x^2 ~ {open": "100% of A&B cost $5 #1 a_b x^2 ~ {open",
    "back`tick, dash--dash---dash, <tag> |bar|": "back`tick, dash--dash---dash, <tag> |bar|",
    "?`so ,, don't": "?`so ,, don’t",
    "[2em] starts a row": "[2em] starts a row",
    "*[1em] starts another": "*[1em] starts another",
    "café “naïve” – Łódź, Žižkov": "café “naïve” – Łódź, Žižkov",
    "cafe\u0301 and 中 and \U0001f600 and \x07": "café and U+4E2D and U+1F600 and U+0007",
    "two\n\nlines\tand \\\\ a break": r"two lines and \\ a break",
}


@pytest.fixture
def table() -> pd.DataFrame:
    """Tidy table with every known metric, the spectral ones over their usual magnitudes."""
    scales = {"lambda_max": 30, "bulk_sigma": 1e-3, "spectral_variance": 1e-6, "effective_rank": 4e4}
    metrics = {}
    for place, metric in enumerate(METRICS):
        values = make_table(noise(place, (4, 3, 6)))
        metrics[metric] = values.pop("held_out_perplexity") * scales.get(metric, 1)
    return values.assign(**metrics)


def test_any_text_survives_typesetting(tmp_path):
    frame = pd.DataFrame({"text": NASTY.keys(), "a_b": range(len(NASTY))})
    tables.write_table(frame, tmp_path / "nasty.tex")
    text = typeset(tmp_path, r"\input{nasty.tex}", T1)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "text a_b" in lines
    for place, expected in enumerate(NASTY.values()):
        assert f"{expected} {place}" in lines


@pytest.mark.parametrize("fonts", ["", T1])
def test_every_character_taken_for_granted_has_a_glyph(tmp_path, fonts):
    plain = [chr(code) for code in range(0xA1, 0x2200) if formatting.escape(chr(code)) == chr(code)]
    assert len(plain) > 200 and "é" in plain and "—" in plain
    values = {"all": " ".join(plain), "nasty": formatting.escape(" ".join(NASTY))}
    tables.write_values(values, tmp_path / "numbers.tex")
    typeset(tmp_path, r"\raggedright\input{numbers.tex}\val{all} \val{nasty}", fonts)


def test_every_builder_typesets_within_the_page(tmp_path, table):
    few = ["held_out_perplexity", "log_spectral_ratio", "track_two_drift", "spectral_variance"]
    built = {
        "last_generation": tables.last_generation(table),
        "anova": tables.anova(table),
        "posthoc": tables.posthoc(table, few),
        "effect_sizes": tables.effect_sizes(table, few),
        "correlations": tables.correlations(table, few[:3]),
        "equivalence": tables.equivalence(table, few),
        "slopes": tables.slope_tests(table, few[:2]),
        "early_warning": tables.early_warnings(table),
        "leads": tables.leads(table, few[1:]),
        "published_hessian": tables.published_hessian(),
    }
    for name, frame in built.items():
        tables.write_table(frame, tmp_path / f"{name}.tex")
    values = findings.values(table)
    tables.write_values(values, tmp_path / "numbers.tex")
    every = "\n".join(rf"\val{{{key}}} $\val{{{key}}}$" for key in values if not key.startswith("rho"))
    body = "\n\n".join(rf"\input{{{name}.tex}}" for name in built)
    text = typeset(tmp_path, r"\input{numbers.tex}" + body + r"\par\raggedright " + every, T1)
    assert "65079" in text and "(published)" in text


def test_plus_minus():
    pairs = ((12.345, 0.417), (-1234.5, 345.6), (3.21e-7, 4.5e-8), (5, 0))
    shown = [tables._plus_minus(mean, half) for mean, half in pairs]
    assert shown == [r"$12.35\pm0.42$", r"$-1234\pm346$", r"$(3.21\pm0.45)\times10^{-7}$", r"5.00 $\pm$ 0"]


def test_builders_report_the_statistics(table):
    metric = "held_out_perplexity"
    cell = statistics.summary(table, metric).query("condition == 'static' and generation == 5").iloc[0]
    shown = tables.last_generation(table, [metric])
    assert shown.loc[0, "static"] == tables._plus_minus(cell["mean"], (cell["high"] - cell["low"]) / 2)
    assert list(shown.columns) == ["Metric", "recursive", "fresh", "static", "mixed"]

    effects = anova.repeated_measures_anova(table, metric).set_index("effect")
    shown = tables.anova(table, [metric]).iloc[0]
    assert shown[r"$F_{cg}(12, 24)$"] == effects.F["interaction"]
    assert shown["$p_{c}$"] == formatting.format_p(effects.p["condition"])

    shown = tables.posthoc(table, [metric])
    assert list(shown["Condition"]) == ["recursive", "static", "mixed"]
    assert list(shown["$t(2)$"]) == list(statistics.paired_tests(table, metric)["t"])
    shown = tables.effect_sizes(table, [metric])
    sizes = statistics.effect_sizes(table, metric)
    assert shown.iloc[2, 2] == formatting.format_interval(sizes["mixed"].d_z)
    assert list(shown.iloc[0, 3:]) == [sizes["recursive"].g_z, sizes["recursive"].d_av]

    unmatched = table.replace({"condition": {"mixed": "recursive_carry"}})
    for build in (tables.posthoc, tables.equivalence, tables.slope_tests):
        row = build(unmatched, [metric]).set_index("Condition").loc["recursive_carry"]
        assert "--" in "".join(map(str, row)) or "not tested" in list(row)

    shown = tables.correlations(table, [metric], [metric, "lambda_max"])
    rho = correlation.within_run_spearman(table, [metric, "lambda_max"]).iloc[0]
    assert shown.iloc[0, 1] == "--"
    assert shown.iloc[1, 1].startswith(formatting.format_number(rho["rho"]))


def test_published_figures_are_copied_digit_for_digit():
    shown = tables.published_hessian()
    assert list(shown.iloc[1]) == ["1", "65079", "26728", "156", "3.38", "3.48"]
    assert list(shown.iloc[3, 4:]) == ["1.20", "2.10"]
    assert all("(published)" in heading for heading in shown.columns[1:])


def test_layout_of_a_table(tmp_path):
    cells = {"name": ["a_1", None], "x": [1.5, np.nan], "n": [-2, 3], "p": [Number("$<0.001$"), Number("1")]}
    frame = pd.DataFrame(cells, dtype=object)
    columns = {"name": "Name", "p": Raw("$p$"), "n": "n", "x": "x_y"}
    tables.write_table(frame, tmp_path / "t.tex", columns)
    assert (tmp_path / "t.tex").read_text().splitlines() == [
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"Name & $p$ & n & x\_y \\",
        r"\midrule",
        r"a\_1 & $<0.001$ & $-2$ & 1.50 \\",
        r"-- & 1 & 3 & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    with pytest.raises(ValueError, match="no column 'q'"):
        tables.write_table(frame, tmp_path / "t.tex", {"q": "Q"})


def test_values_are_lines_and_bad_ones_are_refused(tmp_path):
    path = tmp_path / "generated" / "numbers.tex"
    tables.write_values({"d.fresh-1": r"$1.20\times10^{5}$", "x_1": r"50\% \{", "none": "--"}, path)
    written = (
        "\\setval{d.fresh-1}{\\ensuremath{1.20\\times10^{5}}}\n\\setval{x_1}{50\\% \\{}\n\\setval{none}{\\mbox{--}}\n"
    )
    assert path.read_text() == written
    for key in ("", "a b", "a{b", "é", "a\n"):
        with pytest.raises(ValueError, match="letters, digits"):
            tables.write_values({key: "1"}, path)
    for text in ("50%", "{", "}{", "a#1", "a\nb", "$x", "end\\"):
        with pytest.raises(ValueError, match="escape it"):
            tables.write_values({"key": text}, path)
    assert path.read_text() == written
    assert [file.name for file in path.parent.iterdir()] == ["numbers.tex"]


def test_labels_are_matplotlib_text_and_unknown_metrics_keep_their_name():
    parser = MathTextParser("path")
    for metric in tables.LABELS:
        parser.parse(tables.label(metric))
    assert tables.label("tail_coverage") == "Tail coverage"
    assert tables.label("new_metric&co") == r"new metric\&co"


def test_builders_of_alarms_and_slopes_report_the_frames(table):
    metrics = ["lambda_max", "distinct_2"]
    found = detection.detection(table, metrics).iloc[0]
    shown = tables.early_warnings(table, metrics).set_index("Metric").loc[tables.LABELS["lambda_max"]]
    assert shown["Detected"].startswith(f"{found.detected} of 3 [") and shown["AUC"].startswith(f"{found.auc:.2f} [")
    assert shown["$p$"] == formatting.format_p(found.p)
    lead = early_warning.lead_summary(table, metrics, "held_out_perplexity").iloc[1]
    shown = tables.leads(table, metrics).iloc[1]
    assert shown["Fired"] == f"{lead.both} / {lead.metric_only} / {lead.outcome_only} / {lead.neither}"
    assert list(tables.leads(table, metrics)["Outcome"]) == ["Perplexity (held out)"] * 2 + ["Training loss"] * 2
    slope = slopes.slope_tests(table, "lambda_max").set_index("condition")
    shown = tables.slope_tests(table, ["lambda_max"]).set_index("Condition")
    assert shown.loc["fresh", "Less fresh"] == "--"
    assert shown.loc["mixed", r"$p_{\mathrm{Holm}}$"] == formatting.format_p(slope.p_holm["mixed"])
    # A drift is zero at generation 0 and has no margin.
    drift = table.assign(track_two_drift=table["track_two_drift"].where(table["generation"] > 0, 0.0))
    assert set(tables.equivalence(drift, ["track_two_drift", "lambda_max"])["Metric"]) == {tables.LABELS["lambda_max"]}
