"""Tidy tables of runs made from arrays."""

import itertools

import numpy as np
import pandas as pd

CONDITIONS = ("recursive", "fresh", "static", "mixed", "accumulate", "recursive_carry", "static_carry", "mixed_carry")

METRIC = "held_out_perplexity"


def make_table(values: np.ndarray) -> pd.DataFrame:
    """Tidy table of `METRIC` from `values` (conditions, seeds, generations)."""
    rows = [
        ("llama", CONDITIONS[c], 10 + s, g, values[c, s, g]) for c, s, g in itertools.product(*map(range, values.shape))
    ]
    return pd.DataFrame(rows, columns=["model", "condition", "seed", "generation", METRIC])


def noise(seed: int, shape: tuple[int, ...] = (4, 5, 6)) -> np.ndarray:
    """Independent normal noise plus an offset for each seed, on (conditions, seeds, generations)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) + 2 * rng.normal(size=(1, shape[1], 1))


def series(values: dict[str, np.ndarray]) -> pd.DataFrame:
    """Tidy table from arrays (seeds, generations), one a condition."""
    rows = [
        (condition, seed, generation, value)
        for condition, array in values.items()
        for seed, run in enumerate(array)
        for generation, value in enumerate(run)
    ]
    return pd.DataFrame(rows, columns=["condition", "seed", "generation", "ratio"])


def stepped(shifts: dict[str, int], size: float = 40.0, seeds: int = 6, last: int = 6) -> pd.DataFrame:
    """Metrics whose treated runs leave the control by `size` at a generation of its own, `last + 1`: never."""
    rng = np.random.default_rng(4)
    columns = {}
    for name, at in shifts.items():
        quiet = {condition: rng.normal(size=(seeds, last + 1)) for condition in ("recursive", "fresh")}
        quiet["recursive"][:, at:] -= size
        columns[name] = series(quiet)
    table = next(iter(columns.values())).drop(columns="ratio")
    return table.assign(**{name: frame["ratio"] for name, frame in columns.items()})
