"""The study of the estimators' own noise, on operators whose spectrum is known."""

import numpy as np
import pytest
from spectra import Rotated
from spectral_collapse import curvature
from spectral_collapse.analysis import estimators
from spectral_collapse.paper import tables

STEPS = [12, 18, 36]
OUTLIERS = [30.0, 20.0, -15.0]


def record(seed: int, probes: int = 8) -> tuple[dict, np.ndarray]:
    """Runs on an operator with three outliers, as the stage keeps them; and its eigenvalues."""
    rng = np.random.default_rng(seed)
    # Nine tenths of the spectrum within a thousandth of zero, as in a trained network: the case that matters.
    bulk = np.where(rng.random(297) < 0.1, rng.normal(0.2, 1.5, size=297), rng.normal(0, 1e-3, size=297))
    operator = Rotated(np.append(bulk, OUTLIERS), seed)
    runs = curvature.spectral_density(operator, max(STEPS), probes, seed)
    result = {
        "parameters": operator.shape[0],
        "alphas": [run.alphas.tolist() for run in runs],
        "betas": [run.betas.tolist() for run in runs],
    }
    return result, operator.eigenvalues


@pytest.fixture(scope="module")
def study():
    results, eigenvalues = zip(*(record(seed) for seed in range(3)), strict=True)
    return estimators.noise(list(results), STEPS), eigenvalues


def test_every_cell_is_there_and_pools_stand_at_their_first_probe(study):
    frame, _ = study
    counts = frame.groupby(["batch", "steps", "quantity"], observed=True).size().unstack()
    assert counts.shape == (9, 5)
    assert (counts.drop(columns="published_iqr_pooled") == 8).all(axis=None)
    assert (counts["published_iqr_pooled"] == 2).all()


def test_moments_and_the_top_agree_with_the_spectrum(study):
    frame, eigenvalues = study
    for batch, values in enumerate(eigenvalues):
        part = frame[(frame["batch"] == batch) & (frame["steps"] == STEPS[-1])]
        means = part.groupby("quantity", observed=True)["value"].mean()
        assert means["lambda_max"] == pytest.approx(30, rel=1e-4)
        assert means["spectral_sigma"] == pytest.approx(values.std(), rel=0.3)  # noise of three outliers
        assert means["bulk_sigma"] == pytest.approx(values[np.abs(values) < 10].std(), rel=0.3)


def test_moments_do_not_depend_on_the_steps_and_the_published_width_does(study):
    summary = estimators.noise_summary(study[0])
    assert summary.loc["spectral_sigma", "at_12"] == pytest.approx(1, abs=1e-4)
    assert summary.loc["bulk_sigma", "at_12"] == pytest.approx(1, abs=0.02)
    assert summary.loc["bulk_sigma", "cv_probes"] < summary.loc["spectral_sigma", "cv_probes"] / 2
    assert abs(np.log(summary.loc["published_iqr", "at_12"])) > 1


def test_widths_are_those_of_a_run_of_that_many_steps(study):
    frame, _ = study
    result, _ = record(1, probes=1)
    run = curvature.Quadrature(np.array(result["alphas"][0][:18]), np.array(result["betas"][0][:18]))
    cell = (frame["batch"] == 1) & (frame["probe"] == 0) & (frame["steps"] == 18)
    found = frame[cell & (frame["quantity"] == "published_iqr")]["value"].item()
    assert found == pytest.approx(curvature.interpolated_iqr(run.nodes, run.weights), rel=1e-3)


def test_too_few_probes_for_a_pool_leave_it_out():
    frame = estimators.noise([record(0, probes=3)[0], record(1, probes=3)[0]], [6, 12])
    assert "published_iqr_pooled" not in estimators.noise_summary(frame).index


def test_the_table_shows_percentages_and_ratios(study):
    frame = tables.estimators(estimators.noise_summary(study[0]))
    assert list(frame.columns) == ["Quantity", "CV, probes", "CV, batches", "12 steps", "18 steps"]
    assert all(cell.endswith(r"\,\%") for cell in frame["CV, probes"])
