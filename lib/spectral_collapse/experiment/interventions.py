"""Interventions against collapse, each a parameter of the profile and off by default.

In the text: `decoding`, `rare_sample`, `most_diverse`, `other_domain`. In training: `intensity` of the learning rate,
from `trust` or SIGMA's Track II.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .. import estimate
from ..estimate import stable_seed
from ..record.schema import Params
from ..text import storyworld
from . import embedding
from .runs import View

# ---- writing


def decoding(params: Params) -> dict[str, Any]:
    """Temperature, top-k and top-p of synthetic text; where null, those of the evaluation."""
    names = ("temperature", "top_k", "top_p")
    own = {name: getattr(params, f"writing_{name}") for name in names}
    return {name: getattr(params, name) if own[name] is None else own[name] for name in names}


def rarity_weights(blocks: torch.Tensor, exponent: float) -> np.ndarray:
    """Probabilities (N,) of blocks (N, T): w_i ∝ exp(β/T Σ_t −log p(x_it)), p the tokens' frequencies in the blocks.

    The geometric mean of the tokens' inverse frequencies to the power β: rare samples weigh more. Needs no real text.
    """
    tokens = blocks.numpy()
    counts = np.bincount(tokens.ravel()).astype(np.float64)
    surprisal = -np.log(counts[tokens] / counts.sum()).mean(axis=1)
    weights = np.exp(exponent * (surprisal - surprisal.max()))
    return weights / weights.sum()


def rare_sample(blocks: torch.Tensor, exponent: float, *seed_parts: str | int) -> torch.Tensor:
    """As many blocks (N, T), drawn with replacement by `rarity_weights`."""
    chosen = estimate.generator(*seed_parts, "rare").choice(
        len(blocks), size=len(blocks), p=rarity_weights(blocks, exponent)
    )
    return blocks[torch.from_numpy(chosen)]


def most_diverse(candidates: np.ndarray, delta: float) -> np.ndarray:
    """Of each context's k candidates the one that raises log det(δI + Σ v vᵀ) most, greedily in order; indices (N,).

    `candidates` (N, k, m). By the matrix determinant lemma v adds log(1 + vᵀM⁻¹v); M⁻¹ is updated by Sherman and
    Morrison's rank-one formula, in O(m²) a candidate.
    """
    inverse = np.eye(candidates.shape[2]) / delta
    chosen = np.empty(len(candidates), dtype=int)
    for place, rows in enumerate(candidates):
        solved = rows @ inverse  # (k, m)
        gains = np.einsum("km,km->k", solved, rows)
        chosen[place] = gains.argmax()
        best = solved[chosen[place]]
        inverse -= np.outer(best, best) / (1 + gains.max())
    return chosen


def choose(run: View, blocks: torch.Tensor) -> torch.Tensor:
    """One of the candidates (N, k, T) of each context, (N, T), by `most_diverse` on their sentence embeddings."""
    count, candidates, _ = blocks.shape
    texts = run.real.tokenizer.batch_decode(blocks.flatten(0, 1), skip_special_tokens=True)
    rows = embedding.embedded(run, texts).reshape(count, candidates, -1)
    return blocks[torch.arange(count), torch.from_numpy(most_diverse(rows, run.params.sigma_delta))]


def backwards(story: str) -> str:
    """The story's sentences in reverse order."""
    return " ".join(reversed(re.split(r"(?:(?<=[.!?])|(?<=[.!?]\")) (?=[A-Z\"])", story)))


def other_domain(run: View, generation: int) -> torch.Tensor:
    """Blocks (N, T) of real text of another domain: storyworld told backwards, fresh every generation.

    Words keep their frequencies and slots their distributions, only the order is new: a shift of domain without a loss
    of tails, whereas collapse is a loss of tails without a shift of domain.
    """
    count, length = run.params.blocks_per_generation, run.params.block_tokens
    needed = count * length
    # A story has seven sentences or more, and a sentence more than four tokens.
    stories = storyworld.generate_stories(
        needed // 28 + 1, stable_seed("storyworld", "other domain", run.seed, generation)
    )
    encoded = run.real.tokenizer([backwards(story) for story in stories], add_special_tokens=False).input_ids
    stream = np.concatenate([[run.real.separator, *ids] for ids in encoded])[:needed]
    return torch.from_numpy(stream).view(count, length)


# ---- training


def trust(
    entropies: Sequence[float], drifts: Sequence[float], coverages: Sequence[float], memory: float, gain: float
) -> float:
    """The trust variable of the Monitor-Trust-Regulator loop after the last of generations 0 … g.

    Monitor: contraction of anchor entropy, representation drift and rare-token coverage, each c = max(0, 1 − s/s₀),
    s₀ its first value (for the drift, that of generation 1). Trust: τ_0 = 1, τ_g = μ τ_{g−1} + (1 − μ) h_g with health
    h_g = max(0, 1 − κ mean c), `memory` μ and `gain` κ. Regulator: generation g + 1 is trained with the learning rate
    times τ_g. Drift is taken per unit of learning rate, since a lower rate alone slows it.

    Source: the abstract of Zhang (arXiv 2605.14588) names the three precursors, a slow trust variable that is estimated
    from them, and its effect on the learning intensity; the formulas and constants are this project's reading of it.
    """
    value, speeds = 1.0, []
    for generation in range(1, len(entropies)):
        speeds.append(drifts[generation] / value if value > 0 else speeds[0])
        series = (entropies[: generation + 1], speeds, coverages[: generation + 1])
        contraction = np.mean([max(0.0, 1 - each[-1] / each[0]) if each[0] > 0 else 0.0 for each in series])
        value = memory * value + (1 - memory) * max(0.0, 1 - gain * float(contraction))
    return value


def regulated(params: Params) -> bool:
    """Whether measurements of earlier generations decide how a generation is trained."""
    return params.trust_memory is not None or params.track_two_tolerance is not None


def intensity(run: View, generation: int) -> float:
    """Factor of the learning rate of generation ≥ 1: `trust`, and 0 once Track II has left its band, that is, once the
    upper end of the 95 % bootstrap band of its last drift lies below −`track_two_tolerance` nats.

    Reads measurements of earlier generations by the names of their stages: those stages depend on training.
    """
    params, factor = run.params, 1.0
    if params.trust_memory is not None:
        before = range(generation)
        anchors = [run.recorded("measure.anchors", each) for each in before]
        factor = trust(
            [found["predictive_entropy"] for found in anchors],
            [found["representation_drift"] for found in anchors],
            [run.recorded("measure.evaluation", each)["rare_token_coverage"] for each in before],
            params.trust_memory,
            params.trust_gain,
        )
    if params.track_two_tolerance is not None and generation > 1:
        high = run.recorded("encoded.sigma", generation - 1)["drifts"]["track_two"]["high"]
        if high is not None and high < -params.track_two_tolerance:
            return 0.0
    return factor
