"""Drifts of SIGMA's tracks: the determinant lemma against refitting, bands that cover, buckets on common blocks."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from spectral_collapse import sigma, sigma_drift, sigma_inference
from spectral_collapse.sigma_drift import Budget, Observed

BUDGET = Budget(unobserved=40, rho=1.0, delta=1e-3)


def checkpoint(seed: int, prompts: int = 30, m: int = 12, per_prompt: int = 3, scale: float = 1.0) -> Observed:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(prompts * per_prompt, m)) * np.geomspace(1, 0.1, m) ** scale
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Observed(rows, np.repeat(np.arange(prompts), per_prompt), np.tile(np.arange(per_prompt), prompts))


def value(gram: np.ndarray, count: int, track: str) -> float:
    if track == "track_two":
        return sigma.track_two(gram, count, BUDGET.delta)
    envelope = "water_filling" if track == "track_one_sharp" else "ky_fan"
    return sigma.track_one(gram, count, count + BUDGET.unobserved, BUDGET.rho, BUDGET.delta, envelope)


@pytest.mark.parametrize("track", sigma_drift.TRACKS)
def test_value_is_the_track(track):
    first = checkpoint(0)
    found, pulls = sigma_drift.influences(first, np.arange(30), track, BUDGET)
    assert found == pytest.approx(value(first.rows.T @ first.rows, len(first.rows), track), rel=1e-10)
    assert abs(pulls.sum()) < 1e-9


@pytest.mark.parametrize("track", ["track_two", "track_one"])
def test_drift_is_that_of_refitting_without_each_prompt(track):
    first, last = checkpoint(0), checkpoint(1, scale=1.5)
    last = last.select(np.arange(len(last.rows)) % 7 > 0)  # another number of blocks
    found = sigma_drift.drift(first, last, track, BUDGET, seed=3)
    expected = sigma_inference.bootstrap_drift(
        [(each.rows, [f"{prompt:02}" for prompt in each.prompts]) for each in (first, last)],  # sorted as text
        lambda gram, count: value(gram, count, track),
        seed=3,
    ).iloc[1]
    assert found == pytest.approx(expected.drop("generation").to_dict(), rel=1e-8)


def test_influence_on_the_sharp_envelope_is_its_derivative():
    """Prompts of vanishing energy: leaving one out is a derivative, which the formula has exactly."""
    first = checkpoint(0)
    small = Observed(first.rows * np.where(first.prompts < 3, 1e-3, 1.0)[:, None], first.prompts, first.blocks)
    universe = np.arange(30)
    exact, count = small.rows.T @ small.rows, len(small.rows)
    without = np.array(
        [
            value(exact - own.T @ own, count - len(own), "track_one_sharp")
            for own in (small.rows[small.prompts == prompt] for prompt in universe)
        ]
    )
    _, pulls = sigma_drift.influences(small, universe, "track_one_sharp", BUDGET)
    found = -pulls / math.sqrt(30 * 29) + pulls.mean()
    found, expected = found - found[:3].mean(), without - without[:3].mean()
    np.testing.assert_allclose(found[:3], expected[:3], atol=1e-10)


def test_standard_error_of_the_sharp_envelope_is_close_to_refitting():
    first, last = checkpoint(0, m=20), checkpoint(1, m=20, scale=1.5)
    found = sigma_drift.drift(first, last, "track_one_sharp", BUDGET)
    expected = sigma_inference.bootstrap_drift(
        [(each.rows, each.prompts) for each in (first, last)], lambda g, n: value(g, n, "track_one_sharp")
    ).iloc[1]
    assert found["standard_error"] == pytest.approx(expected["standard_error"], rel=0.05)


def test_bands_hold_the_true_drift_and_the_test_keeps_its_level():
    """Prompts with a common part: the columns of one response are dependent, the prompts are not."""
    rng = np.random.default_rng(0)
    prompts, m, scales = 60, 6, np.geomspace(1, 0.3, 6)

    def draw(shared: np.ndarray, factor: float) -> Observed:
        rows = (np.repeat(shared, 4, axis=0) + rng.normal(size=(4 * prompts, m))) * scales * factor
        return Observed(rows, np.repeat(np.arange(prompts), 4), np.tile(np.arange(4), prompts))

    held = rejected = 0
    for _ in range(200):
        shared = rng.normal(size=(prompts, m))
        first, same, moved = draw(shared, 1.0), draw(shared, 1.0), draw(shared, 0.9)
        found = sigma_drift.drift(first, moved, "track_two", Budget(0, 1.0, 1e-9))
        held += found["low"] <= 2 * m * math.log(0.9) <= found["high"]
        rejected += sigma_drift.drift(first, same, "track_two", Budget(0, 1.0, 1e-9))["p_value"] < 0.05
    assert binomtest(held, 200, 0.95).pvalue > 1e-3
    assert binomtest(rejected, 200, 0.05).pvalue > 1e-3


def test_nothing_moves_from_a_checkpoint_to_itself():
    first = checkpoint(0)
    found = sigma_drift.drift(first, first, "track_one_sharp", BUDGET)
    assert (found["drift"], found["low"], found["high"]) == (0, 0, 0) and math.isnan(found["p_value"])


def test_buckets_are_compared_on_the_blocks_that_both_checkpoints_have():
    first = checkpoint(0, m=20)
    # The second checkpoint lacks the last block of prompt 0 and collapses in the second bucket alone.
    rows = first.rows.copy()
    second = first.prompts >= 15
    rows[second] = 0.2 * rows[second] + 0.9 * rows[second][0]
    last = Observed(rows, first.prompts, first.blocks).select((first.prompts > 0) | (first.blocks < 2))
    found = sigma_drift.bucket_drifts(first, last, ["a"] * 15 + ["b"] * 15, BUDGET)
    assert found["a"]["blocks"] == 44 and found["b"]["blocks"] == 45
    assert found["a"]["drift"] == pytest.approx(0, abs=1e-9)
    assert found["b"]["high"] < 0 and found["b"]["p_value"] < 0.01


def test_too_few_prompts_have_a_drift_and_no_band():
    few = checkpoint(0, prompts=9)
    found = sigma_drift.drift(few, checkpoint(1, prompts=9), "track_two", BUDGET)
    assert math.isfinite(found["drift"]) and math.isnan(found["low"]) and math.isnan(found["p_value"])


def test_unknown_track_is_refused():
    with pytest.raises(ValueError, match="the tracks are track_two, track_one, track_one_sharp, not 'three'"):
        sigma_drift.drift(checkpoint(0), checkpoint(1), "three", BUDGET)
