"""What the processes of one run share: the rows of a batch, the prompts of a sampling and, if asked, the model.

Alone, a process does all of the work, and every function here gives back what it was given.
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

# All wait where the first waits for other work in the folder. What ends them all is the launcher, not a time limit.
PATIENCE = timedelta(days=7)


def start(device: torch.device) -> None:
    """Joins the processes that `accelerate launch` or torchrun started, each with its own device of this kind."""
    PartialState(cpu=device.type == "cpu", timeout=PATIENCE)


# ---- shares of the work


def share(rows: torch.Tensor) -> tuple[torch.Tensor, float]:
    """This process's rows of a batch (B, …), and the part of the B that they are.

    Where there are fewer rows than processes, the first one with weight 0: every process takes every step.
    """
    own = rows[rank() :: world()]
    return (own, len(own) / len(rows)) if len(own) else (rows[:1], 0.0)


def stream() -> tuple[int, ...]:
    """What sets this process's random numbers apart from those of the others; nothing in the first one."""
    return () if first() else (rank(),)


def add_up(model: PreTrainedModel, loss: torch.Tensor) -> torch.Tensor:
    """The sum of the processes' weighted losses, and in place that of their gradients, unless sharding made it."""
    if world() == 1:
        return loss
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    sums = [loss, *(gradient for gradient in gradients if not isinstance(gradient, DTensor))]
    for work in [distributed.all_reduce(tensor, async_op=True) for tensor in sums]:
        work.wait()
    return loss


def deal(items: list[Value]) -> list[Value]:
    """This process's items; as many as any other's, so that some may be dealt twice."""
    return [items[index % len(items)] for index in range(rank(), -(-len(items) // world()) * world(), world())]


def gather(found: dict[int, Value]) -> dict[int, Value]:
    """What all processes found."""
    if world() == 1:
        return found
    parts: list[dict] = [{}] * world()
    distributed.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


# ---- shares of the model


def sharded(model: PreTrainedModel) -> bool:
    """Whether this process holds a share of the model, and so takes every forward pass together with the others."""
    return isinstance(model, FSDPModule)


def place(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model, so far on the CPU, on the device; while `sharding`, this process's share of it.

    Every parameter, with its gradient and optimizer state, is then cut along its first dimension into one share a
    process. A decoder layer is whole only while it computes, so that a device needs its share, one layer or two,
    embedding and head, and the activations of its rows. The CPU must have room for the whole model in every process
    until it is placed, and where a file is written, in the first one. Source: Zhao et al. 2023 (FSDP), as
    torch.distributed.fsdp.fully_shard does it.
    """
    if not sharding():
        return model.to(device)
    gc.collect()  # of shares that are no longer needed: their hooks refer to them in circles
    mesh = init_device_mesh(device.type, (world(),))
    for part in [part for part in model.modules() if type(part).__name__ in model._no_split_modules] + [model]:
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
        # Sums, not means: the weights of the shares of a batch stand in the loss.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no other
    return model


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of which every process has a share, for the first one to write; nothing of it in the others."""
    if not isinstance(tensor, DTensor):
        return tensor
    found = tensor.full_tensor()
    return found.cpu() if first() else found.new_empty(0)


def cut_like(tensor: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """This process's share of a whole tensor, if the example is one."""
    if not isinstance(example, DTensor):
        return tensor
    return distribute_tensor(tensor, example.device_mesh, example.placements, src_data_rank=None)


def anywhere(model: PreTrainedModel, condition: torch.Tensor) -> bool:
    """Whether the condition holds here, or in any of the processes that share the model."""
    if not sharded(model):
        return bool(condition)
    found = condition.to(torch.int32)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return bool(found)
