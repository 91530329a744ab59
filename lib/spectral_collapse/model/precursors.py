"""The three precursors of silent collapse: signals that compete with curvature and SIGMA for the earliest warning.

Zhang, "Silent Collapse in Recursive Learning Systems" (arXiv 2605.14588), names them in its abstract: contraction of
anchor entropy, freezing of representation drift, erosion of tail coverage. Its abstract was at hand here, its full text
was not, so that formulas, distances and thresholds below are this project's reading of those three names and may differ
from the paper's; its Monitor-Trust-Regulator loop, which acts on the signals, is not part of this.

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

    The entropy is −Σ_v p(v) log p(v) of the next token's distribution, in nats, without temperature or truncation,
    averaged over the T positions; the representation is the last hidden state, averaged over them. Raises ValueError
    where they are not finite.
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

    Of two successive generations, so that it is a speed, per generation: what freezes falls towards 0.
    """
    before, after = before.double(), after.double()
    return mean_over_texts(((after - before).norm(dim=1) / before.norm(dim=1)).numpy())


def rare_token_coverage(
    texts: Sequence[Sequence[int]], reference: Sequence[int], quantile: float = RARE_QUANTILE
) -> Estimate:
    """Tail coverage: share of the reference's rare token types that occur in the texts, all given as token ids.

    Rare are the types whose count in the reference is at most that quantile of the counts of all its types. Real text
    of the same size does not reach 1 either, and more text reaches more: compare equal numbers of texts only. Raises
    ValueError for an empty reference.
    """
    types, counts = np.unique(np.asarray(reference), return_counts=True)
    if not len(types):
        raise ValueError("rare_token_coverage needs a reference with at least one token.")
    rare = set(types[counts <= np.quantile(counts, quantile)].tolist())
    found = count_matrix([[token for token in set(text) if token in rare] for text in texts])
    holders = np.asarray(found.sum(axis=0)).ravel()  # texts that have each type
    alone = np.bincount(found.row, holders[found.col] == 1, minlength=len(texts))
    return Estimate.jackknife(len(holders) / len(rare), (len(holders) - alone) / len(rare))
