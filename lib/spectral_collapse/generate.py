"""Sampling from a language model: each sequence has a seed of its own, so batches may be cut anywhere."""

import time

import numpy as np
import torch
from transformers import PreTrainedModel

from . import memory, parallel, processes, speed
from .curvature.basis import wide
from .seeding import uniforms


def truncated_probabilities(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, candidates: int = 128
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities in falling order and their token ids, both (B, K), after temperature, top-k and top-p.

    Top-p keeps the smallest set of most probable tokens whose mass reaches `top_p` (nucleus sampling,
    Holtzman et al. 2020). What falls outside has probability 0; the rest is not renormalised. Sorting a
    vocabulary costs more than a small model's step, so the `candidates` most probable tokens are tried
    first; where they hold the nucleus of every row the result is the same. In float64, see `wide`.
    """
    probabilities = torch.softmax(wide(logits) / temperature, dim=-1)
    size = probabilities.shape[-1]
    limit = top_k if 0 < top_k < size else size
    total = 1.0
    if limit < size:  # under top-k the nucleus is taken of what top-k left, as in transformers
        total = probabilities.topk(limit, dim=-1).values.sum(-1, keepdim=True)
    kept, tokens = probabilities.topk(min(limit, candidates), dim=-1)
    if kept.shape[-1] < limit and bool((kept.sum(-1, keepdim=True) < top_p * total).any()):
        kept, tokens = probabilities.topk(limit, dim=-1)
    mass_before = kept.cumsum(-1) - kept
    return kept * (mass_before < top_p * total), tokens


@torch.no_grad()
def _sample_batch(
    model: PreTrainedModel,
    prompts: list[list[int]],
    draws: np.ndarray,
    stop_token: int | None,
    decoding: tuple[float, int, float],
) -> list[list[int]]:
    """Continuations of one batch of prompts (B), with the uniform numbers (B, T) that decide their tokens."""
    count, new_tokens = draws.shape
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros(count, longest, dtype=torch.long)
    mask = torch.zeros(count, longest + new_tokens, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    tokens, mask = tokens.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    uniform = torch.from_numpy(draws)
    drawn = np.full((count, new_tokens), -1 if stop_token is None else stop_token)
    running = torch.ones(count, dtype=torch.bool, device=model.device)
    cache, seen = None, 0
    for step in range(new_tokens):
        output = model(
            input_ids=tokens,
            attention_mask=mask[:, : longest + step],
            position_ids=positions[:, seen : longest + step],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, seen = output.past_key_values, longest + step
        probabilities, ids = truncated_probabilities(output.logits[:, -1], *decoding)
        cumulated = probabilities.cumsum(-1)
        threshold = uniform[:, step : step + 1].to(cumulated.device) * cumulated[:, -1:]
        place = torch.searchsorted(cumulated, threshold, right=True).clamp(max=ids.shape[-1] - 1)
        tokens = ids.gather(-1, place).to(model.device)  # (B, 1)
        drawn[:, step] = tokens[:, 0].cpu()
        if stop_token is not None:
            running &= tokens[:, 0] != stop_token
            if not parallel.anywhere(model, running.any()):
                break
    sequences = drawn.tolist()
    if stop_token is not None:
        sequences = [s[: s.index(stop_token)] if stop_token in s else s for s in sequences]
    return sequences


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
    description: str = "sampling",
) -> list[list[int]]:
    """One continuation of `new_tokens` tokens per prompt, ended early by `stop_token` if that is given.

    Token t of sequence i is the inverse-CDF draw at the t-th uniform number of seeds[i], whatever the batch.
    Prompts are token ids, none empty; shorter ones are padded on the left and masked. A batch holds `batch_size`
    sequences, or as many as fit into memory (`memory.sampling_batch`); one that an accelerator refuses all the same is
    halved, and so are the ones after it. Several processes (`parallel`) share the prompts, and all get all
    continuations; those that share the model take batches as they are, since they must keep step.
    """
    if any(not prompt for prompt in prompts):
        raise ValueError("a prompt is empty: begin it with the end-of-text token.")
    longest, limit = max(map(len, prompts), default=0), model.config.max_position_embeddings
    needed = longest + new_tokens
    if needed > limit:
        raise ValueError(
            f"{description}: a prompt and its continuation take {needed} tokens, the model has {limit} positions: "
            "shorten block_tokens, story_tokens or response_tokens."
        )
    if not parallel.sharded(model):
        batch_size = memory.sampling_batch(model, min(batch_size, len(prompts)), longest, new_tokens)
    started = time.perf_counter()
    continuations: dict[int, list[int]] = {}
    # Little padding, short prompts first.
    left = parallel.deal(sorted(range(len(prompts)), key=lambda i: len(prompts[i])))
    with processes.progress(len(left), description) as advance:
        while left:
            chosen = left[:batch_size]
            draws = uniforms([seeds[i] for i in chosen], new_tokens)
            try:
                drawn = _sample_batch(
                    model, [prompts[i] for i in chosen], draws, stop_token, (temperature, top_k, top_p)
                )
            except torch.OutOfMemoryError:
                if len(chosen) == 1 or parallel.sharded(model):
                    raise
                batch_size = len(chosen) // 2
                continue
            continuations |= dict(zip(chosen, drawn, strict=True))
            left = left[batch_size:]
            advance(len(chosen))
    continuations = parallel.gather(continuations)
    speed.count("sampling", sum(map(len, continuations.values())), time.perf_counter() - started)
    return [continuations[i] for i in range(len(prompts))]
