"""Curvature of the expected loss, of which a batch's is a biased estimate: products of different blocks."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.stats
import torch
from transformers import PreTrainedModel

from ..estimate import stable_seed
from .basis import dot
from .krylov import Kept, probe_runs, rademacher
from .memory import available_memory, plan
from .operators import operator_class
from .quadrature import Quadrature
from .signature import Estimate, Signature, _Moment, _variance

# Products from which the held-out vectors come. The lower bound holds for any vector; after so many steps the noise
# of the blocks is by far the larger part of what separates it from the eigenvalue.
STEPS = 12
LEAST_BLOCKS = 4  # two halves with a pair of blocks each
UNKNOWN = Estimate(math.nan, math.nan, math.nan, 0, 0)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PopulationSignature:
    """Spectrum of the expected loss, H = E H_b, from the blocks of one batch; units as those of `Signature`.

    An estimate is free of the blocks' noise in expectation, and its interval is one for H. A bracket is of values that
    lie below and above in expectation; `lambda_max_interval` adds their sampling errors, for 95 % together. NaN where
    a second moment or a width is not positive, or where blocks or memory do not suffice: `population_note` says which.

    held_out_leading: the quotients of as many leading vectors as the batch's bulk leaves out.
    population_bulk_sigma: of H compressed to the complement of these vectors. Where they are eigenvectors of H that is
    H without their eigenvalues; of a positive semi-definite H it never has a lower second moment.
    population_log_ratio: held-out λ_max over that width; its bracket reaches to the batch's λ_max over the same width.
    """

    population_blocks: int
    population_probes: int
    held_out_lambda_max: Estimate
    lambda_max_bracket: list[float]
    lambda_max_interval: list[float]
    held_out_lambda_min: Estimate
    lambda_min_bracket: list[float]
    held_out_leading: list[float]
    population_mean_eigenvalue: Estimate
    population_second_moment: Estimate
    population_spectral_variance: Estimate
    population_effective_rank: Estimate
    population_bulk_center: Estimate
    population_bulk_sigma: Estimate
    population_log_ratio: Estimate
    population_log_ratio_bracket: list[float]
    population_note: str


def different_blocks(squared_sum: float, products: np.ndarray, squares: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean of x_aᵀx_b over pairs a ≠ b of B ≥ 3 vectors, and its jackknife pseudo-values (B,), whose mean it is.

    squared_sum: ‖Σ x_b‖²; products (B,): x_bᵀ Σ x; squares (B,): ‖x_b‖². With N = ‖Σ x‖² − Σ ‖x_b‖² the mean is
    N/(B(B − 1)), and without block b it is (N − 2 x_bᵀ(Σ x − x_b))/((B − 1)(B − 2)).
    """
    blocks = len(squares)
    total = squared_sum - squares.sum()
    without = (total - 2 * (products - squares)) / (blocks - 2)
    return total / (blocks * (blocks - 1)), total / (blocks - 1) - without


def squared_trace(forms: np.ndarray) -> float:
    """(tr H)² without bias from forms[j, b] = v_jᵀ H_b v_j: the mean of products of different probes and blocks."""
    probes, blocks = forms.shape
    total = forms.sum() ** 2 - (forms.sum(0) ** 2).sum() - (forms.sum(1) ** 2).sum() + (forms**2).sum()
    return float(total / (probes * (probes - 1) * blocks * (blocks - 1)))


@dataclass(frozen=True)
class _Half:
    """One half of the blocks, measured with vectors u_i that the other half gave, and with the probes.

    top, bottom (blocks,): uᵀ H_b u of the outermost vectors. inner (blocks, k, k): u_iᵀ H_b u_j of the leading ones;
    lengths (blocks, k): (H_b u)ᵀ Σ_{a ≠ b} H_a u over this half. traces, products, squares (probes, blocks): vᵀ H_b v,
    (H_b v)ᵀ Σ H v over both halves, ‖H_b v‖². shares (probes, k): (u_iᵀ v)².
    """

    top: np.ndarray
    bottom: np.ndarray
    inner: np.ndarray
    lengths: np.ndarray
    traces: np.ndarray
    products: np.ndarray
    squares: np.ndarray
    shares: np.ndarray


