"""Curvature of the expected loss from products of different blocks; that of a batch is biased."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.stats
import torch
from transformers import PreTrainedModel

from ..estimate import stable_seed
from .basis import Basis, dot
from .kinds import Kind, operator_class
from .krylov import Kept, probe_of, probe_runs
from .memory import available_memory, plan
from .model import checked_blocks, unwrapped
from .quadrature import Quadrature
from .signature import Signature, SpectralEstimate, _Moment, _variance

# Lanczos steps for the held-out vectors. The lower bound holds for any vector; after so many steps its distance from
# the eigenvalue is mostly the noise of the blocks.
STEPS = 8
LEAST_BLOCKS = 4  # two halves with a pair of blocks each
UNKNOWN = SpectralEstimate(math.nan, math.nan, math.nan, 0, 0)

log = logging.getLogger(__name__)


def _unknown_pair() -> list[float]:
    return [math.nan, math.nan]


@dataclass(frozen=True)
class PopulationSignature:
    """Spectrum of the expected loss, H = E H_b, from the blocks of one batch; units as in `Signature`.

    Estimates are free of the blocks' noise in expectation, and their intervals are for H. The ends of a bracket lie
    below and above in expectation; `lambda_max_interval` adds their sampling errors, 95 % together, where the signature
    has errors over blocks. NaN if a second moment or a width is not positive, or if blocks or memory do not suffice;
    `population_note` says which.

    held_out_leading: quotients of as many leading vectors as the batch has outliers.
    population_bulk_sigma: of H compressed to the complement of these vectors. If they are eigenvectors of H, that is H
    without their eigenvalues; for a positive semi-definite H the second moment is never lower.
    population_log_ratio: held-out λ_max over that width; its bracket reaches to the batch's λ_max over the same width.
    """

    population_blocks: int
    population_probes: int
    held_out_lambda_max: SpectralEstimate = UNKNOWN
    lambda_max_bracket: list[float] = field(default_factory=_unknown_pair)
    lambda_max_interval: list[float] = field(default_factory=_unknown_pair)
    held_out_lambda_min: SpectralEstimate = UNKNOWN
    lambda_min_bracket: list[float] = field(default_factory=_unknown_pair)
    held_out_leading: list[float] = field(default_factory=list)
    population_mean_eigenvalue: SpectralEstimate = UNKNOWN
    population_second_moment: SpectralEstimate = UNKNOWN
    population_spectral_variance: SpectralEstimate = UNKNOWN
    population_effective_rank: SpectralEstimate = UNKNOWN
    population_bulk_center: SpectralEstimate = UNKNOWN
    population_bulk_sigma: SpectralEstimate = UNKNOWN
    population_log_ratio: SpectralEstimate = UNKNOWN
    population_log_ratio_bracket: list[float] = field(default_factory=_unknown_pair)
    population_note: str = ""


def different_blocks(squared_sum: float, products: np.ndarray, squares: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean of x_aᵀx_b over pairs a ≠ b of B ≥ 3 vectors, and its jackknife pseudo-values (B,), whose mean it is.

    squared_sum: ‖Σ x_b‖²; products (B,): x_bᵀ Σ x; squares (B,): ‖x_b‖². With N = ‖Σ x‖² − Σ ‖x_b‖² the mean is
    N/(B(B − 1)), and without block b it is (N − 2 x_bᵀ(Σ x − x_b))/((B − 1)(B − 2)).

    >>> x = np.array([1.0, 2.0, 3.0])  # (1·2 + 1·3 + 2·3)/3
    >>> different_blocks(x.sum() ** 2, x * x.sum(), x**2)[0].round(9).item()
    3.666666667
    """
    blocks = len(squares)
    total = squared_sum - squares.sum()
    without = (total - 2 * (products - squares)) / (blocks - 2)
    return total / (blocks * (blocks - 1)), total / (blocks - 1) - without


def squared_trace(forms: np.ndarray) -> float:
    """Unbiased (tr H)² from forms[j, b] = v_jᵀ H_b v_j: the mean product of different probes and different blocks."""
    probes, blocks = forms.shape
    total = forms.sum() ** 2 - (forms.sum(0) ** 2).sum() - (forms.sum(1) ** 2).sum() + (forms**2).sum()
    return float(total / (probes * (probes - 1) * blocks * (blocks - 1)))


@dataclass(frozen=True)
class _Half:
    """One half of the blocks, measured with vectors u_i from the other half and with the probes.

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
    """Indices of the `count` largest nodes in absolute value, largest first, and of the largest and the smallest where
    they are not among these."""
    order = np.argsort(-np.abs(run.nodes))[:count].tolist()
    return order + [end for end in (len(run.nodes) - 1, 0) if end not in order]


def _measured(
    operator: Any, run: Quadrature, basis: Basis, count: int, probes: list[torch.Tensor], sums: list[torch.Tensor]
) -> _Half:
    """Forms of every block of `operator` with leading and outermost vectors of the other half's run."""
    chosen = _leading(run, count)
    vectors = torch.stack([basis.combine(column) for column in run.vectors[:, chosen].T])
    leading, blocks = vectors[:count], operator.blocks
    left = [[*leading, operator.matvec(vector) * blocks] for vector in leading]
    left += [[vector] for vector in vectors[count:]]
    left += [list(pair) for pair in zip(probes, sums, strict=True)]
    forms = operator.block_forms(left, [*vectors, *probes], squares=True)
    inside, outside, rest = np.split(forms, [count * (count + 2), -3 * len(probes)], axis=1)
    inside = inside.reshape(blocks, count, count + 2)
    quotients = np.append(inside.diagonal(axis1=1, axis2=2), outside[:, ::2], axis=1)
    top, bottom = (quotients[:, chosen.index(end)] for end in (len(run.nodes) - 1, 0))
    traces, products, squares = rest.reshape(blocks, len(probes), 3).transpose(2, 1, 0)
    shares = np.array([[dot(vector, probe) ** 2 for vector in leading] for probe in probes]).reshape(len(probes), count)
    lengths = inside[:, :, count] - inside[:, :, count + 1]
    return _Half(top, bottom, inside[:, :, :count], lengths, traces, products, squares, shares)


