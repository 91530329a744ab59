"""Sentence embeddings of text, in the live directions of the encoder."""

import functools

import numpy as np

from .. import sigma
from ..estimate import stable_seed
from ..text import encoder, storyworld
from ..text.prompts import bank_file, prompt_bank
from .runs import View

sentence_encoder = functools.cache(encoder.Encoder)  # loaded once, when something has to be embedded

REFERENCE_BLOCKS = 200  # of storyworld: with all prompts, more than twice the encoder's dimension
REFERENCE_BANKS = ("finance", "stories", "technology")


def live_space(run: View) -> sigma.LiveSpace:
    """The encoder's live directions on one reference text for all profiles: the prompts of all banks and storyworld."""
    for bank in REFERENCE_BANKS:
        run.file(bank_file(bank))
    return _live_space(sentence_encoder())


@functools.cache
def _live_space(embed: encoder.Encoder) -> sigma.LiveSpace:
    prompts = [prompt["text"] for bank in REFERENCE_BANKS for prompt in prompt_bank(bank)]
    stories = storyworld.generate_stories(REFERENCE_BLOCKS, stable_seed("storyworld", "encoder"))
    return sigma.live_space(embed([*prompts, *stories]).numpy())


def embedded(run: View, texts: list[str]) -> np.ndarray:
    """Embeddings (N, m) of texts in the encoder's live directions, float64."""
    return live_space(run).project(sentence_encoder()(texts).numpy())
