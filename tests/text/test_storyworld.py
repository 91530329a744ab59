"""The embedded corpus against its closed forms: marginals, readings, metrics with known values."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from margins import FALSE_FAILURE, standard_errors
from scipy import stats
from spectral_collapse.text import storyworld
from spectral_collapse.text.storyworld import SLOTS, generate_stories, parse_fillers

SLOT = {slot.name: slot for slot in SLOTS}
RATIOS = ("tail_mass_ratio", "tail_coverage", "slot_kl", "slot_entropy")


def tail_metrics(texts, tail_mass=0.1) -> dict[str, float]:
    return {name: estimate.value for name, estimate in storyworld.tail_metrics(texts, tail_mass).items()}


@pytest.fixture(scope="module")
def stories():
    return generate_stories(10_000, seed=1)


@pytest.fixture(scope="module")
def readings(stories):
    return [parse_fillers(story) for story in stories]


def place_region(filler):
    return SLOT["place"].fillers.index(filler) % storyworld.REGIONS


@pytest.mark.parametrize("slot", SLOTS, ids=lambda slot: slot.name)
def test_probabilities_are_the_total_probability_over_places(slot):
    harmonic = sum(1 / k for k in range(1, 49))
    total = sum(
        slot.by_region[k % storyworld.REGIONS] / ((k + 1) * harmonic) for k in range(len(SLOT["place"].fillers))
    )
    np.testing.assert_allclose(slot.probabilities, total, rtol=1e-12)
    np.testing.assert_allclose(slot.by_region.sum(axis=1), 1.0, rtol=1e-12)
    assert slot.probabilities.sum() == pytest.approx(1.0, abs=1e-12)
    assert slot.entropy == pytest.approx(stats.entropy(slot.probabilities), rel=1e-12)


@pytest.mark.parametrize("slot", SLOTS, ids=lambda slot: slot.name)
def test_marginals_match_simulation(slot, readings):
    counts = Counter(reading[slot.name] for reading in readings)
    observed = [counts[filler] for filler in slot.fillers]
    assert sum(observed) == len(readings)
    assert stats.chisquare(observed, len(readings) * slot.probabilities).pvalue > FALSE_FAILURE


@pytest.mark.parametrize("name", ["problem", "helper"])
def test_problem_and_helper_follow_the_region_of_the_place(name, readings):
    slot = SLOT[name]
    for region in range(storyworld.REGIONS):
        drawn = [reading[name] for reading in readings if place_region(reading["place"]) == region]
        counts = Counter(drawn)
        observed = [counts[filler] for filler in slot.fillers]
        assert stats.chisquare(observed, len(drawn) * slot.by_region[region]).pvalue > FALSE_FAILURE
        assert stats.chisquare(observed, len(drawn) * slot.probabilities).pvalue < 1e-9


def test_other_slots_do_not_depend_on_the_place(readings):
    for slot in SLOTS:
        if slot.name in ("place", "problem", "helper"):
            continue
        table = np.zeros((storyworld.REGIONS, len(slot.fillers)))
        for reading in readings:
            table[place_region(reading["place"]), slot.fillers.index(reading[slot.name])] += 1
        assert stats.chi2_contingency(table).pvalue > FALSE_FAILURE, slot.name


def test_parsing_returns_the_fillers_that_were_drawn():
    rng = np.random.default_rng(0)
    for _ in range(1_000):
        fillers = [int(rng.integers(len(slot.fillers))) for slot in SLOTS]
        wordings = [int(rng.integers(len(sentence))) for sentence in storyworld._SENTENCES]
        story = storyworld._tell(fillers, wordings)
        drawn = {slot.name: slot.fillers[index] for slot, index in zip(SLOTS, fillers, strict=True)}
        assert parse_fillers(story) == drawn
        assert parse_fillers(story.upper()) == drawn


def test_no_filler_hides_in_another_slot_or_in_a_wording():
    assert len({filler.lower() for slot in SLOTS for filler in slot.fillers}) == sum(len(s.fillers) for s in SLOTS)
    for slot in SLOTS:
        for filler, phrase in zip(slot.fillers, slot.phrases, strict=True):
            assert parse_fillers(phrase) == {slot.name: filler}
    for sentence in storyworld._SENTENCES:
        for wording in sentence:
            assert parse_fillers(re.sub(r"\{\w+\}", " ", wording)) == {}, wording


def test_only_the_first_mention_counts_in_broken_text():
    assert parse_fillers("the the FOX's,fox dog river?? lake Tom's Lily <unk>") == {
        "kind": "fox",
        "place": "river",
        "name": "Tom",
    }
    assert parse_fillers("foxes tomcat riverside") == {}
    assert parse_fillers("") == {}


def test_every_story_has_50_to_110_words():
    """Shortest and longest wording of each sentence with its shortest and longest phrases."""
    shortest = longest = 0
    for sentence in storyworld._SENTENCES:
        lengths = []
        for wording in sentence:
            fields = [field.removeprefix("in_") for field in re.findall(r"\{(\w+)\}", wording)]
            phrases = [SLOT[field].phrases for field in fields if field in SLOT]
            counts = [[len(phrase.split()) - 1 for phrase in choices] for choices in phrases]
            base = 0 if wording == "-" else len(wording.split())
            lengths.append((base + sum(map(min, counts)), base + sum(map(max, counts))))
        shortest += min(low for low, _ in lengths)
        longest += max(high for _, high in lengths)
    assert 50 <= shortest <= longest <= 110


def test_grammar(stories):
    for story in stories[:5_000]:
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", story)
        assert not re.search(r"\b[Aa]n? (uni|use|eu|one\b|hour|hon[eo]|heir)", story)
        assert not re.search(r"[{}*|]|  |\b[A-Z]{2}", story)
        assert not re.search(r'(^|[.?!]"? )"?[a-z]', re.sub(r'[?!]" (he|she|said|asked)', "", story))
        assert story.count('"') % 2 == 0 and story[-1] in '.!?"'
        boy = SLOT["name"].fillers.index(parse_fillers(story)["name"]) % 2
        wrong = r"\b(she|her)\b" if boy else r"\b(he|his|him)\b"
        assert not re.search(wrong, story, flags=re.IGNORECASE), story


def test_names_alternate_girls_and_boys():
    """The pronoun follows the parity of the rank; spot checks on both ends of the list."""
    names = SLOT["name"].fillers
    assert {"Lily", "Mia", "Lucy", "Wendy", "Beatrix", "Winnie"} <= set(names[0::2])
    assert {"Tom", "Ben", "Sam", "Caleb", "Edgar", "Barnaby"} <= set(names[1::2])


def test_held_out_stories_are_new():
    training = set(generate_stories(10_000, seed=2))
    held_out = generate_stories(2_000, seed=3)
    assert sum(story in training for story in held_out) < 20
    assert len(training) > 9_900


def test_story_depends_on_its_seed_and_index_only():
    assert generate_stories(50, seed=4) == generate_stories(200, seed=4)[:50]
    assert not set(generate_stories(200, seed=4)) & set(generate_stories(200, seed=5))
    assert generate_stories(0, seed=4) == []


@pytest.mark.parametrize(("count", "seed"), [(-1, 0), (1, -1)])
def test_negative_arguments_are_refused(count, seed):
    with pytest.raises(ValueError, match="0 or more"):
        generate_stories(count, seed)


def test_true_stories_score_as_true(stories):
    samples = [tail_metrics(stories[start : start + 500]) for start in range(0, 10_000, 500)]
    mean = {key: np.mean([sample[key] for sample in samples]) for key in samples[0]}
    error = {key: standard_errors(20) * stats.sem([sample[key] for sample in samples]) for key in samples[0]}
    assert abs(mean["tail_mass_ratio"] - 1) < error["tail_mass_ratio"] < 0.1
    assert abs(mean["tail_coverage"] - 1) < error["tail_coverage"] < 0.05
    assert mean["slots_read"] == 1
    # Miller-Madow: the plug-in entropy is low by (K - 1) / 2N up to O(1 / N^2).
    entropy = np.mean([slot.entropy - (len(slot.fillers) - 1) / 1000 for slot in SLOTS])
    assert mean["slot_entropy"] == pytest.approx(entropy, abs=error["slot_entropy"] + 2e-3)
    assert 0 < mean["slot_kl"] < np.mean([len(slot.fillers) for slot in SLOTS]) / 1000


@pytest.mark.parametrize("rank", [0, -1])
def test_collapse_onto_one_filler_has_known_values(rank):
    """N copies of one text that names the first, or the last, filler of every slot."""
    n = 300
    texts = [" ".join(slot.fillers[int(np.argsort(-slot.probabilities)[rank])] for slot in SLOTS)] * n
    ratios, expected, divergences = [], 0.0, []
    for slot in SLOTS:
        ordered = sorted(slot.probabilities)
        tail = [p for k, p in enumerate(ordered) if sum(ordered[: k + 1]) <= 0.1]
        ratios.append(1 / sum(tail) if rank == -1 else 0.0)
        expected += sum(1 - (1 - p) ** n for p in tail)
        size = len(ordered)
        only = ordered[-1] if rank == 0 else ordered[0]
        q_only, q_rest = (n + 0.5) / (n + size / 2), 0.5 / (n + size / 2)
        negentropy = sum(p * math.log(p) for p in ordered)
        divergences.append(negentropy - only * math.log(q_only) - (1 - only) * math.log(q_rest))
    metrics = tail_metrics(texts)
    assert metrics["tail_mass_ratio"] == pytest.approx(np.mean(ratios), rel=1e-9)
    assert metrics["tail_coverage"] == pytest.approx((len(SLOTS) if rank == -1 else 0) / expected, rel=1e-9)
    assert metrics["slot_kl"] == pytest.approx(np.mean(divergences), rel=1e-9)
    assert metrics["slot_entropy"] == 0
    assert metrics["slots_read"] == 1


def test_slots_that_are_not_read_are_left_out():
    """Ten texts name the first or the last name, two name nothing: N is 10 for names, 0 for the others."""
    name = SLOT["name"]
    metrics = tail_metrics([name.fillers[-(k % 2)] for k in range(10)] + ["", "zzz"])
    ordered = sorted(name.probabilities)
    tail = [p for k, p in enumerate(ordered) if sum(ordered[: k + 1]) <= 0.1]
    assert metrics["slots_read"] == pytest.approx(10 / (12 * len(SLOTS)))
    assert metrics["slot_entropy"] == pytest.approx(math.log(2))
    assert metrics["tail_mass_ratio"] == pytest.approx(0.5 / sum(tail))
    assert metrics["tail_coverage"] == pytest.approx(1 / sum(1 - (1 - p) ** 10 for p in tail))


def test_texts_without_slots():
    empty, unread = tail_metrics([]), tail_metrics(["", "no word of it"])
    assert all(math.isnan(metrics[key]) for metrics in (empty, unread) for key in RATIOS)
    assert math.isnan(empty["slots_read"])
    assert unread["slots_read"] == 0


@pytest.mark.parametrize("tail_mass", [0.0, 1e-4, 1.0, 2.0])
def test_a_tail_that_is_empty_or_everything_is_refused(tail_mass):
    with pytest.raises(ValueError, match="tail_mass"):
        tail_metrics(["Lily"], tail_mass)


def test_one_string_is_refused():
    with pytest.raises(ValueError, match="list of texts"):
        tail_metrics("Lily was a dog.")


def test_fillers_are_whole_words_in_any_alphabet():
    assert parse_fillers("Lily's fox") == parse_fillers("Lily’s FOX") == parse_fillers("lily fox")
    assert "name" in parse_fillers("Lily’s") and parse_fillers("éfox foxé fox́") == {}
