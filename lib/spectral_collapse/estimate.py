"""Estimates with their intervals, and the seeds of the draws behind them: all that curvature and SIGMA take from the
project."""

import hashlib
import json
import math
from typing import NamedTuple

import numpy as np
from scipy import stats


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


class Estimate(NamedTuple):
    """A metric of N texts, and its values with each text left out in turn, (N,)."""

    value: float
    left_out: np.ndarray

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Jackknife interval, value ± t_{N−1} √((N − 1)/N Σ (θ_(i) − mean θ_(·))²); NaN below two texts.

        For the metric's expectation at this number of texts; not cut to its range. A bootstrap would draw texts
        twice, which by itself lowers distinct-n and raises self-BLEU; leaving one out changes the amount of text by 1/N
        only. For a mean it is the t interval; in general its variance is too large on average, not too small. In
        simulation on storyworld, with 40 and 160 stories, 95 % intervals covered 93-100 % of the time, of the tail mass
        ratio 89-95 %.
        Source: Efron & Stein 1981.
        """
        n = len(self.left_out)
        if n < 2:
            return math.nan, math.nan
        half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * math.sqrt((n - 1) * np.var(self.left_out))
        return self.value - half, self.value + half


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float
