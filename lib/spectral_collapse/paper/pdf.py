"""The PDF: `python -m spectral_collapse.paper.pdf PROFILE` typesets the paper with a profile's generated files."""

import shutil
import subprocess
import sys
from pathlib import Path

from ..record import cli, paths

PAPER = paths.ROOT / "paper"
SOURCES = [
    *("main.tex", "references.bib", "latexmkrc"),
    *sorted(f"sections/{file.name}" for file in (PAPER / "sections").glob("*.tex")),
]
# Generated files that the paper needs, and the notebooks that write them.
GENERATED = {"numbers.tex": "07_statistics", "studies.tex": "08_studies"}
ADVICE = (
    "LaTeX was not found: install latexmk and TeX Live (Debian: `apt-get install latexmk texlive-latex-extra "
    "texlive-science texlive-fonts-recommended texlive-bibtex-extra`) or tectonic, then run this again."
)


class NoLatex(ValueError):
    """Neither latexmk nor tectonic is on the path."""


def engine() -> str:
    """`latexmk` or `tectonic`, whichever is there. Raises NoLatex with advice."""
    for name in ("latexmk", "tectonic"):
        if shutil.which(name) and (name == "tectonic" or shutil.which("pdflatex")):
            return name
    raise NoLatex(ADVICE)


def build(profile: str) -> Path:
    """Typesets the paper in `paper/build/<profile>` and returns `paper/<profile>.pdf`.

    Sources and generated files are copied there first, so that the papers of two profiles never mix. LaTeX runs
    without shell escape. Raises NoLatex, or ValueError with LaTeX's first error.
    """
    command = engine()
    generated = paths.generated_folder(profile)
    for name, notebook in GENERATED.items():
        if not (generated / name).exists():
            raise ValueError(f"{generated / name} is missing: run notebook {notebook} with profile {profile!r}.")
    folder = PAPER / "build" / profile
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(generated, folder / "generated")
    (folder / "sections").mkdir()
    for name in SOURCES:
        shutil.copy(PAPER / name, folder / name)
    arguments = {
        "latexmk": ["-pdf", "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
        "tectonic": ["main.tex"],
    }
    done = subprocess.run(
        [command, *arguments[command]], cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).splitlines()
        first = next(
            (line for line in lines if "error:" in line.lower() or line.startswith("!") or ".tex:" in line), ""
        )
        raise ValueError(f"LaTeX stopped: {first.strip() or 'no message'} (the whole log is in {folder / 'main.log'}).")
    target = PAPER / f"{profile}.pdf"
    shutil.copy(folder / "main.pdf", target)
    return target


def main(arguments: list[str]) -> int:
    """Builds the PDF of a profile; 1 with one sentence where that cannot be done."""
    return cli.of_profile(
        "paper.pdf", __doc__, lambda profile: f"The paper is {build(profile).relative_to(paths.ROOT)}.", arguments
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
