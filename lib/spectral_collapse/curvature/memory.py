"""What fits into memory: blocks at a time, and the storage of a Lanczos basis."""

import contextlib
import itertools
import os
import re
from pathlib import Path
from typing import Any

import psutil
import torch

from .basis import Storage

GROUP = Path("/sys/fs/cgroup")  # of the container
# Vectors (n,) in use at once: gradient and product, those of Lanczos, and those of the errors over blocks.
WORKING_VECTORS = 12


def available_memory(device: torch.device | str) -> int:
    """Free bytes of a device; on the CPU within the container's limit, divided by the number of processes that a
    launcher runs on this machine."""
    device = torch.device(device)
    if device.type == "cuda":  # what the allocator holds unused is free too
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = psutil.virtual_memory().available
    limit, used, parts = (GROUP / name for name in ("memory.max", "memory.current", "memory.stat"))
    with contextlib.suppress(OSError, ValueError):  # no limit
        room = int(limit.read_text()) - int(used.read_text())
        known = parts.read_text() if parts.is_file() else ""
        cached = re.search(r"^inactive_file (\d+)", known, re.MULTILINE)  # what the kernel gives up when asked
        free = min(free, room + (int(cached[1]) if cached else 0))
    if device.type == "mps":  # the same memory, of which the system grants a part
        free = min(free, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return max(free, 0) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def fitting_blocks(budget: float, block_bytes: int, blocks: int, taken: int = 0) -> int | None:
    """How many blocks' graphs fit into a budget in bytes less `taken`; None for all, which are then kept.

    MemoryError if not even one fits.
    """
    fitting = int((budget - taken) // block_bytes)  # a budget may be written 6e8
    if fitting < 1:
        raise MemoryError(
            f"even one block at a time needs {(taken + block_bytes) / 2**30:.2f} GiB and the budget is "
            f"{budget / 2**30:.2f} GiB: raise it, or shorten the blocks."
        )
    return None if fitting >= blocks else fitting


def plan(
    budget: float, host_budget: int, operator: Any, steps: int, block_bytes: int, together: int, held: int = 1
) -> tuple[int | None, Storage | None]:
    """(blocks at a time, storage of the basis) for a budget in bytes on the operator's device and on the host.

    The fastest choice that fits: the graphs of all blocks, kept (None), before graphs rebuilt for every product; a
    basis in full precision before float16; the device before the host; no basis only if none fits beside one block.
    block_bytes: a block's graph at work; together: Lanczos runs at a time; held: full-precision bases kept to the end.
    MemoryError if the budget does not hold one block.
    """
    device, dtype, blocks = str(operator.device), operator.torch_dtype, operator.share
    vectors = WORKING_VECTORS * together * operator.n * dtype.itemsize
    kinds = [Storage(device, dtype), Storage(device, torch.float16)]
    if torch.device(device).type != "cpu":
        kinds += [Storage("cpu", dtype), Storage("cpu", torch.float16)]
    for graphs, storage in itertools.product((blocks * block_bytes, block_bytes), kinds):
        bases = max(held, together) if storage.dtype == dtype else together
        size = bases * storage.bytes(steps, operator.n)
        here, there = (size, 0) if storage.device == device else (0, size)
        if vectors + graphs + here <= budget and there <= host_budget:
            return fitting_blocks(budget, block_bytes, blocks, vectors + here), storage
    return fitting_blocks(budget, block_bytes, blocks, vectors), None
