"""What a check reads of a model: its loss and the entropy of its predictions in one pass, its spectrum on request."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from .. import curvature
from ..estimate import Estimate
from ..text.metrics import mean_over_texts
from .readings import require_blocks

BATCH = 16  # blocks in a pass, or fewer:
ENTRIES = 1 << 26  # of its logits, some of which are held four times
PROBES, STEPS = 3, 16  # of a spectrum


def as_blocks(blocks: Any) -> torch.Tensor:
    """Held-out token ids (N, T) as a tensor. ValueError as `readings.require_blocks`."""
    require_blocks(blocks)
    return torch.as_tensor(blocks).long()


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """In evaluation mode, and every module back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _require_whole(model: torch.nn.Module) -> None:
    """ValueError where this process holds a shard of the model alone: it would wait for the others in every layer."""
    tensors = any(isinstance(each, DTensor) or hasattr(each, "ds_id") for each in model.parameters())
    if tensors or any(isinstance(part, FSDPModule | FullyShardedDataParallel) for part in model.modules()):
        raise ValueError(
            "the model is sharded over processes, and the monitor reads it in one: give texts or metrics to check, or "
            "let `spectral-collapse watch` read the checkpoints."
        )


@torch.no_grad()
def of_model(model: torch.nn.Module, blocks: Any) -> dict[str, Estimate]:
    """Mean loss and mean entropy of the next-token predictions on held-out blocks, jackknifed over the blocks; NaN
    where one block's is not finite."""
    _require_whole(model)
    blocks, losses, entropies = as_blocks(blocks), [], []
    device = next(model.parameters()).device
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", 1 << 17)
    size = max(1, min(BATCH, ENTRIES // (blocks.shape[1] * vocabulary)))
    with _evaluating(model):
        for part in blocks.split(size):
            tokens = part.to(device)
            scores = model(input_ids=tokens).logits[:, :-1].float().log_softmax(-1)
            losses.append(-scores.gather(-1, tokens[:, 1:, None])[..., 0].mean(1).cpu())
            entropies.append(torch.special.entr(scores.exp()).sum(-1).mean(1).cpu())
    found = {"held_out_loss": torch.cat(losses), "predictive_entropy": torch.cat(entropies)}
    return {
        name: mean_over_texts(values.double().numpy()) if values.isfinite().all() else Estimate(math.nan)
        for name, values in found.items()
    }


def of_spectrum(model: torch.nn.Module, blocks: Any) -> dict[str, Estimate]:
    """Log ratio of the largest Hessian eigenvalue to the bulk's width, with its errors over probes and blocks. Nothing
    where it is not identified."""
    found = curvature.spectral_signature(
        model, as_blocks(blocks), steps=STEPS, probes=PROBES, later_steps=1, seed=0
    ).log_spectral_ratio
    if math.isnan(found.value):
        return {}
    freedom = min(found.probes, found.blocks or math.inf) - 1
    return {"log_spectral_ratio": Estimate.of_error(found.value, found.standard_error, max(1, freedom))}
