"""SIGMA tracks against direct formulas, their theorems, and the published series."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from spectral_collapse import sigma
from spectral_collapse.sigma import GramAccumulator, regularized_logdet
from spectral_collapse.text_metrics import words

PUBLISHED = Path(__file__).parents[1] / "results" / "published"
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
        ("one two", ["one two"]),
        ("One, two! three 4.", ["One, two! three 4."]),
        ("a b c d e", ["a b c d"]),
        ("a b c d e f", ["a b c d", "e f"]),
        ("a b c d . !", ["a b c d"]),
        ("a b c d e - f", ["a b c d", "e - f"]),
        ("a - b -- c\n\nd  e f g h", ["a - b -- c d", "e f g h"]),
        ("a b c well-known d e", ["a b c well-known", "d e"]),
        ("don't stop", ["don't stop"]),
    ],
)
def test_texts_are_cut_into_blocks_of_four_words(text, blocks):
    assert sigma.split_blocks(text, 4) == blocks


def test_every_word_is_in_a_block_or_in_a_short_tail():
    rng = np.random.default_rng(8)
    vocabulary = ["Once", "upon,", "a", "time!", "-", "well-known", "it's", "3.", "…", "naïve"]
    for _ in range(200):
        size = int(rng.integers(1, 12))
        text = " ".join(rng.choice(vocabulary, size=rng.integers(0, 60)))
        blocks = sigma.split_blocks(text, size)
        assert text.startswith(" ".join(blocks))
        assert all(size <= len(words(block)) <= size + 1 for block in blocks[:-1])
        assert all(2 * len(words(block)) >= size for block in blocks)
        assert 2 * (len(words(text)) - len(words(" ".join(blocks)))) < size
