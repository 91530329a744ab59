"""`make lab`: JupyterLab's own server, where saving either half of a notebook updates the other."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import jupytext
import pytest
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class
from spectral_collapse.notebook import pairs
from spectral_collapse.record import paths

NAME = "03_controls"
MANAGER = build_sync_jupytext_contents_manager_class(LargeFileManager)
PATIENCE = 120  # seconds for a server to start and to end, on a busy machine


def command(folder: Path, *changes: str) -> list[str]:
    """What `make lab` runs, without its set-up."""
    said = subprocess.run(
        ["make", "-n", "-o", "setup", "lab", *changes], cwd=paths.ROOT, capture_output=True, text=True, check=True
    )
    (line,) = [line for line in said.stdout.splitlines() if "/jupyter lab" in line]
    return ["sh", "-c", f"exec {line}"]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the notebooks where a checkout has them."""
    shutil.copytree(pairs.NOTEBOOKS, tmp_path / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (tmp_path / ".venv").symlink_to(paths.ROOT / ".venv")
    return tmp_path


@contextlib.contextmanager
def server(checkout: Path) -> Iterator:
    """request(method, path, body) of a server started as `make lab` starts it, at a port that it picks itself."""
    runtime = checkout / "runtime"
    environment = os.environ | {"JUPYTER_RUNTIME_DIR": str(runtime), "JUPYTER_TOKEN": "secret"}
    arguments = command(checkout, "LAB=--no-browser --ServerApp.port=0")
    with open(checkout / "log", "w") as log:
        process = subprocess.Popen(arguments, cwd=checkout, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (found := list(runtime.glob("jpserver-*.json"))):
            assert process.poll() is None and time.monotonic() < deadline, (checkout / "log").read_text()
            time.sleep(0.1)
        port = json.loads(found[0].read_text())["port"]

        def request(method: str, path: str, body: dict | None = None) -> dict:
            asked = urllib.request.Request(
                f"http://127.0.0.1:{port}/api/contents/{path}",
                data=body and json.dumps(body).encode(),
                headers={"Authorization": "token secret", "Content-Type": "application/json"},
                method=method,
            )
            with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
                return json.load(answer)

        yield request
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_saving_either_half_updates_the_other(checkout):
    script, half = (checkout / "notebooks" / f"{NAME}{suffix}" for suffix in (".py", ".ipynb"))
    header = script.read_text().split("# %%")[0]
    with server(checkout) as request:
        for edited, other in ((half, script), (script, half)):
            model = request("GET", f"notebooks/{edited.name}?type=notebook&content=1")
            cell = next(cell for cell in model["content"]["cells"] if cell["cell_type"] == "markdown")
            cell["source"] += f"\n\nWritten into {edited.name}."
            request("PUT", f"notebooks/{edited.name}", model)
            assert f"Written into {edited.name}." in other.read_text()
    assert pairs.cells(jupytext.read(half)) == pairs.cells(jupytext.read(script))
    assert script.read_text().split("# %%")[0] == header
    assert any(cell.get("outputs") for cell in jupytext.read(half).cells)  # what was computed is still there


def test_pairing_holds_wherever_jupyter_is_started(checkout):
    for root, folder in ((checkout, "notebooks/"), (checkout / "notebooks", "")):
        manager = MANAGER(root_dir=str(root))
        model = manager.get(f"{folder}{NAME}.ipynb", content=True)
        model["content"].cells[0].source += f"\n\nFrom {root.name}."
        manager.save(model, f"{folder}{NAME}.ipynb")
        assert f"From {root.name}." in (checkout / "notebooks" / f"{NAME}.py").read_text()


def test_root_is_let_in_and_nobody_else_is_asked_to_be_root(checkout):
    said = " ".join(command(checkout))
    assert ("--allow-root" in said) == (os.geteuid() == 0)
    assert re.search(r"jupyter lab\b", said)
