"""Surface metrics of sampled text: diversity, repetition, concentration. Words are lower-cased runs of letters."""

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+")


def words(text: str) -> list[str]:
    """Lower-case words of a text, punctuation dropped."""
    return WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All n-grams of a word sequence, in order; empty where it is shorter than n."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _pooled(texts: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [gram for text in texts for gram in ngrams(words(text), n)]


def distinct_n(texts: Sequence[str], n: int) -> float:
    """distinct-n = unique n-grams / all n-grams, pooled over the texts; NaN without any.

    Falls with the amount of text: compare equal numbers of texts only. Source: Li et al. 2016.
    """
    grams = _pooled(texts, n)
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition_n(texts: Sequence[str], n: int) -> float:
    """rep-n = mean over texts of 1 − unique/all n-grams of the text; texts without an n-gram are left out.

    Source: Welleck et al. 2020.
    """
    shares = [1 - len(set(grams)) / len(grams) for text in texts if (grams := ngrams(words(text), n))]
    return sum(shares) / len(shares) if shares else math.nan


def type_token_ratio(texts: Sequence[str]) -> float:
    """Mean over texts of distinct words / words; texts without a word are left out."""
    ratios = [len(set(tokens)) / len(tokens) for text in texts if (tokens := words(text))]
    return sum(ratios) / len(ratios) if ratios else math.nan


def hashed_ngram_hhi(texts: Sequence[str], n: int = 3, buckets: int = 2**16) -> float:
    """Herfindahl–Hirschman index Σ s_b² of the shares s_b of n-grams in hash buckets (CRC-32 modulo).

    1 / buckets at the least (even spread), 1 when one n-gram is all there is; NaN without any n-gram.
    Source: SIGMA (arXiv 2601.03385), appendix C.4.
    """
    grams = _pooled(texts, n)
    counts = Counter(zlib.crc32(" ".join(gram).encode()) % buckets for gram in grams)
    return sum((count / len(grams)) ** 2 for count in counts.values()) if grams else math.nan


def surface_metrics(texts: Sequence[str]) -> dict[str, float]:
    """distinct-1 … distinct-4, rep-4 and type–token ratio of the texts."""
    return {
        **{f"distinct_{n}": distinct_n(texts, n) for n in range(1, 5)},
        "repetition_4": repetition_n(texts, 4),
        "type_token_ratio": type_token_ratio(texts),
        "words_per_text": sum(len(words(text)) for text in texts) / max(1, len(texts)),
    }
