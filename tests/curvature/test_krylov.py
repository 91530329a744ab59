"""Lanczos and its quadratures against known spectra, with every kind of basis."""

import math

import numpy as np
import pytest
import torch
from margins import rate_is
from numpy.polynomial import chebyshev
from scipy.integrate import trapezoid
from scipy.stats import wasserstein_distance
from spectra import Rotated, signature_of, truths, vectors, without_largest
from spectral_collapse.curvature import krylov
from spectral_collapse.curvature.basis import Basis, Storage, dot
from spectral_collapse.curvature.krylov import (
    _drive_together,
    lanczos,
    probe_runs,
    rademacher,
    recurrence,
    spectral_density,
)
from spectral_collapse.curvature.quadrature import (
    Quadrature,
    cumulated_bounds,
    merged,
    quantile_bracket,
    smoothed_density,
)

pytestmark = pytest.mark.numerics

HALF = Storage("cpu", torch.float16)


def spectrum(seed: int, n: int) -> np.ndarray:
    """A bulk near zero with tails, and a few outliers: a different shape for every seed."""
    rng = np.random.default_rng(seed)
    bulk = rng.standard_t(3, size=n) * rng.uniform(0.01, 1) + rng.normal()
    bulk[: rng.integers(0, 6)] += rng.normal(scale=30)
    return bulk


# ---- sums and probes


def test_dot_is_exact_where_no_float32_is():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 100, size=(2, 11_000_000))
    exact = int(x @ y)
    assert float(np.float32(exact)) != exact
    assert dot(torch.from_numpy(x).float(), torch.from_numpy(y).float()) == exact


def test_probes_are_signs_that_depend_on_all_parts_of_their_seed():
    probe = rademacher(10_000, 1, "probe", 0)
    assert probe.dtype == torch.float32
    assert set(probe.tolist()) == {-1.0, 1.0}
    rate_is(probe > 0, 0.5)
    assert torch.equal(probe, rademacher(10_000, 1, "probe", 0))
    for other in ((2, "probe", 0), (1, "probe", 1)):
        rate_is(probe == rademacher(10_000, *other), 0.5)


# ---- known spectra


def test_full_order_gives_the_spectrum_and_the_weights_of_the_start():
    operator = Rotated(np.linspace(-2, 5, 25) + 0.1 * np.random.default_rng(1).normal(size=25))
    start = vectors(25, 1)[0]
    run = lanczos(operator.matvec, start, steps=60)
    np.testing.assert_allclose(run.nodes, operator.eigenvalues, atol=1e-12)
    np.testing.assert_allclose(run.weights, operator.measure(start), atol=1e-12)
    assert run.weights.sum() == pytest.approx(1, abs=1e-13)
    assert run.residuals.max() < 1e-10


@pytest.mark.parametrize("storage", ["full", None], ids=["basis", "no basis"])
def test_moments_are_exact_to_degree_2k_minus_1_and_no_further(storage):
    operator = Rotated(np.random.default_rng(2).uniform(-1, 1, size=60))
    start = vectors(60, 1)[0]
    weights = operator.measure(start)
    for steps in (1, 2, 5, 8):
        run = lanczos(operator.matvec, start, steps, storage=storage)
        assert run.weights.sum() == pytest.approx(1, abs=1e-13)
        errors = [
            abs(
                run.weights @ chebyshev.Chebyshev.basis(degree)(run.nodes)
                - weights @ chebyshev.Chebyshev.basis(degree)(operator.eigenvalues)
            )
            for degree in range(2 * steps + 1)
        ]
        assert max(errors[:-1]) < 1e-12
        assert errors[-1] > 1e-4


def test_an_eigenvalue_lies_within_every_residual_bound():
    tight = []
    for seed in range(30):
        operator = Rotated(spectrum(seed, 80), seed)
        run = lanczos(operator.matvec, vectors(80, 1, seed)[0], steps=12)
        distances = np.abs(run.nodes[:, None] - operator.eigenvalues).min(1)
        assert (distances <= run.residuals + 1e-12 * np.abs(run.nodes).max()).all()
        tight.append((run.residuals < 0.01 * np.abs(run.nodes).max()).any())
    assert np.mean(tight) > 0.9


def test_the_first_steps_of_a_run_are_the_shorter_run():
    operator = Rotated(spectrum(3, 90))
    start = vectors(90, 1)[0]
    long = lanczos(operator.matvec, start, steps=20)
    for steps in (1, 2, 7, 20):
        short, cut = lanczos(operator.matvec, start, steps), long.truncated(steps)
        for name in ("alphas", "betas", "nodes", "weights", "residuals"):
            np.testing.assert_array_equal(getattr(cut, name), getattr(short, name))