def _leading(run: Quadrature, count: int) -> list[int]:
    """Indices of nodes: the largest, the smallest, then the `count` largest in absolute value, largest first."""
    order = np.argsort(-np.abs(run.nodes))
    return [len(run.nodes) - 1, 0, *order[:count]]


def _measured(operator: Any, vectors: torch.Tensor, probes: list[torch.Tensor], sums: list[torch.Tensor]) -> _Half:
    """Forms of every block of `operator`, whose blocks did not make the vectors (2 + k, n): top, bottom, leading."""
    outermost, leading = vectors[:2], vectors[2:]
    k, blocks = len(leading), operator.blocks
    left = [vector[None] for vector in outermost]
    left += [torch.cat([leading, operator.matvec(vector)[None] * blocks]) for vector in leading]
    left += [torch.stack(pair) for pair in zip(probes, sums, strict=True)]
    forms = operator.block_forms(left, [*outermost, *leading, *probes], squares=True)
    ends, inside, rest = np.split(forms, [4, 4 + k * (k + 2)], axis=1)
    inside = inside.reshape(blocks, k, k + 2)
    traces, products, squares = rest.reshape(blocks, len(probes), 3).transpose(2, 1, 0)
    shares = np.array([[dot(vector, probe) ** 2 for vector in leading] for probe in probes]).reshape(len(probes), k)
    lengths = inside[:, :, k] - inside[:, :, k + 1]
    return _Half(ends[:, 0], ends[:, 2], inside[:, :, :k], lengths, traces, products, squares, shares)


def _over_halves(by_half: Sequence[np.ndarray], probes: int) -> _Moment:
    """Mean of the halves' means of a value a block, whose error is that of both halves, each about its own mean."""
    blocks = sum(map(len, by_half))
    parts = []
    for part in by_half:
        size = len(part)
        # So that the variance of all over B is Σ s²/(4 B_h), whatever the halves' sizes B_h.
        scale = blocks / (2 * size) * math.sqrt((1 - 1 / blocks) / (1 - 1 / size))
        parts.append((part - part.mean()) * scale)
    value = float(np.mean([part.mean() for part in by_half]))
    return _Moment(value, np.full(probes, value), value + np.concatenate(parts))


def _deflation(halves: Sequence[_Half]) -> tuple[_Moment, _Moment]:
    """By how much vᵀHv and ‖Hv‖² exceed those of PHP, P the projection off the leading vectors, means over halves.

    With Π = I − P, tr H − tr PHP = Σ u_iᵀHu_i and ‖H‖² − ‖PHP‖² = 2 Σ ‖Hu_i‖² − Σ (u_iᵀHu_j)²: squares from pairs of
    different blocks. The terms of one vector are times (u_iᵀv)², of mean one, which takes out their noise of probes.
    """
    first, second = [], []
    for half in halves:
        blocks, share = len(half.inner), half.shares.mean(0)
        mean = half.inner.mean(0)
        squares = (half.inner.sum(0) ** 2 - (half.inner**2).sum(0)) / (blocks * (blocks - 1))
        quotients = half.inner.diagonal(axis1=1, axis2=2)
        first.append((half.shares @ quotients.mean(0), quotients @ share))
        own = 2 * half.lengths.mean(0) / (blocks - 1) - squares.diagonal()
        by_probe = half.shares @ own - (squares.sum() - squares.trace())
        # Derivatives in a block's weight: of ‖Hu‖², and of (u'Hw)², 2 u'Hw times the block's own.
        weights = np.full_like(mean, 1.0)
        np.fill_diagonal(weights, share)
        by_block = half.lengths @ (4 * share / (blocks - 1)) - 2 * np.tensordot(half.inner, mean * weights, 2)
        second.append((by_probe, by_block))
    found = []
    for terms in (first, second):
        by_probe = np.mean([term[0] for term in terms], axis=0)
        errors = _over_halves([term[1] for term in terms], len(by_probe))
        found.append(_Moment(float(by_probe.mean()), by_probe, errors.by_block))
    return found[0], found[1]


