"""Interventions, each against something exact."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from margins import rate_is
from spectral_collapse import estimate
from spectral_collapse.analysis import series
from spectral_collapse.experiment import embedding, interventions, loop, measure, runs
from spectral_collapse.model import train
from spectral_collapse.record import params
from spectral_collapse.text import storyworld
from tiny import TINY


@pytest.fixture(scope="module")
def real():
    return runs.Run(params.load("smoke", **TINY), "recursive", 1, say=lambda _: None).real


@pytest.fixture
def run(tmp_path, monkeypatch, real):
    """A run of the tiny profile with changes; all of a test share their records' folder."""
    monkeypatch.setenv("SPECTRAL_COLLAPSE_RESULTS", str(tmp_path / "results"))

    def build(name: str = "tiny", condition: str = "recursive", **changes) -> runs.Run:
        settings = params.check({**params.load("smoke", **TINY).model_dump(), **changes, "profile": name})
        return runs.Run(settings, condition, 1, real=real, say=lambda _: None)

    return build


# ---- writing


def test_decoding_of_text_is_the_evaluations_unless_set(run):
    assert interventions.decoding(run().params) == {"temperature": 1.0, "top_k": 0, "top_p": 0.95}
    own = run(writing_temperature=0.3, writing_top_k=10).params
    assert interventions.decoding(own) == {"temperature": 0.3, "top_k": 10, "top_p": 0.95}


def test_decoding_changes_what_is_written_and_not_what_is_measured(run):
    plain, cold = run(), run("cold", writing_temperature=0.01)
    assert loop.training(plain, 0)["model_sha256"] == loop.training(cold, 0)["model_sha256"]
    assert not torch.equal(loop.synthetic_blocks(plain, 0), loop.synthetic_blocks(cold, 0))
    assert torch.equal(loop.synthetic_blocks(run("both", temperature=0.01), 0), loop.synthetic_blocks(cold, 0))
    assert measure.evaluation(plain, 0) == measure.evaluation(cold, 0)


def test_new_contexts_every_generation(run, monkeypatch):
    prompts = []
    monkeypatch.setattr(loop.generate, "sample", lambda model, given, *_, **__: prompts.append(given) or given)
    monkeypatch.setattr(loop, "load", lambda *_: None)
    monkeypatch.setattr(loop.build, "tokens_without_text", lambda *_: [])
    for one in (run(), run(writing_contexts="new")):
        for writer in (0, 1):
            loop.synthetic_blocks(one, writer)
    slices = [run().real.slice(1, index).tolist() for index in (0, 0, 0, 1)]
    assert prompts == slices
    with pytest.raises(ValueError, match="writing_contexts: openings are no contexts"):
        run(prompting="opening", writing_contexts="new")


def test_rarity_weights_by_hand():
    blocks = torch.tensor([[0, 0], [0, 1], [2, 1], [0, 0]])
    frequency = {0: 5 / 8, 1: 2 / 8, 2: 1 / 8}
    for exponent in (0.0, 1.0, 2.5):
        by_hand = np.array([math.prod(frequency[t] ** (-exponent / 2) for t in row) for row in blocks.tolist()])
        np.testing.assert_allclose(interventions.rarity_weights(blocks, exponent), by_hand / by_hand.sum())
    np.testing.assert_allclose(interventions.rarity_weights(blocks, 0.0), 0.25)


def test_rare_samples_follow_their_weights():
    blocks = torch.tensor([[0, 0]] * 900 + [[1, 1]] * 100)
    drawn = interventions.rare_sample(blocks, 1.0, 1, 2)
    assert drawn.shape == blocks.shape and set(drawn.flatten().tolist()) == {0, 1}
    # Weighed by the inverse of their frequency both kinds are as likely.
    rate_is(drawn[:, 0] == 1, 0.5)
    assert torch.equal(drawn, interventions.rare_sample(blocks, 1.0, 1, 2))
    assert not torch.equal(drawn, interventions.rare_sample(blocks, 1.0, 1, 3))


def logdet(rows: np.ndarray, delta: float) -> float:
    return np.linalg.slogdet(delta * np.eye(rows.shape[1]) + rows.T @ rows).logabsdet


