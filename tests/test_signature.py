"""Spectral signatures against simulation on operators of known spectrum."""

import math

import numpy as np
import pytest
import torch
from spectra import Rotated, signature_of, truths, without_largest

OUTLIERS = np.array([20.0, 13.0, 9.0, -7.0, 5.0])


def outlying(seed: int = 0, n: int = 300) -> Rotated:
    """A bulk of standard deviation 0.3 around 0.1 and five well separated outliers."""
    bulk = np.random.default_rng(seed).normal(0.1, 0.3, size=n - len(OUTLIERS))
    return Rotated(np.append(bulk, OUTLIERS), seed)


@pytest.mark.parametrize(
    "operator",
    [
        pytest.param(outlying(), id="outliers"),
        pytest.param(Rotated(2 + np.abs(np.random.default_rng(0).normal(size=300))), id="far from zero"),
    ],
)
def test_estimates_are_unbiased_and_their_standard_errors_honest(operator):
    errors, squares = {}, {}
    for seed in range(150):
        signature = signature_of(operator, steps=12, probes=10, seed=seed)
        for name, truth in truths(operator.eigenvalues, len(signature.outliers)).items():
            error = getattr(signature, name) - truth
            errors.setdefault(name, []).append(error)
            squares.setdefault(name, []).append((error / getattr(signature, f"{name}_standard_error")) ** 2)
    for name, values in errors.items():
        assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(150), name
        # With Student's t of 9 degrees of freedom the mean square is 9/7; the probes' tails are heavier.
        assert 0.8 < np.mean(squares[name]) < 2.5, name


def test_every_run_leaves_out_the_same_outliers():
    # Eigenvalues that thin out towards the bulk: how many converge depends on the probe.
    operator = Rotated(np.append(20 / np.arange(1, 30), np.random.default_rng(0).normal(0, 0.2, size=271)))
    counts, deviations = [], []
    for seed in range(100):
        signature = signature_of(operator, steps=12, probes=6, seed=seed)
        count = len(signature.outliers)
        np.testing.assert_allclose(signature.outliers, 20 / np.arange(1, count + 1), rtol=0.01)
        bulk = without_largest(operator.eigenvalues, count)
        counts.append(count)
        deviations.append((signature.bulk_sigma - bulk.std()) / signature.bulk_sigma_standard_error)
    assert len(set(counts)) > 1
    # With Student's t of 5 degrees of freedom the mean square is 5/3.
    assert np.mean(np.square(deviations)) < 3


def test_deflation_lowers_the_variance_of_the_bulk():
    operator = outlying(1)
    truth = without_largest(operator.eigenvalues, len(OUTLIERS)).var()
    deflated, undeflated = [], []
    for seed in range(60):
        signature = signature_of(operator, steps=14, probes=3, seed=seed)
        deflated.append(signature.bulk_sigma**2)
        total = signature.spectral_variance + signature.mean_eigenvalue**2
        rest = operator.n - len(OUTLIERS)
        center = (operator.n * signature.mean_eigenvalue - OUTLIERS.sum()) / rest
        undeflated.append((operator.n * total - (OUTLIERS**2).sum()) / rest - center**2)
    assert np.mean(deflated) == pytest.approx(truth, rel=0.05)
    assert np.var(undeflated) > 100 * np.var(deflated)


def test_outermost_eigenvalues_come_from_the_run_that_reached_furthest():
    # The first probe does not see the pairs at ±40 and settles on ±20, with a smaller residual bound than
    # the second one has for a pair that it cannot resolve.
    pairs = np.array([-40.0, -39.9, 39.9, 40.0])
    operator = Rotated(np.concatenate([np.random.default_rng(3).normal(size=294), [-20.0, 20.0], pairs]))
    hidden = operator.rotation[:, [0, 1, -2, -1]].float()
    operator.calls = 0

    def half_blind(vector: torch.Tensor) -> torch.Tensor:
        operator.calls += 1
        if operator.calls <= 12:
            vector = vector - hidden @ (hidden.T @ vector)
        return operator.single @ vector

    operator.matvec = half_blind
    signature = signature_of(operator, steps=12, probes=2, seed=0)
    assert signature.lambda_max == pytest.approx(40, abs=signature.lambda_max_residual + 1e-4)
    assert signature.lambda_min == pytest.approx(-40, abs=signature.lambda_min_residual + 1e-4)


def test_a_converged_node_of_many_eigenvalues_is_bulk():
    # Two bulk values: their nodes converge with the outliers and carry nearly all weight.
    operator = Rotated(np.concatenate([np.full(147, -0.1), np.full(100, 0.2), [6.0, 4.0, -2.0]]))
    signature = signature_of(operator, steps=20, probes=4, seed=0)
    np.testing.assert_allclose(signature.outliers, [6, 4, -2], rtol=1e-4)
    bulk = without_largest(operator.eigenvalues, 3)
    assert abs(signature.bulk_center - bulk.mean()) < 4 * signature.bulk_center_standard_error
    assert signature.bulk_sigma == pytest.approx(bulk.std(), rel=0.1)


@pytest.mark.parametrize("rank", [1, 7, 400])
def test_effective_rank_counts_equal_eigenvalues(rank):
    # Signs as probes of a diagonal matrix give trace and second moment without error.
    operator = Rotated(np.zeros(400))
    eigenvalues = np.append(np.full(rank, 3.0), np.zeros(400 - rank)) + np.linspace(0, 1e-3, 400)
    operator.single = torch.from_numpy(np.diag(eigenvalues)).float()
    signature = signature_of(operator, steps=4, probes=2, seed=0)
    exact = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert signature.effective_rank == pytest.approx(exact, rel=1e-5)
    assert signature.effective_rank == pytest.approx(rank, rel=0.2)


def test_negative_mass_is_the_share_of_negative_eigenvalues_at_full_order():
    operator = Rotated(np.concatenate([np.linspace(-3, -1, 10), np.linspace(1, 4, 30)]))
    signature = signature_of(operator, steps=40, probes=400, seed=0)
    assert signature.negative_mass == pytest.approx(0.25, abs=0.02)


def test_fewer_than_two_probes_and_a_flat_loss_are_refused():
    with pytest.raises(ValueError, match="set lanczos_probes to 2 or more"):
        signature_of(outlying(), steps=5, probes=1, seed=0)
    with pytest.raises(ValueError, match="no width"):
        signature_of(Rotated(np.zeros(40)), steps=5, probes=2, seed=0)
