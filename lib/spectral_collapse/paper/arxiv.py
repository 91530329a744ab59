"""The paper for arXiv: `python -m spectral_collapse.paper.arxiv PROFILE` packs what compiles in an empty folder."""

import gzip
import io
import sys
import tarfile
from pathlib import Path, PurePosixPath

from ..record import cli, paths
from . import pdf


def files(recorded: str) -> list[str]:
    """Files of its own folder that a run of LaTeX read and did not write, by its list of files (`main.fls`)."""
    named: dict[str, set[str]] = {"INPUT": set(), "OUTPUT": set()}
    for kind, name in (line.split(" ", 1) for line in recorded.splitlines() if " " in line):
        path = PurePosixPath(name)
        if kind in named and not path.is_absolute():
            named[kind].add(str(path))
    return sorted(named["INPUT"] - named["OUTPUT"])


def pack(profile: str) -> Path:
    """Typesets the paper and returns `paper/<profile>-arxiv.tar.gz`: main.tex, main.bbl and what they read, no more.

    The same sources give the same bytes. ValueError without pdflatex, by which arXiv typesets, and as `pdf.build`.
    """
    if pdf.engine() != "latexmk":
        raise pdf.NoLatex("The archive needs latexmk and pdflatex, by which arXiv typesets; tectonic is not enough.")
    folder = pdf.build(profile).parent / "build" / profile
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in files((folder / "main.fls").read_text(encoding="utf-8")):
            entry, content = tarfile.TarInfo(name), (folder / name).read_bytes()
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    target = pdf.PAPER / f"{profile}-arxiv.tar.gz"
    target.write_bytes(gzip.compress(packed.getvalue(), mtime=0))
    return target


def main(arguments: list[str]) -> int:
    """Packs the paper of a profile; 1 with one sentence where that cannot be done."""
    return cli.of_profile(
        "paper.arxiv",
        __doc__,
        lambda profile: f"The archive for arXiv is {pack(profile).relative_to(paths.ROOT)}.",
        arguments,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