def _of_halves(halves: Sequence[_Half], sums: np.ndarray, n: int, batch: Signature) -> PopulationSignature:
    """Population signature from both halves' forms; sums (probes,): ‖Σ_b H_b v‖² over all blocks."""
    traces = np.concatenate([half.traces for half in halves], axis=1)
    probes, blocks = traces.shape
    products, squares = (np.concatenate([getattr(h, name) for h in halves], axis=1) for name in ("products", "squares"))
    pairs = [different_blocks(*parts) for parts in zip(sums, products, squares, strict=True)]
    second = _Moment(
        float(np.mean([value for value, _ in pairs])),
        np.array([value for value, _ in pairs]),
        np.mean([pseudo for _, pseudo in pairs], axis=0),
    )
    first = _Moment(float(traces.mean()), traces.mean(1), traces.mean(0))
    notes = []

    mean = _Moment.of(first.value / n, (1 / n, first))
    per_dimension = _Moment.of(second.value / n, (1 / n, second))
    rank = UNKNOWN
    if second.value > 0:
        square = squared_trace(traces)
        slopes = (2 * first.value / second.value, first), (-square / second.value**2, second)
        rank = _Moment.of(square / second.value, *slopes).estimate()
    else:
        notes.append("the second moment of different blocks is not positive: more blocks are needed")

    count = len(halves[0].shares[0])
    one, two = _deflation(halves)
    rest = n - count
    center = _Moment.of((first.value - one.value) / rest, (1 / rest, first), (-1 / rest, one))
    width = _variance(center, _Moment.of((second.value - two.value) / rest, (1 / rest, second), (-1 / rest, two)))
    largest, smallest = (_over_halves([getattr(half, end) for half in halves], probes) for end in ("top", "bottom"))
    sigma, log_ratio, ends = UNKNOWN, UNKNOWN, [math.nan, math.nan]
    if width.value > 0:
        root = math.sqrt(width.value)
        bulk = _Moment.of(root, (0.5 / root, width))
        sigma = bulk.estimate()
        if largest.value > 0:
            value = math.log(largest.value / root)
            log_ratio = _Moment.of(value, (1 / largest.value, largest), (-1 / root, bulk)).estimate()
            ends = [value, math.log(max(batch.lambda_max / root, math.exp(value)))]
        else:
            notes.append("the held-out λ_max is not positive: a ratio has no logarithm")
    elif second.value > 0:
        notes.append("without the held-out leading eigenvalues the bulk's second moment is not positive")
    if notes:
        log.warning("population spectrum of %d blocks: %s.", blocks, "; ".join(notes))
    top, bottom = largest.estimate(), smallest.estimate()
    # Student's t of the blocks: either end lies beyond λ_max of H in one case out of forty at most.
    half_width = float(scipy.stats.t.ppf(0.975, blocks - 1)) * (batch.lambda_max_batch_error or 0.0)
    return PopulationSignature(
        population_blocks=blocks,
        population_probes=probes,
        held_out_lambda_max=top,
        lambda_max_bracket=[top.value, batch.lambda_max],
        lambda_max_interval=[top.interval()[0], batch.lambda_max + half_width],
        held_out_lambda_min=bottom,
        lambda_min_bracket=[batch.lambda_min, bottom.value],
        held_out_leading=np.mean([half.inner.mean(0).diagonal() for half in halves], axis=0).tolist(),
        population_mean_eigenvalue=mean.estimate(),
        population_second_moment=per_dimension.estimate(),
        population_spectral_variance=_variance(mean, per_dimension).estimate(),
        population_effective_rank=rank,
        population_bulk_center=center.estimate(),
        population_bulk_sigma=sigma,
        population_log_ratio=log_ratio,
        population_log_ratio_bracket=ends,
        population_note="; ".join(notes),
    )


def _unknown(batch: Signature, blocks: int, note: str) -> PopulationSignature:
    """The signature of which only the batch's side of the brackets is known."""
    log.warning("population spectrum of %d blocks: %s.", blocks, note)
    return PopulationSignature(
        population_blocks=blocks,
        population_probes=batch.probes,
        held_out_lambda_max=UNKNOWN,
        lambda_max_bracket=[math.nan, batch.lambda_max],
        lambda_max_interval=[math.nan, math.nan],
        held_out_lambda_min=UNKNOWN,
        lambda_min_bracket=[batch.lambda_min, math.nan],
        held_out_leading=[],
        population_mean_eigenvalue=UNKNOWN,
        population_second_moment=UNKNOWN,
        population_spectral_variance=UNKNOWN,
        population_effective_rank=UNKNOWN,
        population_bulk_center=UNKNOWN,
        population_bulk_sigma=UNKNOWN,
        population_log_ratio=UNKNOWN,
        population_log_ratio_bracket=[math.nan, math.nan],
        population_note=note,
    )


