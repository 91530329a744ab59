"""The empirical Fisher matrix of a causal language model's blocks."""

from collections.abc import Sequence

import numpy as np
import torch

from .basis import dot
from .operators import HessianOperator, differentiating


class EmpiricalFisherOperator(HessianOperator):
    """F = Σ_b g_b g_bᵀ / B, g_b the gradient of block b's own mean loss; positive semi-definite, of rank B at most.

    Interface of `HessianOperator`; block b's own matrix is g_b g_bᵀ. The gradients of a rank's blocks are made once and
    kept, B n numbers, and a product then costs two passes over these. It is no approximation of the Hessian away from
    the model's own distribution. Source: Kunstner, Balles & Hennig 2019.
    """

    @differentiating
    def _gradients(self) -> torch.Tensor:
        """(own blocks, n)."""
        if self._kept is None:
            rows = []
            for block in self._each(self._batch):
                pieces = self._linearise(block)
                rows.append(torch.cat([piece.detach().flatten() for piece in pieces]))
                rows[-1] *= self.blocks / self._predictions
            self._kept = (torch.stack(rows) if rows else torch.zeros(0, self.n, dtype=self.torch_dtype),)
        return self._kept[0]

    def _sum(self, pieces: list[torch.Tensor], batched: bool = False) -> torch.Tensor:
        gradients = self._gradients()
        vectors = torch.cat([piece.flatten(int(batched)) for piece in pieces], dim=-1)
        return self._everywhere((vectors @ gradients.T) @ gradients / self.blocks)

    def block_forms(
        self, left: Sequence[torch.Tensor], right: Sequence[torch.Tensor], *, squares: bool = False
    ) -> np.ndarray:
        """As `HessianOperator.block_forms`, with g_b g_bᵀ for H_b."""
        rows = []
        for gradient in self._gradients():
            found = []
            for vectors, r in zip(left, right, strict=True):
                along = dot(gradient, r)
                found += [dot(vector, gradient) * along for vector in vectors]
                found += [along**2 * dot(gradient, gradient)] if squares else []
            rows.append(found)
        return self._from_blocks(rows, sum(map(len, left)) + squares * len(right))
