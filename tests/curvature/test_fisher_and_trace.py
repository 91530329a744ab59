"""The empirical Fisher matrix against the gradients of its blocks, and traces against dense matrices."""

import numpy as np
import pytest
import torch
from margins import mean_is
from spectra import Rotated, frozen_blocks, tiny, vectors
from spectral_collapse import curvature


def gradients(model, tokens) -> torch.Tensor:
    """(B, n) of each block's own mean loss."""
    rows = []
    for block in tokens:
        loss = curvature.mean_loss(model, block[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(rows).double()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_fisher_matrix_is_that_of_the_blocks_gradients(name):
    model, tokens = tiny(name), frozen_blocks()
    operator = curvature.hessian_operator(model, tokens, kind="fisher")
    rows = gradients(model, tokens)
    v, w = vectors(operator.n, 2)
    for given in (v, torch.stack([v, w], 1)):
        expected = rows.T @ (rows @ given) / len(rows)
        assert float((operator @ given - expected).norm() / expected.norm()) < 1e-5  # the loss is in float32
    forms = operator.block_forms([torch.stack([v, w])], [w], squares=True)
    expected = torch.stack([(rows @ v) * (rows @ w), (rows @ w) ** 2, (rows @ w) ** 2 * (rows**2).sum(1)], 1)
    assert np.allclose(forms, expected.numpy(), rtol=1e-4)
    signature = curvature.spectral_signature(model, tokens, steps=8, probes=2, kind="fisher")
    assert signature.lambda_max == pytest.approx(float(torch.linalg.eigvalsh(rows @ rows.T / len(rows))[-1]), rel=1e-4)


def test_both_traces_are_unbiased_and_the_sketch_takes_what_is_large():
    spectrum = np.concatenate([[80.0, -30.0, 20.0], np.random.default_rng(0).normal(0, 0.1, 77)])
    operator = Rotated(spectrum)
    operator.torch_dtype = torch.float64
    plain = [curvature.hutchinson(operator, 12, seed) for seed in range(300)]
    sketched = [curvature.hutch_plus_plus(operator, 12, seed) for seed in range(300)]
    for found in (plain, sketched):
        mean_is(np.array([each.value for each in found]), spectrum.sum())
    spreads = [np.std([each.value for each in found]) for found in (plain, sketched)]
    assert spreads[1] < spreads[0] / 3
    assert np.mean([each.probe_error for each in plain]) == pytest.approx(spreads[0], rel=0.3)


def test_traces_of_a_model_agree_with_its_dense_hessian():
    model, tokens = tiny("gpt2"), frozen_blocks()
    operator = curvature.hessian_operator(model, tokens)
    dense = operator @ torch.eye(operator.n, dtype=torch.float64)
    found = curvature.hutch_plus_plus(operator, 150)
    assert abs(found.value - float(dense.trace())) < 6 * found.probe_error
    for call in (lambda: curvature.hutchinson(operator, 1), lambda: curvature.hutch_plus_plus(operator, 5)):
        with pytest.raises(ValueError, match="must be a whole number"):
            call()
