"""Notebooks under papermill: kernels over IPC, bars of one line, known parameters, and refusals of one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from papermill.execute import execute_notebook
from spectral_collapse.machine import processes
from spectral_collapse.notebook import pairs
from spectral_collapse.record import cli, params, paths

PAPERMILL = [sys.executable, "-m", "papermill", "--no-progress-bar"]
CONNECTION = """
import json, ipykernel
connection = json.load(open(ipykernel.get_connection_file()))
print(connection["transport"], connection["ip"])
"""
WORK = """
from spectral_collapse.machine import processes
processes.PATIENCE = 0
for _ in processes.steps(range(300), "work"):
    pass
"""


def written(path: Path, *sources: str) -> Path:
    """A notebook of these cells, the first one its parameters."""
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    )
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)
    return path


def start(notebook: Path, output: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*PAPERMILL, str(notebook), str(output), *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outputs(path: Path) -> list[list]:
    return [cell.outputs for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_two_notebooks_at_once_have_sockets_of_their_own(tmp_path):
    notebook = written(tmp_path / "work.ipynb", "profile = 'smoke'", CONNECTION, WORK)
    both = [start(notebook, tmp_path / f"{name}.ipynb", TMPDIR=str(tmp_path)) for name in "ab"]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert not any("without encryption" in text for text in said), said
    sockets = set()
    for name in "ab":
        *_, (connection,), (bar,) = outputs(tmp_path / f"{name}.ipynb")
        transport, folder = connection.text.split()
        assert transport == "ipc" and not Path(folder).parent.exists()
        assert bar.text == "work: 300 in 0 s\n"  # one line, where each step of a bar would be kept
        sockets.add(folder)
    assert len(sockets) == 2


def test_a_wrong_profile_ends_in_one_sentence(tmp_path):
    process = start(pairs.NOTEBOOKS / "01_baseline.ipynb", tmp_path / "out.ipynb", "-p", "profile", "smok")
    said = process.communicate()[0]
    assert process.returncode == 1 and "Traceback" not in said
    sentence = said.strip().splitlines()[-1].removeprefix("Error: ")
    assert "'smok' is no profile in" in sentence and "the nearest is 'smoke'" in sentence
    (error,) = [output for cell in outputs(tmp_path / "out.ipynb") for output in cell if output.output_type == "error"]
    assert error.traceback == [sentence]


# Executes cells from standard input up to the one that collects the parameters, and prints what that has imported.
LIGHT = """
import json, sys
for cells in json.load(sys.stdin):
    namespace = {"In": [""]}
    for cell in cells:
        namespace["In"].append(cell)
        exec(cell, namespace)
        if "params.collect" in cell:
            break
    else:
        raise SystemExit("no parameters are collected")
print(sorted({"torch", "transformers", "pandas", "scipy", "matplotlib", "datasets"} & set(sys.modules)))
"""


def test_parameters_are_checked_before_anything_heavy_is_imported():
    notebooks = [pairs.cells(pairs.from_script(script)) for script in sorted(pairs.NOTEBOOKS.glob("*.py"))]
    code = [[source for kind, source, _ in cells if kind == "code"] for cells in notebooks]
    command = [sys.executable, "-c", LIGHT]
    done = subprocess.run(command, input=json.dumps(code), capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_key_of_a_profile_is_known_and_no_other(tmp_path, caplog):
    notebook = pairs.NOTEBOOKS / "02_treatment.ipynb"
    given = {**params.load("smoke").model_dump(), "extends": "default", "seed": 1, "condition": "fresh"}
    execute_notebook(notebook, tmp_path / "out.ipynb", parameters=given, prepare_only=True)
    assert "unknown parameter" not in caplog.text
    execute_notebook(notebook, tmp_path / "out.ipynb", parameters={"temprature": 1}, prepare_only=True)
    assert "unknown parameter: temprature" in caplog.text


def trace_of(function) -> object:
    with pytest.raises(ValueError) as caught:
        function()
    return caught.tb


def test_only_what_the_package_refuses_loses_its_traceback():
    assert cli.on_purpose(trace_of(lambda: params.load("smok")))
    assert cli.on_purpose(trace_of(lambda: paths.path_name("a/b")))
    assert not cli.on_purpose(trace_of(lambda: int("x")))
    assert not cli.on_purpose(trace_of(lambda: params.sentence(int("x"), "", [])))


# ---- progress


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.0)


def test_where_nobody_watches_a_bar_is_one_line_at_the_end(at_once, capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert list(processes.steps(range(5), "sampling")) == list(range(5))
    said = capsys.readouterr()
    assert (said.out, said.err) == ("sampling: 5 in 0 s\n", "")


def test_work_that_failed_is_not_said_to_be_done(at_once, capsys):
    with pytest.raises(KeyError):
        for _ in processes.steps(range(5), "sampling"):
            raise KeyError
    assert capsys.readouterr().out == ""


def test_where_somebody_watches_a_bar_moves_and_leaves_nothing(at_once, capsys, monkeypatch):
    monkeypatch.setattr(processes, "_watched", lambda: True)
    with processes.progress(5, "sampling") as advance:
        advance(5)
    said = capsys.readouterr()
    assert said.out == "" and "sampling" in said.err and said.err.endswith("\r")


def test_short_work_is_silent(capsys):
    assert list(processes.steps("ab", "sampling")) == ["a", "b"]
    assert capsys.readouterr().out == ""
