"""Batches that fit into memory: found from what fewer sequences take, not by running out of it."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..curvature.memory import available_memory

SHARE = 0.8  # of what is free: allocators round up, and kernels have workspaces of their own
FLOAT = 4  # bytes


class PeakMemory(TorchDispatchMode):
    """`peak`: most bytes that the tensors made inside take at a time, in the forward and the backward pass.

    Counted by storage on any device, since only CUDA's allocator keeps such a count. What a kernel takes and gives back
    within itself is not seen.
    """

    def __init__(self):
        super().__init__()
        self.peak = self._held = 0
        self._storages: set[int] = set()

    def _meet(self, values: Any, new: bool) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self._storages:
                storage = tensor.untyped_storage()
                size = storage.nbytes() if new else 0
                self._storages.add(key)
                self._held += size
                weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self._held -= size

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self._meet((arguments, options), new=False)  # was there before, as parameters were
        made = function(*arguments, **(options or {}))
        self._meet(made, new=True)
        self.peak = max(self.peak, self._held)
        return made


def budget(device: torch.device) -> int:
    """Bytes that may be taken now on a device."""
    return int(SHARE * available_memory(device))


def halves(limit: int) -> list[int]:
    """1 … limit/4, limit/2, limit, rounded up: batches to choose from, so few that a little more or less of free memory
    seldom changes the choice."""
    return [*halves(-(-limit // 2)), limit] if limit > 1 else [1]


def measured_batch(work: Callable[[int], Any], limit: int, device: torch.device, later: int = 0) -> int:
    """The largest of `halves(limit)` known to fit: the peak of `work(sequences)` beside `later` bytes yet to be taken.

    A peak is the largest of several sums of what the weights take and what each sequence takes, so that b sequences
    take at most b/a times what a take: from one sequence on the next batch is tried only where this bound fits, and
    none where it fits for all.
    """
    room, found = budget(device) - later, 1
    for sequences in halves(limit):
        try:
            with PeakMemory() as used:
                work(sequences)
        except torch.OutOfMemoryError:
            return found
        if used.peak > room:
            return found
        found = sequences
        if limit * used.peak <= room * sequences:
            return limit
        if min(2 * sequences, limit) * used.peak > room * sequences:
            return found
    return found
