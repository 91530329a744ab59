"""What the curvature tests share: operators of known spectrum, random vectors, the moments of a bulk."""

import math

import numpy as np
import torch
from spectral_collapse import curvature


def vectors(n: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, n))).float()


class Rotated:
    """Operator H = Q diag(λ) Qᵀ with a random orthogonal Q, float32."""

    device = "cpu"

    def __init__(self, eigenvalues: np.ndarray, seed: int = 0):
        self.n = len(eigenvalues)
        self.eigenvalues = np.sort(eigenvalues)
        rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(self.n, self.n)))[0]
        self.rotation = torch.from_numpy(rotation)
        self.dense = self.rotation * torch.from_numpy(self.eigenvalues) @ self.rotation.T
        self.single = self.dense.float()

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        return (self.dense if vector.dtype == torch.float64 else self.single) @ vector

    def measure(self, start: torch.Tensor) -> np.ndarray:
        """Weights (n,) that `start` gives to the eigenvalues."""
        components = self.rotation.T @ start.double()
        return (components**2 / (components**2).sum()).numpy()


def signature_of(operator, steps: int, probes: int, seed: int) -> curvature.Signature:
    """Signature from fresh Lanczos runs."""
    return curvature.spectral_signature(curvature.spectral_density(operator, steps, probes, seed), operator.n)


def without_largest(eigenvalues: np.ndarray, count: int) -> np.ndarray:
    return eigenvalues[np.argsort(-np.abs(eigenvalues))[count:]]


def truths(eigenvalues: np.ndarray, outliers: int) -> dict[str, float]:
    """What a signature estimates, with as many outliers left out of the bulk."""
    bulk = without_largest(eigenvalues, outliers)
    return {
        "mean_eigenvalue": eigenvalues.mean(),
        "spectral_variance": eigenvalues.var(),
        "bulk_center": bulk.mean(),
        "bulk_sigma": bulk.std(),
        "log_spectral_ratio": math.log(eigenvalues[-1] / bulk.std()),
    }