@pytest.mark.parametrize("storage", ["full", None, HALF], ids=["basis", "no basis", "float16"])
def test_the_iteration_stops_when_the_krylov_space_is_exhausted(storage):
    operator = Rotated(np.repeat([-1.0, 0.5, 4.0], [5, 30, 15]))
    start = vectors(50, 1)[0]
    expected = np.add.reduceat(operator.measure(start), [0, 5, 35])
    for vector, tolerance in ((start.float(), 1e-5), (start, 1e-12)):
        run = lanczos(operator.matvec, vector, steps=20, storage=storage)
        np.testing.assert_allclose(run.nodes, [-1, 0.5, 4], atol=tolerance)
        np.testing.assert_allclose(run.weights, expected, atol=tolerance)
    eigenvector = lanczos(operator.matvec, operator.rotation[:, 0] * 7, steps=20, storage=storage)
    np.testing.assert_allclose(eigenvector.nodes, [-1], atol=1e-12)
    assert lanczos(torch.zeros_like, start, steps=20, storage=storage).nodes.tolist() == [0.0]


def test_many_float32_steps_leave_no_copy_of_an_outlier():
    eigenvalues = np.append(np.random.default_rng(5).normal(size=395), [1000, 900, 800, 700, 600])
    operator = Rotated(eigenvalues)
    run = lanczos(operator.matvec, vectors(400, 1)[0].float(), steps=60)
    np.testing.assert_allclose(run.nodes[run.nodes > 100], [600, 700, 800, 900, 1000], rtol=1e-5)


