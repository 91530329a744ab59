"""The code that a function uses is found by the program: what counts as a change of it, and what does not."""

import itertools
import sys

import pytest
from spectral_collapse.experiment import encoded, estimators, loop, measure, rescue
from spectral_collapse.experiment import mechanism as stages
from spectral_collapse.record import closure

PACKAGE = {
    "__init__.py": "",
    "top.py": '''
"""Prose."""
from typing import TYPE_CHECKING
import numpy as np
from . import middle, unused as other
from .middle import relay as passed, Shape
from .deep import inner
if TYPE_CHECKING:
    from .unused import Hint
SETTING = 3

def root(run: "Hint", count: int = SETTING) -> int:
    """Prose."""
    from . import late
    def nested():
        return middle.chain(count)
    return nested() + passed() + inner.leaf() + late.now() + sum(part for part in Shape().parts()) + np.size(count)

def shadowing(SETTING):
    return [middle for middle in (SETTING,)]

def untouched():
    return other.anything()
''',
    "middle.py": """
from . import far
from .far import FACTOR
REGISTERED = []
REGISTERED.append(1)

def chain(x):
    return far.third(x) * FACTOR

def relay():
    return 1

class Shape:
    def parts(self):
        return [far.SIDES]

def idle():
    return 0
""",
    "far.py": "BOUND = 7\nFACTOR = 2\nSIDES: int = 4\nIDLE = 1\n\ndef third(x):\n    return min(x, BOUND)\n",
    "late.py": "def now():\n    return 1\n",
    "unused.py": "class Hint: pass\n\ndef anything():\n    return 1\n",
    "deep/__init__.py": "from . import inner\n",
    "deep/inner.py": "def leaf():\n    return twig()\n\ndef twig():\n    return 5\n",
    "staged.py": """
from .runs import stage
from .middle import chain

@stage(file="a")
def made(run, generation):
    return chain(1)

def asks(run):
    return made(run, 1)
""",
    "runs.py": "def stage(**_):\n    return lambda compute: compute\n",
}
NUMBERS = itertools.count()


@pytest.fixture
def hashed(tmp_path, monkeypatch):
    """Hash of a function of the package, after a change of one of its files: hashed(module, name, file, old, new)."""
    monkeypatch.syspath_prepend(tmp_path)

    def build(module: str, name: str, *change: str) -> str:
        package = f"package_{next(NUMBERS)}"
        for file, text in PACKAGE.items():
            if change and file == change[0]:
                assert change[1] in text
                text = text.replace(change[1], change[2])
            (tmp_path / package / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / package / file).write_text(text)
        function = getattr(__import__(f"{package}.{module}", fromlist=[name]), name)
        found = closure.used(function)
        for each in [each for each in sys.modules if each.partition(".")[0] == package]:
            del sys.modules[each]
        return repr(sorted((place[0].removeprefix(package), place[1], text) for place, text in found.items()))

    return build


@pytest.mark.parametrize(
    "change",
    [
        ("far.py", "BOUND = 7", "BOUND = 8"),  # three imports away
        ("far.py", "min(x, BOUND)", "max(x, BOUND)"),
        ("far.py", "FACTOR = 2", "FACTOR = 3"),
        ("far.py", "SIDES: int = 4", "SIDES: int = 5"),
        ("middle.py", "return [far.SIDES]", "return [2 * far.SIDES]"),
        ("middle.py", "REGISTERED.append(1)", "REGISTERED.append(2)"),  # what an import does
        ("middle.py", "def relay():\n    return 1", "def relay():\n    return 2"),  # under another name
        ("late.py", "return 1", "return 2"),  # imported in the function
        ("deep/inner.py", "return 5", "return 6"),
        ("top.py", "SETTING = 3", "SETTING = 4"),  # the default of an argument
        ("top.py", "nested() +", "2 * nested() +"),
    ],
    ids=lambda change: " ".join(change[:2]),
)
def test_a_change_of_what_is_used_changes_the_hash_however_far_away_it_is(hashed, change):
    assert hashed("top", "root", *change) != hashed("top", "root")


@pytest.mark.parametrize(
    "change",
    [
        ("top.py", '"""Prose."""', '"""Other words."""'),
        ("top.py", '    """Prose."""\n', "    # why\n"),
        ("far.py", "IDLE = 1", "IDLE = 2"),
        ("middle.py", "return 0", "return 9"),
        ("unused.py", "return 1", "return 2"),
        ("top.py", "other.anything()", "1"),
    ],
    ids=lambda change: " ".join(change[:2]),
)
def test_prose_and_code_that_is_not_used_do_not(hashed, change):
    assert hashed("top", "root", *change) == hashed("top", "root")


def test_a_name_of_the_functions_own_is_not_that_of_its_module(hashed):
    for change in (("top.py", "SETTING = 3", "SETTING = 4"), ("middle.py", "return 1", "return 2")):
        assert hashed("top", "shadowing", *change) == hashed("top", "shadowing")


def test_a_stage_has_a_key_of_its_own_and_is_no_part_of_anothers(hashed):
    change = ("far.py", "BOUND = 7", "BOUND = 8")
    assert hashed("staged", "asks", *change) == hashed("staged", "asks")
    assert hashed("staged", "made", *change) != hashed("staged", "made")


@pytest.mark.parametrize(
    ("stage", "module", "name"),
    [
        (encoded.coherence, "experiment.encoded", "COHERENT_RESPONSES"),
        (encoded.embeddings, "experiment.embedding", "REFERENCE_BLOCKS"),
        (encoded.coherence, "experiment.embedding", "REFERENCE_BANKS"),
        (loop.text, "experiment.embedding", "embedded"),
        (loop.text, "sigma.health", "live_space"),
        (loop.text, "experiment.interventions", "most_diverse"),
        (loop.training, "model.train", "Recipe"),
        (stages.mechanism, "curvature.operators", "mean_loss"),
        (stages.slices, "experiment.mechanism", "EXTENT"),
        (measure.evaluation, "text.storyworld", "SLOTS"),
        (rescue.rescue, "model.train", "train"),
        (estimators.measured(0), "curvature.kinds", "hessian_operator"),
    ],
)
def test_what_lists_kept_by_hand_had_missed_is_in_the_keys(stage, module, name):
    assert (f"{closure.PACKAGE}.{module}", name) in closure.used(stage.compute)


def test_what_runs_and_records_are_is_no_part_of_a_key():
    for stage in (loop.training, measure.evaluation, encoded.sigma):
        modules = {module.removeprefix(f"{closure.PACKAGE}.") for module, _ in closure.used(stage.compute)}
        assert not modules & {"analysis.series", "record.params", "record.schema", "record.evidence", "text.corpora"}
