"""The archive for arXiv: compiled in an empty folder, as arXiv does."""

import os
import re
import shutil
import subprocess
import tarfile

import pytest
from spectral_collapse.paper import arxiv, pdf

HAVE_LATEX = bool(shutil.which("latexmk") and shutil.which("pdflatex"))


def test_files_are_those_that_latex_read_and_did_not_write():
    recorded = "PWD /a b/c\nINPUT /texmf/x.sty\nINPUT ./main.tex\nINPUT main.aux\nOUTPUT main.aux\n"
    recorded += "INPUT main.bbl\nINPUT generated/a.tex\nINPUT ./generated/a.tex\nOUTPUT main.pdf\n"
    assert arxiv.files(recorded) == ["generated/a.tex", "main.bbl", "main.tex"]


def test_tectonic_alone_is_not_enough(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "tectonic" else None)
    with pytest.raises(pdf.NoLatex, match="needs latexmk and pdflatex"):
        arxiv.pack("tinystories")


@pytest.mark.skipif(not HAVE_LATEX, reason="latexmk is not installed")
def test_the_archive_compiles_in_an_empty_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("SPECTRAL_COLLAPSE_GENERATED", raising=False)
    packed = arxiv.pack("tinystories")
    first = packed.read_bytes()
    with tarfile.open(packed) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path, filter="data")
    assert {"main.tex", "main.bbl", "sections/study.tex", "generated/numbers.tex"} <= set(names)
    assert not [name for name in names if name.endswith((".bib", ".aux", ".log", ".csv"))]
    texts = [(tmp_path / name).read_text(encoding="utf-8") for name in names if name.endswith((".tex", ".bbl"))]
    assert not [text for text in texts if str(pdf.PAPER) in text or r"\write18" in text]

    options = ["-norc", "-pdf", "-pdflatex=pdflatex -no-shell-escape %O %S", "-interaction=nonstopmode"]
    done = subprocess.run(
        ["latexmk", *options, "-halt-on-error", "main.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=os.environ | {"max_print_line": "1000"},
    )
    assert done.returncode == 0, done.stdout[-3000:]
    log = (tmp_path / "main.log").read_text(errors="replace")
    assert not re.search(r"(Reference|Citation) .* undefined|multiply defined|File .* not found", log)
    assert "Output written on main.pdf" in log
    assert arxiv.pack("tinystories").read_bytes() == first
