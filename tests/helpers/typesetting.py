"""LaTeX typeset and read again."""

import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest

T1 = r"\usepackage[T1]{fontenc}\usepackage{mathptmx}"

DOCUMENT = r"""\documentclass[11pt]{article}
FONTS
\usepackage[textwidth=6.5in,textheight=9in]{geometry}
\usepackage{booktabs,etoolbox}
\newcommand{\setval}[2]{\csgdef{val@#1}{#2}}
\newcommand{\val}[1]{\csuse{val@#1}}
\parindent=0pt
\begin{document}\footnotesize
BODY
\end{document}
"""


def typeset(folder: Path, body: str, fonts: str = "") -> str:
    """Text of the PDF of a document with this body, after checking that nothing is wider than the page."""
    if not (shutil.which("latexmk") and shutil.which("pdftotext")):
        pytest.skip("latexmk and pdftotext are not installed")
    source = DOCUMENT.replace("FONTS", fonts).replace("BODY", body)
    (folder / "main.tex").write_text(source, encoding="utf-8")
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    assert result.returncode == 0, result.stdout[-3000:]
    log = (folder / "main.log").read_text(errors="replace")
    assert not re.search(r"Overfull \\hbox|Missing character", log), log[-3000:]
    command = ["pdftotext", "-layout", "main.pdf", "-"]
    text = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    return unicodedata.normalize("NFC", text)
