"""Drifts of SIGMA's tracks: influences against refitting, bands that cover, buckets on common blocks."""

import math

import numpy as np
import pytest
from checkpoints import checkpoint
from margins import mean_is, rate_at_least, rate_at_most, rate_is
from spectral_collapse import sigma
from spectral_collapse.sigma import Budget, Observed, banded_drift, prompt_influences

BUDGET = Budget(unobserved=40, rho=1.0, delta=1e-3)


def value(gram: np.ndarray, count: int, track: str) -> float:
    if track == "track_two":
        return sigma.track_two(gram, count, BUDGET.delta)
    envelope = "water_filling" if track == "track_one_sharp" else "ky_fan"
    return sigma.track_one(gram, count, count + BUDGET.unobserved, BUDGET.rho, BUDGET.delta, envelope)


@pytest.mark.parametrize("track", sigma.TRACKS)
def test_value_is_the_track(track):
    first = checkpoint(0)
    found, pulls = prompt_influences(first, np.arange(30), track, BUDGET)
    if track == "logdet":  # of log det G for n ≫ n_A, a column
        estimate = sigma.grouped_logdet_estimate(first.rows, first.prompts, 1e9).value
        assert found == pytest.approx(estimate - 12 * math.log(1e9), abs=1e-5)
    else:
        assert found == pytest.approx(value(first.rows.T @ first.rows, len(first.rows), track), rel=1e-10)
    assert abs(pulls.sum()) < 1e-9


def refitted(observed: Observed, universe: np.ndarray, track: str) -> np.ndarray:
    """The track without each prompt of the universe, from a Gram matrix of its own."""
    parts = [observed.select(observed.prompts != prompt) for prompt in universe]
    return np.array([value(part.rows.T @ part.rows, len(part.rows), track) for part in parts])


@pytest.mark.parametrize("track", ["track_two", "track_one"])
def test_influences_are_the_jackknifes(track):
    first, universe = checkpoint(0), np.arange(31)  # prompt 30 gave no block
    _, pulls = prompt_influences(first, universe, track, BUDGET)
    without = refitted(first, universe, track)
    np.testing.assert_allclose(pulls, math.sqrt(31 * 30) * (without.mean() - without), rtol=1e-8)
    jackknife = 30 / 31 * np.sum((without - without.mean()) ** 2)
    assert np.mean(pulls**2) / 31 == pytest.approx(jackknife)


@pytest.mark.parametrize("track", ["track_two", "track_one"])
def test_drift_and_its_error_are_those_of_refitting_without_each_prompt(track):
    first, last = checkpoint(0), checkpoint(1, scale=1.5)
    last = last.select(np.arange(len(last.rows)) % 7 > 0)  # some prompts lose a block, which is left out of both
    found = banded_drift(first, last, track, BUDGET, seed=3)
    first = first.select(np.arange(len(first.rows)) % 7 > 0)
    values = [value(each.rows.T @ each.rows, len(each.rows), track) for each in (first, last)]
    assert found["drift"] == pytest.approx(values[1] - values[0], rel=1e-8)
    moved = refitted(last, np.arange(30), track) - refitted(first, np.arange(30), track)
    assert found["standard_error"] == pytest.approx(math.sqrt(29 / 30 * np.sum((moved - moved.mean()) ** 2)), rel=1e-8)


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
    _, pulls = prompt_influences(small, universe, "track_one_sharp", BUDGET)
    found = -pulls / math.sqrt(30 * 29) + pulls.mean()
    found, expected = found - found[:3].mean(), without - without[:3].mean()
    np.testing.assert_allclose(found[:3], expected[:3], atol=1e-10)


def test_standard_error_of_the_sharp_envelope_is_close_to_refitting():
    first, last = checkpoint(0, m=20), checkpoint(1, m=20, scale=1.5)
    found = banded_drift(first, last, "track_one_sharp", BUDGET)["standard_error"]
    one, other = (refitted(each, np.arange(30), "track_one_sharp") for each in (first, last))
    assert found == pytest.approx(math.sqrt(29) * (other - one).std(), rel=0.05)


