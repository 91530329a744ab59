"""Representations of frozen real text: effective rank, anisotropy, and similarity of two models (CKA)."""

import math

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def activations(model: PreTrainedModel, blocks: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Hidden states (B·T, d) of blocks (B, T) after the embedding and after every layer, float32, on the CPU.

    The last ones are the head's input, after the final norm.
    """
    found: list[list[torch.Tensor]] = []
    for tokens in blocks.split(batch_size):
        hidden = model(input_ids=tokens.to(model.device), output_hidden_states=True).hidden_states
        found.append([states.flatten(0, 1).float().cpu() for states in hidden])
    return [torch.cat(states) for states in zip(*found, strict=True)]


def effective_ranks(rows: torch.Tensor) -> tuple[float, float]:
    """Effective ranks of the covariance of rows (N, d): (tr C)²/tr C², and exp(−Σ p log p) of p = λ/tr C.

    Both are k where k eigenvalues are equal and the others 0. NaN for constant rows.
    Source: Gao et al. 2017 (participation ratio); Roy & Vetterli 2007 (entropy).
    """
    centred = rows.double() - rows.double().mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred / len(rows)).clamp(min=0)
    trace = values.sum()
    # For constant rows the variance is rounding.
    if not trace > 1e-24 * rows.double().square().sum() / len(rows):
        return math.nan, math.nan
    shares = values / trace
    return (1 / shares.square().sum()).item(), torch.special.entr(shares).sum().exp().item()


def anisotropy(rows: torch.Tensor) -> float:
    """Mean cosine of all pairs of different rows (N, d): 0 for uniform directions, 1 for a single one.

    Σ_{i≠j} ⟨x̂_i, x̂_j⟩ = ‖Σ x̂_i‖² − N. Zero rows are left out; NaN for fewer than two others.
    Source: Ethayarajh 2019.
    """
    rows = rows.double()
    lengths = rows.norm(dim=1)
    unit = rows[lengths > 0] / lengths[lengths > 0, None]
    n = len(unit)
    return ((unit.sum(0).square().sum() - n) / (n * (n - 1))).item() if n > 1 else math.nan


def _hsic(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """N(N − 3) times the unbiased HSIC of linear kernels, without an (N, N) matrix. Source: Song et al. 2012, eq. 5."""
    n = len(X)
    x, y = X.square().sum(1), Y.square().sum(1)  # the diagonals, which the estimator excludes
    ones_x, ones_y = X @ X.sum(0) - x, Y @ Y.sum(0) - y
    trace = (X.T @ Y).square().sum() - x @ y
    return trace + ones_x.sum() * ones_y.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (ones_x @ ones_y)


def debiased_cka(X: torch.Tensor, Y: torch.Tensor) -> float:
    """Debiased linear CKA of two representations (N, d), (N, d') of the same N ≥ 4 inputs.

    HSIC(X, Y)/√(HSIC(X, X) HSIC(Y, Y)) with unbiased HSIC: 1 for equal representations up to rotation, scale and
    shift, about 0 for independent ones, for which the plain estimate is far above 0 unless N ≫ d. May be negative; NaN
    if one side is constant. Assumes independent inputs, which the tokens of one block are not.
    Source: Kornblith et al. 2019; Song et al. 2012.
    """
    if len(X) != len(Y) or len(X) < 4:
        raise ValueError(
            f"CKA compares two representations of the same four inputs or more: got {len(X)} and {len(Y)}."
        )
    # HSIC ignores shifts; centred sums lose fewer digits.
    X, Y = (rows.double() - rows.double().mean(0) for rows in (X, Y))
    size = _hsic(X, X) * _hsic(Y, Y)
    return (_hsic(X, Y) / size.sqrt()).item() if size > 0 else math.nan
