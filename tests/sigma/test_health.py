"""The frozen observed set, dead directions of an encoder, and one message for each unsound input."""

import math

import numpy as np
import pytest
from spectral_collapse import sigma
from spectral_collapse.sigma import ObservedSet, health_checks, live_space

pytestmark = pytest.mark.numerics

DELTA = 1e-3


def unit_rows(seed: int, count: int, dimension: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_an_observed_set_selects_its_rows_in_its_own_order():
    frozen = ObservedSet(("a/0", "b/0", "b/1"))
    embeddings = np.arange(8.0).reshape(4, 2)
    found = frozen.select(["b/1", "c/0", "a/0", "b/0"], embeddings)
    np.testing.assert_array_equal(found, embeddings[[2, 3, 0]])
    frozen.check(ObservedSet(("a/0", "b/0", "b/1")).sha256)


def test_a_changed_observed_set_is_one_sentence():
    frozen = ObservedSet(("a/0", "b/0", "b/1"))
    for other in (("a/0", "b/1", "b/0"), ("a/0", "b/0"), ("a/0b/0", "b/1")):
        with pytest.raises(ValueError, match=r"^the observed set changed between checkpoints \(hash"):
            frozen.check(ObservedSet(other).sha256)
    with pytest.raises(
        ValueError, match=r"^the observed set changed between checkpoints: 1 of 3 blocks are missing, 'b/1'"
    ):
        frozen.select(["a/0", "b/0"], np.zeros((2, 4)))
    with pytest.raises(ValueError, match="names a block twice"):
        ObservedSet(("a/0", "a/0"))
    with pytest.raises(ValueError, match="need as many different ids: 2 of 3"):
        frozen.select(["a/0", "b/0", "a/0"], np.zeros((3, 4)))
    with pytest.raises(ValueError, match="2 embeddings need"):
        frozen.select(["a/0", "b/0", "b/1"], np.zeros((2, 4)))


def test_dead_coordinates_are_found_and_what_delta_hides_is_exact():
    live = unit_rows(0, 60, 9)
    rows = np.insert(live, [2, 7], 1e-9, axis=1)  # coordinates 2 and 8 of 11
    space = live_space(rows)
    assert space.dead_coordinates == (2, 8)
    assert (space.dim, space.m_eff) == (11, 9)
    np.testing.assert_array_equal(space.project(rows), live)
    np.testing.assert_allclose(space.project_gram(rows.T @ rows), live.T @ live, atol=1e-12)
    for n in (60, 40):
        block = rows[:n].T @ rows[:n]
        kept = sigma.track_two(block, n, DELTA)
        dropped = sigma.track_two(space.project_gram(block), n, DELTA)
        assert kept - dropped == pytest.approx(space.hidden_by_delta(n, DELTA), abs=1e-9)
        assert space.hidden_by_delta(n, DELTA) == pytest.approx(2 * math.log(DELTA / n))


def test_dead_directions_that_are_no_coordinates_are_found():
    rng = np.random.default_rng(1)
    live, turn = rng.normal(size=(80, 6)), np.linalg.qr(rng.normal(size=(8, 8)))[0]
    rows = np.hstack([live, np.zeros((80, 2))]) @ turn
    space = live_space(rows)
    assert space.m_eff == 6 and space.dead_coordinates == ()
    np.testing.assert_allclose(space.basis.T @ space.basis, np.eye(6), atol=1e-12)
    found = np.linalg.slogdet(space.project_gram(rows.T @ rows))[1]
    assert found == pytest.approx(np.linalg.slogdet(live.T @ live)[1])


def test_a_small_reference_set_cannot_tell_dead_directions():
    assert live_space(unit_rows(2, 20, 10)).m_eff == 10
    with pytest.raises(ValueError, match="19 reference embeddings are too few to tell dead directions of 10: give 20"):
        live_space(unit_rows(2, 19, 10))


def test_each_unsound_input_has_its_message():
    assert health_checks(unit_rows(3, 50, 10), rho=1.0, delta=DELTA) == []
    long = unit_rows(3, 50, 10)
    long[4] *= 2
    [message] = health_checks(long, rho=1.0, delta=DELTA)
    assert message.startswith("1 of 50 embeddings exceed the energy budget rho = 1 (largest squared norm 4)")
    [message] = health_checks(unit_rows(3, 7, 10), rho=1.0, delta=DELTA)
    assert message.startswith("7 embeddings span at most 7 of 10 dimensions: 3 log delta = -20.7 dominates")
    [message] = health_checks(np.tile(unit_rows(3, 1, 10), (50, 1)), rho=1.0, delta=DELTA)
    assert message.startswith("all embeddings are the same vector")
    [message] = health_checks(np.repeat(unit_rows(3, 8, 10), 5, axis=0), rho=1.0, delta=DELTA)
    assert message.startswith("40 embeddings, 8 of them different, span 8 of 10 dimensions: the responses repeat")
    assert "2 log delta = -13.8 is in the tracks" in message
    [message] = health_checks(unit_rows(3, 19, 10), rho=1.0, delta=DELTA)
    assert message.startswith("19 embeddings are fewer than 2 for each of 10 dimensions")
    [message] = health_checks(unit_rows(3, 50, 10), rho=1.0, delta=1e6)
    assert message.startswith("delta = 1e+06 is not below 10 of the 10 eigenvalues")
    [message] = health_checks(unit_rows(3, 50, 10), rho=1.0, delta=DELTA, groups=["a", "b"] * 25)
    assert message.startswith("50 embeddings come from 2 groups: rows of one group depend on each other")
    assert health_checks(unit_rows(3, 50, 10), rho=1.0, delta=DELTA, groups=range(50)) == []


def test_dead_directions_are_not_called_repetition():
    live, turn = unit_rows(4, 50, 8), np.linalg.qr(np.random.default_rng(5).normal(size=(10, 10)))[0]
    [message] = health_checks(np.insert(live, [2, 7], 1e-9, axis=1), rho=1.0, delta=DELTA)
    assert message.startswith("2 of 10 coordinates are zero in all embeddings (2, 8): dead directions of the encoder")
    assert "2 log delta = -13.8" in message and "repeat" not in message
    [message] = health_checks(np.hstack([live, np.zeros((50, 2))]) @ turn, rho=1.0, delta=DELTA)
    assert "span 8 of 10 dimensions: dead directions of the encoder" in message


def test_what_is_no_embedding_has_its_message():
    assert health_checks(np.zeros((0, 10)), 1.0, DELTA)[0].startswith("there is no embedding")
    for bad in (math.nan, math.inf):
        rows = unit_rows(6, 50, 10)
        rows[3, 2] = rows[9, 1] = bad
        [message] = health_checks(rows, 1.0, DELTA)
        assert message.startswith("2 of 50 embeddings are not finite")
        with pytest.raises(ValueError, match="2 of 50 embeddings are not finite, row 3 first"):
            live_space(rows)
    rows = unit_rows(6, 50, 10)
    rows[::2] = 0
    [message] = health_checks(rows, 1.0, DELTA)
    assert message.startswith("25 of 50 embeddings are zero vectors")
    [message] = health_checks(np.zeros((50, 10)), 1.0, DELTA)
    assert message.startswith("50 of 50 embeddings are zero vectors")
    with pytest.raises(ValueError, match=r"embeddings have shape \(10,\)"):
        health_checks(np.zeros(10), 1.0, DELTA)
