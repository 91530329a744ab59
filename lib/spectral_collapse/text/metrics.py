"""Metrics of sampled text with intervals: diversity, repetition, agreement with references, coherence.

Metrics count the words of `words`, except BLEU, which uses sacrebleu's tokens, and those of sentence embeddings. A text
for which a metric is undefined (no word, one sentence, no reference) is left out of means; NaN if no text is left.
"""

import math
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import regex
from sacrebleu.metrics import BLEU
from scipy import sparse, special

from ..estimate import Estimate

_LETTER, _MARK = r"\p{WB=ALetter}\p{WB=Hebrew_Letter}", r"\p{WB=Extend}\p{WB=ZWJ}"
_RUN = rf"[{_LETTER}][{_LETTER}{_MARK}]*+"
WORD = regex.compile(
    rf"{_RUN}(?:['·״]{_RUN})*+"  # don't, col·lecció, צה״ל
    rf"|\p{{WB=Katakana}}[\p{{WB=Katakana}}{_MARK}]*+"
    r"|\p{N}++"
    r"|(?=\p{L})\X"
)
APOSTROPHES = str.maketrans(dict.fromkeys("‘’ʼ＇", "'"))
FORMAT = regex.compile(r"\p{WB=Format}+")  # soft hyphens, marks of direction
SENTENCE = regex.compile(r"\P{Sentence_Terminal}+\p{Sentence_Terminal}*")
BLEU_ORDER = 4
MAUVE_GROUPS = 10


def mean_over_texts(values: Sequence[float]) -> Estimate:
    """Mean of one value per text, without NaN. `left_out` has an entry for every text, so that means over as many texts
    are paired."""
    values = np.asarray(values, dtype=float)
    defined = ~np.isnan(values)
    n, total = int(defined.sum()), values[defined].sum()
    if n < 2:
        return Estimate(float(total) if n else math.nan)
    mean, without = float(total / n), (total - values) / (n - 1)
    found = Estimate.jackknife(mean, without[defined])
    found.left_out = np.where(defined, without, mean)
    return found


def with_intervals(metrics: dict[str, Estimate]) -> dict[str, float | list[float]]:
    """Metrics as a record holds them: <name>, and <name>_interval as [low, high]."""
    result: dict[str, float | list[float]] = {}
    for name, estimate in metrics.items():
        result |= {name: estimate.value, f"{name}_interval": [estimate.low, estimate.high]}
    return result


# ---- words and n-grams


def words(text: str) -> list[str]:
    """Lower-case words of a text in NFC, without punctuation and symbols.

    A word is a run of letters with their combining marks, joined by apostrophes (all written '), or a run of digits.
    In scripts without spaces (Chinese, Hiragana, Thai, Lao, Khmer, Burmese) every character counts as a word, a
    consonant with its marks; Katakana stay together. Letters and marks as in Unicode's word boundaries, which would
    also join "fell.She", "don't_stop" and "3rd". Source: Unicode Standard Annex 29, section 4; the package `regex`.

    >>> words("Don’t stop_it 3rd")
    ["don't", 'stop', 'it', '3', 'rd']
    """
    text = unicodedata.normalize("NFC", text).translate(APOSTROPHES)
    return WORD.findall(unicodedata.normalize("NFC", FORMAT.sub("", text).lower()))


