"""Sampling from a language model: each sequence has a seed of its own, so batches may be cut anywhere."""

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from .seeding import uniforms


def truncated_probabilities(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, candidates: int = 128
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities in falling order and their token ids, both (B, K), after temperature, top-k and top-p.

    Top-p keeps the smallest set of most probable tokens whose mass reaches `top_p` (nucleus sampling,
    Holtzman et al. 2020). What falls outside has probability 0; the rest is not renormalised. Sorting a
    vocabulary costs more than a small model's step, so the `candidates` most probable tokens are tried
    first; where they hold the nucleus of every row the result is the same.
    """
    probabilities = torch.softmax(logits.double() / temperature, dim=-1)
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
    Prompts are token ids, none empty; shorter ones are padded on the left and masked.
    """
    if any(not prompt for prompt in prompts):
        raise ValueError("a prompt is empty: begin it with the end-of-text token.")
    device = model.device
    continuations: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding, short prompts first
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for chosen in tqdm(batches, desc=description, leave=False, delay=2):
        longest = max(len(prompts[i]) for i in chosen)
        tokens = torch.zeros(len(chosen), longest, dtype=torch.long)
        mask = torch.zeros(len(chosen), longest + new_tokens, dtype=torch.long)
        for row, i in enumerate(chosen):
            tokens[row, longest - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, longest - len(prompts[i]) :] = 1
        tokens, mask = tokens.to(device), mask.to(device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        draws = torch.from_numpy(uniforms([seeds[i] for i in chosen], new_tokens)).to(device)
        drawn = np.empty((len(chosen), new_tokens), dtype=np.int64)
        running = torch.ones(len(chosen), dtype=torch.bool, device=device)
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
            probabilities, ids = truncated_probabilities(output.logits[:, -1], temperature, top_k, top_p)
            cumulated = probabilities.cumsum(-1)
            threshold = draws[:, step : step + 1] * cumulated[:, -1:]
            place = torch.searchsorted(cumulated, threshold, right=True).clamp(max=ids.shape[-1] - 1)
            tokens = ids.gather(-1, place)  # (B, 1)
            drawn[:, step] = tokens[:, 0].cpu()
            if stop_token is not None:
                running &= tokens[:, 0] != stop_token
                if not running.any():
                    drawn[:, step + 1 :] = stop_token
                    break
        for row, i in enumerate(chosen):
            sequence = drawn[row].tolist()
            if stop_token is not None and stop_token in sequence:
                sequence = sequence[: sequence.index(stop_token)]
            continuations[i] = sequence
    return continuations
