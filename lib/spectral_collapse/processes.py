"""The processes that work on one run: which of them this is, and what only the first one does.

All run the same program on the same files; alone, a process does everything itself. What they share is in `parallel`.
"""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


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