def sentences(text: str) -> list[str]:
    """Sentences of a text in NFC: runs that end with Unicode's Sentence_Terminal (. ! ? 。 ！ ？ ।) or the text; runs
    without a word are dropped.

    >>> sentences("Oh! It rains... A lot")
    ['Oh!', 'It rains...', 'A lot']
    """
    return [piece.strip() for piece in SENTENCE.findall(unicodedata.normalize("NFC", text)) if WORD.search(piece)]


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All n-grams of a word sequence, in order.

    >>> ngrams(["a", "b", "c"], 2)
    [('a', 'b'), ('b', 'c')]
    """
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def count_matrix(rows: Sequence[Sequence[Hashable]]) -> sparse.coo_array:
    """How often each row has each item, (rows, distinct items), entries in order of the rows."""
    columns: dict[Hashable, int] = {}
    entries = [
        (index, columns.setdefault(item, len(columns)), count)
        for index, row in enumerate(rows)
        for item, count in Counter(row).items()
    ]
    row, column, count = np.array(entries, dtype=np.int64).reshape(-1, 3).T
    return sparse.coo_array((count, (row, column)), shape=(len(rows), len(columns)))


def _ngram_counts(texts: Sequence[str], n: int) -> sparse.coo_array:
    return count_matrix([ngrams(words(text), n) for text in texts])


def _per_row(counts: sparse.coo_array, values: np.ndarray) -> np.ndarray:
    """Sums over the rows of one value for each entry."""
    return np.bincount(counts.row, values, minlength=counts.shape[0])


def _ratio(over: np.ndarray | float, under: np.ndarray | float) -> np.ndarray:
    return np.divide(over, under, out=np.full(np.shape(under), math.nan), where=np.asarray(under) > 0)


def _additive(counts: sparse.coo_array, term: Callable[[np.ndarray], np.ndarray]) -> tuple[float, np.ndarray]:
    """Σ term(c) over the pooled counts c > 0 of the items, term(0) being 0; and the same without each row, (rows,)."""
    pooled = np.asarray(counts.sum(axis=0)).ravel()
    total = term(pooled).sum()
    shared = pooled[counts.col]
    return float(total), total - _per_row(counts, term(shared) - term(shared - counts.data))


# ---- diversity and repetition


def distinct_n(texts: Sequence[str], n: int) -> Estimate:
    """distinct-n = unique n-grams / all n-grams of words, pooled over the texts; NaN without any.

    Falls with the amount of text: compare only equal numbers of texts. Source: Li et al. 2016.

    >>> distinct_n(["the cat sat", "the cat ran"], 2).value
    0.75
    """
    counts = _ngram_counts(texts, n)
    unique, unique_left = _additive(counts, np.sign)
    total, total_left = _additive(counts, np.asarray)
    return Estimate.jackknife(float(_ratio(unique, total)), _ratio(unique_left, total_left))


def ngram_entropy(texts: Sequence[str], n: int) -> Estimate:
    """Entropy −Σ p log p of the pooled word n-grams' shares p, in nats; NaN without any.

    The plug-in estimate, low by about (distinct n-grams − 1) / 2N for N n-grams: compare only equal amounts of text.
    """
    counts = _ngram_counts(texts, n)
    weighted, weighted_left = _additive(counts, lambda c: special.xlogy(c, c))
    total, total_left = _additive(counts, np.asarray)
    with np.errstate(divide="ignore"):  # log 0, where the ratio is NaN
        return Estimate.jackknife(
            float(np.log(total) - _ratio(weighted, total)), np.log(total_left) - _ratio(weighted_left, total_left)
        )


def hashed_ngram_hhi(texts: Sequence[str], n: int = 3, buckets: int = 2**16) -> Estimate:
    """Herfindahl–Hirschman index Σ s_b² of the shares s_b of word n-grams in hash buckets (CRC-32 modulo).

    From 1 / buckets (uniform) to 1 (a single n-gram); NaN without any n-gram.
    Source: SIGMA (arXiv 2601.03385), appendix C.4.
    """
    counts = count_matrix(
        [[zlib.crc32(" ".join(gram).encode()) % buckets for gram in ngrams(words(text), n)] for text in texts]
    )
    squares, squares_left = _additive(counts, np.square)
    total, total_left = _additive(counts, np.asarray)
    return Estimate.jackknife(float(_ratio(squares, total**2)), _ratio(squares_left, total_left**2))


def repetition_n(texts: Sequence[str], n: int) -> Estimate:
    """rep-n = mean over texts of 1 − unique/all word n-grams; texts without an n-gram are left out.

    Source: Welleck et al. 2020.

    >>> repetition_n(["so so so so", "one two three"], 1).value
    0.375
    """
    grams = [ngrams(words(text), n) for text in texts]
    return mean_over_texts([1 - len(set(each)) / len(each) if each else math.nan for each in grams])


def type_token_ratio(texts: Sequence[str]) -> Estimate:
    """Mean over texts of distinct words / words; texts without a word are left out."""
    tokens = [words(text) for text in texts]
    return mean_over_texts([len(set(each)) / len(each) if each else math.nan for each in tokens])


def _sentence_bleu(matches: np.ndarray, totals: np.ndarray, length: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """BLEU of single texts, 0 to 100, from their clipped matches and numbers of n-grams (…, order) and lengths (…).

    As sacrebleu's sentence score: orders longer than the text do not count, and the k-th order without a match counts
    2^−k matches (exponential smoothing).
    """
    missing = (matches == 0) & (totals > 0)
    smoothed = np.where(missing, 0.5 ** np.cumsum(missing, axis=-1), matches)
    precisions = np.divide(smoothed, totals, out=np.ones(smoothed.shape), where=totals > 0)
    mean = np.log(precisions).sum(-1) / np.count_nonzero(totals, axis=-1)
    brevity = np.minimum(0, 1 - reference / length)
    return np.where(matches.any(-1), 100 * np.exp(mean + brevity), 0.0)


def _best_matches(counts: sparse.coo_array) -> tuple[np.ndarray, np.ndarray]:
    """Σ_g min(c_ig, max_{k≠i} c_kg) of every row i, (N,), and how much of it is lost without row j too, (N, N)."""
    n, columns = counts.shape
    order = np.lexsort((-counts.data, counts.col))
    row, col, data = counts.row[order], counts.col[order], counts.data[order]
    place = np.arange(len(col)) - np.searchsorted(col, col)
    # The three largest counts of every item, with their rows: one may be the row itself, one the row left out.
    most = np.zeros((columns, 3), dtype=np.int64)
    holder = np.full((columns, 3), -1)
    top = place < 3
    most[col[top], place[top]], holder[col[top], place[top]] = data[top], row[top]
    first = np.where(holder[col, 0] == row, 1, 0)
    second = np.where((holder[col, 0] == row) | (holder[col, 1] == row), 2, 1)
    matched = np.minimum(data, most[col, first])
    lost = matched - np.minimum(data, most[col, second])
    matches = np.bincount(row, matched, minlength=n)
    held = lost > 0
    cut = np.bincount(row[held] * n + holder[col, first][held], lost[held], minlength=n * n).reshape(n, n)
    return matches, cut


def self_bleu(texts: Sequence[str], order: int = BLEU_ORDER) -> Estimate:
    """Self-BLEU: mean sentence BLEU of each text against all others, 0 to 100; high values mean little variety.

    On words, with sacrebleu's sentence score (exponential smoothing, effective order). Texts without a word are left
    out; NaN below two texts, no interval below three. Rises with the number of texts: compare only equal numbers.
    Source: Zhu et al. 2018.
    """
    tokens = [each for each in map(words, texts) if each]
    n = len(tokens)
    if n < 2:
        return Estimate(math.nan)
    best = [_best_matches(count_matrix([ngrams(each, k) for each in tokens])) for k in range(1, order + 1)]
    matches, cuts = (np.stack(parts, axis=-1) for parts in zip(*best, strict=True))
    lengths = np.array([len(each) for each in tokens])
    totals = np.maximum(lengths[:, None] - np.arange(order), 0)  # (N, order)
    # The closest of the other lengths, the shorter at a tie; `after` if the closest is left out.
    distance = np.abs(lengths - lengths[:, None]) * (lengths.max() + 1.0) + lengths
    np.fill_diagonal(distance, np.inf)
    ranked = np.argsort(distance, axis=1, kind="stable")
    closest, after = ranked[:, 0], ranked[:, 1]
    value = float(_sentence_bleu(matches, totals, lengths, lengths[closest]).mean())
    if n < 3:
        return Estimate(value)
    reference = np.where(np.arange(n) == closest[:, None], lengths[after][:, None], lengths[closest][:, None])
    without = _sentence_bleu(matches[:, None] - cuts, totals[:, None], lengths[:, None], reference)  # (text, left out)
    np.fill_diagonal(without, 0)
    return Estimate.jackknife(value, without.sum(axis=0) / (n - 1))


def surface_metrics(texts: Sequence[str]) -> dict[str, Estimate]:
    """Diversity and repetition of texts: distinct-1 to -4, rep-2 to -4, type–token ratio, entropy of word pairs,
    self-BLEU, and the mean number of words."""
    return {
        **{f"distinct_{n}": distinct_n(texts, n) for n in range(1, 5)},
        **{f"repetition_{n}": repetition_n(texts, n) for n in range(2, 5)},
        "type_token_ratio": type_token_ratio(texts),
        "ngram_entropy_2": ngram_entropy(texts, 2),
        "self_bleu": self_bleu(texts),
        "words_per_text": mean_over_texts([len(words(text)) for text in texts]),
    }


# ---- agreement with a reference


def bleu(texts: Sequence[str], references: Sequence[str]) -> Estimate:
    """Corpus BLEU of texts against one reference each, 0 to 100, by sacrebleu with its defaults; NaN without texts.

    On sacrebleu's tokens instead of `words`: tokeniser 13a keeps case and punctuation, distinguishes ’ from ', and
    treats a Chinese sentence as one token. Signature nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp.
    Sources: Papineni et al. 2002; Post 2018.
    """
    scorer = BLEU(effective_order=True)  # only the counts of single texts are used, which do not depend on it
    scores = [scorer.sentence_score(text, [reference]) for text, reference in zip(texts, references, strict=True)]
    rows = np.array([[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores])

    def corpus(row: np.ndarray) -> float:
        length, reference, *counts = row.tolist()
        matches, totals = counts[:BLEU_ORDER], counts[BLEU_ORDER:]
        return BLEU.compute_bleu(matches, totals, length, reference, smooth_method="exp").score

    if not len(rows):
        return Estimate(math.nan)
    total = rows.sum(axis=0)
    return Estimate.jackknife(corpus(total), np.array([corpus(total - row) for row in rows]))


def _longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    lengths = [0] * (len(b) + 1)  # for the words of a so far, with every prefix of b
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            diagonal, lengths[j] = lengths[j], diagonal + 1 if x == y else max(lengths[j], lengths[j - 1])
    return lengths[-1]


def rouge_l(texts: Sequence[str], references: Sequence[str]) -> Estimate:
    """ROUGE-L: mean over texts of F₁ = 2L / (words of the text + words of its reference), with L the length of their
    longest common subsequence of words.

    0 for a text without words; texts whose reference has none are left out. Source: Lin 2004.

    >>> rouge_l(["the cat sat"], ["the cat ran fast"]).value.__round__(6)  # 2 · 2/(3 + 4)
    0.571429
    """
    scores = []
    for text, reference in zip(map(words, texts), map(words, references), strict=True):
        common = _longest_common_subsequence(text, reference)
        scores.append(2 * common / (len(text) + len(reference)) if reference else math.nan)
    return mean_over_texts(scores)


# ---- with a sentence encoder: `embed` maps K texts to K unit vectors, (K, m)


def coherence(texts: Sequence[str], embed: Callable[[list[str]], np.ndarray]) -> Estimate:
    """Mean over texts of the mean cosine of consecutive sentences; texts of fewer than two sentences are left out."""
    split = [sentences(text) for text in texts]
    unique = {sentence: index for index, sentence in enumerate(dict.fromkeys(s for each in split for s in each))}
    vectors = np.asarray(embed(list(unique))) if unique else np.empty((0, 0))
    cosines = []
    for each in split:
        rows = vectors[[unique[sentence] for sentence in each]]
        cosines.append(float((rows[1:] * rows[:-1]).sum(axis=1).mean()) if len(each) > 1 else math.nan)
    return mean_over_texts(cosines)


def mauve(texts: np.ndarray, references: np.ndarray, seed: int) -> Estimate:
    """MAUVE of texts against references, given as embeddings (N, m) both, 0 to 1 (alike), and its 95 % interval.

    By the package mauve-text with its defaults (N/10 clusters), which is stable only for thousands of texts. The
    interval leaves out a tenth of the pairs in turn, since clustering is too unstable for single ones.
    Source: Pillutla et al. 2021.
    """
    from mauve import compute_mauve

    def score(chosen: np.ndarray) -> float:
        pair = {"p_features": references[chosen], "q_features": texts[chosen]}
        return float(compute_mauve(**pair, seed=seed % 2**31, verbose=False).mauve)

    everything = np.arange(len(texts))
    left_out = np.array([score(everything[everything % MAUVE_GROUPS != group]) for group in range(MAUVE_GROUPS)])
    return Estimate.jackknife(score(everything), left_out)


def split_blocks(text: str, block_words: int) -> list[str]:
    """The text in runs of `block_words` words, without the remainder at its end; runs keep case and punctuation.

    >>> split_blocks("One, two; three four five.", 2)
    ['One, two;', 'three four']
    """
    pieces, run, count = [], [], 0
    for token in text.split():
        run.append(token)
        count += len(words(token))
        if count >= block_words:
            pieces.append(" ".join(run))
            run, count = [], 0
    return pieces
