"""Paired timings for the benchmarks."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

REPETITIONS = 5
# Repeated with nine processes on two cores, ratios to peers in sampling, encoder and SIGMA moved by 6 % at most, gaps
# of stages by 17 %.
TOLERANCE = 0.3


def interleaved(
    calls: dict[str, Callable[[int], Any]], repetitions: int = REPETITIONS, warm: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, list]]:
    """CPU seconds of each call over interleaved repetitions, (repetitions,), and all that it returned.

    Of one thread, so that other work on the machine hardly counts. A call is passed the number of its repetition; with
    `warm` a first one is not timed; what it returned counts.
    """
    seconds, results = {name: [] for name in calls}, {name: [] for name in calls}
    for repetition in tqdm(range(repetitions + warm), desc="timing", leave=False, delay=2, disable=None):
        for name, call in calls.items():
            start = time.process_time()
            results[name].append(call(repetition))
            seconds[name].append(time.process_time() - start)
    return {name: np.array(times[int(warm) :]) for name, times in seconds.items()}, results


def ratio(above: np.ndarray, below: np.ndarray) -> float:
    """Median over repetitions of the ratio within one."""
    return float(np.median(above / below))


def paired(*calls: Callable[[], object], repetitions: int = REPETITIONS) -> list[float]:
    """Median CPU seconds of each call, interleaved."""
    seconds, _ = interleaved({str(i): lambda _, call=call: call() for i, call in enumerate(calls)}, repetitions)
    return [float(np.median(times)) for times in seconds.values()]


def _shown(cell: object) -> str:
    """Numbers to three digits, none with an exponent unless it is tiny; nothing for NaN."""
    if not isinstance(cell, float):
        return str(cell)
    return "" if math.isnan(cell) else f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"


def table(head: str, *rows: list[object]) -> list[str]:
    """Lines of a Markdown table; numbers to three digits."""
    shown = [[_shown(cell) for cell in row] for row in rows]
    return [head, "|---" * (head.count("|") - 1) + "|", *(f"| {' | '.join(row)} |" for row in shown)]


def slower(now: dict[str, float], then: dict[str, float], tolerance: float = TOLERANCE) -> list[str]:
    """A line for every ratio that has grown by more than the tolerance, or that is no longer measured."""
    lines = []
    for name, before in then.items():
        if name not in now:
            lines.append(f"{name}: {before:.2f} before, not measured now")
        elif now[name] > (1 + tolerance) * before:
            lines.append(f"{name}: {now[name]:.2f}, {now[name] / before:.2f} times the {before:.2f} before")
    return lines
