"""Two checks of SIGMA's tracks on the embeddings of a profile's runs: their noise, and the size of the observed set."""

from itertools import product

import numpy as np
import pandas as pd

from .. import sigma
from ..estimate import generator
from ..record.schema import Params
from ..sigma import Budget, Observed
from ..text import corpora
from .encoded import read_embeddings
from .runs import Run

SIZES = (500, 1000, 2000)  # blocks of the observed set, as the review asks
SPLITS = 50


def noise_floor(observed: Observed, budget: Budget, splits: int = SPLITS, seed: int = 0) -> pd.DataFrame:
    """Drift of every track between random halves of the prompts of one checkpoint, over `splits` splits.

    Columns track, mean (0 for a sound track), sd, q95 (95 % quantile of |drift|), blocks (of a half).
    """
    prompts, found = np.unique(observed.prompts), []
    for split in range(splits):
        order = generator("noise_floor", seed, split).permutation(prompts)
        halves = (order[: len(order) // 2], order[len(order) // 2 :])
        parts = [observed.select(np.isin(observed.prompts, half)) for half in halves]
        one, other = ([sigma.track_value(part, track, budget) for track in sigma.TRACKS] for part in parts)
        found.append(np.subtract(one, other))
    drifts = np.array(found)
    return pd.DataFrame(
        {
            "track": sigma.TRACKS,
            "mean": drifts.mean(0),
            "sd": drifts.std(0, ddof=1),
            "q95": np.quantile(np.abs(drifts), 0.95, axis=0),
            "blocks": len(observed.rows) // 2,
        }
    )


def sized(first: Observed, last: Observed, size: int) -> tuple[Observed, Observed] | None:
    """The same `size` blocks of both checkpoints, first blocks of all prompts first; None if there are fewer."""
    both = sigma.common(first, last)
    if len(both[0].rows) < size:
        return None
    return tuple(each.select(np.lexsort((each.prompts, each.blocks))[:size]) for each in both)


def size_ablation(first: Observed, last: Observed, budget: Budget, seed: int = 0) -> pd.DataFrame:
    """Drift of every track, with its band, on observed sets of SIZES blocks, as far as there are so many: columns
    n_observed, track, drift, low, high, standard_error, p_value."""
    rows = []
    for size in SIZES:
        if (pair := sized(first, last, size)) is not None:
            found = sigma.banded_drifts(*pair, budget, seed)
            rows += [{"n_observed": size, "track": track, **drift} for track, drift in found.items()]
    names = ["n_observed", "track", "drift", "low", "high", "standard_error", "p_value"]
    return pd.DataFrame(rows, columns=names)


def checks(params: Params) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`noise_floor` of the base model of every seed, and `size_ablation` of every run at its last generation."""
    budget, real = Budget(params.blocks_per_generation, params.sigma_rho, params.sigma_delta), corpora.RealText(params)
    noise, sizes = [], []
    for seed, condition in product(params.seeds, params.conditions):
        run = Run(params, condition, seed, real=real)
        first, last = (read_embeddings(run, generation) for generation in (0, params.generations))
        if condition == params.conditions[0]:
            noise.append(noise_floor(first, budget, seed=seed).assign(seed=seed))
        sizes.append(size_ablation(first, last, budget, seed).assign(condition=condition, seed=seed))
    return pd.concat(noise, ignore_index=True), pd.concat(sizes, ignore_index=True)
