"""The pairs: both files hold the same cells, run anywhere, and show the outputs that a run gives."""

import os
import re

import jupytext
import nbformat
import pytest
from matplotlib.figure import Figure
from spectral_collapse.notebook import pairs
from spectral_collapse.paper import output as paper
from spectral_collapse.record import cli, params, paths

SCRIPTS = sorted(pairs.NOTEBOOKS.glob("*.py"))
# tests/run.sh has run the smoke profile there; nbval executes the other notebooks.
SMOKE = paths.model_folder("smoke", "llama-tiny")
EXECUTED = {
    **{"01_baseline": "baseline/seed_1", "02_treatment": "recursive/seed_1", "03_controls": "fresh/seed_1"},
    **{"04_sigma": "sigma/seed_1", "07_statistics": ".", "08_studies": "."},
}


def test_there_is_a_notebook_for_every_phase():
    assert [script.stem for script in SCRIPTS] == [
        "00_estimators",
        "00_public_records",
        "01_baseline",
        "02_treatment",
        "03_controls",
        "04_sigma",
        "05_ablations",
        "06_mechanism",
        "07_statistics",
        "08_studies",
        "09_theory",
        "10_monitor",
    ]
    assert [file.stem for file in sorted(pairs.NOTEBOOKS.glob("*.ipynb"))] == [script.stem for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
class TestPair:
    def test_cells_agree(self, script):
        notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
        assert pairs.cells(notebook) == pairs.cells(jupytext.read(script))

    def test_notebook_is_valid_and_names_its_kernel(self, script):
        notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
        nbformat.validate(notebook)
        assert notebook.metadata["kernelspec"]["name"] == "python3"
        assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)

    def test_was_executed_without_error(self, script):
        notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code)
        kinds = {output.output_type for cell in code for output in cell.outputs}
        assert "error" not in kinds and kinds & {"display_data", "execute_result"}

    def test_has_one_parameters_cell_with_the_smoke_profile(self, script):
        tagged = [source for _, source, tags in pairs.cells(jupytext.read(script)) if "parameters" in tags]
        assert len(tagged) == 1 and '= "smoke"' in tagged[0]

    def test_outputs_name_no_folder_of_the_machine_it_ran_on(self, script):
        text = script.with_suffix(".ipynb").read_text()
        assert "site-packages" not in text and str(pairs.paths.ROOT) not in text

    def test_outputs_are_those_of_an_execution_that_nobody_watched(self, script):
        """No progress bar line by line, and nothing of kernels or papermill."""
        notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
        for cell in notebook.cells:
            streams = "".join(output.get("text", "") for output in cell.get("outputs", []))
            assert len(cell.get("outputs", [])) < 20
            assert not any(word in streams for word in ("\r", "%|", "TCP", "unknown parameter"))

    def test_says_at_the_top_what_is_shown(self, script):
        first = jupytext.read(script).cells[0].source
        last = first.split("\n\n")[-1]
        assert last.startswith("*") and last.endswith("*")
        assert "`smoke`" in last or script.stem == "08_studies"
        assert "committed records" in last or re.search("shown (in|at the end of) notebook [78]", last)

    def test_is_thin(self, script):
        # These make every figure and table of the runs and of the studies, a call each.
        longest = {"07_statistics": 320, "08_studies": 260}.get(script.stem, 150)
        assert len(script.read_text().splitlines()) <= longest


