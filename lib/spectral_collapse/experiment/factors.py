"""Factors of a grid of profiles (params/ablations.yaml): read, and run at all levels, seeds and conditions."""

import math
from dataclasses import dataclass
from typing import Any

from ..record import params
from ..record.params import GRID
from ..record.schema import Params
from . import encoded, measure
from .runs import Run

ALL = "all"  # the level of a test that is about every level


@dataclass(frozen=True)
class Factor:
    """A factor of a grid: parameters of its levels, what each level changes, and the hypothesis with its test."""

    grid: str
    name: str
    question: str
    reference: str
    levels: dict[str, Params]
    changes: dict[str, dict[str, Any]]
    hypothesis: str
    test: dict[str, Any]  # arguments of `analysis.ablations.contrast`
    region: tuple[float, float]  # of values of the contrast for which the hypothesis holds

    @property
    def control(self) -> str | None:
        """The condition whose change the test subtracts, if there is one."""
        return self.test.get("control")


def _level(cell: str, places: dict[str, str | None]) -> Params:
    """Parameters of a level. A level that changes nothing but conditions uses the runs of the profile it extends."""
    own = params.load(cell, **places)
    if own.base is None:
        return own
    parent = params.base_params(own)
    changed = {key for key in Params.model_fields if getattr(own, key) != getattr(parent, key)}
    alike = changed <= {"profile", "base", "conditions"}
    return parent.model_copy(update={"conditions": own.conditions}) if alike else own


def read(name: str, grid: str = GRID, **places: str | None) -> Factor:
    """A factor of the grid; `places`: where this machine has the text (`schema.PLACES`).

    ValueError for an unknown factor or level.
    """
    found = params.read_factor(grid, name)
    test = dict(found["test"])
    low, high = test.pop("region")
    for level in (found["reference"], test["level"], test.get("against", ALL)):
        if level not in (*found["levels"], ALL):
            levels = ", ".join(found["levels"])
            raise ValueError(f"factor {name!r} of grid {grid!r} has no level {level!r}: there are {levels}.")
    return Factor(
        grid,
        name,
        found["question"],
        found["reference"],
        {level: _level(f"{grid}.{name}.{level}", places) for level in found["levels"]},
        found["levels"],
        found["hypothesis"],
        test,
        (-math.inf if low is None else float(low), math.inf if high is None else float(high)),
    )


def run(factor: Factor) -> None:
    """Trains and measures what is missing of all levels, seeds and conditions."""
    for settings in factor.levels.values():
        real = None
        for seed in settings.seeds:
            for condition in settings.conditions:
                one = Run(settings, condition, seed, real=real)
                real = one.real
                for generation in range(settings.generations + 1):
                    measure.generation(one, generation, encoded.LIGHT)