def test_a_product_that_is_not_finite_is_one_sentence():
    calls = []

    def diverging(vector: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return torch.arange(9.0) * (math.nan if len(calls) == 3 else 1) * vector

    with pytest.raises(ValueError, match=r"^the Hessian product is not finite at Lanczos step 2: .*\.$"):
        lanczos(diverging, torch.ones(9), steps=5)


def test_an_operator_may_return_the_vector_that_it_was_given():
    start = vectors(30, 1)[0]
    before = start.clone()
    assert lanczos(lambda vector: vector, start, steps=4).nodes == pytest.approx([1])
    assert torch.equal(start, before)


# ---- bases


def test_the_basis_is_orthonormal_and_holds_the_ritz_vectors():
    operator = Rotated(spectrum(1, 300))
    for start, storage, tolerance in (
        (vectors(300, 1)[0], Storage("cpu", torch.float64), 1e-13),
        (vectors(300, 1)[0].float(), Storage("cpu", torch.float32), 1e-6),
        (vectors(300, 1)[0].float(), HALF, 2e-3),
    ):
        ((quadrature, basis),) = _drive_together(operator.matmat, [recurrence(start, 25, storage)])
        assert basis.k == 25 and basis.rows.dtype == storage.dtype
        Q = torch.stack([basis.combine(row) for row in np.eye(25)]).double()
        assert (Q @ Q.T - torch.eye(25)).abs().max() < tolerance
        assert (Q[0] - start.double() / start.double().norm()).abs().max() < tolerance
        top = basis.combine(quadrature.vectors[:, -1]).double()
        residual = (operator.dense @ top - quadrature.nodes[-1] * top).norm()
        assert residual < quadrature.residuals[-1] + tolerance * abs(quadrature.nodes).max()


def test_a_basis_is_as_large_as_it_says():
    for dtype, size in ((torch.float16, 2), (torch.float32, 4), (torch.float64, 8)):
        storage = Storage("cpu", dtype)
        assert storage.bytes(7, 1000) == 7000 * size
        basis = Basis(7, torch.ones(1000), storage)
        assert basis.rows.untyped_storage().nbytes() == 7000 * size


@pytest.mark.parametrize("seed", range(4))
def test_a_float16_basis_changes_nothing_that_is_measured(seed):
    operator = Rotated(spectrum(seed, 1000), seed)
    start = rademacher(1000, seed)
    single = lanczos(operator.matvec, start, steps=40)
    half = lanczos(operator.matvec, start, steps=40, storage=HALF)
    deviation = operator.eigenvalues.std()
    assert wasserstein_distance(half.nodes, single.nodes, half.weights, single.weights) < 2e-6 * deviation
    # Not one by one: the nodes inside the bulk have not converged.
    largest = np.abs(operator.eigenvalues).max()
    assert half.nodes[[0, -1]] == pytest.approx(single.nodes[[0, -1]], abs=1e-6 * largest)
    for power in (1, 2):
        assert half.weights @ half.nodes**power == pytest.approx(single.weights @ single.nodes**power, rel=1e-5)


def test_without_a_basis_extremes_and_moments_are_right_and_copies_share_their_eigenvalues_weight():
    eigenvalues = np.append(np.random.default_rng(5).normal(size=395), [100.0, 70, 50, 30, 20])
    operator = Rotated(eigenvalues)
    start = rademacher(400, 1)
    kept = lanczos(operator.matvec, start, steps=60)
    run = lanczos(operator.matvec, start, steps=60, storage=None)
    assert run.nodes[[0, -1]] == pytest.approx(kept.nodes[[0, -1]], rel=1e-5)
    for power in (1, 2, 3):
        assert run.weights @ run.nodes**power == pytest.approx(kept.weights @ kept.nodes**power, rel=1e-4)
    assert (kept.nodes > 15).sum() == 5
    assert (run.nodes > 15).sum() > 10
    nodes, weights = merged(run.nodes, run.weights, 1e-4)
    measure = operator.measure(start)
    for eigenvalue, weight in zip(operator.eigenvalues[-5:], measure[-5:], strict=True):
        close = np.abs(nodes - eigenvalue) < 1e-3 * eigenvalue
        assert 1 <= close.sum() <= 2  # where rounding leaves a copy on its way, it stands apart with next to no weight
        assert weights[close].sum() == pytest.approx(weight, rel=1e-3)
    assert weights.sum() == pytest.approx(1)


def test_without_a_basis_a_signature_finds_the_same_outliers_and_bulk():
    eigenvalues = np.append(np.random.default_rng(5).normal(0.1, 0.3, size=395), [20.0, 13, 9, -7, 5])
    operator = Rotated(eigenvalues)
    # The third probe gives the eigenvalue −7 the weight of a copy, 1e-5/n.
    kept = signature_of(operator, 20, probes=4, seed=0)
    without = signature_of(operator, 20, probes=4, seed=0, storage=None)
    assert (without.basis, kept.basis) == ("none", "float32")
    for found in (kept, without):
        np.testing.assert_allclose(found.outliers, [20, 13, 9, 5, -7], rtol=1e-5)
    for name in truths(eigenvalues, 5):
        # The entropy is no polynomial: copies cost it resolution.
        tolerance = 0.02 if name == "spectral_entropy" else 1e-5
        assert getattr(without, name).value == pytest.approx(getattr(kept, name).value, rel=tolerance), name
    for steps in (30, 60):
        found = signature_of(operator, steps, probes=4, seed=0, storage=None)
        assert 5 <= len(found.outliers) <= 10
        np.testing.assert_allclose(found.leading_eigenvalues[:5], [20, 13, 9, -7, 5], rtol=1e-4)
        bulk = without_largest(eigenvalues, len(found.outliers))
        assert found.bulk_sigma.value == pytest.approx(bulk.std(), rel=0.1)  # four probes: 1.8 % is a standard error


def test_merging_joins_what_is_close_and_keeps_weight_and_mean():
    nodes = np.array([-1.0, -0.99999, 0.5, 2.0, 2.00001, 2.00002])
    weights = np.array([0.1, 0.3, 0.2, 0.1, 0.1, 0.2])
    joined, total = merged(nodes, weights, 1e-5)
    np.testing.assert_allclose(joined, [-0.9999925, 0.5, 2.0000125])
    np.testing.assert_allclose(total, [0.4, 0.2, 0.4])
    apart, same = merged(nodes, weights, 1e-7)
    np.testing.assert_array_equal(apart, nodes)
    np.testing.assert_array_equal(same, weights)


def test_runs_together_are_the_runs_one_at_a_time():
    operator = Rotated(np.concatenate([np.repeat([-1.0, 0.5, 4.0], 20), [9.0, 10.0]]))
    # The second start lies in a small invariant subspace: its run ends earlier.
    starts = [vectors(62, 1)[0], operator.rotation[:, 0] + operator.rotation[:, -1], vectors(62, 1, 1)[0]]
    calls = []

    def matmat(V: torch.Tensor) -> torch.Tensor:
        calls.append(V.shape[1])
        return operator.matmat(V)

    storage = Storage("cpu", torch.float64)
    together = _drive_together(matmat, [recurrence(start, 20, storage) for start in starts])
    assert calls == [3, 3, 2, 2, 2]
    for start, (found, basis) in zip(starts, together, strict=True):
        alone = lanczos(operator.matvec, start, 20)
        np.testing.assert_allclose(found.nodes, alone.nodes, atol=1e-12)
        np.testing.assert_allclose(found.weights, alone.weights, atol=1e-12)
        assert basis.k == len(alone.nodes)


def test_probes_of_an_accelerator_go_together(monkeypatch):
    operator = Rotated(spectrum(2, 120))
    alone = spectral_density(operator, steps=10, probes=3, seed=4)
    assert len({run.nodes[5] for run in alone}) == 3
    # Whatever is no CPU takes the other way; "meta" would be one, and its probes are made here.
    monkeypatch.setattr(krylov, "rademacher", lambda n, *parts, device: rademacher(n, *parts))
    operator.device = "meta"
    together = [run for run, _ in probe_runs(operator, 10, 3, 4, Storage("cpu", torch.float32))]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.nodes, other.nodes, atol=1e-4)
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-4)