def checked(path) -> list[list[str]]:
    """Outputs of the cells tagged for comparison."""
    cells = nbformat.read(path, as_version=4).cells
    tagged = (cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", []))
    return [[output.get("text") or output["data"]["text/plain"] for output in cell.outputs] for cell in tagged]


@pytest.mark.skipif(not SMOKE.exists(), reason="needs the runs of the smoke profile")
@pytest.mark.parametrize("name", EXECUTED)
def test_the_workflow_gives_the_outputs_that_are_shown(name):
    made = checked(SMOKE / EXECUTED[name] / f"{name}.ipynb")
    assert made == checked(pairs.NOTEBOOKS / f"{name}.ipynb") and made


# ---- figures


def test_a_figure_for_the_paper_is_shown_wherever_its_call_stands(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECTRAL_COLLAPSE_GENERATED", str(tmp_path))
    shown, output, figure = [], paper.Output(params.load("smoke")), Figure()
    monkeypatch.setattr(paper, "display", shown.append)
    output.figure("alone", figure)  # no notebook
    monkeypatch.setattr(cli, "notebook", lambda: True)
    output.figure("seen", figure)
    assert shown == [figure] and output.written == ["figures/alone.pdf", "figures/seen.pdf"]


@pytest.mark.parametrize("name", ["07_statistics", "08_studies"])
def test_every_figure_that_was_written_is_shown(name):
    notebook = nbformat.read(pairs.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    written = "".join(output.get("text", "") for output in outputs).count("figures/")
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= written > 0


# ---- halves that differ


@pytest.fixture
def pair(tmp_path):
    """A script and the notebook converted from it, the script being the newer one."""
    script = tmp_path / "03_controls.py"
    script.write_bytes((pairs.NOTEBOOKS / script.name).read_bytes())
    pairs.write(pairs.from_script, tmp_path)
    age(script, script.with_suffix(".ipynb"))
    return script


def age(newer, older):
    os.utime(older, (1e9, 1e9))
    os.utime(newer, (2e9, 2e9))


def change(half, index, text):
    notebook = nbformat.read(half, as_version=4)
    notebook.cells[index].source = text
    nbformat.write(notebook, half)


def refuses(script) -> str:
    before = script.with_suffix(".ipynb").read_bytes()
    with pytest.raises(ValueError) as caught:
        pairs.write(pairs.from_script, script.parent)
    assert script.with_suffix(".ipynb").read_bytes() == before and "\n" not in str(caught.value)
    assert "jupytext --to py:percent" in str(caught.value) and "delete 03_controls.ipynb" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("also", [False, True], ids=["notebook alone", "both halves"])
def test_a_cell_that_was_edited_in_the_notebook_is_kept_and_named(pair, also):
    change(pair.with_suffix(".ipynb"), 3, "settings = 1")
    if also:
        pair.write_text(pair.read_text() + "\n# %%\n1 + 1\n")
    age(pair, pair.with_suffix(".ipynb"))  # however old it is
    assert "in cell 4 ('settings = 1')" in refuses(pair)


def test_cells_that_were_taken_from_the_newer_notebook_are_not_put_back(pair):
    notebook = nbformat.read(pair.with_suffix(".ipynb"), as_version=4)
    del notebook.cells[-1]
    nbformat.write(notebook, pair.with_suffix(".ipynb"))
    age(pair.with_suffix(".ipynb"), pair)
    assert "in the order or number of cells" in refuses(pair)


def test_what_was_edited_in_the_script_alone_is_converted(pair):
    pair.write_text(
        pair.read_text().replace("# %% [markdown]", "# %%\nbefore = 1\n\n# %% [markdown]", 1) + "\n# %%\n1 + 1\n"
    )
    age(pair, pair.with_suffix(".ipynb"))
    pairs.write(pairs.from_script, pair.parent)
    assert nbformat.read(pair.with_suffix(".ipynb"), as_version=4).cells[-1].source == "1 + 1"


def test_what_jupyter_saved_into_both_halves_may_be_edited_in_the_script_next(pair):
    change(pair.with_suffix(".ipynb"), 3, "settings = 1")
    text = jupytext.read(pair.with_suffix(".ipynb"))
    text.cells[5].source = "later = 2"
    jupytext.write(text, pair, fmt="py:percent")
    age(pair, pair.with_suffix(".ipynb"))
    assert pairs.unsaved(pair) is None