def test_bands_hold_the_true_drift_and_the_test_keeps_its_level():
    """Prompts with a common part: the columns of one response are dependent, the prompts are not."""
    rng = np.random.default_rng(0)
    prompts, m, scales = 60, 6, np.geomspace(1, 0.3, 6)

    def draw(shared: np.ndarray, factor: float) -> Observed:
        rows = (np.repeat(shared, 4, axis=0) + rng.normal(size=(4 * prompts, m))) * scales * factor
        return Observed(rows, np.repeat(np.arange(prompts), 4), np.tile(np.arange(4), prompts))

    held, rejected = [], []
    for _ in range(80):
        shared = rng.normal(size=(prompts, m))
        first, same, moved = draw(shared, 1.0), draw(shared, 1.0), draw(shared, 0.9)
        found = banded_drift(first, moved, "track_two", Budget(0, 1.0, 1e-9))
        held.append(found["low"] <= 2 * m * math.log(0.9) <= found["high"])
        rejected.append(banded_drift(first, same, "track_two", Budget(0, 1.0, 1e-9))["p_value"] < 0.05)
    rate_is(held, 0.95, slack=0.02)
    rate_is(rejected, 0.05, slack=0.02)


def test_nothing_moves_from_a_checkpoint_to_itself():
    first = checkpoint(0)
    found = banded_drift(first, first, "track_one_sharp", BUDGET)
    assert (found["drift"], found["low"], found["high"]) == (0, 0, 0) and math.isnan(found["p_value"])


def test_buckets_are_compared_on_the_blocks_that_both_checkpoints_have():
    first = checkpoint(0, m=20)
    # The second checkpoint lacks the last block of prompt 0 and collapses in the second bucket alone.
    rows = first.rows.copy()
    second = first.prompts >= 15
    rows[second] = 0.2 * rows[second] + 0.9 * rows[second][0]
    last = Observed(rows, first.prompts, first.blocks).select((first.prompts > 0) | (first.blocks < 2))
    found = sigma.bucket_drifts(first, last, ["a"] * 15 + ["b"] * 15, BUDGET)
    assert found["a"]["blocks"] == 44 and found["b"]["blocks"] == 45
    assert found["a"]["drift"] == pytest.approx(0, abs=1e-9)
    assert found["b"]["high"] < 0 and found["b"]["p_value"] < 0.01


def test_too_few_prompts_have_a_drift_and_no_band():
    few = checkpoint(0, prompts=9)
    found = banded_drift(few, checkpoint(1, prompts=9), "track_two", BUDGET)
    assert math.isfinite(found["drift"]) and math.isnan(found["low"]) and math.isnan(found["p_value"])


def test_checkpoints_without_a_common_block_have_no_drift():
    first = checkpoint(0)
    other = Observed(first.rows, first.prompts + 100, first.blocks)
    with pytest.raises(ValueError, match="no block in common"):
        banded_drift(first, other, "track_two", BUDGET)


def test_the_corrected_log_determinant_needs_blocks_and_says_nothing_of_a_collapse():
    few = checkpoint(0, prompts=12, m=40)  # 36 blocks in 40 dimensions
    assert math.isnan(banded_drift(few, few, "logdet", BUDGET)["drift"])
    first = checkpoint(0)
    alike = Observed(np.tile(first.rows[:1], (90, 1)), first.prompts, first.blocks)
    assert math.isnan(banded_drift(first, alike, "logdet", BUDGET)["drift"])
    assert math.isfinite(banded_drift(first, alike, "track_two", BUDGET)["low"])


def test_unknown_track_is_refused():
    with pytest.raises(ValueError, match="the tracks are track_two, logdet, track_one, track_one_sharp, not 'three'"):
        banded_drift(checkpoint(0), checkpoint(1), "three", BUDGET)


