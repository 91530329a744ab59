"""SIGMA tracks against direct formulas, their theorems, and the published series."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from spectral_collapse import sigma
from spectral_collapse.sigma import GramAccumulator, regularized_logdet
from spectral_collapse.text import metrics as text_metrics
from spectral_collapse.text.metrics import words

pytestmark = pytest.mark.numerics

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
M = 384  # dimension of the published embeddings


def unit_rows(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    """Anisotropic rows (count, dimension) of norm 1."""
    rows = rng.normal(size=(count, dimension)) * np.geomspace(1, 0.01, dimension) + rng.normal(size=dimension)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def gram(rows: np.ndarray) -> np.ndarray:
    return GramAccumulator(rows.shape[1]).update(rows, rho=1.0).gram


# Log-determinant


@pytest.mark.parametrize("delta", [1e-8, 1e-3, 2.0])
@pytest.mark.parametrize("count", [3, 30, 200])
def test_logdet_is_the_determinants_and_that_of_the_dual(count, delta):
    rows = unit_rows(np.random.default_rng(count), count, 30)
    found = regularized_logdet(gram(rows), delta)
    assert found == pytest.approx(np.linalg.slogdet(rows.T @ rows + delta * np.eye(30))[1], abs=1e-5)
    # log det(A + δI_m) = log det(K + δI_n) + (m − n) log δ with K the n × n matrix of inner products.
    dual = np.linalg.svd(rows, compute_uv=False) ** 2
    exact = np.log(dual + delta).sum() + (30 - len(dual)) * math.log(delta)
    assert found == pytest.approx(exact, abs=1e-5)
    # From the rows themselves the dual is used below m, and is the exact value to rounding however small δ.
    assert regularized_logdet(rows, delta) == pytest.approx(exact, rel=1e-12, abs=1e-9)


def test_a_square_matrix_of_rows_is_not_taken_for_a_gram_matrix():
    rows = unit_rows(np.random.default_rng(9), 30, 30)
    assert regularized_logdet(rows, 1e-3) == pytest.approx(regularized_logdet(rows.T @ rows, 1e-3), abs=1e-8)


@pytest.mark.parametrize("bad", [-np.eye(3), np.diag([1.0, np.nan, 1.0]), np.diag([1.0, np.inf, 1.0])])
def test_a_matrix_that_is_not_positive_definite_is_one_sentence(bad):
    with pytest.raises(ValueError, match=r"^the Gram matrix plus delta is not positive definite and finite"):
        regularized_logdet(bad, 1e-3)


@pytest.mark.parametrize("delta", [0.0, -1.0])
def test_delta_must_be_positive(delta):
    with pytest.raises(ValueError, match=rf"^delta must be positive, not {delta}\.$"):
        regularized_logdet(np.eye(3), delta)
    with pytest.raises(ValueError):
        regularized_logdet(np.eye(3), math.nan)


# Accumulation


def test_chunks_and_merged_parts_give_the_whole():
    rows = unit_rows(np.random.default_rng(0), 100, 12)
    whole = GramAccumulator(12).update(rows)
    parts = [GramAccumulator(12).update(part) for part in np.split(rows, [7, 7, 60])]
    merged = GramAccumulator(12)
    for part in parts:
        assert merged.merge(part) is merged
    streamed = GramAccumulator(12)
    for row in rows:
        assert streamed.update(row[None]) is streamed
    for accumulator in (whole, merged, streamed):
        assert accumulator.n == 100
        np.testing.assert_allclose(accumulator.gram, sum(np.outer(v, v) for v in rows), atol=1e-12)
    assert GramAccumulator(12).update(rows.astype(np.float32)).gram.dtype == np.float64


@pytest.mark.parametrize("seed", range(5))
def test_any_partition_merged_in_any_order_is_the_whole(seed, monkeypatch):
    monkeypatch.setattr("spectral_collapse.sigma.gram.CHUNK", 7)  # chunks within an update as well
    rng = np.random.default_rng(seed)
    rows = unit_rows(rng, 300, 20) * 10.0 ** rng.uniform(-3, 3)
    whole = rows.T @ rows
    cuts = np.sort(rng.integers(0, 301, size=rng.integers(1, 12)))
    parts = [GramAccumulator(20).update(part) for part in np.split(rows[rng.permutation(300)], cuts)]
    while len(parts) > 1:  # a random tree
        left, right = (parts.pop(rng.integers(len(parts))) for _ in range(2))
        parts.append(left.merge(right))
    assert parts[0].n == 300
    assert np.linalg.norm(parts[0].gram - whole) <= 1e-10 * np.linalg.norm(whole)
    np.testing.assert_array_equal(parts[0].gram, parts[0].gram.T)


def test_accumulators_of_different_dimensions_do_not_merge():
    with pytest.raises(ValueError, match="dimensions 3 and 4 cannot be merged"):
        GramAccumulator(3).merge(GramAccumulator(4))


def test_rows_that_would_spoil_the_sum_are_refused_and_leave_it_as_it_was():
    rows = unit_rows(np.random.default_rng(1), 6, 4)
    spoiled = rows.copy()
    spoiled[3, 1] = np.nan
    long = rows.copy()
    long[2] *= 1.1
    accumulator = GramAccumulator(4).update(rows, rho=1.0)
    before = accumulator.gram.copy()
    with pytest.raises(ValueError, match=r"^embedding 3 is not finite"):
        accumulator.update(spoiled)
    with pytest.raises(ValueError, match=r"squared norm 1\.21, above the energy budget rho = 1"):
        accumulator.update(long, rho=1.0)
    for shape in ((5, 3), (5,), (2, 5, 4)):
        message = re.escape(f"embeddings have shape {shape}; rows of length 4 are expected")
        with pytest.raises(ValueError, match=message):
            accumulator.update(np.zeros(shape))
    assert accumulator.n == 6
    np.testing.assert_array_equal(accumulator.gram, before)
    accumulator.update(long, rho=1.21)  # within another budget it is welcome
    assert accumulator.n == 12


# Tracks


def test_tracks_are_sums_over_eigenvalues():
    rows = unit_rows(np.random.default_rng(2), 50, 20)
    eigenvalues = np.linalg.eigvalsh(rows.T @ rows)
    two = sigma.track_two(gram(rows), 50, delta=1e-3)
    assert two == pytest.approx(np.log((eigenvalues + 1e-3) / 50).sum())
    one = sigma.track_one(gram(rows), 50, 70, rho=1.5, delta=1e-3)
    assert one == pytest.approx(np.log((eigenvalues + 1e-3 + 1.5 * 20) / 70).sum())


def test_track_two_does_not_see_the_same_block_written_twice():
    rows = unit_rows(np.random.default_rng(3), 50, 20)
    once = sigma.track_two(gram(rows), 50, delta=1e-3)
    # δ is worth half as much beside twice the Gram matrix.
    assert sigma.track_two(gram(np.vstack([rows, rows])), 100, delta=2e-3) == pytest.approx(once, abs=1e-9)


def test_without_unobserved_energy_the_tracks_differ_by_the_sizes_alone():
    block = gram(unit_rows(np.random.default_rng(4), 50, 20))
    two = sigma.track_two(block, 50, delta=1e-3)
    assert sigma.track_one(block, 50, 50, rho=1.0, delta=1e-3) == pytest.approx(two)
    one = sigma.track_one(block, 50, 80, rho=0.0, delta=1e-3)
    assert one == pytest.approx(two + 20 * math.log(50 / 80))


def test_track_one_bounds_the_whole_whatever_is_unobserved():
    rng = np.random.default_rng(5)
    gaps = []
    for _ in range(200):
        dimension, observed, unobserved = rng.integers([1, 1, 0], [25, 60, 60])
        seen = unit_rows(rng, observed, dimension)
        rest = unit_rows(rng, unobserved, dimension)
        if rng.random() < 0.3 and unobserved:  # all of the budget in one direction
            rest[:] = rest[0]
        total, delta = observed + unobserved, 10.0 ** rng.uniform(-6, 0)
        truth = regularized_logdet(gram(seen) + gram(rest), delta) - dimension * math.log(total)
        bound = sigma.track_one(gram(seen), int(observed), int(total), rho=1.0, delta=delta)
        gaps.append(bound - truth)
        if dimension == 1 or unobserved == 0:
            assert bound == pytest.approx(truth, abs=1e-8)
    assert min(gaps) > -1e-8
    assert max(gaps) > 1


def test_theorem_1_holds_on_both_sides():
    # log det A ≤ log det G ≤ Σ log(λ_i(A) + λ_max(B)), and the budget τ is at least λ_max(B).
    rng = np.random.default_rng(6)
    for _ in range(200):
        dimension, observed, unobserved = rng.integers([2, 1, 1], [25, 60, 60])
        seen, rest = gram(unit_rows(rng, observed, dimension)), gram(unit_rows(rng, unobserved, dimension))
        delta = 10.0 ** rng.uniform(-6, 0)
        lower, whole = regularized_logdet(seen, delta), regularized_logdet(seen + rest, delta)
        largest = np.linalg.eigvalsh(rest)[-1]
        upper = regularized_logdet(seen, delta + largest)
        assert lower <= whole + 1e-8
        assert whole <= upper + 1e-8
        assert largest <= unobserved + 1e-9


def random_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """PSD A and B (m, m) of any rank and anisotropy; B often has little to do with A."""
    m = int(rng.integers(1, 20))
    pair = []
    for _ in range(2):
        rank = int(rng.integers(0, m + 1))
        basis, _ = np.linalg.qr(rng.normal(size=(m, m)))
        eigenvalues = 10.0 ** rng.uniform(-4, 3, size=m) * (np.arange(m) < rank)
        pair.append((basis * eigenvalues) @ basis.T)
    return pair[0], pair[1]


def test_water_filling_lies_between_the_truth_and_ky_fan_and_is_reached():
    rng = np.random.default_rng(10)
    gains = []
    for _ in range(500):
        seen, rest = random_pair(rng)
        delta, budget = 10.0 ** rng.uniform(-6, 0), np.trace(rest) * rng.choice([1.0, 1.0, 2.0])
        sharp = sigma.water_filling(seen, budget, delta)
        slack = 1e-9 * (1 + abs(sharp))
        assert regularized_logdet(seen + rest, delta) <= sharp + slack
        gains.append(regularized_logdet(seen, delta + budget) - sharp)
        assert gains[-1] >= -slack
        # The B that reaches it: water poured on the smallest eigenvalues of A up to a common level.
        eigenvalues, vectors = np.linalg.eigh(seen)
        low, high = eigenvalues[0], eigenvalues[-1] + budget + 1
        for _ in range(200):
            level = (low + high) / 2
            low, high = (level, high) if np.maximum(level - eigenvalues, 0).sum() < budget else (low, level)
        poured = (vectors * np.maximum(high - eigenvalues, 0)) @ vectors.T
        assert np.trace(poured) == pytest.approx(budget, rel=1e-9, abs=1e-9)
        assert regularized_logdet(seen + poured, delta) == pytest.approx(sharp, abs=1e-7 * (1 + abs(sharp)))
    assert max(gains) > 10


def test_water_filling_in_closed_form():
    assert sigma.water_filling(np.diag([1.0, 3.0]), 0.0, 0.5) == pytest.approx(math.log(1.5 * 3.5))
    assert sigma.water_filling(np.diag([1.0, 3.0]), 1.0, 0.5) == pytest.approx(math.log(2.5 * 3.5))
    assert sigma.water_filling(np.diag([1.0, 3.0]), 4.0, 0.5) == pytest.approx(2 * math.log(4.5))
    # Isotropic A: the whole budget spread evenly, while Ky Fan spends it in every direction.
    assert sigma.water_filling(2 * np.eye(5), 10.0, 1e-9) == pytest.approx(5 * math.log(4))


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_the_largest_eigenvalues_are_enough_for_water_filling(spread, monkeypatch):
    rng = np.random.default_rng(11)
    rows = rng.normal(size=(500, 300)) * np.exp(spread * rng.normal(size=300))
    block = rows.T @ rows
    for budget in np.trace(block) * np.array([2.5, 30.0, 1e6]):
        monkeypatch.setattr("spectral_collapse.sigma.gram.LANCZOS_FROM", 256)
        partial = sigma.water_filling(block, budget, 1e-3)
        monkeypatch.setattr("spectral_collapse.sigma.gram.LANCZOS_FROM", 10_000)
        assert partial == pytest.approx(sigma.water_filling(block, budget, 1e-3), abs=1e-7)


def test_design_example_track_one_as_published_says_nothing_and_the_sharp_one_does():
    rng = np.random.default_rng(12)
    seen, rest = unit_rows(rng, 800, M), unit_rows(rng, 800, M)
    sizes = (800, 1600)
    truth = regularized_logdet(gram(seen) + gram(rest), 1e-3) - M * math.log(1600)
    ky_fan = sigma.track_one(gram(seen), *sizes, rho=1.0, delta=1e-3)
    sharp = sigma.track_one(gram(seen), *sizes, rho=1.0, delta=1e-3, envelope="water_filling")
    assert truth < sharp < ky_fan
    assert sharp - truth < 0.5 * (ky_fan - truth)


def test_envelopes_and_matrices_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="ky_fan or water_filling, not 'weyl'"):
        sigma.track_one(np.eye(3), 3, 4, 1.0, 1e-3, envelope="weyl")
    with pytest.raises(ValueError, match="it is not PSD"):
        sigma.water_filling(-np.eye(3), 1.0, 1e-3)
    with pytest.raises(ValueError, match="not finite"):
        sigma.water_filling(np.full((3, 3), np.nan), 1.0, 1e-3)
    for delta, budget in ((0.0, 1.0), (1e-3, -1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="delta must be positive and the budget at least 0"):
            sigma.water_filling(np.eye(3), budget, delta)


@pytest.mark.parametrize("m", [5, 300])
def test_water_fills_a_matrix_of_zeros_evenly(m):
    assert sigma.water_filling(np.zeros((m, m)), 10.0, 1e-3) == pytest.approx(m * math.log(1e-3 + 10 / m), rel=1e-12)


def test_a_negative_eigenvalue_is_noticed_in_many_dimensions():
    """From 256 dimensions on the largest eigenvalues alone are found, and none of them is negative."""
    matrix = np.eye(300)
    assert sigma.water_filling(matrix, 1e4, 1e-3) == pytest.approx(300 * math.log(1e4 / 300 + 1.001), rel=1e-12)
    matrix[0, 0] = -1.0
    with pytest.raises(ValueError, match="the Gram matrix has the eigenvalue -1: it is not PSD"):
        sigma.water_filling(matrix, 1e4, 1e-3)


def test_an_accumulator_says_its_dimension_and_number():
    assert repr(sigma.GramAccumulator(3).update(np.eye(3)[:2])) == "GramAccumulator(dim=3, n=2)"


def test_theorem_1_bounds_from_the_eigenvalue_and_from_the_budget():
    rng = np.random.default_rng(13)
    for _ in range(200):
        seen, rest = random_pair(rng)
        largest = max(0.0, np.linalg.eigvalsh(rest)[-1])
        exact = sigma.deterministic_bounds(seen, 1e-3, lambda_max=largest)
        budget = sigma.deterministic_bounds(seen, 1e-3, budget=np.trace(rest))
        whole = regularized_logdet(seen + rest, 1e-3)
        assert exact.lower <= whole + 1e-6 and whole <= exact.upper + 1e-6
        assert exact.lower == budget.lower and exact.upper <= budget.upper + 1e-6
    isotropic = sigma.deterministic_bounds(np.diag([1.0, 2.0]), 1e-9, lambda_max=3.0)
    assert isotropic.upper == pytest.approx(np.log([4.0, 5.0]).sum())  # reached by B = 3 I
    for given in ({}, {"lambda_max": 1.0, "budget": 1.0}):
        with pytest.raises(ValueError, match="give either lambda_max"):
            sigma.deterministic_bounds(np.eye(2), 1e-3, **given)


def test_overestimation_ratio_is_that_of_the_bound():
    second_moment = np.diag([4.0, 1.0, 0.5])
    gamma, n = 0.25, 1000
    bound = sigma.deterministic_bounds(gamma * n * second_moment, 1e-12, lambda_max=(1 - gamma) * n * 4.0).upper
    truth = regularized_logdet(n * second_moment, 1e-12)
    assert sigma.overestimation_ratio(second_moment, gamma) == pytest.approx(bound - truth)
    assert sigma.overestimation_ratio(3 * np.eye(4), 0.1) == pytest.approx(0, abs=1e-12)
    assert sigma.overestimation_ratio(second_moment, 1.0) == 0
    for energy in (0.0, 1e-17):  # the second one is rounding
        with pytest.raises(sigma.SingularGram, match="rank 1 in 2 dimensions"):
            sigma.overestimation_ratio(np.diag([1.0, energy]), 0.5)
    with pytest.raises(ValueError, match="lies between 0 and 1, not at"):
        sigma.overestimation_ratio(second_moment, 1.5)


def test_drift_slope_and_agreement():
    assert sigma.drift([3.0, 1.0, 4.0]).tolist() == [0.0, -2.0, 1.0]
    values = np.array([1.0, 4.0, 2.0, 0.0])
    assert sigma.ols_slope(values) == pytest.approx(np.polyfit(np.arange(4), values, 1)[0])
    assert sigma.ols_slope(values, [0, 2, 5, 9]) == pytest.approx(np.polyfit([0, 2, 5, 9], values, 1)[0])
    with pytest.raises(ValueError, match="two generations or more"):
        sigma.ols_slope([1.0])
    falling, dipping = [0.0, -1.0, -3.0], [0.0, -8.0, -4.0, -2.0, -1.0]  # the second ends low but its slope is up
    assert sigma.track_agreement(falling, [0.0, -0.1, -0.2])
    assert sigma.ols_slope(dipping) > 0
    assert not sigma.track_agreement(dipping, falling)


def test_empty_blocks_and_totals_below_the_block_are_refused():
    with pytest.raises(ValueError, match="the responses are empty"):
        sigma.track_two(np.zeros((3, 3)), 0, delta=1e-3)
    for observed, total in ((0, 5), (6, 5)):
        with pytest.raises(ValueError, match=f"n_total {total} must be at least n_observed {observed}"):
            sigma.track_one(np.zeros((3, 3)), observed, total, rho=1.0, delta=1e-3)


# The published series


@pytest.fixture(scope="module")
def points():
    return pd.read_csv(PUBLISHED / "sigma_fin_s1_points.csv", index_col="generation")


def track_gaps(sizes: list[int]) -> np.ndarray:
    """Track I drift − Track II drift of blocks of the given sizes, by our tracks with τ = 0 and n fixed."""
    rng = np.random.default_rng(7)
    gaps = []
    for size in sizes:
        block = gram(unit_rows(rng, size, M))
        one = sigma.track_one(block, size, 1000, rho=0.0, delta=1e-3)
        gaps.append(one - sigma.track_two(block, size, delta=1e-3))
    return np.array(gaps) - gaps[0]


def test_published_tracks_differ_only_by_the_number_of_observed_blocks(points):
    gaps = (points.track1_drift - points.track2_drift).loc[1:].to_numpy()
    possible = track_gaps([977, 998, 999, 1000])[1:]
    np.testing.assert_allclose(possible, M * np.log(np.array([998, 999, 1000]) / 977), atol=1e-9)
    nearest = np.abs(gaps[:, None] - possible).argmin(1)
    np.testing.assert_allclose(gaps, possible[nearest], atol=1.5e-6)  # two figures of six decimals
    assert set(nearest) == {0, 1, 2}
    assert (points.loc[0] == 0).all()


def test_published_summary_agrees_with_the_points_where_it_can_be_recomputed(points):
    """The points stop at generation 25, so of the final drifts and slopes only the tracks' gap is known."""
    summary = pd.read_csv(PUBLISHED / "sigma_fin_summary.csv", index_col="setting").loc["S1"]
    full = M * math.log(1000 / 977)
    assert summary.track1_final_drift - summary.track2_final_drift == pytest.approx(full, abs=1.1e-3)
    gaps = np.append(points.track1_drift - points.track2_drift, np.full(25, full))  # 1,000 blocks to the end
    generations = np.arange(len(gaps))
    assert generations[-1] == summary.final_generation
    published = summary.track1_slope - summary.track2_slope
    assert np.polyfit(generations, gaps, 1)[0] == pytest.approx(published, abs=1.1e-3)
    without_first = np.polyfit(generations[1:], gaps[1:], 1)[0]
    assert without_first != pytest.approx(published, abs=1.1e-3)


