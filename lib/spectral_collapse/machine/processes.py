"""The processes that work on one run: which of them this is, what only the first one does, and how far it has come.

All run the same program on the same files; alone, a process does everything itself. What they share is in `parallel`.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

Value = TypeVar("Value")
PATIENCE = 2.0  # seconds of work that nobody needs to be told of


def world() -> int:
    """Number of processes."""
    distributed = sys.modules.get("torch.distributed")  # who has not loaded it is alone
    return distributed.get_world_size() if distributed and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return sys.modules["torch.distributed"].get_rank() if world() > 1 else 0


def first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def once(function: Callable[[], Value]) -> Value:
    """What `function()` gives in the first process, in all of them; the others wait for it."""
    if world() == 1:
        return function()
    found = [function() if first() else None]
    sys.modules["torch.distributed"].broadcast_object_list(found)
    return found[0]


def sharding() -> bool:
    """Whether they share the model as well as the work: `accelerate launch --use_fsdp`, which sets this variable."""
    return world() > 1 and os.environ.get("ACCELERATE_USE_FSDP") == "true"


def _watched() -> bool:
    """Whether somebody sees a bar move: in a terminal, or in a notebook that is open. TQDM_DISABLE says that nobody
    does, as where papermill executes a notebook and each step of a bar would stay in it."""
    return (sys.stderr.isatty() or "ipykernel" in sys.modules) and not os.environ.get("TQDM_DISABLE")


@contextlib.contextmanager
def progress(total: int, description: str) -> Iterator[Callable[[int], object]]:
    """Around work of `total` steps, which calls what it is given with the number of those just done.

    Work that takes longer than PATIENCE shows a bar where somebody watches, and elsewhere one line when it is done.
    """
    started, bar = time.perf_counter(), first() and _watched()
    with tqdm(total=total, desc=description, leave=False, delay=PATIENCE, disable=not bar) as shown:
        yield shown.update
    seconds = time.perf_counter() - started
    if first() and not bar and seconds > PATIENCE:
        print(f"{description}: {total} in {seconds:.0f} s", flush=True)


def steps(work: Sequence[Value], description: str) -> Iterator[Value]:
    """The items of the work one by one, shown by `progress`."""
    with progress(len(work), description) as advance:
        for item in work:
            yield item
            advance(1)
