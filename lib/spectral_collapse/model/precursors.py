"""Three precursors of silent collapse, which compete with curvature and SIGMA for the earliest warning.

The abstract of Zhang, "Silent Collapse in Recursive Learning Systems" (arXiv 2605.14588), names contraction of anchor
entropy, freezing of representation drift, and erosion of tail coverage. The full text was not available: formulas and
distances below are this project's reading of the three names and may differ from the paper's.

The anchors are the frozen held-out blocks of real text, the same for all generations, conditions and seeds.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from ..estimate import Estimate
from ..text.metrics import count_matrix, mean_over_texts
from . import build

RARE_QUANTILE = 0.25  # of the reference's token types, by frequency


@torch.no_grad()
def anchor_statistics(model: PreTrainedModel, blocks: torch.Tensor, batch_size: int) -> tuple[np.ndarray, torch.Tensor]:
    """Predictive entropy (N,) and representation (N, d) of every anchor block (N, T).

    Entropy −Σ_v p(v) log p(v) of the next token, in nats, without temperature or truncation, and the last hidden state,
    both averaged over the T positions. ValueError if they are not finite.
    """
    model.eval()
    entropies, representations = [], []
    for tokens in blocks.split(batch_size):
        output = model(input_ids=tokens.to(model.device), output_hidden_states=True)
        probabilities = output.logits.float().softmax(-1)  # (B, T, V)
        entropies.append(torch.special.entr(probabilities).sum(-1).mean(1))
        representations.append(output.hidden_states[-1].float().mean(1))
    entropy, representation = torch.cat(entropies).cpu().double(), torch.cat(representations).cpu()
    if not (entropy.isfinite().all() and representation.isfinite().all()):
        raise build.not_finite(model, "anchor entropy")
    return entropy.numpy(), representation


def representation_drift(before: torch.Tensor, after: torch.Tensor) -> Estimate:
    """Speed of representation drift: mean over anchors of ‖h_g − h_{g−1}‖ / ‖h_{g−1}‖, from representations (N, d).

    For two successive generations, hence a speed; it falls towards 0 as representations freeze.
    """
    before, after = before.double(), after.double()
    return mean_over_texts(((after - before).norm(dim=1) / before.norm(dim=1)).numpy())


def rare_token_coverage(
    texts: Sequence[Sequence[int]], reference: Sequence[int], quantile: float = RARE_QUANTILE
) -> Estimate:
    """Tail coverage: share of the reference's rare token types that occur in the texts, all given as token ids.

    A type is rare if its count in the reference is at most this quantile of all counts. Even real text of the same size
    stays below 1, and more text reaches more: compare only equal numbers of texts. ValueError for an empty reference.
    """
    types, counts = np.unique(np.asarray(reference), return_counts=True)
    if not len(types):
        raise ValueError("rare_token_coverage needs a reference with at least one token.")
    rare = set(types[counts <= np.quantile(counts, quantile)].tolist())
    found = count_matrix([[token for token in set(text) if token in rare] for text in texts])
    holders = np.asarray(found.sum(axis=0)).ravel()  # texts that have each type
    alone = np.bincount(found.row, holders[found.col] == 1, minlength=len(texts))
    return Estimate.jackknife(len(holders) / len(rare), (len(holders) - alone) / len(rare))
