"""How long work took and how fast it was: counted where it is done, written with the record it was done for."""

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Meter:
    """The time of one record: `seconds` without those of records made on the way, and with those that an interrupted
    process had spent before; `speeds`, `<work>_tokens_per_second` of what was counted. Filled in at the end."""

    seconds: float = 0.0
    speeds: dict[str, float] = field(default_factory=dict)
    _counts: dict[str, tuple[int, float]] = field(default_factory=dict)
    _elsewhere: float = 0.0


_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


def count(work: str, tokens: int, seconds: float) -> None:
    """Adds tokens that a kind of work has just made, and the seconds that it took."""
    if (meter := _METER.get()) is not None and tokens:
        before = meter._counts.get(work, (0, 0.0))
        meter._counts[work] = (before[0] + tokens, before[1] + seconds)


def count_earlier(seconds: float) -> None:
    """Adds time that an earlier, interrupted process spent on the same record."""
    if (meter := _METER.get()) is not None:
        meter._elsewhere -= seconds


@contextlib.contextmanager
def metered() -> Iterator[Meter]:
    """Meters all that is done inside, an inner meter's part apart."""
    outer, meter, started = _METER.get(), Meter(), time.perf_counter()
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)
        whole = time.perf_counter() - started
        meter.seconds = whole - meter._elsewhere
        meter.speeds |= {f"{work}_tokens_per_second": made / took for work, (made, took) in meter._counts.items()}
        if outer is not None:
            outer._elsewhere += whole