# ---- the bootstrap itself, on responses whose blocks are dependent


def responses(seed: int, m: int, prompts: int = 60, blocks: int = 3, contraction: float = 1.0) -> list[Observed]:
    """Two checkpoints on the same prompts: blocks of one prompt alike, prompts alike at both, the second contracted."""
    rng = np.random.default_rng(seed)
    topic = rng.normal(size=(prompts, 1, m))
    checkpoints = []
    for scale in (1.0, contraction):
        answer = topic + rng.normal(size=(prompts, 1, m))
        rows = answer / 2 + rng.normal(size=(prompts, blocks, m)) * math.sqrt(0.5)
        rows = (rows * np.linspace(1, scale, m)).reshape(-1, m)
        checkpoints.append(Observed(rows, np.repeat(np.arange(prompts), blocks), np.tile(np.arange(blocks), prompts)))
    return checkpoints


@pytest.mark.parametrize("contraction", [1.0, 0.6])
def test_bands_of_dependent_blocks_cover_and_the_test_holds_its_level(contraction):
    found = [banded_drift(*responses(seed, 12, contraction=contraction), "track_two", BUDGET) for seed in range(80)]
    drifts, low, high, p = (np.array([each[name] for each in found]) for name in ("drift", "low", "high", "p_value"))
    truth = 2 * np.log(np.linspace(1, contraction, 12)).sum()
    mean_is(drifts, truth, slack=0.02)
    rate_is((low <= truth) & (truth <= high), 0.95, slack=0.02)
    if contraction == 1:
        rate_at_most(p < 0.05, 0.07)
    else:
        rate_at_least(p < 0.05, 0.99)


def test_pairing_narrows_the_band():
    first = responses(1, 12)[0]
    moved = first.rows * np.linspace(1, 0.7, 12) + 0.3 * np.random.default_rng(0).normal(size=first.rows.shape)
    shuffled = np.random.default_rng(0).permutation(60)[first.prompts]
    paired, unpaired = (
        banded_drift(first, Observed(moved, prompts, first.blocks), "track_two", BUDGET)
        for prompts in (first.prompts, shuffled)
    )
    assert paired["drift"] == pytest.approx(unpaired["drift"])
    assert paired["standard_error"] < 0.8 * unpaired["standard_error"]


def test_resampled_columns_would_be_another_quantity():
    """Why influences are resampled: the log-determinant of a resample of prompts is far below the sample's."""
    first, rng = responses(3, 40)[0], np.random.default_rng(0)
    whole = value(first.rows.T @ first.rows, len(first.rows), "track_two")
    drawn = []
    for _ in range(50):
        weights = rng.multinomial(60, np.full(60, 1 / 60))[first.prompts]
        drawn.append(value((first.rows * weights[:, None]).T @ first.rows, weights.sum(), "track_two"))
    assert max(drawn) < whole - 2
    [band] = np.diff(np.quantile(drawn, [0.025, 0.975]))
    assert whole - np.mean(drawn) > band  # further off than its own band is wide


def test_a_lost_block_is_no_drift():
    """Null: both checkpoints from one distribution, and a third of the prompts lose their last block at the second one.

    20 blocks fewer are −m log(n/n₀) = 2.2 nats of Track I at least, a hundred of its standard errors, and before they
    were left out of both checkpoints the test rejected in every simulation. 20 pairs, level 5 %, conservative: 9
    rejections or more have a probability below 1e-6 (binomial, 2e-7).
    """
    rejected = dict.fromkeys(sigma.TRACKS, 0)
    for seed in range(20):
        first, last = responses(seed, 12)
        last = last.select((last.prompts % 3 > 0) | (last.blocks < 2))
        for track, found in sigma.banded_drifts(first, last, BUDGET, seed).items():
            rejected[track] += found["p_value"] < 0.05
    assert max(rejected.values()) < 9, rejected