def test_each_choice_raises_the_log_determinant_most():
    rows = np.random.default_rng(0).normal(size=(30, 4, 6))
    chosen = interventions.most_diverse(rows, 1e-2)
    kept = np.empty((0, 6))
    for place, candidates in enumerate(rows):
        values = [logdet(np.vstack([kept, candidate]), 1e-2) for candidate in candidates]
        assert chosen[place] == np.argmax(values)
        kept = np.vstack([kept, candidates[chosen[place]]])


def test_greedy_choice_is_near_the_best_of_all():
    rows = np.random.default_rng(1).normal(size=(5, 3, 4))
    values = {picks: logdet(rows[np.arange(5), list(picks)], 1e-2) for picks in itertools.product(range(3), repeat=5)}
    greedy = values[tuple(interventions.most_diverse(rows, 1e-2))]
    assert greedy > np.quantile(list(values.values()), 0.9)


def test_of_a_copy_and_something_new_the_new_is_chosen():
    old, new = np.eye(3)[0], np.eye(3)[1]
    rows = np.array([[old, old], [old, new], [new, old]])
    assert list(interventions.most_diverse(rows, 1e-3)[:2]) == [0, 1]


def test_candidates_hold_the_text_of_a_single_one_first(run, monkeypatch):
    """With an encoder that prefers the first candidate nothing changes; with any, one of them is kept.

    Batches of three times the size move a probability in its seventh digit, and a draw where two are as close turns the
    rest of its row: about one in a hundred, and hardly ever six.
    """
    monkeypatch.setattr(embedding, "embedded", lambda _, texts: np.tile(np.eye(3)[0] * [[1], [0.1], [0.1]], (24, 1)))
    plain = loop.synthetic_blocks(run(), 0)
    assert (loop.synthetic_blocks(run("three", candidates=3), 0) == plain).all(1).sum() >= 18
    monkeypatch.setattr(embedding, "embedded", lambda _, texts: np.tile(np.eye(3)[0] * [[0.1], [0.1], [1]], (24, 1)))
    third = loop.synthetic_blocks(run("three", candidates=3), 0)
    assert third.shape == plain.shape and (third == plain).all(1).sum() < len(plain) / 2


def test_backwards_keeps_every_sentence():
    assert interventions.backwards('One came. "Oh no!" said Two. "What now?" It was late.') == (
        'It was late. "What now?" "Oh no!" said Two. One came.'
    )
    for story in storyworld.generate_stories(50, 3):
        turned = interventions.backwards(story)
        assert sorted(turned.split()) == sorted(story.split()) and turned != story
        assert storyworld.parse_fillers(turned).keys() == storyworld.parse_fillers(story).keys()


def test_a_shift_of_domain_begins_at_its_generation(run):
    one = run(condition="fresh", shift_generation=2)
    assert torch.equal(loop.blocks(one, 1), one.real.slice(1, 1))
    shifted = loop.blocks(one, 2)
    assert torch.equal(shifted, interventions.other_domain(one, 2)) and shifted.shape == one.real.slice(1, 1).shape
    assert loop.text(one, 2)["synthetic_blocks"] == 0
    assert not torch.equal(shifted, interventions.other_domain(one, 3))


# ---- training


def test_trust_stays_where_nothing_contracts():
    assert interventions.trust([2.0], [0.0], [0.9], 0.5, 5.0) == 1
    assert interventions.trust([2.0, 2.1, 2.2], [0.0, 0.3, 0.4], [0.9, 0.9, 1.0], 0.5, 5.0) == 1


def test_trust_by_hand():
    # Generation 1: entropy lost a tenth, coverage nothing, and the drift is its own reference.
    health = 1 - 3 * (0.1 + 0 + 0) / 3
    first = 0.8 + 0.2 * health
    assert interventions.trust([2.0, 1.8], [0.0, 0.5], [0.9, 0.9], 0.8, 3.0) == pytest.approx(first)
    # Generation 2: entropy lost a fifth, coverage a third; drift at the lower rate is as fast per unit.
    health = 1 - 3 * (0.2 + 1 / 3 + 0) / 3
    second = 0.8 * first + 0.2 * health
    drifts = [0.0, 0.5, 0.5 * first]
    assert interventions.trust([2.0, 1.8, 1.6], drifts, [0.9, 0.9, 0.6], 0.8, 3.0) == pytest.approx(second)


