"""The estimators' own noise: both of them on one checkpoint, over probes, batches and Lanczos steps."""

import functools
import math

import numpy as np
import pandas as pd

from .. import curvature
from ..curvature import Nodes, Quadrature
from ..estimate import stable_seed
from . import loop
from .runs import Stage, View, stage

# What is compared: the published width against the moments that replace it, and λ_max, which both share.
QUANTITIES = ("published_iqr", "published_iqr_pooled", "lambda_max", "spectral_sigma", "bulk_sigma")
POOLED = 4


@functools.cache
def measured(batch: int) -> Stage:
    """The stage of one batch of held-out blocks: `estimator_probes` Lanczos runs of the most `estimator_steps`.

    Its record holds the tridiagonal matrices, to nine digits: a run of fewer steps is the head of a longer one.
    """

    @stage(name=f"estimators_{batch}")
    def record(run: View, generation: int) -> dict:
        """Lanczos runs on the blocks of this batch."""
        params, size = run.params, run.params.curvature_blocks
        blocks = run.real.held_out[batch * size : (batch + 1) * size]
        operator = curvature.hessian_operator(loop.load(run, generation), blocks)
        seed = stable_seed(run.seed, "estimators")
        runs = curvature.spectral_density(operator, max(params.estimator_steps), params.estimator_probes, seed)
        return {
            "parameters": operator.n,
            "alphas": [[float(f"{x:.9g}") for x in run.alphas] for run in runs],
            "betas": [[float(f"{x:.9g}") for x in run.betas] for run in runs],
        }

    return record


def values(results: list[dict], steps: list[int]) -> pd.DataFrame:
    """One row for each batch, probe, number of steps and quantity: columns batch, probe, steps, quantity, value.

    σ_bulk leaves out as many outliers as every probe of the batch has converged at the fewest steps, so that it is
    one quantity at all of them. `published_iqr_pooled` reads the published width off the union of the nodes of four
    probes, a quarter of the weights each; its probe is that of the first of the four.
    """
    rows = []
    for batch, result in enumerate(results):
        n = result["parameters"]
        runs = [
            Quadrature(np.array(alphas), np.array(betas))
            for alphas, betas in zip(result["alphas"], result["betas"], strict=True)
        ]
        count = min(Nodes.of(run.truncated(min(steps)), n).outliers(n) for run in runs)
        for number in steps:
            heads = [run.truncated(number) for run in runs]
            for probe, head in enumerate(heads):
                nodes = Nodes.of(head, n)
                found = {
                    "published_iqr": curvature.interpolated_iqr(head.nodes, head.weights),
                    "lambda_max": head.nodes[-1],
                    "spectral_sigma": _sigma(nodes, n, 0),
                    "bulk_sigma": _sigma(nodes, n, count),
                }
                pool = heads[probe : probe + POOLED]
                if probe % POOLED == 0 and len(pool) == POOLED:
                    every, weight = (np.concatenate([getattr(q, name) for q in pool]) for name in ("nodes", "weights"))
                    found["published_iqr_pooled"] = curvature.interpolated_iqr(every, weight)
                rows += [(batch, probe, number, name, value) for name, value in found.items()]
    frame = pd.DataFrame(rows, columns=["batch", "probe", "steps", "quantity", "value"])
    present = [name for name in QUANTITIES if name in set(frame["quantity"])]  # a pool takes four probes
    return frame.assign(quantity=pd.Categorical(frame["quantity"], present))


def _sigma(nodes: Nodes, n: int, leave_out: int) -> float:
    """Standard deviation of the spectrum that one probe saw, without the largest |θ|."""
    weights, values = nodes.weights[leave_out:] * n / (n - leave_out), nodes.nodes[leave_out:]
    return math.sqrt(weights @ values**2 - (weights @ values) ** 2)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """How far each quantity moves, one row each: coefficients of variation over probes (mean over batches) and over
    batches (of the means over probes), both at the fewest steps; and the median ratio of its value at each number of
    steps to that at the most, over batches and probes."""
    fewest, most = frame["steps"].min(), frame["steps"].max()
    rows = []
    for quantity in frame["quantity"].cat.categories:
        part = frame[frame["quantity"] == quantity]
        first = part[part["steps"] == fewest].groupby("batch")["value"]
        means = first.mean()
        wide = part.pivot_table(index=["batch", "probe"], columns="steps", values="value")
        ratios = wide.div(wide[most], axis=0).median()
        rows.append(
            {
                "quantity": quantity,
                "cv_probes": float((first.std() / means.abs()).mean()),
                "cv_batches": float(means.std() / means.abs().mean()),
                **{f"at_{steps}": float(ratio) for steps, ratio in ratios.items() if steps != most},
            }
        )
    return pd.DataFrame(rows).set_index("quantity")
