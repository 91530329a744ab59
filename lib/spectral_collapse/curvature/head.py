"""The output head and its cross-entropy, differentiated twice in closed form, in chunks of positions."""

import torch
from torch.autograd.function import once_differentiable

# Entries of a chunk of logits (64 MiB in float32), so that batch size and vocabulary have no limit.
CHUNK_LOGITS = 1 << 24


def rows_at_a_time(vocabulary: int) -> int:
    """Positions whose logits make one chunk."""
    return max(1, CHUNK_LOGITS // vocabulary)


def probabilities(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """P = softmax(h Wᵀ), (N, V)."""
    return (hidden @ weight.T).softmax(1)


class HeadGradient(torch.autograd.Function):
    """Gradient of the summed cross-entropy of logits h Wᵀ, itself differentiable once.

    hidden (N, d), weight (V, d), targets (N,) → (D W, Dᵀ h) with D = P − onehot(targets). For cotangents a (N, d)
    and B (V, d) the backward pass gives (u W + D B, uᵀ h + Dᵀ a), u the curvature of δ = a Wᵀ + h Bᵀ.
    D is never formed: P enters by a matrix product, the targets by a row each. Works on `rows` positions at a time; if
    there are more, P is recomputed in the backward pass.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, rows):
        by_hidden, by_weight, P = [], torch.zeros_like(weight), None
        for h in hidden.split(rows):
            P = probabilities(h, weight)
            by_hidden.append(P @ weight)
            by_weight.addmm_(P.T, h)
        ctx.rows, ctx.kept = rows, P if len(by_hidden) == 1 else None
        ctx.save_for_backward(hidden, weight, targets)
        ctx.set_materialize_grads(False)
        return torch.cat(by_hidden).sub_(weight[targets]), by_weight.index_add_(0, targets, hidden, alpha=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, a, B):
        hidden, weight, targets = ctx.saved_tensors
        by_hidden, by_weight = head_curvature(hidden, weight, targets, a, B, ctx.rows, ctx.kept, full=True)
        return by_hidden, by_weight if ctx.needs_input_grad[1] else None, None, None


def head_curvature(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    a: torch.Tensor | None,
    B: torch.Tensor | None,
    rows: int,
    kept: torch.Tensor | None,
    *,
    full: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change of the head's gradient along (a, B), in chunks of rows: (u W, uᵀ h), with `full` also (D B, Dᵀ a).

    u = P∘(δ − P·δ) is the cross-entropy's second derivative in the logits, times their change δ. Without the
    second parts it is Gauss–Newton's product. None stands for zero.
    """
    by_hidden, by_weight = [], None
    for start in range(0, max(1, len(hidden)), rows):  # a block may predict nothing
        part = slice(start, start + rows)
        h, t = hidden[part], targets[part]
        P = kept if kept is not None else probabilities(h, weight)
        if a is None:
            change = h @ B.T
        else:
            change = a[part] @ weight.T
            if B is not None:
                change = torch.addmm(change, h, B.T)
        u = change.sub_(torch.linalg.vecdot(P, change)[:, None]).mul_(P)
        hidden_part, weight_part = u @ weight, u.T @ h
        if full and B is not None:
            hidden_part = torch.addmm(hidden_part, P, B).sub_(B[t])
        if full and a is not None:
            weight_part = torch.addmm(weight_part, P.T, a[part]).index_add_(0, t, a[part], alpha=-1)
        by_hidden.append(hidden_part)
        by_weight = weight_part if by_weight is None else by_weight.add_(weight_part)
    return torch.cat(by_hidden), by_weight
