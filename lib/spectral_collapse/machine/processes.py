"""The processes of one run: rank and number, work that only the first one does, and progress bars.

All run the same program on the same files. `parallel` divides the work among them.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

Value = TypeVar("Value")
PATIENCE = 2.0  # seconds of work without a progress bar


def world() -> int:
    """Number of processes."""
    distributed = sys.modules.get("torch.distributed")  # not loaded: a single process
    return distributed.get_world_size() if distributed and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return sys.modules["torch.distributed"].get_rank() if world() > 1 else 0


def first() -> bool:
    """Whether this is the process that writes files and messages."""
    return rank() == 0


def once(function: Callable[[], Value]) -> Value:
    """Calls `function` in the first process and returns its result in all of them."""
    if world() == 1:
        return function()
    found = [function() if first() else None]
    sys.modules["torch.distributed"].broadcast_object_list(found)
    return found[0]


def sharding() -> bool:
    """Whether the processes shard the model too: `accelerate launch --use_fsdp` sets this variable."""
    return world() > 1 and os.environ.get("ACCELERATE_USE_FSDP") == "true"


def _watched() -> bool:
    """Whether to draw a bar: in a terminal or an open notebook. TQDM_DISABLE is set where papermill executes a
    notebook, which would keep each step of the bar."""
    return (sys.stderr.isatty() or "ipykernel" in sys.modules) and not os.environ.get("TQDM_DISABLE")


@contextlib.contextmanager
def progress(total: int, description: str) -> Iterator[Callable[[int], object]]:
    """Progress of `total` steps: the work calls the yielded function with the number of steps just done.

    Work longer than PATIENCE shows a bar where it can be seen, and elsewhere prints one line at its end.
    """
    started, bar = time.perf_counter(), first() and _watched()
    with tqdm(total=total, desc=description, leave=False, delay=PATIENCE, disable=not bar) as shown:
        yield shown.update
    seconds = time.perf_counter() - started
    if first() and not bar and seconds > PATIENCE:
        print(f"{description}: {total} in {seconds:.0f} s", flush=True)


def steps(work: Sequence[Value], description: str) -> Iterator[Value]:
    """Yields the items of the work and shows their `progress`."""
    with progress(len(work), description) as advance:
        for item in work:
            yield item
            advance(1)
