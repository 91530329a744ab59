"""Seconds and tokens per second of the work behind a record, counted where the work is done."""

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Meter:
    """The time of one record, filled in at the end: `seconds`, without those of records that it required and with those
    of an interrupted process before; `speeds`, `<work>_tokens_per_second` of the work counted."""

    seconds: float = 0.0
    speeds: dict[str, float] = field(default_factory=dict)
    _counts: dict[str, tuple[int, float]] = field(default_factory=dict)
    _elsewhere: float = 0.0


_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


def count(work: str, tokens: int, seconds: float) -> None:
    """Adds tokens that a kind of work has just processed, and its seconds."""
    if (meter := _METER.get()) is not None and tokens:
        before = meter._counts.get(work, (0, 0.0))
        meter._counts[work] = (before[0] + tokens, before[1] + seconds)


def count_earlier(seconds: float) -> None:
    """Adds the time that an interrupted process had spent on the same record."""
    if (meter := _METER.get()) is not None:
        meter._elsewhere -= seconds


@contextlib.contextmanager
def metered() -> Iterator[Meter]:
    """Meters the work inside, without that of an inner meter."""
    outer, meter, started = _METER.get(), Meter(), time.perf_counter()
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)
        elapsed = time.perf_counter() - started
        meter.seconds = elapsed - meter._elsewhere
        meter.speeds |= {f"{work}_tokens_per_second": made / took for work, (made, took) in meter._counts.items()}
        if outer is not None:
            outer._elsewhere += elapsed
