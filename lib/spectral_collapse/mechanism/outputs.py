"""The next-token distribution on real contexts: entropy, calibration, and mass in the tail."""

import math
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from ..estimate import Estimate
from ..text.metrics import mean_over_texts

BINS = 15
# Share of the real training text that the rare tokens, its least frequent ones, have together.
RARE_SHARE = 0.05


class Predictions(NamedTuple):
    """Predictions on blocks (B, T), arrays (B, T − 1): entropy in nats, probability of the top token and whether it is
    the next one, probability of all rare tokens and whether the next one is rare."""

    entropy: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray
    rare_mass: np.ndarray
    rare: np.ndarray


def rare_tokens(tokens: torch.Tensor, vocabulary: int, share: float = RARE_SHARE) -> torch.Tensor:
    """Mask (vocabulary,) of the least frequent token types that together have at most `share` of a text's tokens, types
    that never occur included. ValueError if none of them occurs."""
    counts = torch.bincount(tokens.flatten(), minlength=vocabulary)
    order = torch.argsort(counts, stable=True)
    within = counts[order].cumsum(0) <= share * counts.sum()
    rare = torch.zeros(vocabulary, dtype=torch.bool)
    rare[order[within]] = True
    if not counts[rare].sum():
        raise ValueError(f"no token of the real text is rare: each holds more than {share:g} of it.")
    return rare


@torch.no_grad()
def predictions(model: PreTrainedModel, blocks: torch.Tensor, rare: torch.Tensor, batch_size: int) -> Predictions:
    """The model's predictions on blocks (B, T), without temperature or truncation."""
    found: list[list[torch.Tensor]] = []
    rare = rare.to(model.device)
    for tokens in blocks.split(batch_size):
        tokens = tokens.to(model.device)
        p = model(input_ids=tokens).logits[:, :-1, : len(rare)].float().softmax(-1)  # (B, T-1, V)
        next_tokens, top = tokens[:, 1:], p.max(-1)
        parts = [torch.special.entr(p).sum(-1), top.values, top.indices == next_tokens, p[..., rare].sum(-1)]
        found.append([*parts, rare[next_tokens]])
    return Predictions(*(torch.cat(parts).cpu().double().numpy() for parts in zip(*found, strict=True)))


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error Σ_b n_b/n |accuracy_b − confidence_b| of top predictions, in bins of equal mass.

    Positive even for a perfectly calibrated model, about √(2/π) Σ_b √(p_b(1 − p_b) n_b)/n: compare only at equal n and
    bins.
    ValueError for fewer predictions than bins. Source: Guo et al. 2017; Nixon et al. 2019 (equal mass).
    """
    confidence, correct = np.ravel(confidence), np.ravel(correct)
    if len(confidence) < bins:
        raise ValueError(f"{len(confidence)} predictions do not fill {bins} bins: give more held_out_blocks.")
    parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    gaps = [abs((correct[part] - confidence[part]).sum()) for part in parts]
    return float(sum(gaps) / len(confidence))


def rare_mass_ratio(rare_mass: np.ndarray, rare: np.ndarray) -> Estimate:
    """Probability of rare tokens over their share of the real next tokens, from (B, T − 1) each; jackknife over blocks.

    1 for the true distribution, lower if the tail is lost. NaN if no next token is rare.
    """
    mass, came = rare_mass.sum(1), rare.sum(1)
    if came.sum() == 0:
        return Estimate.jackknife(math.nan, np.full(len(mass), math.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = (mass.sum() - mass) / (came.sum() - came)
    return Estimate.jackknife(float(mass.sum() / came.sum()), left_out)


def output_metrics(found: Predictions) -> dict[str, Estimate]:
    """Entropy of the next token (nats) and `rare_mass_ratio`."""
    return {
        "next_token_entropy": mean_over_texts(found.entropy.mean(1)),
        "rare_mass_ratio": rare_mass_ratio(found.rare_mass, found.rare),
    }