def _over_halves(by_half: Sequence[np.ndarray], probes: int) -> _Moment:
    """Mean of the halves' means of a value per block; its error combines both halves, each about its own mean."""
    blocks = sum(map(len, by_half))
    parts = []
    for part in by_half:
        size = len(part)
        # Makes the variance of all over B equal Σ s²/(4 B_h) for halves of any sizes B_h.
        scale = blocks / (2 * size) * math.sqrt((1 - 1 / blocks) / (1 - 1 / size))
        parts.append((part - part.mean()) * scale)
    value = float(np.mean([part.mean() for part in by_half]))
    return _Moment(value, np.full(probes, value), value + np.concatenate(parts))


def _deflation(halves: Sequence[_Half]) -> tuple[_Moment, _Moment]:
    """Excess of vᵀHv and ‖Hv‖² over those of PHP, P the projection off the leading vectors; means over halves.

    With Π = I − P, tr H − tr PHP = Σ u_iᵀHu_i and ‖H‖² − ‖PHP‖² = 2 Σ ‖Hu_i‖² − Σ (u_iᵀHu_j)², squares from pairs of
    different blocks. Terms of one vector are multiplied by (u_iᵀv)², of mean one, which removes their probe noise.
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
    # Student's t over blocks: either end misses λ_max of H in at most one case out of forty.
    error = math.nan if batch.lambda_max_batch_error is None else batch.lambda_max_batch_error
    half_width = float(scipy.stats.t.ppf(0.975, blocks - 1)) * error
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
    """A signature of which only the batch's ends of the brackets are known."""
    log.warning("population spectrum of %d blocks: %s.", blocks, note)
    return PopulationSignature(
        blocks,
        batch.probes,
        lambda_max_bracket=[math.nan, batch.lambda_max],
        lambda_min_bracket=[batch.lambda_min, math.nan],
        population_note=note,
    )


def population_of_operators(
    operators: Sequence[Any], batch: Signature, *, seed: int = 0, storages: Sequence[Kept] = ("full", "full")
) -> PopulationSignature:
    """Population signature from operators of the two halves of the blocks of `batch`, with its probes.

    operators: anything with `n`, `shape`, `blocks`, `device`, `torch_dtype`, `matvec` and `block_forms`. storages:
    of each half's Lanczos basis.
    """
    one, two = operators
    n, blocks = one.n, one.blocks + two.blocks
    if min(one.blocks, two.blocks) < 2:
        return _unknown(batch, blocks, f"the expected loss needs {LEAST_BLOCKS} blocks or more")
    if None in storages:
        return _unknown(batch, blocks, "held-out eigenvectors need a Lanczos basis, which the memory does not hold")
    runs = []
    for half, (operator, storage) in enumerate(zip(operators, storages, strict=True)):
        runs += probe_runs(operator, STEPS, 1, stable_seed(seed, "held out", half), storage)
    count = min(len(batch.outliers), *(basis.k for _, basis in runs))
    probes = [probe_of(one, seed, index) for index in range(batch.probes)]
    sums = [one.matvec(probe) * one.blocks + two.matvec(probe) * two.blocks for probe in probes]
    halves = [
        _measured(one, *runs[1], count, probes, sums),
        _measured(two, *runs[0], count, probes, sums),
    ]
    return _of_halves(halves, np.array([dot(total, total) for total in sums]), n, batch)


def population_signature(
    model: PreTrainedModel,
    batch: Any,
    signature: Signature,
    *,
    seed: int = 0,
    kind: Kind = "hessian",
    parameters: list[str] | None = None,
    memory_budget: int | None = None,
) -> PopulationSignature:
    """Spectrum of the expected loss from B ≥ 4 blocks, whose `spectral_signature` is given.

    With v the probes of that signature, E vvᵀ = I, and H_b the Hessian of block b's summed loss over the mean number of
    predictions of a block, tr H² is estimated by [‖Σ H_b v‖² − Σ ‖H_b v‖²]/(B(B − 1)), since products of different
    blocks are free of their noise. In expectation λ_max of H lies below the batch's and above uᵀH_other u, u from one
    half of the blocks and H_other of the other. σ_bulk leaves out as many leading vectors as the batch has outliers,
    found in the same way. Errors over blocks are the jackknife's at fixed vectors u; errors over probes are between
    probes. Blocks count as independent draws: what neighbours share because they share a text counts as part of the
    expected loss. Where blocks predict unequal numbers of tokens, the mean of either half is over its own.
    Options must be those of the `spectral_signature`. Costs 20 + 4 m + 4 k gradients of the batch for m probes and k
    outliers, if its graphs fit into memory.
    """
    operators, storages = [], []
    batch = checked_blocks(batch, unwrapped(model))
    # Consecutive halves: neighbouring blocks, which may share a text, meet at one border only.
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
        # Both halves keep their graphs: each takes half of the memory beside the vectors.
        room = [(budgets[0] - held) // 2, budgets[1]]
        try:
            operator.micro_batch, storage = plan(*room, operator, min(STEPS, operator.n), block_bytes, 1)
        except MemoryError:  # the batch's signature remains valid
            return _unknown(signature, len(batch), "the memory does not hold the held-out eigenvectors")
        operators.append(operator)
        storages.append(storage)
    return population_of_operators(operators, signature, seed=seed, storages=storages)
