"""Orthonormal bases of long vectors, stored on the device and in the type that memory allows."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

# Float32 sums of this many entries are exact to a few units in the last place; longer sums use float64.
CHUNK = 1 << 18
ROW = 1 << 11


def to_float64(x: torch.Tensor) -> torch.Tensor:
    """x in float64, on its device, or on the CPU if the device has no such type (Apple's MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def dot(x: torch.Tensor, y: torch.Tensor) -> float:
    """⟨x, y⟩ of vectors: sums of ROW entries in their type, the rest in float64. A plain float32 sum of 10⁸ products is
    off by parts in a thousand."""
    end = len(x) // ROW * ROW
    rows = torch.linalg.vecdot(x[:end].view(-1, ROW), y[:end].view(-1, ROW))
    return (to_float64(rows).sum() + to_float64(torch.dot(x[end:], y[end:]))).item()


@dataclass(frozen=True)
class Storage:
    """Device and type of a Lanczos basis; float16 holds vectors scaled by √n, to 5e-4 of an entry."""

    device: str
    dtype: torch.dtype

    def bytes(self, steps: int, n: int) -> int:
        """Size of a basis of `steps` vectors (n,)."""
        return steps * n * self.dtype.itemsize


class Basis:
    """Orthonormal vectors q_1 … q_k ∈ R^n, kept as rows of one matrix in a `Storage`.

    A float16 basis also keeps its two newest vectors in full precision and projects those out: their float16 copies
    would add rounding of 2e-4 ‖H‖ to the three-term recurrence; for older vectors it is only the square of that.
    """

    def __init__(self, steps: int, start: torch.Tensor, storage: Storage):
        self.k, self.device, self.dtype = 0, start.device, start.dtype
        self.length = math.sqrt(dot(start, start))
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

    def components(self, vector: torch.Tensor, count: int | None = None) -> torch.Tensor:
        """Qᵀ x for the first `count` vectors, all if None; (count,), float64."""
        count = self.k if count is None else count
        found = to_float64(torch.zeros(count, device=self.device))
        for part, rows in self._columns(count):
            found += to_float64(rows @ vector[part])
        return found / self.scale

    def remove_from(self, vector: torch.Tensor) -> float:
        """x ← x − Q Qᵀ x in place by one Gram–Schmidt pass, classical except for `newest`; returns the length
        removed."""
        older = self.k - len(self.newest)
        coefficients = self.components(vector, older)
        removed = [coefficients.norm().item()]
        coefficients = (coefficients / self.scale).to(self.dtype).to(self.device)
        for part, rows in self._columns(older):
            vector[part].addmv_(rows.T, coefficients, alpha=-1)
        for newest in self.newest:
            removed.append(dot(vector, newest))
            vector.sub_(newest, alpha=removed[-1])
        return math.hypot(*removed)

    def combine(self, coefficients: np.ndarray) -> torch.Tensor:
        """Q c for coefficients c (k,): a vector (n,)."""
        weights = torch.from_numpy(coefficients / self.scale).to(self.dtype).to(self.device)
        out = torch.empty(self.rows.shape[1], dtype=self.dtype, device=self.device)
        for part, rows in self._columns(self.k):
            out[part] = rows.T @ weights
        return out