# Blocks


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("", []),
        (" \n\t ", []),
        ("... -- !", []),
        ("one", []),
        ("one two three", []),
        ("One, two! three 4.", ["One, two! three 4."]),
        ("a b c d e", ["a b c d"]),
        ("a b c d e f", ["a b c d"]),
        ("a b c d . !", ["a b c d"]),
        ("a b c d e - f g", ["a b c d"]),
        ("a - b -- c\n\nd  e f g h", ["a - b -- c d", "e f g h"]),
        ("a b c well-known d e", ["a b c well-known"]),
        ("don't stop me now", ["don't stop me now"]),
    ],
)
def test_texts_are_cut_into_blocks_of_four_words(text, blocks):
    assert text_metrics.split_blocks(text, 4) == blocks


def test_every_block_has_all_its_words_and_only_the_last_words_are_in_none():
    rng = np.random.default_rng(8)
    vocabulary = ["Once", "upon,", "a", "time!", "-", "well-known", "it's", "3.", "…", "naïve"]
    for _ in range(200):
        size = int(rng.integers(1, 12))
        text = " ".join(rng.choice(vocabulary, size=rng.integers(0, 60)))
        blocks = text_metrics.split_blocks(text, size)
        assert text.startswith(" ".join(blocks))
        assert all(size <= len(words(block)) <= size + 1 for block in blocks)
        assert len(words(text)) - len(words(" ".join(blocks))) < size
