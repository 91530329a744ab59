"""The rooms of the library: imports go down, and `curvature` and `sigma` work when they are copied elsewhere."""

import graphlib
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from spectral_collapse.record import paths

LIBRARY = paths.ROOT / "lib" / "spectral_collapse"

CURVATURE = """
import numpy as np, torch
from transformers import LlamaConfig, LlamaForCausalLM
from elsewhere import curvature

torch.manual_seed(0)
sizes = {"vocab_size": 7, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
tokens = torch.randint(7, (4, 8))
signature = curvature.spectral_signature(model, tokens, steps=12)
operator = curvature.hessian_operator(model, tokens)
dense = np.linalg.eigvalsh(operator @ np.eye(operator.n, dtype=np.float32))
assert abs(signature.lambda_max - dense[-1]) < 1e-2 * dense[-1]
assert curvature.population_signature(model, tokens, signature).population_blocks == 4
"""

SIGMA = """
import numpy as np
from elsewhere import sigma

rows = np.random.default_rng(0).normal(size=(60, 6))
gram = sigma.stream([rows[:25], rows[25:]], dim=6).gram
assert np.isclose(sigma.track_two(gram, 60, 1e-9), np.linalg.slogdet(rows.T @ rows / 60).logabsdet)
first = sigma.Observed(rows, np.repeat(np.arange(20), 3), np.tile(np.arange(3), 20))
last = sigma.Observed(rows / 2, first.prompts, first.blocks)
found = sigma.banded_drift(first, last, "track_two", sigma.Budget(0, 100.0, 1e-9))
assert np.isclose(found["drift"], -12 * np.log(2)) and found["low"] < found["drift"] < found["high"]
"""


def test_imports_go_down_the_rooms():
    """The contracts are in pyproject.toml."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_modules_import_each_other():
    """Imports inside functions included: they load slow packages late and hide no circle."""
    graph = grimp.build_graph("spectral_collapse", cache_dir=None)
    order = graphlib.TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules})
    assert len(list(order.static_order())) == len(graph.modules) > 100  # CycleError names the circle


@pytest.mark.parametrize(("room", "program"), [("curvature", CURVATURE), ("sigma", SIGMA)])
def test_a_room_works_in_another_package(tmp_path, room, program):
    """With `estimate` beside it, and nothing else of the project within reach."""
    package = tmp_path / "elsewhere"
    shutil.copytree(LIBRARY / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(LIBRARY / "estimate.py", package)
    (package / "__init__.py").touch()
    check = f"{program}\nimport sys\nassert not [name for name in sys.modules if name.startswith('spectral_collapse')]"
    command = [sys.executable, "-W", "ignore", "-c", check]
    done = subprocess.run(
        command, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
