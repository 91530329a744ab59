"""The empirical Fisher matrix of a causal language model's blocks."""

from collections.abc import Sequence

import numpy as np
import torch

from .basis import CHUNK, dot, to_float64
from .operators import HessianOperator, differentiating


class EmpiricalFisherOperator(HessianOperator):
    """F = Σ_b g_b g_bᵀ / B, g_b the gradient of block b's summed loss over the mean number of
    predictions of a block; positive semi-definite, of rank B at most.

    Interface of `HessianOperator`; block b's own matrix is g_b g_bᵀ. The gradients of a rank's blocks are made once and
    kept, B n numbers, and a product then costs two passes over these. It is no approximation of the Hessian away from
    the model's own distribution. Source: Kunstner, Balles & Hennig 2019.
    """

    @differentiating
    def _gradients(self) -> torch.Tensor:
        """(own blocks, n)."""
        if self._kept is None:
            rows = torch.empty(len(self._batch), self.n, dtype=self.torch_dtype, device=self.device)
            for row, block in zip(rows, self._each(self._batch), strict=True):
                torch.cat([piece.detach().flatten() for piece in self._linearise(block)], out=row)
                row *= self.blocks / self._predictions
            self._kept = (rows,)
        return self._kept[0]

    def _sum(self, pieces: list[torch.Tensor], batched: bool = False) -> torch.Tensor:
        gradients = self._gradients()
        vectors = torch.cat([piece.flatten(int(batched)) for piece in pieces], dim=-1)
        parts = [slice(start, start + CHUNK) for start in range(0, self.n, CHUNK)]
        # A plain float32 sum over n loses digits, see `basis.dot`.
        along = sum(to_float64(vectors[..., part] @ gradients[:, part].T) for part in parts)
        return self._everywhere(along.to(gradients.device, gradients.dtype) @ gradients / self.blocks)

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
