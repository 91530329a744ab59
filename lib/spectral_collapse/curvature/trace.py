"""The trace of an operator: Hutchinson's estimate, and Hutch++, which takes a sketch out first."""

from typing import Any

import numpy as np
import torch

from .basis import dot
from .krylov import at_least, probe_of
from .signature import SpectralEstimate


def _forms(operator: Any, probes: list[torch.Tensor]) -> np.ndarray:
    return np.array([dot(probe, operator.matvec(probe)) for probe in probes])


def _mean(values: np.ndarray, offset: float = 0.0) -> SpectralEstimate:
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    return SpectralEstimate(offset + float(values.mean()), error, None, len(values), 0)


def hutchinson(operator: Any, probes: int, seed: int = 0) -> SpectralEstimate:
    """tr A as the mean of vᵀAv over Rademacher probes v, with its standard error; one product a probe.

    Source: Hutchinson 1989.
    """
    at_least(2, probes=probes)
    return _mean(_forms(operator, [probe_of(operator, seed, index) for index in range(probes)]))


def hutch_plus_plus(operator: Any, products: int, seed: int = 0) -> SpectralEstimate:
    """tr A = tr(QᵀAQ) + tr((I − QQᵀ)A(I − QQᵀ)): the first exactly, Q an orthonormal basis of A times a third of the
    products' probes; the rest by Hutchinson's estimate, whose standard error is the estimate's.

    For a positive semi-definite A its error falls like 1/products instead of 1/√products. An indefinite A is allowed,
    without that promise. Source: Meyer, Musco, Musco & Woodruff 2021.

    >>> import scipy.sparse.linalg, torch
    >>> class Diagonal:
    ...     shape, device, torch_dtype = (40, 40), "cpu", torch.float64
    ...     values = torch.cat([torch.tensor([50.0, 20.0]), torch.zeros(38)]).double()
    ...     def matvec(self, v): return self.values * v
    >>> round(hutch_plus_plus(Diagonal(), products=12, seed=1).value, 9)
    70.0
    """
    at_least(6, products=products)
    third, n = products // 3, operator.shape[0]
    sketch = torch.stack([operator.matvec(probe_of(operator, seed, index)) for index in range(third)], dim=1)
    basis, triangle = torch.linalg.qr(sketch)
    sizes = triangle.diagonal().abs()
    basis = basis[:, sizes > sizes.max() * n * torch.finfo(basis.dtype).eps]
    inside = float(_forms(operator, list(basis.T)).sum())
    probes = [probe_of(operator, seed, index) for index in range(third, products - third)]
    return _mean(_forms(operator, [probe - basis @ (basis.T @ probe) for probe in probes]), inside)
