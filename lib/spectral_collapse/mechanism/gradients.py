"""Gradients of the mean loss: their size by part of the network, their directions, and their noise."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from ..curvature import mean_loss
from .vectors import Vector, cosine, inner, norm


def gradient(model: PreTrainedModel, blocks: torch.Tensor, batch_size: int) -> Vector:
    """∇L(θ) of the mean next-token loss over blocks (B, T), `batch_size` of them at a time; nats per unit of θ.

    `model` in evaluation mode. ValueError if a gradient is not finite.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for tokens in blocks.split(batch_size):
        loss = mean_loss(model, tokens.to(model.device)) * (len(tokens) / len(blocks))
        for name, part in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            total[name] += part
    if not math.isfinite(norm(total)):
        raise ValueError("the gradient is not finite: the model has diverged; lower its learning rate.")
    return total


class NoiseScale(NamedTuple):
    """tr(Σ)/|G|² in blocks, its standard error, and the unbiased estimates of numerator and denominator."""

    value: float
    standard_error: float
    trace: float
    squared_norm: float


def _noise_scale(blocks: np.ndarray, squares: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, ...]:
    """tr(Σ) and |G|² from the number of blocks, the sum of their gradients' squared norms, and the squared norm of the
    gradients' sum."""
    return (squares - total / blocks) / (blocks - 1), (total - squares) / (blocks * (blocks - 1))


def noise_scale(squares: Sequence[float], products: Sequence[float]) -> NoiseScale:
    """The simple noise scale tr(Σ)/|G|²: the batch size, in blocks, at which noise and signal of the gradient are
    equal.

    squares (B,): |g_b|² of every block's gradient; products (B,): ⟨g_b, Σ g⟩ with the sum over blocks. Unbiased are
    |G|² = (B|ḡ|² − mean |g_b|²)/(B − 1) and tr Σ = (mean |g_b|² − |ḡ|²)/(1 − 1/B); their ratio is not. Standard error
    by the jackknife over blocks. NaN if the estimate of |G|² is not positive. ValueError for fewer than three blocks.
    Source: McCandlish et al. 2018 (arXiv 1812.06162), appendix A.1; Efron & Stein 1981.
    """
    q, c = np.asarray(squares, dtype=float), np.asarray(products, dtype=float)
    count = len(q)
    if count < 3:
        raise ValueError(
            f"a noise scale with its error needs three blocks or more, not {count}: raise held_out_blocks."
        )
    total = c.sum()
    trace, signal = _noise_scale(np.array(count), q.sum(), total)
    if signal <= 0:
        return NoiseScale(math.nan, math.nan, float(trace), float(signal))
    # Without block b the sum of gradients is Σ g − g_b.
    traces, signals = _noise_scale(np.array(count - 1), q.sum() - q, total - 2 * c + q)
    left_out = traces / signals
    error = math.sqrt((count - 1) * np.var(left_out))
    return NoiseScale(float(trace / signal), error, float(trace), float(signal))


def block_products(model: PreTrainedModel, blocks: torch.Tensor, mean: Vector) -> tuple[list[float], list[float]]:
    """|g_b|² and ⟨g_b, Σ g⟩ of every block (B,), for `noise_scale`; `mean` is the gradient over all the blocks."""
    squares, products = [], []
    for block in blocks.split(1):
        own = gradient(model, block, 1)
        squares.append(inner(own, own))
        products.append(len(blocks) * inner(own, mean))
    return squares, products


def compared(now: Vector, other: Vector, parts: Mapping[str, list[str]]) -> dict[str, float]:
    """Cosine of two gradients in every part of the network."""
    return {part: cosine(now, other, names) for part, names in parts.items()}
