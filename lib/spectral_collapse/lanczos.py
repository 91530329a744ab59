"""Lanczos and stochastic Lanczos quadrature of symmetric operators, with a basis that fits the memory there is."""

import functools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
import torch

from .seeding import generator

Matvec = Callable[[torch.Tensor], torch.Tensor]
# Sums in float32 stay exact to a few units in the last place over so many entries; beyond, float64 takes over.
CHUNK = 1 << 18
# A Gram–Schmidt pass that removes less than this part of what it leaves is not repeated.
ONCE = 1e-2


def dot(x: torch.Tensor, y: torch.Tensor) -> float:
    """⟨x, y⟩ of vectors, accumulated in float64: a float32 sum of 10⁸ products is off by parts in a thousand."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        total += torch.dot(a.double(), b.double())
    return total.item()


def rademacher(n: int, *seed_parts: str | int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Probe with independent entries ±1, float32, shape (n,), the same on every device."""
    signs = generator(*seed_parts).integers(0, 2, size=n, dtype=np.int8)
    return torch.from_numpy(signs).to(device).float().mul_(2).sub_(1)


@dataclass(frozen=True, eq=False)
class Quadrature:
    """The k-point Gauss quadrature that k Lanczos steps give of the spectrum seen by their start vector.

    alphas (k,) and betas (k,): diagonal of T, and the norms below it; the last beta leads out of T.
    Σ w_i p(θ_i) = vᵀp(H)v / vᵀv for every polynomial p of degree at most 2k − 1.
    Source: Golub & Meurant 2010, ch. 6.
    """

    alphas: np.ndarray
    betas: np.ndarray

    @functools.cached_property
    def _eigen(self) -> tuple[np.ndarray, np.ndarray]:
        return scipy.linalg.eigh_tridiagonal(self.alphas, self.betas[:-1])

    @property
    def nodes(self) -> np.ndarray:
        """Ritz values θ_i, ascending, (k,)."""
        return self._eigen[0]

    @property
    def vectors(self) -> np.ndarray:
        """Eigenvectors of T in columns, (k, k): the Ritz vectors in the Lanczos basis."""
        return self._eigen[1]

    @property
    def weights(self) -> np.ndarray:
        """Squared first components of T's eigenvectors, summing to 1, (k,)."""
        return self.vectors[0] ** 2

    @property
    def residuals(self) -> np.ndarray:
        """|β_k s_ki|: an eigenvalue lies within that distance of θ_i, (k,). Source: Paige 1976."""
        return self.betas[-1] * np.abs(self.vectors[-1])

    def extended(self) -> np.ndarray:
        """T with the last beta below it, (k + 1, k): H Q = [Q, q_{k+1}] times this."""
        tridiagonal = np.diag(self.alphas) + np.diag(self.betas[:-1], 1) + np.diag(self.betas[:-1], -1)
        last = np.append(np.zeros(len(self.betas) - 1), self.betas[-1])
        return np.vstack([tridiagonal, last])

    def truncated(self, steps: int) -> "Quadrature":
        """What the first `steps` of these steps gave."""
        return Quadrature(self.alphas[:steps], self.betas[:steps])


@dataclass(frozen=True)
class Storage:
    """Where a Lanczos basis is kept, and in which type: float16 holds vectors scaled by √n, to 5e-4 of an entry."""

    device: str
    dtype: torch.dtype

    def bytes(self, steps: int, n: int) -> int:
        """Size of a basis of `steps` vectors (n,)."""
        return steps * n * self.dtype.itemsize


# A storage, or beside the start vector and in its type, or no basis at all.
Kept = Storage | Literal["full"] | None


