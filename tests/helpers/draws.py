"""Texts drawn plainly, and seeds of texts that no rounding can turn: tests of equal texts hold on every processor."""

import numpy as np
import torch
from spectral_collapse.estimate import stable_seed, uniforms

EDGE = 1e-5  # in probability; batches, padding and processors move a probability by 1e-6


def recomputed(model, prompt, seed, new_tokens, temperature, top_k, top_p) -> tuple[list[int], float]:
    """A text drawn with no cache, padding or batch, and how far in probability its closest draw was from another one.

    Another token would have been drawn had a cumulated probability passed the uniform number, the drawn token changed
    places with its neighbour in the order of probabilities, or the nucleus ended elsewhere.
    """
    sequence, closest = list(prompt), np.inf
    for uniform in uniforms([seed], new_tokens)[0]:
        with torch.no_grad():
            logits = model(torch.tensor([sequence])).logits[0, -1].double().numpy() / temperature
        probabilities = np.exp(logits - logits.max())
        order = np.argsort(-probabilities)[: top_k or None]
        kept = probabilities[order] / probabilities[order].sum()
        mass = kept.cumsum()
        kept = kept[: 1 + np.searchsorted(mass, top_p)]
        nucleus = np.abs(mass[:-1] - top_p) if top_p < 1 else [np.inf]
        edges = kept.cumsum()
        place = np.searchsorted(edges, uniform * kept.sum(), side="right")
        neighbours = np.abs(np.diff(kept[max(place - 1, 0) : place + 2]))
        others = np.abs(edges[:-1] - uniform * kept.sum())
        closest = min([closest, *nucleus, *neighbours, *others])
        sequence.append(int(order[place]))
    return sequence[len(prompt) :], closest


def settled(model, prompts, new_tokens: int, temperature: float, top_k: int, top_p: float) -> list[int]:
    """A seed for every prompt, of its own: the first of which every draw lies further than EDGE from another one."""

    def first(place: int) -> int:
        for attempt in range(100):
            seed = stable_seed("settled", place, attempt)
            if recomputed(model, prompts[place], seed, new_tokens, temperature, top_k, top_p)[1] > EDGE:
                return seed
        raise AssertionError(f"no seed of prompt {place} is settled")

    return [first(place) for place in range(len(prompts))]
