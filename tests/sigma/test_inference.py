"""Estimates of log det G and of drifts: closed forms, and coverage in simulations."""

import math

import numpy as np
import pytest
from margins import mean_is, rate_is, spread_is
from scipy.stats import norm
from spectral_collapse import sigma
from spectral_collapse.sigma import inference, logdet_estimate

DELTA = 1e-3


def wishart(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """Gram matrix of n standard normal columns in m dimensions, by Bartlett's decomposition."""
    factor = np.tril(rng.normal(size=(m, m)), -1)
    np.fill_diagonal(factor, np.sqrt(rng.chisquare(n - np.arange(m))))
    return factor @ factor.T


def student(rng: np.random.Generator, count: int, m: int, freedom: float) -> np.ndarray:
    """Rows of the multivariate t distribution with second moments I."""
    return rng.normal(size=(count, m)) * np.sqrt((freedom - 2) / rng.chisquare(freedom, size=(count, 1)))


# Leverages and their variance


def test_leverages_are_the_diagonal_of_the_hat_matrix(monkeypatch):
    monkeypatch.setattr(inference, "CHUNK", 7)
    rows = np.random.default_rng(0).normal(size=(40, 6))
    found = inference.leverages(rows)
    np.testing.assert_allclose(found, np.diag(rows @ np.linalg.inv(rows.T @ rows) @ rows.T), atol=1e-12)
    assert found.sum() == pytest.approx(6)
    gram = rows.T @ rows
    for j in (0, 39):  # log det A falls by −log(1 − h) when an embedding is left out
        rest = sigma.cholesky_logdet(gram - np.outer(rows[j], rows[j]))
        assert sigma.cholesky_logdet(gram) - rest == pytest.approx(-math.log(1 - found[j]))
    with pytest.raises(sigma.SingularGram, match=r"^the Gram matrix has rank 5 in 6 dimensions"):
        inference.leverages(rows[:5])
    with pytest.raises(ValueError, match="1 of 40 embeddings are not finite, row 2 first"):
        inference.leverages(np.where(np.arange(40)[:, None] == 2, np.nan, rows))


def test_mahalanobis_variance_with_the_true_second_moment_and_plugged_in():
    rng = np.random.default_rng(1)
    scale = np.geomspace(1, 9, 5)
    rows = rng.normal(size=(200_000, 5)) * scale
    assert inference.mahalanobis_variance(rows, np.diag(scale**2)) == pytest.approx(10, rel=0.05)  # 2m
    few = rows[:15]
    plug_in = inference.mahalanobis_variance(few)
    assert plug_in == pytest.approx(np.var(15 * inference.leverages(few), ddof=1))
    assert plug_in < 10
    assert inference.mahalanobis_variance(rows) == pytest.approx(10, rel=0.05)


def test_required_sample_size_is_the_published_rule():
    assert inference.required_sample_size(math.sqrt(768), 1.0) == math.ceil(norm.ppf(0.975) ** 2 * 768)
    assert inference.required_sample_size(2.0, 0.5, level=0.9) == math.ceil((norm.ppf(0.95) * 4) ** 2)
    with pytest.raises(ValueError, match="give no sample size"):
        inference.required_sample_size(1.0, 0.0)


# log det G


def test_wishart_moments_are_those_of_simulated_determinants():
    rng = np.random.default_rng(2)
    drawn = []
    for _ in range(4000):
        seen, rest = wishart(rng, 8, 12), wishart(rng, 8, 30)
        drawn.append(sigma.cholesky_logdet(seen + rest) - sigma.cholesky_logdet(seen))
    mean, variance = inference.wishart_moments(8, 12, 42)
    mean_is(drawn, mean)
    spread_is(drawn, math.sqrt(variance))


def test_the_plug_in_misses_by_82_and_the_correction_does_not():
    """Design section 5: m = 384, n_A = 1000, n = 20000, where Theorem 3's half-width is 1.7."""
    m, observed, total = 384, 1000, 20_000
    rng = np.random.default_rng(3)
    errors, corrected = [], []
    for _ in range(20):
        seen, rest = wishart(rng, m, observed), wishart(rng, m, total - observed)
        truth = sigma.cholesky_logdet(seen + rest)
        plug_in = logdet_estimate(seen, observed, total, "none")
        assert plug_in.high - plug_in.value == pytest.approx(1.7, abs=0.06)
        errors.append(truth - plug_in.value)
        corrected.append(truth - logdet_estimate(seen, observed, total, "wishart").value)
    mean, _ = inference.wishart_moments(m, observed, total)
    expected = mean - m * math.log(total / observed)
    assert expected == pytest.approx(82.07, abs=0.01)
    mean_is(errors, expected)
    mean_is(corrected, 0)


def test_nothing_unobserved_leaves_nothing_to_estimate():
    rows = np.random.default_rng(4).normal(size=(30, 5))
    exact = sigma.cholesky_logdet(rows.T @ rows)
    scores = inference.leverages(rows)
    for correction in ("none", "wishart", "leverage"):
        found = logdet_estimate(rows.T @ rows, 30, 30, correction, leverages=scores)
        assert (*found, found.standard_error) == pytest.approx((exact, exact, exact, 0), abs=1e-6)


def test_the_level_sets_the_width():
    gram = wishart(np.random.default_rng(5), 5, 30)
    wide, narrow = (logdet_estimate(gram, 30, 90, level=level) for level in (0.99, 0.5))
    assert wide.value == narrow.value
    ratio = (wide.high - wide.low) / (narrow.high - narrow.low)
    assert ratio == pytest.approx(norm.ppf(0.995) / norm.ppf(0.75))
    assert wide.high - wide.value == pytest.approx(norm.ppf(0.995) * wide.standard_error)


def intervals(draw, m: int, observed: int, replicates: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Errors, and whether 95 % intervals cover, for n → ∞, where log det G − m log n is log det Σ = 0."""
    total, found = 1e12, {"none": [], "wishart": [], "leverage": []}
    for seed in range(replicates):
        rows = draw(np.random.default_rng(seed), observed, m)
        scores = inference.leverages(rows)
        for correction, errors in found.items():
            e = logdet_estimate(rows.T @ rows, observed, total, correction, leverages=scores)
            truth = m * math.log(total)
            errors.append((e.value - truth, e.low <= truth <= e.high))
    return {name: tuple(np.transpose(errors)) for name, errors in found.items()}


def test_gaussian_columns_are_covered_by_both_corrections_and_never_by_the_plug_in():
    found = intervals(lambda rng, count, m: rng.normal(size=(count, m)), 32, 83, 400)
    assert not found["none"][1].any()  # off by seven standard deviations
    for correction in ("wishart", "leverage"):
        errors, covered = found[correction]
        mean_is(errors, 0)
        rate_is(covered, 0.95, slack=0.01)


def test_heavy_tails_need_the_leverages():
    found = intervals(lambda rng, count, m: student(rng, count, m, 5), 32, 160, 400)
    errors, covered = found["wishart"]
    assert errors.mean() < -2 and covered.mean() < 0.4  # −3.3 ± 0.1 and 0.18 ± 0.02
    errors, covered = found["leverage"]
    mean_is(errors, 0)
    rate_is(covered, 0.945, slack=0.025)


def test_columns_of_one_length_are_known_better_than_gaussian_ones():
    def sphere(rng, count, m):
        rows = rng.normal(size=(count, m))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True) * math.sqrt(m)

    found = intervals(sphere, 32, 160, 300)
    errors, covered = found["leverage"]
    mean_is(errors, 0, slack=0.02)
    rate_is(covered, 0.965, slack=0.02)
    assert found["wishart"][1].all()  # far too wide


def test_estimates_that_cannot_be_made_are_refused():
    gram = np.eye(4)
    for observed, total in ((3, 10), (4, 10), (10, 9)):
        with pytest.raises(ValueError, match=rf"not 4, {observed} and {total}"):
            logdet_estimate(gram, observed, total)
    with pytest.raises(ValueError, match="leverages of all 8 observed"):
        logdet_estimate(gram, 8, 10, "leverage")
    with pytest.raises(ValueError, match="wishart, leverage or none, not 'jackknife'"):
        logdet_estimate(gram, 8, 10, "jackknife")
    for last in (0.0, 1e-15, np.nan):
        with pytest.raises(sigma.SingularGram):
            logdet_estimate(np.diag([1.0, 1.0, last]), 8, 10)


def test_rounding_is_no_log_determinant():
    """Two dead coordinates that hold rounding of float32, as sentence encoders leave it: Cholesky succeeds on them."""
    rng = np.random.default_rng(6)
    rows = np.hstack([rng.normal(size=(60, 8)), 1e-9 * rng.normal(size=(60, 2))])
    gram = rows.T @ rows
    assert math.isfinite(sigma.cholesky_logdet(gram))
    for estimate in (lambda: logdet_estimate(gram, 60, 90), lambda: inference.leverages(rows)):
        with pytest.raises(sigma.SingularGram, match=r"rank 8 in 10 dimensions .* \(`live_space`\)"):
            estimate()


def test_leverages_near_one_are_refused():
    rng = np.random.default_rng(7)
    for m, least in ((8, 16), (32, 40), (384, 461)):
        assert inference.least_rows(m) == least
    rows = rng.normal(size=(15, 8))
    with pytest.raises(ValueError, match=r"15 embeddings are too few for their leverages in 8 dimensions.* observe 16"):
        logdet_estimate(rows.T @ rows, 15, 90, "leverage", leverages=inference.leverages(rows))
    rows = np.vstack([rng.normal(size=(30, 8)) * (np.arange(8) > 0), np.eye(8)[:1]])  # one row alone holds a direction
    with pytest.raises(sigma.SingularGram, match="1 leverages are 1: a direction is held by one embedding alone"):
        logdet_estimate(rows.T @ rows, 31, 90, "leverage", leverages=inference.leverages(rows))


def test_the_leverage_interval_covers_at_the_fewest_rows_that_it_takes():
    """150 Gaussian samples at n_A = 40, m = 32: covered 92 to 94 % in larger simulations."""
    found = intervals(lambda rng, count, m: rng.normal(size=(count, m)), 32, inference.least_rows(32), 150)
    rate_is(found["leverage"][1], 0.93, slack=0.01)


# Rows that depend on each other


def grouped_rows(rng: np.random.Generator, groups: int, size: int, m: int, shared: float) -> np.ndarray:
    """Standard normal rows, correlated by `shared` within a group, (groups · size, m)."""
    common = math.sqrt(shared) * rng.normal(size=(groups, 1, m))
    return (common + math.sqrt(1 - shared) * rng.normal(size=(groups, size, m))).reshape(-1, m)


def test_estimates_without_a_group_are_those_of_the_other_groups():
    rng = np.random.default_rng(8)
    rows, groups = grouped_rows(rng, 15, 3, 6, 0.5)[:-1], np.repeat(list("abcdefghijklmno"), 3)[:-1]
    order = rng.permutation(44)  # groups need not stand together, nor be of one size
    rows, groups = rows[order], groups[order]
    whole, names, without = inference.leave_groups_out(rows, groups, 1e3)
    assert list(names) == list("abcdefghijklmno")
    for place in (0, 7, 14):
        rest = groups != names[place]
        assert without[place] == pytest.approx(inference.leave_groups_out(rows[rest], groups[rest], 1e3)[0], abs=1e-8)
    found = inference.grouped_logdet_estimate(rows, groups, 1e3)
    jackknife = 14 / 15 * ((without - without.mean()) ** 2).sum() * (1 - 44 / 1e3)
    assert found.value == whole and found.standard_error == pytest.approx(math.sqrt(jackknife))


def test_groups_of_one_row_give_the_estimate_of_independent_rows():
    rows = np.random.default_rng(9).normal(size=(60, 8))
    independent = logdet_estimate(rows.T @ rows, 60, 500, "leverage", leverages=inference.leverages(rows))
    grouped = inference.grouped_logdet_estimate(rows, range(60), 500)
    assert grouped.value == pytest.approx(independent.value, abs=1e-8)
    assert grouped.standard_error == pytest.approx(independent.standard_error, rel=0.35)


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
def test_intervals_over_groups_cover_where_rows_depend_on_each_other(shared):
    """30 groups of 4 rows in 12 dimensions, n → ∞: 93 to 99 % of larger simulations covered. 60 samples: 39 or fewer
    covered have a probability below 1e-6 at 90 %. Taken for independent, correlated rows are covered in fewer."""
    total, held, independent = 1e12, 0, 0
    for seed in range(60):
        rows = grouped_rows(np.random.default_rng(seed), 30, 4, 12, shared)
        found = inference.grouped_logdet_estimate(rows, np.repeat(np.arange(30), 4), total)
        held += found.low <= 12 * math.log(total) <= found.high
        other = logdet_estimate(rows.T @ rows, 120, total, "leverage", leverages=inference.leverages(rows))
        independent += other.low <= 12 * math.log(total) <= other.high
    assert held > 39
    if shared == 0.9:
        assert independent < 20  # none in larger simulations


def test_groups_that_cannot_be_judged_are_refused():
    rows = np.random.default_rng(10).normal(size=(60, 6))
    with pytest.raises(ValueError, match="9 groups are too few to judge their spread: give 10"):
        inference.grouped_logdet_estimate(rows, np.arange(60) % 9, 100)
    with pytest.raises(ValueError, match="60 embeddings need as many groups, one for each row, not 59"):
        inference.grouped_logdet_estimate(rows, np.arange(59), 100)
    with pytest.raises(ValueError, match="13 embeddings are too few"):
        inference.grouped_logdet_estimate(rows[:13], range(13), 100)
    rows[:57, 0] = 0  # one group alone holds a direction
    with pytest.raises(sigma.SingularGram, match="a direction is held by one group alone"):
        inference.grouped_logdet_estimate(rows, np.arange(60) // 3, 100)


# Shrinkage


def test_shrinkage_is_nearer_the_truth_than_delta_where_columns_are_few():
    scale = np.geomspace(1, 0.3, 40)
    truth = 2 * np.log(scale).sum()
    errors = []
    for seed in range(20):
        rows = np.random.default_rng(seed).normal(size=(44, 40)) * scale
        regularised = sigma.track_two(rows.T @ rows, 44, DELTA)
        errors.append((inference.shrunk_logdet(rows) - truth, regularised - truth))
    shrunk, regularised = np.abs(np.mean(errors, axis=0))
    assert shrunk < regularised / 2
