"""Seeds that depend on what is drawn, never on when or in which order it is drawn."""

import hashlib
import json

import numpy as np


def stable_seed(*parts: str | int) -> int:
    """63-bit seed from the SHA-256 of the parts, the same on every machine and in every process.

    `stable_seed(base_seed, domain, context_id, generation)` is the schedule of every sampled text:
    a rerun in another batch size or order meets the same seed for the same text.
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: str | int) -> np.random.Generator:
    """Counter-based (Philox) random generator for the parts, see `stable_seed`."""
    return np.random.Generator(np.random.Philox(key=stable_seed(*parts)))


def uniforms(seeds: list[int], count: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64, shape (len(seeds), count); row i depends on seeds[i] alone."""
    return np.stack([np.random.Generator(np.random.Philox(key=seed)).random(count) for seed in seeds])
