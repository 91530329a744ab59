"""Tables and numbers: what is written, what survives LaTeX, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.mathtext import MathTextParser
from spectral_collapse.analysis import metrics
from spectral_collapse.paper import formatting, tables
from spectral_collapse.paper.tables import Number, Raw
from typesetting import T1, typeset

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


def test_published_figures_are_copied_digit_for_digit():
    shown = tables.published_hessian()
    assert list(shown.iloc[1]) == ["1", "65079", "26728", "156", "3.38", "3.48"]
    assert list(shown.iloc[3, 4:]) == ["1.20", "2.10"]
    assert all("(published)" in heading for heading in shown.columns[1:])


def test_layout_of_a_table(tmp_path):
    rows = [["a_1", Number("$<0.001$"), -2, 1.5], [None, Number("1"), 3, np.nan]]
    frame = tables.frame_of(rows, ["Name", Raw("$p$"), "n", "x_y"])
    tables.write_table(frame, tmp_path / "t.tex")
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
    for metric in metrics.METRICS:
        parser.parse(tables.label(metric))
    assert tables.label("tail_coverage") == "Tail coverage"
    assert tables.label("new_metric&co") == r"new metric\&co"
