"""Which models and blocks can be measured, and which of them end in a plain linear head."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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


IGNORED = -100  # the label of a token that is not predicted, in transformers
KEYS = ("input_ids", "attention_mask", "labels")


@dataclass(frozen=True)
class Blocks:
    """Frozen text: token ids (B, T); of the T − 1 predictions the targets (B, T − 1), IGNORED where there is none; and
    the attention mask (B, T), None where every token is text."""

    tokens: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> "Blocks":
        return Blocks(self.tokens[part], self.targets[part], None if self.mask is None else self.mask[part])

    def to(self, device: torch.device) -> "Blocks":
        """On another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return Blocks(self.tokens.to(device), self.targets.to(device), mask)

    @property
    def predictions(self) -> int:
        """Number of tokens that are predicted."""
        return int((self.targets != IGNORED).sum())

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Arguments of the model's forward pass."""
        return {"input_ids": self.tokens} | ({} if self.mask is None else {"attention_mask": self.mask})

    def predicting(self, outputs: torch.Tensor) -> torch.Tensor:
        """Rows of outputs (B, T, d) that predict a token, (predictions, d)."""
        rows = outputs[:, :-1].flatten(0, 1)
        kept = self.targets.flatten() != IGNORED
        return rows if kept.all() else rows.index_select(0, kept.nonzero()[:, 0])

    @property
    def predicted(self) -> torch.Tensor:
        """The tokens that these rows predict, (predictions,)."""
        flat = self.targets.flatten()
        return flat[flat != IGNORED]


def _whole_numbers(values: Any, name: str, least_length: int = 2) -> torch.Tensor:
    """A tensor (B, T) of int64, which no caller shares. ValueError for anything else."""
    if not isinstance(values, torch.Tensor):
        try:
            values = torch.as_tensor(np.asarray(values))
        except (ValueError, TypeError):
            raise ValueError(f"{name} must be token ids, whole numbers in B rows of T each.") from None
    kind, integer = values.dtype, not values.dtype.is_floating_point and not values.dtype.is_complex
    if values.ndim != 2 or not integer or kind == torch.bool or len(values) == 0 or values.shape[1] < least_length:
        raise ValueError(
            f"{name} must be token ids, whole numbers of shape (B, T), B ≥ 1 and T ≥ 2, "
            f"not {kind} of shape {tuple(values.shape)}."
        )
    return values.long().clone()  # a clone is no inference tensor


def _padded(rows: list) -> dict[str, torch.Tensor] | None:
    """Rows of token ids of unequal lengths, filled up at their ends; None of anything else."""
    try:
        lengths = [len(row) for row in rows]
        if len(set(lengths)) < 2 or min(lengths) < 1:
            return None
        parts = [_whole_numbers(np.asarray(row)[None], "blocks", 1)[0] for row in rows]
    except (TypeError, ValueError):
        return None
    pad = torch.nn.utils.rnn.pad_sequence
    masks = [torch.ones_like(part) for part in parts]
    return {"input_ids": pad(parts, batch_first=True), "attention_mask": pad(masks, batch_first=True)}


def checked_blocks(batch: Any, model: PreTrainedModel) -> Blocks:
    """Blocks of a batch: token ids (B, T); rows of unequal lengths; or a mapping of input_ids with attention_mask or
    labels, as transformers' collators give it, whose loss is the mean over all labels but IGNORED.

    ValueError for anything but whole numbers of that shape, for tokens and positions that the model does not have, and
    where nothing is predicted.
    """
    if isinstance(batch, Blocks):
        return batch
    if isinstance(batch, list | tuple):
        batch = _padded(list(batch)) or batch
    if not isinstance(batch, Mapping):
        batch = {"input_ids": batch}
    if "input_ids" not in batch or not set(batch) <= set(KEYS):
        raise ValueError(f"a batch holds input_ids, and attention_mask or labels, not {', '.join(map(repr, batch))}.")
    tokens = _whole_numbers(batch["input_ids"], "blocks")
    labels, mask = batch.get("labels"), batch.get("attention_mask")
    mask = None if mask is None else torch.as_tensor(mask).long()
    labels = tokens if labels is None else _whole_numbers(labels, "labels")
    for name, other in (("attention_mask", mask), ("labels", labels)):
        if other is not None and other.shape != tokens.shape:
            raise ValueError(
                f"{name} must have the shape of input_ids, {tuple(tokens.shape)}, not {tuple(other.shape)}."
            )
    if mask is not None and not mask[:, 0].all():
        raise ValueError("a row begins with padding, which has nothing to attend to: pad on the right instead.")
    targets = labels[:, 1:]
    if mask is not None and batch.get("labels") is None:
        targets = targets.masked_fill(mask[:, 1:] == 0, IGNORED)
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    vocabulary = min(len(m.weight) for m in embeddings if getattr(m, "weight", None) is not None)
    for ids in (tokens, targets[targets != IGNORED]):
        if len(beyond := ids[(ids < 0) | (ids >= vocabulary)]):
            raise ValueError(f"token {int(beyond[0])} is beyond the model's vocabulary of {vocabulary}.")
    positions = max_positions(model)
    if positions is not None and tokens.shape[1] > positions:
        raise ValueError(f"blocks of {tokens.shape[1]} tokens are longer than the model's {positions} positions.")
    blocks = Blocks(tokens, targets, None if mask is None or mask.all() else mask)
    if not blocks.predictions:
        raise ValueError("nothing is predicted: every label is masked.")
    return blocks


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