def test_trust_never_leaves_zero_to_one():
    assert interventions.trust([2.0, 0.1, 0.1], [0.0, 1.0, 0.1], [0.9, 0.1, 0.0], 0.0, 100.0) == 0
    slow = [interventions.trust([2.0] + [0.2] * n, [0.0] + [1.0] * n, [0.9] * (n + 1), 0.9, 10.0) for n in (1, 2, 5)]
    assert slow == pytest.approx([0.9, 0.81, 0.9**5])  # no health, and forgotten at the memory's rate


def test_the_regulator_sets_the_learning_rate_of_the_next_generation(run):
    one = run(trust_memory=0.0, trust_gain=2.0)
    assert interventions.intensity(runs.View(one, ""), 1) == 1
    factor = interventions.intensity(runs.View(one, ""), 2)
    anchors, covered = ([stage(one, g) for g in (0, 1)] for stage in (measure.anchors, measure.evaluation))
    contraction = [
        max(0, 1 - pair[1] / pair[0])
        for pair in (
            [found["predictive_entropy"] for found in anchors],
            [found["rare_token_coverage"] for found in covered],
        )
    ]
    assert 0 < factor < 1 and factor == pytest.approx(1 - 2 * sum(contraction) / 3)
    recipe = loop._regulated_recipe(runs.View(one, ""), 2)
    assert recipe.learning_rate == pytest.approx(factor * one.params.learning_rate)


def upper_ends(monkeypatch, highs: dict[int, float]) -> None:
    """Upper ends of Track II's band by generation, whatever the stage `sigma` would find."""
    recorded = runs.View.recorded

    def told(view, stage, generation):
        if stage != "encoded.sigma":
            return recorded(view, stage, generation)
        return {"drifts": {"track_two": {"high": highs.get(generation)}}}

    monkeypatch.setattr(runs.View, "recorded", told)


def test_training_stops_once_track_two_has_left_its_band(run, monkeypatch):
    upper_ends(monkeypatch, {1: -1.0})
    patient, strict = run("patient", track_two_tolerance=2.0), run("strict", track_two_tolerance=0.5)
    assert [loop.training(patient, g)["steps"] for g in (1, 2)] == [4, 4]
    assert [loop.training(strict, g)["steps"] for g in (1, 2, 3)] == [4, 0, 4]  # None is no reason to stop
    assert loop.training(strict, 2)["model_sha256"] == loop.training(strict, 1)["model_sha256"]
    assert loop.training(patient, 1)["model_sha256"] == loop.training(strict, 1)["model_sha256"]


def test_a_generation_that_takes_no_step_has_the_loss_that_its_first_step_would_have_had(run, monkeypatch):
    """Early stopping: every value of the table is there, as notebook 7 needs it."""
    upper_ends(monkeypatch, dict.fromkeys(range(10), -1.0))
    one = run(track_two_tolerance=0.5)
    found = loop.training(one, 2)
    losses = train.block_losses(loop.load(one, 1), loop.blocks(one, 2), one.params.batch_size)
    assert found["steps"] == 0 and found["training_loss"] == pytest.approx(losses.mean())
    table = series.table(one.params, ["recursive"], [1], ("training",))
    assert table["training_loss"].notna().all()


def test_profiles_without_interventions_have_plain_recipes(run):
    recipe = loop._regulated_recipe(run(), 1)
    assert recipe == train.Recipe(2, 16, 5e-4, 0.01, 0.05, "cosine")
    loop.training(run(), 1)
    record = json.loads(run().path(1, "training.json").read_text())
    assert not any(name.startswith("measure.") for name in record["key"]["inputs"])


def test_steps_replace_epochs_in_generations_only(run):
    one = run(steps=3, dropout=0.2, sharpness_radius=0.05)
    base = loop._base_recipe(one)
    assert (base.steps, base.dropout, base.sharpness_radius) == (None, 0.0, 0.0)
    assert loop.training(one, 1)["steps"] == 3
    assert loop.training(one, 0)["model_sha256"] == loop.training(run("plain"), 0)["model_sha256"]


def test_seeds_of_candidates_are_their_own():
    seeds = {estimate.stable_seed(1, "storyworld", 3, 0, *([candidate] if candidate else [])) for candidate in range(4)}
    assert len(seeds) == 4 and estimate.stable_seed(1, "storyworld", 3, 0) in seeds
