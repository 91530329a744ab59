"""The pairs: both halves hold the same cells, run anywhere, and show what they claim to have run."""

import jupytext
import nbformat
import pytest
from spectral_collapse import pairs

SCRIPTS = sorted(pairs.NOTEBOOKS.glob("*.py"))


def test_there_is_a_notebook_for_every_phase():
    assert [script.stem for script in SCRIPTS] == [
        "00_estimators",
        "01_baseline",
        "02_treatment",
        "03_controls",
        "04_sigma",
        "05_ablations",
        "06_mechanism",
        "07_statistics",
        "08_studies",
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

    def test_is_thin(self, script):
        # These make every figure and table of the runs and of the studies, a call each.
        longest = {"07_statistics": 260, "08_studies": 170}.get(script.stem, 150)
        assert len(script.read_text().splitlines()) <= longest
