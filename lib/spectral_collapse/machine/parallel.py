"""Work shared by the processes of one run: rows of a batch, prompts and, if asked, the model itself (FSDP).

With a single process every function returns what it was given.
"""

import gc
from datetime import timedelta

import torch
from accelerate import PartialState
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from .processes import Value, first, rank, sharding, world

# The others wait while the first waits for another run in the folder; the launcher ends them, not a time limit.
TIMEOUT = timedelta(days=7)


def start(device: torch.device) -> None:
    """Joins the processes started by `accelerate launch` or torchrun, each on its own device of this kind."""
    PartialState(cpu=device.type == "cpu", timeout=TIMEOUT)


# ---- shared work


def shard(rows: torch.Tensor) -> tuple[torch.Tensor, float]:
    """This process's rows of a batch (B, …), and their share of the B rows.

    A process without rows of its own gets the first one with weight 0, since every process takes every step.
    """
    own = rows[rank() :: world()]
    return (own, len(own) / len(rows)) if len(own) else (rows[:1], 0.0)


def random_stream() -> tuple[int, ...]:
    """Seed parts that make this process's random numbers differ from the others'; none in the first process."""
    return () if first() else (rank(),)


def sum_gradients(model: PreTrainedModel, loss: torch.Tensor) -> torch.Tensor:
    """Sums the processes' gradients in place, unless sharding has done so; returns the sum of their weighted losses."""
    if world() == 1:
        return loss
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    sums = [loss, *(gradient for gradient in gradients if not isinstance(gradient, DTensor))]
    for work in [distributed.all_reduce(tensor, async_op=True) for tensor in sums]:
        work.wait()
    return loss


def scatter(items: list[Value]) -> list[Value]:
    """This process's items. Every process gets the same number, so some items may go to two processes."""
    return [items[index % len(items)] for index in range(rank(), -(-len(items) // world()) * world(), world())]


def gather(found: dict[int, Value]) -> dict[int, Value]:
    """The results of all processes."""
    if world() == 1:
        return found
    parts: list[dict] = [{}] * world()
    distributed.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


# ---- the sharded model


def sharded(model: PreTrainedModel) -> bool:
    """Whether this process holds a shard of the model, and so must take every forward pass with the others."""
    return isinstance(model, FSDPModule)


def place(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Moves the model from the CPU to the device; if `sharding`, only this process's shard of it.

    Every parameter, with its gradient and optimizer state, is then split along its first dimension, one shard a
    process. A decoder layer is gathered only while it computes: a device holds its shard, one or two layers, embedding
    and head, and the activations of its rows. The CPU holds the full model in every process until this call, and in the
    first process when a file is written. Source: Zhao et al. 2023, as torch.distributed.fsdp.fully_shard.
    """
    if not sharding():
        return model.to(device)
    gc.collect()  # frees earlier shards, which their hooks reference in cycles
    mesh = init_device_mesh(device.type, (world(),))
    for part in [part for part in model.modules() if type(part).__name__ in model._no_split_modules] + [model]:
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
        # Sums, not means: the loss already has each process's weight.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # the only one that gloo has
    return model


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of a sharded one in the first process, which writes it; an empty tensor in the others."""
    if not isinstance(tensor, DTensor):
        return tensor
    found = tensor.full_tensor()
    return found.cpu() if first() else found.new_empty(0)


def shard_like(tensor: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """This process's shard of a full tensor, if the example is sharded."""
    if not isinstance(example, DTensor):
        return tensor
    return distribute_tensor(tensor, example.device_mesh, example.placements, src_data_rank=None)


def any_process(model: PreTrainedModel, condition: torch.Tensor) -> bool:
    """Whether the condition holds in any of the processes that share the model."""
    if not sharded(model):
        return bool(condition)
    found = condition.to(torch.int32)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return bool(found)
