"""The site: `make site` has Sphinx render README, guides, notebooks with their committed outputs, and docstrings.

Sphinx' source folder is the checkout, so that links between its files hold on the site as they do in the repository.
"""

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

ROOT = Path(__file__).resolve().parents[1]
LIB = ROOT / "lib"
sys.path.insert(0, str(LIB))

import spectral_collapse  # noqa: E402
from spectral_collapse.analysis import claims, studies  # noqa: E402
from spectral_collapse.paper import figures, findings  # noqa: E402
from spectral_collapse.paper.studies import agreement  # noqa: E402

STUDY = "tinystories"
PUBLIC = ["curvature", "sigma", "estimate", "analysis", "experiment", "monitor", "text", "model", "record"]
BUILT = ROOT / "docs" / "_build"  # ignored by git

# ---- Sphinx

project = "Spectral collapse"
author = "The spectral-collapse authors"
release = spectral_collapse.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/api/*.rst", "notebooks/*.ipynb", "results/evidence/README.md"]
exclude_patterns = [".*", "docs/_build", "lib", "paper", "params", "results/work", "tests"]
html_theme = "furo"
html_title = project
html_favicon = "favicon.svg"
html_domain_indices = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "substitution"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
smartquotes_action = "qe"  # "--" is an option, not a dash
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
add_module_names = False
maximum_signature_line_length = 90
python_use_unqualified_type_names = True


# ---- the page of results: from the committed records, by the functions that write the paper


def number(x: float) -> str:
    """Three digits, as the paper prints them; a dash for what is not estimated."""
    return "–" if x != x else f"{x:#.3g}".replace("-", "−").replace("inf", "∞")


def claims_table(verdicts) -> str:
    """Every claim with the verdict, our estimate, and the figure printed in its source, as a table in Markdown."""
    lines = ["| Claim | Verdict | Here | There |", "|---|---|---|---|"]
    for row in verdicts.itertuples():
        value, low, high = (number(x) for x in (row.value, row.low, row.high))
        here = f'<span class="number">{value} [{low}, {high}]</span><br>{row.compared}; {row.kind}'
        printed = re.sub(r"(?<![\w.])-(?=\d)", "−", row.figure)
        there = f"{printed}<br>{row.source}"
        lines.append(f"| {row.claim} | **{row.verdict}** | {here if row.kind else row.reason} | {there} |")
    return "\n".join(lines)


def primary_table(verdicts) -> str:
    """The primary hypotheses with what the confirmatory runs say of them, as a table in Markdown."""
    lines = ["| Hypothesis | Runs for | Runs against | *p*, corrected | Verdict |", "|---|---|---|---|---|"]
    for row in verdicts.itertuples():
        statement = row.statement[0].upper() + row.statement[1:]
        lines.append(f"| {statement} | {row.held} | {row.failed} | {number(row.p_holm)} | **{row.verdict}** |")
    return "\n".join(lines)


def possible_lead(possible: str) -> str:
    """How far any metric could have led perplexity, and what that means for the first hypothesis."""
    return (
        f"Perplexity alarmed at generation {int(possible) + 1} at the latest, nothing alarms before generation 1, so "
        f"no metric could have led it by more than {possible}: a lead of two could only be contradicted here."
    )


def results() -> dict[str, str]:
    """What the page of results shows: primary hypotheses, the table of claims, and a link to the PDF where one was
    typeset."""
    confirmed, carried = (studies.confirmatory(studies.shown()[name]) for name in ("confirmation", "carried"))
    analysis = studies.analysed(STUDY)
    verdicts = claims.verdicts(claims.gather(analysis))
    BUILT.mkdir(exist_ok=True)
    figures.alarms(analysis).savefig(BUILT / "alarms.svg", bbox_inches="tight")
    counts = verdicts["verdict"].value_counts()
    made = (ROOT / "paper" / f"{STUDY}.pdf").exists()
    return {
        "primary": primary_table(confirmed.verdicts),
        "finding": findings.finding(confirmed.analysis),
        "carried": f"Where weights are carried over ({len(carried.params.seeds)} seeds, same design), the verdict on "
        f"{agreement(confirmed.verdicts, carried.verdicts)} hypotheses is the same.",
        "possible": possible_lead(findings.values(confirmed.analysis)["lead.held_out_perplexity.possible"]),
        "claims": claims_table(verdicts),
        "verdicts": ", ".join(f"{counts[word]} {word}" for word in claims.VERDICTS if word in counts),
        "pdf": f"[The paper](../paper/{STUDY}.pdf) (PDF)"
        if made
        else f"The paper was not typeset when this site was built; `make paper PROFILE={STUDY} RECOMPUTE=0` does it",
    }


myst_substitutions = results()


# ---- the reference: a page for each public package


def write_reference() -> None:
    """docs/api/<package>.rst, which names every module of the package."""
    folder = ROOT / "docs" / "api"
    folder.mkdir(exist_ok=True)
    for file in folder.glob("*.rst"):
        if file.stem not in PUBLIC:
            file.unlink()
    for package in PUBLIC:
        found = sorted(file.stem for file in (LIB / "spectral_collapse" / package).glob("[!_]*.py"))
        sections = [(package, "="), *((f"{package}.{module}", "-") for module in found)]
        page = "\n".join(
            f"{name}\n{mark * len(name)}\n\n.. automodule:: spectral_collapse.{name}\n   :members:\n"
            for name, mark in sections
        )
        file = folder / f"{package}.rst"
        if not file.exists() or file.read_text(encoding="utf-8") != page:
            file.write_text(page, encoding="utf-8")


write_reference()

ARGUMENT = re.compile(r"[a-z]\w*(?:, [a-z]\w*)*(?: \([^)]*\))?: ")


def marked(text: str) -> str:
    """Plain text as reStructuredText: `code` is code, and every other character stands for itself."""
    parts = re.split(r"`([^`]+)`", text)
    plain = [re.sub(r"([\\*_|`])", r"\\\1", part) for part in parts[::2]]
    for i, code in enumerate(parts[1::2]):
        plain[i] += ("\\ " if re.search(r"\w$", plain[i]) else "") + f"``{code}``"
        plain[i] += "\\ " if re.match(r"\w", plain[i + 1]) else ""
    return "".join(plain)


def paragraphs(lines: list[str]) -> list[str]:
    """A block of a docstring without its line breaks, cut where an item or the sentence on an argument begins."""
    items: list[str] = []
    for line in map(str.strip, lines):
        begins = line.startswith("- ") or (ARGUMENT.match(line) and items and items[-1].endswith((".", ";", ":")))
        if begins or not items:
            items.append(line)
        else:
            items[-1] += f" {line}"
    return items


def plain_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are written to be read as they stand; this keeps examples, indented blocks, lists and formulas."""
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))]
    lines.clear()
    for block in blocks:
        if any(line.startswith("    ") for line in block):
            lines += ["::", "", *(f"    {line}" for line in block), ""]
            continue
        example = next((i for i, line in enumerate(block) if line.startswith(">>> ")), len(block))
        for item in paragraphs(block[:example]):
            lines += [f"- {marked(item[2:])}" if item.startswith("- ") else marked(item), ""]
        lines += [*block[example:], ""]


# ---- formulas: MathML, which browsers set themselves, without a script from elsewhere


def set_formula(self, node) -> None:
    """Browsers leave no space around the names of functions."""
    formula = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    space = '<mspace width="0.17em"></mspace>'
    name = r"(<mi>\w+</mi>)\s*<mo>&ApplyFunction;</mo>"
    formula = re.sub(rf'{name}(?=\s*<mo stretchy="false">\()', rf"{space}\1", formula)
    self.body.append(re.sub(name, rf"{space}\1{space}", formula))
    raise nodes.SkipNode


def skip_fields(app, what, name, obj, skip, options) -> bool | None:
    """Fields of named tuples have a docstring that says nothing; the class describes them."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def name_figures(app, doctree) -> None:
    """A notebook's plot has no text of its own: its section's title stands for it."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt"):
            section = image.parent
            while section is not None and not isinstance(section, nodes.section):
                section = section.parent
            image["alt"] = f"Plot: {section[0].astext()}" if section is not None else "Plot"


def finish(app, exception) -> None:
    """The address of the site's folder leads to its first page."""
    if not exception:
        start = f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html"><title>{project}</title>'
        (Path(app.outdir) / "index.html").write_text(start, encoding="utf-8")


def setup(app) -> None:
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("doctree-read", name_figures)
    app.connect("build-finished", finish)
    app.add_html_math_renderer("mathml", (set_formula, None), (set_formula, None))
