"""The Lanczos iteration of symmetric operators, and stochastic Lanczos quadrature."""

import math
from collections.abc import Callable, Generator, Iterator
from typing import Literal

import numpy as np
import scipy.linalg
import torch

from ..estimate import generator
from .basis import CHUNK, Basis, Storage, dot, to_float64
from .quadrature import Quadrature

Matvec = Callable[[torch.Tensor], torch.Tensor]
# A Gram–Schmidt pass is not repeated if it removes less than this share of the remaining length.
ONCE = 1e-2
LEADING = 3  # eigenvalues of largest magnitude, which a run with a tolerance waits for


def at_least(least: int, **numbers: int) -> None:
    """ValueError that names a number which is no integer or is below `least`."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
            raise ValueError(f"{name} must be a whole number of {least} or more, not {number!r}.")


def rademacher(n: int, *seed_parts: str | int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Probe with independent entries ±1, float32, shape (n,), the same on every device.

    >>> rademacher(5, 0, "probe", 0).abs().tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    signs = generator(*seed_parts).integers(0, 2, size=n, dtype=np.int8)
    return torch.from_numpy(signs).to(device).float().mul_(2).sub_(1)


# A storage; "full": that of the start vector; None: no basis.
Kept = Storage | Literal["full"] | None


def recurrence(
    start: torch.Tensor, steps: int, storage: Storage | None, tolerance: float | None = None
) -> Generator[torch.Tensor, torch.Tensor, tuple[Quadrature, Basis | None]]:
    """The Lanczos iteration as a coroutine: yields q, is sent H q, returns the quadrature and its basis.

    The caller decides whether several runs share a pass over the operator. tolerance: the run ends before `steps` when
    the residuals of the `LEADING` eigenvalues are at most this share of them; errors of eigenvalues are then of the
    order of its square, over the gap to the next one.
    """
    length = math.sqrt(dot(start, start))
    if not 0 < length < math.inf:
        raise ValueError(f"the start vector of Lanczos has no direction: its length is {length}.")
    basis = Basis(steps, start, storage) if storage else None
    vector = start / length
    previous = None
    alphas, betas = [], []
    for step in range(steps):
        if basis:
            basis.append(vector)
        # A copy, since it is changed in place and an operator may return its argument.
        product = (yield vector).to(start.device, start.dtype, copy=True)
        alpha = dot(product, vector)
        product.sub_(vector, alpha=alpha)
        if step:
            product.sub_(previous, alpha=betas[-1])
        if basis is None:
            beta = math.sqrt(dot(product, product))
        else:
            # The error of a pass is proportional to the length removed. After the recurrence only rounding is left to
            # remove and one pass suffices; otherwise two do (Giraud et al. 2005).
            for _ in range(2):
                removed = basis.remove_from(product)
                beta = math.sqrt(dot(product, product))
                if removed <= ONCE * beta:
                    break
        if not math.isfinite(alpha) or not math.isfinite(beta):
            raise ValueError(f"the Hessian product is not finite at Lanczos step {step}: the model has diverged.")
        alphas.append(alpha)
        betas.append(beta)
        if beta <= 64 * torch.finfo(start.dtype).eps * max(np.abs(alphas).max(), max(betas)):
            break  # the Krylov space is exhausted
        if tolerance and _converged(Quadrature(np.array(alphas), np.array(betas)), tolerance):
            break
        previous, vector = vector, product / beta
    if basis:
        basis.next = product / beta if beta else product
    return Quadrature(np.array(alphas), np.array(betas)), basis


def _converged(run: Quadrature, tolerance: float) -> bool:
    leading = np.argsort(-np.abs(run.nodes))[:LEADING]
    return len(leading) == LEADING and bool((run.residuals[leading] <= tolerance * np.abs(run.nodes[leading])).all())


def drive(matvec: Matvec, run: Generator) -> tuple[Quadrature, Basis | None]:
    """Runs one `recurrence` to its end, product by product."""
    vector = next(run)
    while True:
        try:
            vector = run.send(matvec(vector))
        except StopIteration as end:
            return end.value


def _drive_together(matmat: Callable, runs: list[Generator]) -> list[tuple[Quadrature, Basis | None]]:
    """Runs several `recurrence`s in step, with one call for all their products."""
    ended: dict[int, tuple] = {}
    vectors = {index: next(run) for index, run in enumerate(runs)}
    while vectors:
        products = matmat(torch.stack(list(vectors.values()), dim=1))
        for index, product in zip(list(vectors), products.T, strict=True):
            try:
                vectors[index] = runs[index].send(product)
            except StopIteration as end:
                ended[index] = end.value
                del vectors[index]
    return [ended[index] for index in range(len(runs))]


def joint_ritz(runs: list[tuple[Quadrature, Basis]]) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values of H on the sum of several runs' Krylov spaces, with residuals ‖Hy − θy‖, largest |θ| first.

    H Q_j = Q_j T_j + β_j q_{j,k+1} e_kᵀ gives H Q for Q = [Q_1 … Q_p] without further products. Space and convergence
    are those of block Lanczos from all start vectors. Needs bases in full precision; directions that runs share to
    within rounding count once. Source: Golub & Underwood 1977.
    """
    # E: every run's basis and its next vector. H Q = E M; Q is E without the next vectors.
    M = scipy.linalg.block_diag(*(quadrature.extended() for quadrature, _ in runs))
    inside = np.concatenate([np.arange(basis.k + 1) < basis.k for _, basis in runs])
    gram = torch.zeros(len(M), len(M), dtype=torch.float64)
    short = CHUNK // 16  # shorter float32 sums resolve smaller directions
    for start in range(0, len(runs[0][1].next), short):
        rows = torch.cat([basis.extended(slice(start, start + short)) for _, basis in runs])
        gram += to_float64(rows @ rows.T).cpu()
    G = gram.numpy()
    sizes, directions = np.linalg.eigh(G[np.ix_(inside, inside)])
    # Smaller directions are rounding; in float64 the bound leaves digits to spare.
    kept = sizes > max(64 * torch.finfo(runs[0][1].dtype).eps, 1e-8)
    W = directions[:, kept] / np.sqrt(sizes[kept])
    A = W.T @ (G[inside] @ M) @ W
    values, vectors = np.linalg.eigh((A + A.T) / 2)
    vectors = W @ vectors
    rest = M @ vectors
    rest[inside] -= vectors * values
    residuals = np.sqrt(np.maximum(np.einsum("ij,ik,kj->j", rest, G, rest), 0))
    order = np.argsort(-np.abs(values))
    return values[order], residuals[order]


