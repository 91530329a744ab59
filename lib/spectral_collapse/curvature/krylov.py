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
# A Gram–Schmidt pass that removes less than this part of what it leaves is not repeated.
ONCE = 1e-2


def at_least(least: int, **numbers: int) -> None:
    """Raises ValueError naming a number that is not whole, or below `least`."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
            raise ValueError(f"{name} must be a whole number of {least} or more, not {number!r}.")


def rademacher(n: int, *seed_parts: str | int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Probe with independent entries ±1, float32, shape (n,), the same on every device."""
    signs = generator(*seed_parts).integers(0, 2, size=n, dtype=np.int8)
    return torch.from_numpy(signs).to(device).float().mul_(2).sub_(1)


# A storage, or beside the start vector and in its type, or no basis at all.
Kept = Storage | Literal["full"] | None


def recurrence(
    start: torch.Tensor, steps: int, storage: Storage | None
) -> Generator[torch.Tensor, torch.Tensor, tuple[Quadrature, Basis | None]]:
    """The Lanczos iteration as a coroutine: yields q, is sent H q, returns the quadrature and its basis.

    So that whoever drives it chooses whether several runs share a pass over the operator.
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
        # A copy: it is changed in place, and an operator may return what it was given.
        product = (yield vector).to(start.device, start.dtype, copy=True)
        alpha = dot(product, vector)
        product.sub_(vector, alpha=alpha)
        if step:
            product.sub_(previous, alpha=betas[-1])
        if basis is None:
            beta = math.sqrt(dot(product, product))
        else:
            # A pass leaves errors in proportion to what it removes. After the recurrence that is rounding, and one
            # is enough; where it is not, twice is (Giraud et al. 2005).
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
        previous, vector = vector, product / beta
    if basis:
        basis.next = product / beta if beta else product
    return Quadrature(np.array(alphas), np.array(betas)), basis


def drive(matvec: Matvec, run: Generator) -> tuple[Quadrature, Basis | None]:
    """Runs one `recurrence` to its end with products one at a time."""
    vector = next(run)
    while True:
        try:
            vector = run.send(matvec(vector))
        except StopIteration as end:
            return end.value


def _drive_together(matmat: Callable, runs: list[Generator]) -> list[tuple[Quadrature, Basis | None]]:
    """Runs several `recurrence`s in step, their products in one call."""
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
    """Ritz values of H on the sum of several runs' Krylov spaces and their residuals ‖Hy − θy‖, largest |θ| first.

    H Q_j = Q_j T_j + β_j q_{j,k+1} e_kᵀ gives H Q for Q = [Q_1 … Q_p] without a product more: the space, and so
    the convergence, is that of block Lanczos from all starts. Bases in full precision. Directions in which the
    runs agree to within rounding count once. Source: Golub & Underwood 1977.
    """
    # E: every run's basis and the vector that leads out of it. H Q = E M, and Q is E without the latter.
    M = scipy.linalg.block_diag(*(quadrature.extended() for quadrature, _ in runs))
    inside = np.concatenate([np.arange(basis.k + 1) < basis.k for _, basis in runs])
    gram = torch.zeros(len(M), len(M), dtype=torch.float64)
    short = CHUNK // 16  # the shorter the sums in float32, the smaller the directions that they resolve
    for start in range(0, len(runs[0][1].next), short):
        rows = torch.cat([basis.extended(slice(start, start + short)) for _, basis in runs])
        gram += to_float64(rows @ rows.T).cpu()
    G = gram.numpy()
    sizes, directions = np.linalg.eigh(G[np.ix_(inside, inside)])
    # Below this, what tells the runs apart is rounding; in float64 there is more of it than is needed.
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

    storage: of the basis that new vectors are made orthogonal to, twice; by default beside the start vector and
    in its type. With None no basis is kept, three vectors suffice, and orthogonality is lost once an eigenvalue
    has converged: extreme nodes and the distribution as a whole stay right, but copies of converged eigenvalues
    appear, which share that eigenvalue's weight (`merged` joins them). Reductions accumulate in float64.
    Stops early when the Krylov space is exhausted. Source: Golub & Meurant 2010, ch. 4; Paige 1976.
    """
    at_least(1, steps=steps)
    storage = _at_hand(start) if storage == "full" else storage
    return drive(matvec, recurrence(start, min(steps, len(start)), storage))[0]


def probe_runs(
    operator,
    steps: int,
    probes: int,
    seed: int,
    storage: Kept = "full",
    done: int = 0,
    later_steps: int | None = None,
) -> Iterator[tuple[Quadrature, Basis | None]]:
    """One Lanczos run after another from independent Rademacher probes, each with its basis, in order.

    The first `done` of them are left out; those after the very first take `later_steps`, if given. On an accelerator
    all runs go in step and their bases are kept together.
    """
    at_least(1, steps=steps, probes=probes)
    n = operator.shape[0]
    runs = []
    for probe in range(done, probes):
        start = rademacher(n, seed, "probe", probe, device=operator.device)
        start = start.to(getattr(operator, "torch_dtype", start.dtype))
        number = steps if probe == 0 or later_steps is None else later_steps
        runs.append(recurrence(start, min(number, n), _at_hand(start) if storage == "full" else storage))
    if torch.device(operator.device).type != "cpu":
        yield from _drive_together(operator.matmat, runs)
        return
    for run in runs:
        yield drive(operator.matvec, run)


def spectral_density(operator, steps: int, probes: int, seed: int, *, storage: Kept = "full") -> list[Quadrature]:
    """Stochastic Lanczos quadrature: one quadrature for each independent Rademacher probe.

    operator: anything with `shape`, `device` and `matvec` (on an accelerator `matmat`), a `HessianOperator`
    for instance. Source: Ubaru, Chen & Saad 2017.
    """
    return [quadrature for quadrature, _ in probe_runs(operator, steps, probes, seed, storage)]
