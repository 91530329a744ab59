"""The examples in the docstrings of the estimators."""

import doctest
import importlib
import pkgutil

import pytest
from spectral_collapse import curvature, sigma

ROOMS = [
    f"{room.__name__}.{module.name}" for room in (curvature, sigma) for module in pkgutil.iter_modules(room.__path__)
]


@pytest.mark.parametrize("name", [*ROOMS, "spectral_collapse.estimate", "spectral_collapse.text.metrics"])
def test_examples_give_what_they_show(name):
    assert not doctest.testmod(importlib.import_module(name)).failed