def _at_hand(start: torch.Tensor) -> Storage:
    return Storage(str(start.device), start.dtype)


def lanczos(matvec: Matvec, start: torch.Tensor, steps: int, *, storage: Kept = "full") -> Quadrature:
    """Lanczos from a start vector (n,): T = QᵀHQ with α on its diagonal and β beside it.

    storage: of the basis for reorthogonalisation; by default the start vector's device and type. With None three
    vectors suffice, and orthogonality is lost once an eigenvalue has converged: extreme nodes and the distribution stay
    right, but copies of converged eigenvalues appear and share the eigenvalue's weight (`merged` joins them).
    Reductions accumulate in float64. Stops early if the Krylov space is exhausted.
    Source: Golub & Meurant 2010, ch. 4; Paige 1976.

    >>> H = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    >>> run = lanczos(lambda v: H @ v, torch.ones(3, dtype=torch.float64), steps=3)
    >>> run.nodes.round(9).tolist(), run.weights.round(9).tolist()
    ([1.0, 2.0, 4.0], [0.333333333, 0.333333333, 0.333333333])
    """
    at_least(1, steps=steps)
    storage = _at_hand(start) if storage == "full" else storage
    return drive(matvec, recurrence(start, min(steps, len(start)), storage))[0]


def probe_of(operator, seed: int, index: int) -> torch.Tensor:
    """The Rademacher probe of an index (n,), on the operator's device and in its type."""
    probe = rademacher(operator.shape[0], seed, "probe", index, device=operator.device)
    return probe.to(getattr(operator, "torch_dtype", probe.dtype))


def probe_runs(
    operator,
    steps: int,
    probes: int,
    seed: int,
    storage: Kept = "full",
    done: int = 0,
    tolerance: float | None = None,
) -> Iterator[tuple[Quadrature, Basis | None]]:
    """Lanczos runs from independent Rademacher probes, one after another, each with its basis.

    Leaves out the first `done`; tolerance: see `recurrence`. On an accelerator all runs go in step and their bases are
    kept together.
    """
    at_least(1, steps=steps, probes=probes)
    steps = min(steps, operator.shape[0])
    runs = []
    for probe in range(done, probes):
        start = probe_of(operator, seed, probe)
        runs.append(recurrence(start, steps, _at_hand(start) if storage == "full" else storage, tolerance))
    if torch.device(operator.device).type != "cpu":
        yield from _drive_together(operator.matmat, runs)
        return
    for run in runs:
        yield drive(operator.matvec, run)


def spectral_density(operator, steps: int, probes: int, seed: int, *, storage: Kept = "full") -> list[Quadrature]:
    """Stochastic Lanczos quadrature: one quadrature for each independent Rademacher probe.

    operator: anything with `shape`, `device` and `matvec` (on an accelerator `matmat`), such as a `HessianOperator`.
    Source: Ubaru, Chen & Saad 2017.
    """
    return [quadrature for quadrature, _ in probe_runs(operator, steps, probes, seed, storage)]
