"""Surface metrics against values counted by hand."""

import math
import zlib

import pytest
from spectral_collapse import text_metrics
from spectral_collapse.text_metrics import (
    distinct_n,
    hashed_ngram_hhi,
    ngrams,
    repetition_n,
    surface_metrics,
    type_token_ratio,
    words,
)

CAT = "The cat sat. The cat ran!"  # the cat sat the cat ran


def test_words_are_lower_case_runs_of_letters():
    assert words("Tom's café, 3 FOXES -- don't_stop!\n'quoted'") == [
        "tom's", "café", "3", "foxes", "don't", "stop", "quoted",
    ]  # fmt: skip
    assert words("") == words("... !?") == []


def test_ngrams_keep_order_and_repeats():
    assert ngrams(["a", "b", "a", "b"], 2) == [("a", "b"), ("b", "a"), ("a", "b")]
    assert ngrams(["a", "b"], 3) == ngrams([], 1) == []


# Of CAT: 6 words, 4 of them distinct; 5 pairs, 4 distinct; 4 triples, all distinct.
@pytest.mark.parametrize(("n", "expected"), [(1, 4 / 6), (2, 4 / 5), (3, 1), (6, 1)])
def test_distinct_by_hand(n, expected):
    assert distinct_n([CAT], n) == pytest.approx(expected)


def test_distinct_is_pooled_over_texts_and_never_spans_two():
    assert distinct_n(["a b", "a b", "b c"], 2) == pytest.approx(2 / 3)
    assert distinct_n(["a", "b"], 1) == 1
    assert math.isnan(distinct_n(["a", "b"], 2))


def test_repetition_by_hand():
    assert repetition_n([CAT], 2) == pytest.approx(1 / 5)
    assert repetition_n(["a a a a a a"], 4) == pytest.approx(2 / 3)  # one of three is new
    # A mean over texts, not over n-grams; the one-word text has no pair and does not count.
    assert repetition_n(["a a a a a", "a b", "a"], 2) == pytest.approx((3 / 4 + 0) / 2)


def test_type_token_ratio_is_a_mean_over_texts():
    assert type_token_ratio([CAT, "a", "a a a a", ""]) == pytest.approx((4 / 6 + 1 + 1 / 4) / 3)


@pytest.mark.parametrize("texts", [[], [""], ["", "?!"]])
def test_text_without_words_has_no_metrics(texts):
    metrics = surface_metrics(texts)
    assert metrics.pop("words_per_text") == 0
    assert all(map(math.isnan, [*metrics.values(), hashed_ngram_hhi(texts)]))


def test_one_word_is_shorter_than_a_pair():
    metrics = surface_metrics(["Hello!"])
    assert metrics["distinct_1"] == metrics["type_token_ratio"] == metrics["words_per_text"] == 1
    for name in ("distinct_2", "distinct_3", "distinct_4", "repetition_4"):
        assert math.isnan(metrics[name])


def test_concentration_of_even_and_of_constant_text():
    even = [f"one two word{chr(97 + k)}" for k in range(20)]  # twenty triples, once each
    assert hashed_ngram_hhi(even) == pytest.approx(1 / 20)
    assert hashed_ngram_hhi(["a " * 50]) == 1
    assert hashed_ngram_hhi(["a b c"] * 3 + ["d e f"]) == pytest.approx(0.75**2 + 0.25**2)


def test_concentration_with_colliding_buckets():
    letters = "abcdefgh"
    counts = [sum(zlib.crc32(letter.encode()) % 3 == bucket for letter in letters) for bucket in range(3)]
    expected = sum((count / len(letters)) ** 2 for count in counts)
    assert expected > 1 / len(letters)
    assert hashed_ngram_hhi([" ".join(letters)], n=1, buckets=3) == pytest.approx(expected)
    assert hashed_ngram_hhi([CAT, "dogs run"], n=1, buckets=1) == 1


def test_repetitive_text_is_told_from_varied_text():
    varied, looped = ["the old fox met a red hen by the lake"], ["the fox ran and the fox ran and the fox"]
    for name, sign in {"distinct_2": 1, "type_token_ratio": 1, "repetition_4": -1}.items():
        assert sign * (surface_metrics(varied)[name] - surface_metrics(looped)[name]) > 0
    assert hashed_ngram_hhi(looped) > hashed_ngram_hhi(varied)


def test_metrics_are_those_of_the_functions():
    texts = [CAT, "A b c d e."]
    assert surface_metrics(texts) == {
        **{f"distinct_{n}": distinct_n(texts, n) for n in (1, 2, 3, 4)},
        "repetition_4": repetition_n(texts, 4),
        "type_token_ratio": type_token_ratio(texts),
        "words_per_text": (6 + 5) / 2,
    }
    assert text_metrics.words("A b c d e.") == list("abcde")
