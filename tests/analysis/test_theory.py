"""Solvable recursions: formulas against exact enumeration and simulation."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from margins import mean_is, spread_is
from scipy import stats
from spectral_collapse import sigma
from spectral_collapse.analysis import theory
from spectral_collapse.curvature import lanczos, signature_of_runs


def at(frame, signal: str, generation: int):
    return frame.set_index(["signal", "generation"]).loc[(signal, generation)]


def test_moments_of_diversity_equal_the_enumeration_of_two_generations():
    p, n = np.array([0.5, 0.3, 0.2]), 4
    counts = [c for c in itertools.product(range(n + 1), repeat=3) if sum(c) == n]

    def step(weights):
        found = dict.fromkeys(counts, 0.0)
        for shares, weight in weights.items():
            for count in counts:
                found[count] += weight * stats.multinomial.pmf(count, n, np.array(shares))
        return {tuple(np.array(count) / n): weight for count, weight in found.items()}

    weights = {tuple(p): 1.0}
    exact = theory.categorical(p, n, 2)
    for generation in (1, 2):
        weights = step(weights)
        values = np.array([1 - np.square(shares).sum() for shares in weights])
        chances = np.array(list(weights.values()))
        mean = values @ chances
        row = at(exact, "diversity", generation)
        assert row["mean"] == pytest.approx(mean, rel=1e-12)
        assert row["deviation"] == pytest.approx(np.sqrt(np.square(values - mean) @ chances), rel=1e-9)
        assert mean == pytest.approx((1 - 1 / n) ** generation * (1 - np.square(p).sum()), rel=1e-12)


def test_the_trace_of_the_categorical_hessian_is_its_diversity():
    p = np.random.default_rng(0).dirichlet(np.ones(7))
    assert np.trace(np.diag(p) - np.outer(p, p)) == pytest.approx(1 - np.square(p).sum())


def test_categorical_loss_agrees_with_simulation():
    p, n = np.random.default_rng(1).dirichlet(np.full(20, 5.0)), 2000
    runs = theory.categorical_runs(p, n, 4, 4000, np.random.default_rng(2))
    losses = theory.categorical_signals(p, runs)["excess_loss"]
    exact = theory.categorical(p, n, 4)
    for generation in (1, 4):
        row = at(exact, "excess_loss", generation)
        mean_is(losses[:, generation], row["mean"])
        # χ² is no normal: its kurtosis widens the error of a deviation, and 1/N what the order leaves out.
        assert np.std(losses[:, generation]) == pytest.approx(row["deviation"], rel=0.12)


def test_gaussian_moments_agree_with_simulation():
    m, n, last = 3, 40, 4
    rng = np.random.default_rng(3)
    found = theory.gaussian_signals([theory.gaussian_run(m, n, last, rng) for _ in range(1000)])
    exact = theory.gaussian(m, n, last)
    for generation in (1, last):
        row = at(exact, "logdet", generation)
        mean_is(found["logdet"][:, generation], row["mean"])
        spread_is(found["logdet"][:, generation], row["deviation"])
        mean_is(found["excess_loss"][:, generation], at(exact, "excess_loss", generation)["mean"])


def test_loss_tells_of_a_recursion_before_diversity_and_log_determinant():
    """At the second generation, and the more so the larger the sample: d′ of the loss does not depend on N, those of
    the others fall with it."""
    p = np.random.default_rng(4).dirichlet(np.ones(500))
    for moments in (lambda n: theory.categorical(p, n, 3), lambda n: theory.gaussian(50, n, 3)):
        other = {"diversity", "logdet"}
        found = {
            n: theory.detectability(moments(n)).query("generation == 2").set_index("signal")["d_prime"]
            for n in (1_000, 100_000)
        }
        (second,) = other & set(found[1_000].index)
        assert found[1_000]["excess_loss"] > found[1_000][second] > found[100_000][second]
        assert found[100_000]["excess_loss"] > 3 * found[100_000][second]


def test_a_decline_has_the_sample_size_that_made_it():
    m, n, last = 30, 700, 6
    means = theory.gaussian(m, n, last).query("signal == 'logdet'")["mean"].to_list()
    p = theory.zipf(50)
    diversity = theory.categorical(p, 90, last).query("signal == 'diversity'")["mean"].to_numpy()
    rows = {
        "condition": "recursive",
        "generation": range(last + 1),
        "track_two_drift": [0.0, *means],
        "hashed_ngram_hhi": [(p**2).sum(), *(1 - diversity)],
    }
    found = theory.implied(pd.DataFrame(rows), m, "recursive")
    assert found["draws_slope"] == pytest.approx(n) and found["draws_concentration"] == pytest.approx(90)
    assert theory.draws_of_slope(0.1, 3) == theory.draws_of_concentration(0.2, 0.1, 3) == np.inf


def test_track_two_of_the_recursion_falls_by_its_slope():
    """SIGMA's own estimator, on embeddings drawn from each generation of a Gaussian recursion with mean 0."""
    m, n, last, rng = 6, 60, 4, np.random.default_rng(5)
    exact = theory.gaussian(m, n, last).query("signal == 'logdet'")["mean"].to_numpy()
    drifts = []
    for _ in range(200):
        tracks = []
        for _, covariance in theory.gaussian_run(m, n, last, rng):
            rows = rng.normal(size=(3000, m)) @ np.linalg.cholesky(covariance).T
            tracks.append(sigma.track_two(rows.T @ rows, len(rows), 1e-9))
        drifts.append(np.diff(tracks, prepend=0)[1:].cumsum())
    for generation in range(last):
        mean_is(np.array(drifts)[:, generation], exact[generation])


def test_spectral_estimators_read_the_diversity_off_the_categorical_hessian():
    shares = theory.categorical_runs(theory.zipf(400), 2000, 3, 1, np.random.default_rng(6))[0]
    rng = np.random.default_rng(7)
    for p in torch.from_numpy(shares):
        signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=(40, len(p))))
        runs = [lanczos(lambda v, p=p: p * v - p * (p @ v), start, 12) for start in signs]
        found = signature_of_runs(runs, len(p), basis="float64")
        traces = np.array([run.weights @ run.nodes for run in runs]) * len(p)
        mean_is(traces, float(1 - (p**2).sum()))
        assert found.mean_eigenvalue.value * len(p) == pytest.approx(traces.mean())


def test_wrong_input_is_one_sentence():
    with pytest.raises(ValueError, match="sum to 1"):
        theory.categorical(np.array([0.5, 0.6]), 10, 1)
    with pytest.raises(ValueError, match="more than 12"):
        theory.gaussian(10, 12, 1)
