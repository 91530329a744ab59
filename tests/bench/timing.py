"""Paired timings for the benchmarks."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

REPETITIONS = 7


def interleaved(
    calls: dict[str, Callable[[int], Any]], repetitions: int = REPETITIONS
) -> tuple[dict[str, np.ndarray], dict[str, list]]:
    """Seconds of each call over interleaved repetitions, (repetitions,), and all that it returned.

    A call is passed the number of its repetition. A first one is not timed; what it returned counts.
    """
    seconds, results = {name: [] for name in calls}, {name: [] for name in calls}
    for repetition in tqdm(range(repetitions + 1), desc="timing", leave=False, delay=2, disable=None):
        for name, call in calls.items():
            start = time.perf_counter()
            results[name].append(call(repetition))
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(times[1:]) for name, times in seconds.items()}, results


def ratio(above: np.ndarray, below: np.ndarray) -> float:
    """Median over repetitions of the ratio within one."""
    return float(np.median(above / below))


def paired(*calls: Callable[[], object], repetitions: int = REPETITIONS) -> list[float]:
    """Median seconds of each call, interleaved."""
    seconds, _ = interleaved({str(i): lambda _, call=call: call() for i, call in enumerate(calls)}, repetitions)
    return [float(np.median(times)) for times in seconds.values()]
