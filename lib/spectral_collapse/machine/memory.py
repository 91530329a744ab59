"""Batch sizes that fit into memory, predicted from the measured peaks of smaller batches."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..curvature.memory import available_memory

SHARE = 0.8  # of the free memory: allocators round up, and kernels have workspaces of their own
FLOAT = 4  # bytes


class PeakMemory(TorchDispatchMode):
    """`peak`: the most bytes held at once by tensors that are created inside, forward and backward pass included.

    Counts storages, which works on any device. Temporary workspaces inside a kernel are not seen.
    """

    def __init__(self):
        super().__init__()
        self.peak = self._held = 0
        self._storages: set[int] = set()

    def _add(self, values: Any, new: bool) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self._storages:
                storage = tensor.untyped_storage()
                size = storage.nbytes() if new else 0
                self._storages.add(key)
                self._held += size
                weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self._held -= size

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self._add((arguments, options), new=False)  # they existed before, like parameters
        made = function(*arguments, **(options or {}))
        self._add(made, new=True)
        self.peak = max(self.peak, self._held)
        return made


def budget(device: torch.device) -> int:
    """Bytes that may be allocated now on a device."""
    return int(SHARE * available_memory(device))


def batch_sizes(limit: int) -> list[int]:
    """1 … limit/4, limit/2, limit, rounded up: so few that free memory seldom changes the choice."""
    return [*batch_sizes(-(-limit // 2)), limit] if limit > 1 else [1]


def measured_batch(work: Callable[[int], Any], limit: int, device: torch.device, later: int = 0) -> int:
    """The largest of `batch_sizes(limit)` whose predicted peak fits, beside `later` bytes allocated afterwards.

    `work(sequences)` is measured from one sequence on. A peak is the largest of several sums of a part for the weights
    and a part for each sequence, so b sequences take at most b/a times the memory of a: the next size is tried only if
    this bound fits, and none if it fits for the limit.
    """
    room, found = budget(device) - later, 1
    for sequences in batch_sizes(limit):
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
