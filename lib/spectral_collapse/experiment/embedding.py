"""Sentence embeddings of text, in the live directions of the encoder."""

import contextlib
import functools

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .. import sigma
from ..estimate import stable_seed
from ..record import closure, paths, provenance
from ..text import encoder, storyworld
from ..text.prompts import bank_file, prompt_bank
from .runs import View

sentence_encoder = functools.cache(encoder.Encoder)  # loaded once, when something has to be embedded

# Of storyworld, each the first words of a story: with all prompts, more than twice the encoder's dimension.
REFERENCE_BLOCKS, REFERENCE_WORDS = 200, 12
REFERENCE_BANKS = ("finance", "stories", "technology")


@functools.cache
def shared_embeddings(embed: encoder.Encoder, texts: tuple[str, ...]) -> np.ndarray:
    """Embeddings (N, m) of texts that many runs share, float64: computed once for each folder of results and kept
    there, in `encoder/`, under the hash of the texts, the weights and the encoder's code."""
    key = [embed.sha256, embed.dimension, closure.code_hash(type(embed)), texts]
    path = paths.results_root() / "encoder" / f"{provenance.text_hash(provenance.canonical(key))}.safetensors"
    with contextlib.suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
        rows = file.get_tensor("rows")
        if (file.metadata() or {}).get("sha256") == provenance.digest(rows):
            return rows.numpy()
    rows = embed(list(texts))
    metadata = {"sha256": provenance.digest(rows)}
    provenance.write_atomically(path, lambda temporary: save_file({"rows": rows.numpy()}, temporary, metadata))
    return rows.numpy()


def live_space(run: View) -> sigma.LiveSpace:
    """The encoder's live directions on one reference text for all profiles: the prompts of all banks and storyworld."""
    for bank in REFERENCE_BANKS:
        run.file(bank_file(bank))
    return _live_space(sentence_encoder())


@functools.cache
def _live_space(embed: encoder.Encoder) -> sigma.LiveSpace:
    prompts = [prompt["text"] for bank in REFERENCE_BANKS for prompt in prompt_bank(bank)]
    stories = storyworld.generate_stories(REFERENCE_BLOCKS, stable_seed("storyworld", "encoder"))
    openings = (" ".join(story.split()[:REFERENCE_WORDS]) for story in stories)
    return sigma.live_space(shared_embeddings(embed, (*prompts, *openings)))


def embedded(run: View, texts: list[str]) -> np.ndarray:
    """Embeddings (N, m) of texts in the encoder's live directions, float64."""
    return live_space(run).project(sentence_encoder()(texts).numpy())