class Basis:
    """Orthonormal vectors q_1 … q_k ∈ R^n, kept as rows of one matrix in a `Storage`.

    Of a float16 basis the two newest, which the recurrence has at hand, are removed from a vector as they are: to
    the three-term recurrence their copies would add 2e-4 ‖H‖ of rounding, to older vectors only its square.
    """

    def __init__(self, steps: int, start: torch.Tensor, storage: Storage):
        self.k, self.device, self.dtype = 0, start.device, start.dtype
        self.newest: list[torch.Tensor] = []
        self.next: torch.Tensor | None = None  # q_{k+1} of a run that has ended
        self.rows = torch.empty(steps, len(start), dtype=storage.dtype, device=storage.device)
        # Entries of a unit vector are about 1/√n, where float16 has lost its digits.
        self.scale = math.sqrt(len(start)) if storage.dtype == torch.float16 else 1.0

    def append(self, vector: torch.Tensor) -> None:
        """Adds q_{k+1}."""
        self.rows[self.k] = vector * self.scale
        self.k += 1
        if self.rows.dtype == torch.float16:
            self.newest = [*self.newest[-1:], vector]

    def _columns(self, count: int) -> Iterator[tuple[slice, torch.Tensor]]:
        for start in range(0, self.rows.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            yield part, self.rows[:count, part].to(self.device, self.dtype)

    def extended(self, part: slice) -> torch.Tensor:
        """Entries of q_1 … q_{k+1} in full precision, (k + 1, …)."""
        return torch.cat([self.rows[: self.k, part].to(self.device), self.next[None, part]])

    def remove_from(self, vector: torch.Tensor) -> float:
        """x ← x − Q Qᵀ x in place, by one Gram–Schmidt pass, classical but for `newest`; the length it removed."""
        older = self.k - len(self.newest)
        coefficients = torch.zeros(older, dtype=torch.float64, device=self.device)
        for part, rows in self._columns(older):
            coefficients += (rows @ vector[part]).double()
        coefficients /= self.scale
        removed = [coefficients.norm().item()]
        coefficients = (coefficients / self.scale).to(self.dtype)
        for part, rows in self._columns(older):
            vector[part].addmv_(rows.T, coefficients, alpha=-1)
        for newest in self.newest:
            removed.append(dot(vector, newest))
            vector.sub_(newest, alpha=removed[-1])
        return math.hypot(*removed)

    def combine(self, coefficients: np.ndarray) -> torch.Tensor:
        """Q c for coefficients c (k,): a vector (n,)."""
        weights = torch.from_numpy(coefficients / self.scale).to(self.device, self.dtype)
        out = torch.empty(self.rows.shape[1], dtype=self.dtype, device=self.device)
        for part, rows in self._columns(self.k):
            out[part] = rows.T @ weights
        return out


def recurrence(
    start: torch.Tensor, steps: int, storage: Storage | None
) -> Generator[torch.Tensor, torch.Tensor, tuple[Quadrature, Basis | None]]:
    """The Lanczos iteration as a coroutine: yields q, is sent H q, returns the quadrature and its basis.

    So that whoever drives it chooses whether several runs share a pass over the operator.
    """
    basis = Basis(steps, start, storage) if storage else None
    vector = start / math.sqrt(dot(start, start))
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
        gram += (rows @ rows.T).double().cpu()
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


def merged(nodes: np.ndarray, weights: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes closer than `tolerance` max|θ| joined into their weighted mean: the copies of one eigenvalue that a
    run without reorthogonalisation makes share its weight."""
    width = tolerance * np.abs(nodes).max()
    group = np.concatenate([[0], np.cumsum(np.diff(nodes) > width)])
    # The weight of a new copy may be too small for its square root to have a square.
    parts = np.maximum(weights, 1e-300)
    return np.bincount(group, parts * nodes) / np.bincount(group, parts), np.bincount(group, weights)


def cumulated_bounds(
    nodes: Sequence[Sequence[float]], weights: Sequence[Sequence[float]], points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Lower bounds of F(x⁻) and upper bounds of F(x), the spectrum's distribution function seen by the probes.

    nodes, weights: ascending nodes of every probe and their weights.

    Chebyshev–Markov–Stieltjes: Σ_{θ_i<θ_j} w_i ≤ F(θ_j⁻) ≤ F(θ_j) ≤ Σ_{θ_i≤θ_j} w_i; between nodes by
    monotony; averaged over probes. They carry the quadrature's error, not the probes'.
    Source: Szegő 1975, sec. 3.41; Golub & Meurant 2010, sec. 2.
    """
    below, above = np.zeros(len(points)), np.zeros(len(points))
    for each, mass in zip(nodes, weights, strict=True):
        cumulated = np.concatenate([[0.0], np.cumsum(mass)])
        # F(x) ≤ mass of the nodes up to the first one at or beyond x; F(x) ≥ mass of the nodes strictly
        # before the last one at or below x.
        above += cumulated[np.minimum(np.searchsorted(each, points, side="left") + 1, len(each))]
        below += cumulated[np.maximum(np.searchsorted(each, points, side="right") - 1, 0)]
    return below / len(nodes), above / len(nodes)


def quantile_bracket(quadratures: list[Quadrature], level: float) -> tuple[float, float]:
    """Interval of nodes that contains the `level` quantile of the spectrum seen by the probes, by
    `cumulated_bounds`; −∞ or ∞ where no node bounds it."""
    points = np.unique(np.concatenate([q.nodes for q in quadratures]))
    below, above = cumulated_bounds([q.nodes for q in quadratures], [q.weights for q in quadratures], points)
    # The quantile lies above a point whose F is below `level`, and at or below one whose F is at least that.
    lower = points[above < level]
    upper = points[below >= level]
    return (float(lower[-1]) if len(lower) else -math.inf, float(upper[0]) if len(upper) else math.inf)


def smoothed_density(
    nodes: list[list[float]], weights: list[list[float]], grid: np.ndarray, width: float
) -> np.ndarray:
    """Mean over probes of Σ_i w_i N(grid; θ_i, width²), for pictures only: the width is the kernel's."""
    kernels = [
        np.exp(-0.5 * ((grid[:, None] - np.asarray(n)) / width) ** 2) @ np.asarray(w)
        for n, w in zip(nodes, weights, strict=True)
    ]
    return np.mean(kernels, axis=0) / (width * math.sqrt(2 * math.pi))
