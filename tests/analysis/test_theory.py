"""Solvable recursions: formulas against exact enumeration and simulation."""

import itertools

import numpy as np
import pytest
from margins import mean_is, spread_is
from scipy import stats
from spectral_collapse.analysis import theory


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


def test_wrong_input_is_one_sentence():
    with pytest.raises(ValueError, match="sum to 1"):
        theory.categorical(np.array([0.5, 0.6]), 10, 1)
    with pytest.raises(ValueError, match="more than 12"):
        theory.gaussian(10, 12, 1)
