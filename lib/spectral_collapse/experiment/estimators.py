"""The noise of the curvature estimators: Lanczos runs on one model, over probes and batches."""

import functools

from .. import curvature
from ..estimate import stable_seed
from . import loop
from .runs import Stage, View, stage


@functools.cache
def measured(batch: int) -> Stage:
    """The stage of one batch of held-out blocks: `estimator_probes` Lanczos runs of the most `estimator_steps`.

    Its record holds the tridiagonal matrices to nine digits: a run of fewer steps is the head of a longer one.
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
