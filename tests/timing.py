"""Paired timings for the benchmarks."""

import statistics
import time
from collections.abc import Callable

REPETITIONS = 7


def paired(*calls: Callable[[], object], repetitions: int = REPETITIONS) -> list[float]:
    """Median seconds of each call over interleaved repetitions, after one unmeasured round."""
    seconds: list[list[float]] = [[] for _ in calls]
    for repetition in range(repetitions + 1):
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if repetition:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]
