"""Sampling from a language model; each sequence has its own seed, so results do not depend on the batches."""

import inspect
import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from ..curvature.basis import to_float64
from ..curvature.model import max_positions
from ..estimate import uniforms
from ..machine import memory, parallel, processes, speed
from . import build
from .decoder import Decoder, decodes

# Caches of attention and Mamba. RWKV's `state` mixes the rows of a batch (transformers 5.23).
CACHES = ("past_key_values", "cache_params")
CANDIDATES, FEW = 128, 32  # most probable tokens that are sorted before a whole vocabulary is


def truncated_probabilities(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, candidates: int = CANDIDATES
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities in descending order and their token ids, both (B, K), after temperature, top-k and top-p.

    Top-p keeps the smallest set of most probable tokens whose mass reaches `top_p` (nucleus sampling, Holtzman et al.
    2020). Other tokens have probability 0; the rest is not renormalised. Sorting a vocabulary costs more than a small
    model's step, so the `candidates` most probable tokens are tried first, and eight times as many until they contain
    the nucleus of every row; the result is the same. In float64 (`to_float64`).
    """
    logits = to_float64(logits)
    # Relative to the largest, so that no temperature is too small.
    probabilities = torch.softmax((logits - logits.amax(-1, keepdim=True)) / temperature, dim=-1)
    size = probabilities.shape[-1]
    limit = top_k if 0 < top_k < size else size
    total = 1.0
    if limit < size:  # the nucleus is taken after top-k, as in transformers
        total = probabilities.topk(limit, dim=-1).values.sum(-1, keepdim=True)
    kept, tokens = probabilities.topk(min(limit, candidates), dim=-1)
    while kept.shape[-1] < limit and bool((kept.sum(-1, keepdim=True) < top_p * total).any()):
        kept, tokens = probabilities.topk(min(8 * kept.shape[-1], limit), dim=-1)
    mass_before = kept.cumsum(-1) - kept
    return kept * (mass_before < top_p * total), tokens


def drawn(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_k: int, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B,) by inverse CDF at the uniform numbers (B,), most probable tokens first, from logits (B, V); and
    whether every row has a distribution.

    The same tokens, up to rounding, as from `truncated_probabilities`, which sorts more than most rows need: a row
    whose nucleus ends among its FEW most probable tokens, or without truncation one whose draw falls among them, needs
    these only.
    """
    size = logits.shape[-1]
    limit = top_k if 0 < top_k < size else size
    # Differences in float32, where the smallest temperatures would be 0.
    scaled = (logits - logits.amax(-1, keepdim=True)).float() / max(temperature, 1e-30)
    kept, ids = torch.softmax(scaled, dim=-1).topk(limit if limit <= CANDIDATES else min(FEW, size), dim=-1)
    kept = to_float64(kept)
    ids, uniform = ids.to(kept.device), uniform.to(kept.device)
    cumulated = kept.cumsum(-1)
    mass = cumulated[:, -1:]
    if limit <= CANDIDATES:
        total, covered = mass, mass[:, 0] > 0
    else:
        total = torch.ones_like(mass)
        covered = (uniform < mass[:, 0] if top_p == 1 else mass[:, 0] >= top_p) & (limit == size)
    if top_p < 1:
        cumulated = (kept * (cumulated - kept < top_p * total)).cumsum(-1)
        total = cumulated[:, -1:]
    tokens = _at(cumulated, ids, uniform * total[:, 0])
    if not bool(covered.all()):
        rest = (~covered).nonzero()[:, 0]
        probabilities, ids = truncated_probabilities(logits[rest.to(logits.device)], temperature, top_k, top_p)
        cumulated = probabilities.cumsum(-1)
        tokens[rest] = _at(cumulated, ids, uniform[rest] * cumulated[:, -1])
    return tokens.to(logits.device), mass.isfinite().all()


def _at(cumulated: torch.Tensor, ids: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Ids (B,) at the first place where cumulated probabilities (B, K) exceed the thresholds (B,)."""
    place = torch.searchsorted(cumulated, thresholds[:, None], right=True).clamp(max=ids.shape[-1] - 1)
    return ids.gather(-1, place)[:, 0]


def _inputs(model: PreTrainedModel) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


@torch.no_grad()
def _pads(model: PreTrainedModel) -> bool:
    """Whether prompts of different lengths may share a batch, padded on the left and masked.

    Padding has no effect on attention with explicit positions that count from 0 (RoBERTa's do not); it changes a
    recurrent state.
    """
    if not {"attention_mask", "position_ids", "past_key_values"} <= _inputs(model) or model._is_stateful:
        return False
    tokens, positions = torch.zeros(1, 2, dtype=torch.long), torch.arange(2)[None]
    own, counted = (
        model(input_ids=tokens.to(model.device), **options).logits
        for options in ({}, {"position_ids": positions.to(model.device)})
    )
    return torch.allclose(own, counted, equal_nan=True)


class _Forward:
    """Logits (B, V) of the next token by the model's own forward, for any causal model of transformers.

    tokens, mask: prompts (B, T), padded on the left, and where they are no padding; without `pads` (see `_pads`) all
    have one length. With a cache (CACHES) a step reads one token, otherwise the full text.
    """

    def __init__(self, model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor, pads: bool):
        accepted = _inputs(model)
        options = {"logits_to_keep": 1, "use_cache": not accepted.isdisjoint(CACHES)}
        self.model, self.pads, self.mask, self.text = model, pads, mask, tokens
        self.options = {name: value for name, value in options.items() if name in accepted}
        self.logits = self._read(tokens)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits after one more token (B, 1) of each sequence."""
        self.mask = torch.cat([self.mask, torch.ones_like(tokens)], dim=1)
        if self.options.keys().isdisjoint(CACHES):
            tokens = self.text = torch.cat([self.text, tokens], dim=1)
        return self._read(tokens)

    def _read(self, tokens: torch.Tensor) -> torch.Tensor:
        options = self.options
        if self.pads:
            positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
            options = options | {"attention_mask": self.mask, "position_ids": positions[:, -tokens.shape[1] :]}
        output = self.model(input_ids=tokens, **options)
        self.options |= {name: output[name] for name in CACHES if name in output}
        return output.logits[:, -1]


@torch.no_grad()
def _sample_batch(
    model: PreTrainedModel,
    prompts: list[list[int]],
    draws: np.ndarray,
    stop_token: int | None,
    decoding: tuple[float, int, float],
    suppress_tokens: Sequence[int],
    pads: bool,
) -> list[list[int]]:
    """Continuations of one batch of B prompts, with the uniform numbers (B, T) that decide their tokens.

    Without `pads` (see `_pads`) all prompts have the same length. ValueError if predictions are not finite.
    """
    count, new_tokens = draws.shape
    longest = max(len(prompt) for prompt in prompts)
    tokens, mask = torch.zeros(2, count, longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    tokens, mask = tokens.to(model.device), mask.to(model.device)
    fast = decodes(model)
    reader = Decoder(model, tokens, mask, new_tokens) if fast else _Forward(model, tokens, mask, pads)
    uniform, logits = torch.from_numpy(draws), reader.logits
    sampled = torch.full((count, new_tokens), -1 if stop_token is None else stop_token)
    rows = torch.arange(count)  # that the reader goes on with
    running = torch.ones(count, dtype=torch.bool)  # that have not stopped
    finite = torch.ones((), dtype=torch.bool)
    suppressed = torch.tensor(suppress_tokens, dtype=torch.long, device=model.device)
    for step in range(new_tokens):
        if len(suppressed):
            logits = logits.index_fill(-1, suppressed, -torch.inf)
        chosen, known = drawn(logits, uniform[rows, step], *decoding)
        finite &= known.cpu()
        sampled[rows, step] = chosen.cpu()
        if step + 1 == new_tokens:
            break
        if stop_token is not None:
            running[rows] &= sampled[rows, step] != stop_token
            if not parallel.any_process(model, running.any()):
                break
            if fast and 4 * int(running.sum()) <= 3 * len(rows):
                going = running[rows].nonzero()[:, 0]
                rows = rows[going]
                going = going.to(model.device)
                chosen = chosen[going]
                reader.keep(going)
        logits = reader(chosen[:, None])
    if parallel.any_process(model, ~finite):
        raise build.not_finite(model, "sampling")
    sequences = sampled.tolist()
    if stop_token is not None:
        sequences = [s[: s.index(stop_token)] if stop_token in s else s for s in sequences]
    return sequences


def fitting_batch(model: PreTrainedModel, limit: int, tokens: int, pads: bool) -> int:
    """The largest number of sequences of so many tokens, at most `limit`, that fits into memory (see `memory`).

    Measured with a prompt one token shorter, which takes at least the memory of a shorter one with its continuation.
    """
    prompt = [0] * max(1, tokens - 2)

    def work(sequences: int) -> None:
        _sample_batch(model, [prompt] * sequences, np.zeros((sequences, 2)), None, (1.0, 0, 1.0), (), pads)

    return memory.measured_batch(work, limit, model.device)


def sample(
    model: PreTrainedModel,
    prompts: list[list[int]],
    seeds: list[int],
    new_tokens: int,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    batch_size: int,
    stop_token: int | None = None,
    suppress_tokens: Sequence[int] = (),
    description: str = "sampling",
) -> list[list[int]]:
    """One continuation of `new_tokens` tokens per prompt, ended early by `stop_token` if that is given.

    Token t of sequence i is the inverse-CDF draw at the t-th uniform number of seeds[i], in any batch;
    `suppress_tokens` are never drawn. Prompts are token ids, none empty. Works for all causal models of transformers:
    with explicit positions (Llama, GPT-2, …) shorter prompts are padded on the left and masked; others (Bloom, MPT,
    Mamba, …) take prompts of one length at a time; models without a usable cache (GPT-1, RWKV, RecurrentGemma) read the
    full text for every token, which is slower.

    A batch holds `batch_size` sequences, or as many as fit into memory (`fitting_batch`). If an accelerator still runs
    out of memory, this batch and later ones are halved. Several processes (`parallel`) share the prompts, and all get
    all continuations; those that shard the model do not change batches, since they must keep step. Models of Llama's
    kind are decoded by `decoder`, and rows that have stopped leave their batch there.

    ValueError for invalid decoding parameters, prompts that the model cannot read, and predictions that are not finite.
    """
    longest, limit = max(map(len, prompts), default=0), max_positions(model)
    needed, size = longest + new_tokens, model.get_input_embeddings().num_embeddings
    for wrong, reason in (
        (not 0 < temperature < math.inf, f"temperature must be a finite number above 0, not {temperature}"),
        (not float(top_k).is_integer() or top_k < 0, f"top_k must be a whole number from 0 (no limit) on, not {top_k}"),
        (not 0 < top_p <= 1, f"top_p must lie above 0 and be at most 1, not {top_p}"),
        (batch_size < 1, f"batch_size must be 1 or more, not {batch_size}"),
        (new_tokens < 1, f"new_tokens must be 1 or more, not {new_tokens}"),
        (len(seeds) != len(prompts), f"there are {len(prompts)} prompts and {len(seeds)} seeds: give each its own"),
        (not all(prompts), "a prompt is empty: begin it with the end-of-text token"),
        (
            any(not 0 <= token < size for prompt in prompts for token in prompt),
            f"a prompt has a token id that is not among the model's, 0 to {size - 1}: use the model's own tokenizer",
        ),
        (
            limit is not None and needed > limit,
            f"a prompt and its continuation take {needed} tokens, the model has {limit} positions: shorten "
            "block_tokens, story_tokens or response_tokens",
        ),
    ):
        if wrong:
            raise ValueError(f"{description}: {reason}.")
    if not prompts:
        return []
    pads = decodes(model) or _pads(model)
    if not parallel.sharded(model):
        batch_size = fitting_batch(model, min(batch_size, len(prompts)), needed, pads)
    elif not pads:
        batch_size = 1  # lengths differ between the processes, which must take equally many batches
    started = time.perf_counter()
    continuations: dict[int, list[int]] = {}
    # Sorted by length for little padding.
    pending = parallel.scatter(sorted(range(len(prompts)), key=lambda i: len(prompts[i])))
    with processes.progress(len(pending), description) as advance:
        while pending:
            chosen = pending[:batch_size]
            if not pads:
                chosen = [i for i in chosen if len(prompts[i]) == len(prompts[chosen[0]])]
            draws = uniforms([seeds[i] for i in chosen], new_tokens)
            decoding, texts = (temperature, int(top_k), top_p), [prompts[i] for i in chosen]
            try:
                sampled = _sample_batch(model, texts, draws, stop_token, decoding, suppress_tokens, pads)
            except torch.OutOfMemoryError:
                if len(chosen) == 1 or parallel.sharded(model):
                    raise
                batch_size = len(chosen) // 2
                continue
            continuations |= dict(zip(chosen, sampled, strict=True))
            pending = pending[len(chosen) :]
            advance(len(chosen))
    continuations = parallel.gather(continuations)
    speed.count("sampling", sum(map(len, continuations.values())), time.perf_counter() - started)
    return [continuations[i] for i in range(len(prompts))]
