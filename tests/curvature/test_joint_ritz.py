"""Ritz values of several Lanczos runs together, against Rayleigh–Ritz on the dense block Krylov space."""

import numpy as np
import pytest
import torch
from spectra import Rotated
from spectral_collapse.curvature.basis import Storage
from spectral_collapse.curvature.krylov import joint_ritz, probe_runs, rademacher

pytestmark = pytest.mark.numerics

# Two close pairs at the ends: one start vector needs many steps to tell them apart.
SPECTRUM = np.concatenate([np.random.default_rng(0).normal(0, 1, 196), [10.0, 9.9, -8.0, -7.9]])


def runs_of(operator: Rotated, steps: int, probes: int, dtype: torch.dtype = torch.float64) -> list:
    operator.torch_dtype, operator.shape = dtype, (operator.n, operator.n)
    return list(probe_runs(operator, steps, probes, seed=0, storage=Storage("cpu", dtype)))


@pytest.mark.parametrize("probes", [1, 2, 3])
def test_values_are_those_of_the_block_krylov_space_and_residuals_hold(probes):
    operator, steps = Rotated(SPECTRUM), 6
    block = torch.stack([rademacher(operator.n, 0, "probe", p) for p in range(probes)], dim=1).double()
    powers = [block]
    for _ in range(steps - 1):
        powers.append(torch.linalg.qr(operator.dense @ powers[-1])[0])
    Q = torch.linalg.qr(torch.cat(powers, dim=1))[0]
    expected, vectors = torch.linalg.eigh(Q.T @ operator.dense @ Q)
    y = Q @ vectors
    rest = (operator.dense @ y - y * expected).norm(dim=0)
    values, residuals = joint_ritz(runs_of(operator, steps, probes))
    order = np.argsort(-np.abs(expected.numpy()))
    np.testing.assert_allclose(values, expected.numpy()[order], atol=1e-8)
    np.testing.assert_allclose(residuals, rest.numpy()[order], atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_an_eigenvalue_that_every_run_has_found_appears_once(dtype, tolerance):
    operator = Rotated(SPECTRUM)
    values, residuals = joint_ritz(runs_of(operator, 60, 3, dtype))
    expected = SPECTRUM[np.argsort(-np.abs(SPECTRUM))]
    np.testing.assert_allclose(values[:12], expected[:12], rtol=tolerance)
    nearest = np.abs(values[:, None] - SPECTRUM).min(1)
    assert np.all(nearest <= residuals + 10 * tolerance)


def test_two_runs_tell_apart_what_one_cannot():
    operator = Rotated(SPECTRUM)
    runs = runs_of(operator, 9, 2)
    errors = [np.abs(joint_ritz(chosen)[0][:4] - [10, 9.9, -8, -7.9]).max() for chosen in (runs, runs[:1], runs[1:])]
    assert errors[0] < 1e-2 * min(errors[1:])


def test_runs_of_unequal_length_span_the_sum_of_their_spaces():
    operator = Rotated(SPECTRUM)
    operator.torch_dtype, operator.shape = torch.float64, (operator.n, operator.n)
    storage = Storage("cpu", torch.float64)
    runs = [*probe_runs(operator, 9, 1, seed=0, storage=storage), *probe_runs(operator, 3, 3, 0, storage, done=1)]
    assert [len(run.nodes) for run, _ in runs] == [9, 3, 3]
    spaces = []
    for probe, steps in enumerate((9, 3, 3)):
        spaces.append(rademacher(operator.n, 0, "probe", probe).double())
        for _ in range(steps - 1):
            spaces.append(operator.dense @ spaces[-1])
            spaces[-1] /= spaces[-1].norm()
    Q = torch.linalg.qr(torch.stack(spaces, dim=1))[0]
    expected = torch.linalg.eigvalsh(Q.T @ operator.dense @ Q).numpy()
    values, residuals = joint_ritz(runs)
    np.testing.assert_allclose(values, expected[np.argsort(-np.abs(expected))], atol=1e-6)
    nearest = np.abs(values[:, None] - SPECTRUM).min(1)
    assert np.all(nearest <= residuals + 1e-9)