def population_of_operators(
    operators: Sequence[Any], batch: Signature, *, seed: int = 0, storages: Sequence[Kept] = ("full", "full")
) -> PopulationSignature:
    """Population signature from operators of the two halves of the blocks that `batch` is of, with its probes.

    operators: anything with `n`, `blocks`, `device`, `torch_dtype`, `matvec` and `block_forms`. storages: of each
    half's Lanczos basis.
    """
    one, two = operators
    n, blocks = one.n, one.blocks + two.blocks
    if min(one.blocks, two.blocks) < 2:
        return _unknown(batch, blocks, f"the expected loss needs {LEAST_BLOCKS} blocks or more")
    if None in storages:
        return _unknown(batch, blocks, "held-out eigenvectors need a Lanczos basis, which the memory does not hold")
    vectors = []
    for half, (operator, storage) in enumerate(zip(operators, storages, strict=True)):
        ((run, basis),) = probe_runs(operator, STEPS, 1, stable_seed(seed, "held out", half), storage)
        chosen = run.vectors[:, _leading(run, len(batch.outliers))]
        vectors.append(torch.stack([basis.combine(column) for column in chosen.T]))
    count = min(map(len, vectors)) - 2
    probes = [
        rademacher(n, seed, "probe", index, device=one.device).to(one.torch_dtype) for index in range(batch.probes)
    ]
    sums = [one.matvec(probe) * one.blocks + two.matvec(probe) * two.blocks for probe in probes]
    halves = [
        _measured(one, vectors[1][: 2 + count], probes, sums),
        _measured(two, vectors[0][: 2 + count], probes, sums),
    ]
    return _of_halves(halves, np.array([dot(total, total) for total in sums]), n, batch)


def population_signature(
    model: PreTrainedModel,
    batch: torch.Tensor,
    signature: Signature,
    *,
    seed: int = 0,
    kind: Literal["hessian", "gauss_newton"] = "hessian",
    parameters: list[str] | None = None,
    memory_budget: int | None = None,
) -> PopulationSignature:
    """Spectrum of the expected loss from blocks of token ids (B, T), B ≥ 4, whose `spectral_signature` is given.

    With v the probes of that signature, E vvᵀ = I, and H_b the Hessian of block b's own mean loss, tr H² is estimated
    by [‖Σ H_b v‖² − Σ ‖H_b v‖²]/(B(B − 1)): products of different blocks are free of their noise. λ_max of H lies, in
    expectation, below the batch's and above uᵀH_other u, u from one half of the blocks and H_other of the other;
    σ_bulk leaves out as many leading vectors as the batch has outliers, found and used likewise. Errors over
    blocks are the jackknife's, with the vectors u as they are; those over probes are between probes. Blocks count as
    independent draws: where neighbours share a text, what they share is taken for the expected loss.
    Options as for `spectral_signature`, and as they were there. It takes 30 + 4 m + 4 k gradients of the batch for m
    probes and k outliers, if graphs of the whole batch fit.
    """
    operators, storages = [], []
    # One after the other: neighbouring blocks, which may share a text, meet at one border only.
    middle = len(batch) // 2
    for half in (batch[:middle], batch[middle:]):
        if len(half) < 2:
            return _unknown(signature, len(batch), f"the expected loss needs {LEAST_BLOCKS} blocks or more")
        operator = operator_class(kind)(model, half, parameters=parameters)
        budgets = [int(0.8 * available_memory(device)) for device in (operator.device, "cpu")]
        if memory_budget is not None:
            budgets[0] = memory_budget
        *budgets, block_bytes = operator.least(*budgets, operator.block_bytes())
        held = (2 * (2 + len(signature.outliers)) + signature.probes) * operator.n * operator.torch_dtype.itemsize
        # Both halves keep what they have: each takes half of what the vectors leave.
        room = [(budgets[0] - held) // 2, budgets[1]]
        try:
            operator.micro_batch, storage = plan(*room, operator, min(STEPS, operator.n), block_bytes, 1)
        except MemoryError:  # what was measured before stays
            return _unknown(signature, len(batch), "the memory does not hold the held-out eigenvectors")
        operators.append(operator)
        storages.append(storage)
    return population_of_operators(operators, signature, seed=seed, storages=storages)
