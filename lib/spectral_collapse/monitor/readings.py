"""What a check reads: signals of texts, of their embeddings, and of tables of metrics. No torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import sigma
from ..analysis.metrics import COLLAPSE
from ..estimate import Estimate
from ..sigma.gram import finite_rows
from ..text import metrics

TIERS = ("metrics", "model", "text", "embedding", "curvature")  # from the cheapest on
DELTA = 1e-3  # of Track II


@dataclass(frozen=True)
class Signal:
    """What a signal is called, to which side it moves in a collapsing model (1 up, −1 down), and what it costs."""

    label: str
    direction: int
    tier: str
    unit: str = ""


SIGNALS = {
    "held_out_loss": Signal("Held-out loss", 1, "model", "nats/token"),
    "predictive_entropy": Signal("Entropy of predictions", -1, "model", "nats"),
    "distinct_2": Signal("Distinct word pairs", -1, "text"),
    "distinct_4": Signal("Distinct word 4-grams", -1, "text"),
    "ngram_entropy_2": Signal("Entropy of word pairs", -1, "text", "nats"),
    "repetition_4": Signal("Repetition within a text", 1, "text"),
    "track_two": Signal("SIGMA's Track II", -1, "embedding", "nats"),
    "log_spectral_ratio": Signal("Log spectral ratio", -1, "curvature"),
}
_OF_TEXTS: dict[str, Callable[[Sequence[str]], Estimate]] = {
    "distinct_2": lambda texts: metrics.distinct_n(texts, 2),
    "distinct_4": lambda texts: metrics.distinct_n(texts, 4),
    "ngram_entropy_2": lambda texts: metrics.ngram_entropy(texts, 2),
    "repetition_4": lambda texts: metrics.repetition_n(texts, 4),
}
LEAST_TEXTS = 20  # fewer tell nothing apart


def direction_of(name: str) -> int:
    """To which side a signal or metric moves in a collapsing model; 0 where nobody fixed that beforehand.

    >>> direction_of("distinct_2"), direction_of("held_out_perplexity"), direction_of("val_loss"), direction_of("bleu")
    (-1, 1, 1, 0)
    """
    if name in SIGNALS:
        return SIGNALS[name].direction
    if name in COLLAPSE:
        return COLLAPSE[name]
    return 1 if any(word in name.lower() for word in ("loss", "perplexity", "ppl")) else 0


def label_of(name: str) -> str:
    """A signal's name for readers."""
    return SIGNALS[name].label if name in SIGNALS else name.replace("_", " ")


def require_blocks(blocks: Any) -> None:
    """ValueError unless these are token ids (N, T), N ≥ 3, T ≥ 2; without torch."""
    try:
        array = blocks if hasattr(blocks, "shape") else np.asarray(blocks)
    except ValueError:
        raise ValueError("blocks: rows of token ids of unequal length: cut them to one length.") from None
    shape = tuple(array.shape)
    if len(shape) != 2 or shape[0] < 3 or shape[1] < 2 or "int" not in str(array.dtype):
        raise ValueError(
            "blocks: held-out token ids of shape (N, T), N ≥ 3, T ≥ 2, all of one length, not "
            f"{type(blocks).__name__} of {array.dtype} and shape {shape}."
        )


def of_texts(texts: Sequence[str]) -> dict[str, Estimate]:
    """Diversity and repetition of texts, jackknifed over them. Compare equal numbers of texts only.

    ValueError for fewer than `LEAST_TEXTS` texts, what is no text, and texts without words.
    """
    if wrong := [place for place, text in enumerate(texts) if not isinstance(text, str)]:
        raise ValueError(f"text {wrong[0] + 1} is {type(texts[wrong[0]]).__name__}, not text.")
    if len(texts) < LEAST_TEXTS:
        raise ValueError(f"{len(texts)} texts are too few to tell a change from chance: give {LEAST_TEXTS} or more.")
    if not any(metrics.WORD.search(text) for text in texts):
        raise ValueError("the texts hold no words.")
    found = {name: function(texts) for name, function in _OF_TEXTS.items()}
    return {name: estimate for name, estimate in found.items() if not math.isnan(estimate.value)}


def of_embeddings(rows: np.ndarray, delta: float = DELTA) -> dict[str, Estimate]:
    """Track II, log det(A + δI) − m log n of embeddings (n, m), jackknifed over the rows in closed form:
    log det(A − vvᵀ + δI) = log det(A + δI) + log(1 − vᵀ(A + δI)⁻¹v).

    ValueError for rows that are no finite matrix, and for fewer than `LEAST_TEXTS`.
    """
    rows = finite_rows(rows)
    n, m = rows.shape
    if n < LEAST_TEXTS:
        raise ValueError(f"{n} embeddings are too few to tell a change from chance: give {LEAST_TEXTS} or more.")
    gram = rows.T @ rows
    regular, value = gram + delta * np.eye(m), sigma.track_two(gram, n, delta)
    kept = np.log1p(-np.minimum(np.einsum("ij,ij->i", rows, np.linalg.solve(regular, rows.T).T), 1 - 1e-12))
    return {"track_two": Estimate.jackknife(value, value + m * math.log(n) + kept - m * math.log(n - 1))}


def of_row(row: Mapping[str, float]) -> dict[str, Estimate]:
    """A row of a table of metrics: values without an error of their own."""
    found = {}
    for name, value in row.items():
        try:
            found[name] = Estimate(float(value))
        except (TypeError, ValueError):
            raise ValueError(f"{name} holds {value!r}, which is no number.") from None
    return found