# ---- brackets


def quantile(values: np.ndarray, weights: np.ndarray, level: float) -> float:
    order = np.argsort(values)
    return values[order][np.searchsorted(np.cumsum(weights[order]), level)]


def test_brackets_contain_the_quantiles_of_the_measure_that_the_probes_see():
    finite = []
    for seed in range(60):
        operator = Rotated(spectrum(seed, 70), seed)
        starts = vectors(70, 1 + seed % 3, seed)
        starts[:, 0] *= 1 + 10 * (seed % 2)
        measure = np.mean([operator.measure(start) for start in starts], axis=0)
        for steps in (2, 5, 15):
            runs = [lanczos(operator.matvec, start, steps) for start in starts]
            for level in (0.05, 0.25, 0.5, 0.75, 0.95):
                low, high = quantile_bracket([run.nodes for run in runs], [run.weights for run in runs], level)
                truth = quantile(operator.eigenvalues, measure, level)
                slack = 1e-10 * np.abs(operator.eigenvalues).max()
                assert low - slack <= truth <= high + slack
                finite.append(math.isfinite(low) and math.isfinite(high))
    assert np.mean(finite) > 0.5


def test_bounds_contain_the_distribution_function_at_every_point():
    widths = []
    for seed in range(40):
        operator = Rotated(spectrum(seed, 70), seed)
        starts = vectors(70, 1 + seed % 3, seed)
        measure = np.mean([operator.measure(start) for start in starts], axis=0)
        # Zero is the point of the negative mass; steps off the eigenvalues keep rounding out of it.
        points = np.append(operator.eigenvalues[::3] + 1e-7, [0.0, -1e3, 1e3])
        truth = np.array([measure[operator.eigenvalues <= point].sum() for point in points])
        for steps in (2, 5, 15):
            runs = [lanczos(operator.matvec, start, steps) for start in starts]
            below, above = cumulated_bounds([run.nodes for run in runs], [run.weights for run in runs], points)
            assert (below <= truth + 1e-12).all() and (truth <= above + 1e-12).all()
            assert below[-1] < 1 == pytest.approx(above[-1])
            widths.append((above - below).mean())
    assert np.mean(widths[2::3]) < 0.5 * np.mean(widths[::3])


def test_brackets_reach_to_the_neighbouring_nodes_at_full_order():
    operator = Rotated(np.linspace(-3, 4, 40))
    start = vectors(40, 1)[0]
    run = lanczos(operator.matvec, start, steps=40)
    measure = operator.measure(start)
    for level in (0.25, 0.5, 0.75):
        index = np.searchsorted(np.cumsum(measure), level)
        expected = operator.eigenvalues[[index - 1, index + 1]]
        np.testing.assert_allclose(quantile_bracket([run.nodes], [run.weights], level), expected, atol=1e-10)


def test_a_quantile_that_no_node_bounds_is_unbounded():
    # T = [[0.8, β], [β, 0.2]] has eigenvalues −1 and 2, and weights 0.4 and 0.6.
    run = Quadrature(np.array([0.8, 0.2]), np.array([math.sqrt(2.16), 0.0]))
    np.testing.assert_allclose(run.nodes, [-1, 2])
    np.testing.assert_allclose(run.weights, [0.4, 0.6])
    assert quantile_bracket([run.nodes], [run.weights], 0.25) == pytest.approx((-math.inf, 2.0))
    assert quantile_bracket([run.nodes], [run.weights], 0.75) == pytest.approx((-1.0, math.inf))


# ---- pictures


def test_smoothed_density_integrates_to_one():
    operator = Rotated(np.random.default_rng(0).normal(size=100))
    runs = spectral_density(operator, steps=8, probes=3, seed=0)
    grid = np.linspace(-8, 8, 2001)
    nodes, weights = [run.nodes.tolist() for run in runs], [run.weights.tolist() for run in runs]
    density = smoothed_density(nodes, weights, grid, width=0.3)
    assert trapezoid(density, grid) == pytest.approx(1, abs=1e-6)
    mean = np.mean([run.weights @ run.nodes for run in runs])
    assert trapezoid(density * grid, grid) == pytest.approx(mean, abs=1e-6)
