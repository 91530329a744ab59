"""Embedded checkpoints of known spectra."""

import numpy as np
from spectral_collapse.sigma import Observed


def checkpoint(seed: int, prompts: int = 30, m: int = 12, per_prompt: int = 3, scale: float = 1.0) -> Observed:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(prompts * per_prompt, m)) * np.geomspace(1, 0.1, m) ** scale
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Observed(rows, np.repeat(np.arange(prompts), per_prompt), np.tile(np.arange(per_prompt), prompts))
