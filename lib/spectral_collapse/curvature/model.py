"""Which models and blocks can be measured, and which of them end in a plain linear head."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel


@contextlib.contextmanager
def measurement_mode(model: PreTrainedModel) -> Iterator[None]:
    """Makes the model a function of its parameters alone: no dropout, gradients for every row of an embedding, and
    attention with a second derivative, which the fused kernels lack."""
    training = [(module, module.training) for module in model.modules()]
    embeddings = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.padding_idx is not None]
    padding = [embedding.padding_idx for embedding in embeddings]
    model.eval()
    for embedding in embeddings:
        embedding.padding_idx = None
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for embedding, index in zip(embeddings, padding, strict=True):
            embedding.padding_idx = index
        for module, mode in training:  # each its own, since some may have been in evaluation mode
            module.training = mode


@contextlib.contextmanager
def differentiable(device: torch.device) -> Iterator[None]:
    """Gradients on and autocast off, whatever the caller's modes."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


def max_positions(model: PreTrainedModel) -> int | None:
    """Positions that the model has; None if its configuration names no limit, as for recurrent models."""
    config = model.config.get_text_config()
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "n_positions")]
    return next((limit for limit in limits if limit), None)


def checked_blocks(tokens: Any, model: PreTrainedModel) -> torch.Tensor:
    """Blocks of token ids (B, T) as int64. ValueError for anything but integers of that shape, and for tokens and
    positions that the model does not have."""
    if not isinstance(tokens, torch.Tensor):
        try:
            tokens = torch.as_tensor(np.asarray(tokens))
        except (ValueError, TypeError):
            raise ValueError("blocks must be token ids, whole numbers in B rows of T each.") from None
    kind, integer = tokens.dtype, not tokens.dtype.is_floating_point and not tokens.dtype.is_complex
    if tokens.ndim != 2 or not integer or kind == torch.bool or len(tokens) == 0 or tokens.shape[1] < 2:
        raise ValueError(
            "blocks must be token ids, whole numbers of shape (B, T), B ≥ 1 and T ≥ 2, "
            f"not {kind} of shape {tuple(tokens.shape)}."
        )
    tokens = tokens.long().clone()  # a clone is no inference tensor, and is not shared
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    vocabulary = min(len(m.weight) for m in embeddings if getattr(m, "weight", None) is not None)
    if len(beyond := tokens[(tokens < 0) | (tokens >= vocabulary)]):
        raise ValueError(f"token {int(beyond[0])} is beyond the model's vocabulary of {vocabulary}.")
    positions = max_positions(model)
    if positions is not None and tokens.shape[1] > positions:
        raise ValueError(f"blocks of {tokens.shape[1]} tokens are longer than the model's {positions} positions.")
    return tokens


def unwrapped(model: Any) -> Any:
    """The model of transformers inside `torch.compile`'s wrapper and those of adapters (`get_base_model`)."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif not isinstance(model, PreTrainedModel) and hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def require_measurable(model: PreTrainedModel) -> None:
    """ValueError if a model is ruled out: it is no `PreTrainedModel`, has no output head, attention without a second
    derivative, or weights that are not finite."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"a {name} is no model of transformers: pass the one that it wraps.")
    if model.get_output_embeddings() is None:
        raise ValueError(f"the model has no output head: load {name} as a causal language model.")
    attention = getattr(model.config, "_attn_implementation", None)
    if attention not in (None, "eager", "sdpa"):
        raise ValueError(f"attention {attention!r} has no second derivative: load with attn_implementation='eager'.")
    for parameter_name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"weights of {parameter_name} are not finite: the model has diverged, or its file is bad.")


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether a model's structure is a base model and a plain `torch.nn.Linear` without bias, and all that is trainable
    belongs to either."""
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None or model.base_model is model:
        return False
    known = {id(p) for p in [*model.base_model.parameters(), head.weight]}
    return any(head.weight is p for p in model.parameters()) and all(
        id(p) in known for p in model.parameters() if p.requires_grad
    )
