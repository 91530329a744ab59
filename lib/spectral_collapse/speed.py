"""How fast a machine worked: counted where the work is done, written beside the times of the record it was done for."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_COUNTS: ContextVar[dict[str, tuple[int, float]] | None] = ContextVar("counts", default=None)


def count(work: str, tokens: int, seconds: float) -> None:
    """Adds tokens that a kind of work has just made, and the seconds that it took."""
    if (counts := _COUNTS.get()) is not None and tokens:
        before = counts.get(work, (0, 0.0))
        counts[work] = (before[0] + tokens, before[1] + seconds)


@contextlib.contextmanager
def metered() -> Iterator[dict[str, float]]:
    """`<work>_tokens_per_second` of all that is counted inside, an inner one's apart; filled in at the end."""
    speeds: dict[str, float] = {}
    counts: dict[str, tuple[int, float]] = {}
    token = _COUNTS.set(counts)
    try:
        yield speeds
    finally:
        _COUNTS.reset(token)
        speeds |= {f"{work}_tokens_per_second": tokens / seconds for work, (tokens, seconds) in counts.items()}
