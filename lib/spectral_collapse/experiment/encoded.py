"""Stages based on sentence embeddings: embedded blocks of the responses, SIGMA's tracks, coherence."""

import numpy as np
import torch
from safetensors.torch import load_file

from .. import estimate
from .. import sigma as sigma_package
from ..estimate import stable_seed
from ..text import encoder
from ..text import metrics as text_metrics
from . import embedding, loop
from .measure import STAGES, blocks_of, continuations, read_lines, read_responses
from .runs import Run, View, stage


@stage(file="embeddings.safetensors")
def embeddings(run: View, generation: int) -> dict:
    """Embeds the first `response_blocks` blocks of every response, in the encoder's live directions.

    `short_responses` counts responses with fewer blocks, of which none is embedded. The observed set is the prompt
    bank; the record of generation 0 holds its ids, the others their hash. Raises ValueError for an embedding beyond the
    energy cap ρ, and where all responses are too short.
    """
    params, embed = run.params, embedding.sentence_encoder()
    lines = read_responses(run, generation)
    observed = sigma_package.ObservedSet(tuple(line["id"] for line in lines))
    pieces = [blocks_of(run, line["response"]) for line in lines]
    texts = [text for piece in pieces for text in piece]
    if not texts:
        raise ValueError(
            f"{run.folder}, generation {generation}: no response has response_blocks = {params.response_blocks} blocks "
            f"of {params.response_block_words} words: raise response_tokens, or ask for less."
        )
    rows, space = embed(texts).numpy(), embedding.live_space(run)
    sigma_package.GramAccumulator(space.dim).update(rows, rho=params.sigma_rho)  # refuses what exceeds the cap
    tensors = {
        "embeddings": torch.from_numpy(space.project(rows).astype(np.float32)),
        "prompts": torch.tensor([index for index, piece in enumerate(pieces) for _ in piece]),
        "blocks": torch.tensor([index for piece in pieces for index in range(len(piece))]),
    }
    return {
        "embeddings_sha256": loop.save(run, generation, "embeddings.safetensors", tensors),
        "observed_sha256": observed.sha256,
        **({"observed_ids": list(observed.ids)} if generation == 0 else {}),
        "dimension": space.dim,
        "live_dimensions": space.m_eff,
        "dead_coordinates": list(space.dead_coordinates),
        "short_responses": sum(not piece for piece in pieces),
    }


def read_embeddings(run: Run | View, generation: int) -> sigma_package.Observed:
    """The embedded blocks of a checkpoint, checked against the observed set that generation 0 froze."""
    frozen = sigma_package.ObservedSet(tuple(embeddings(run, 0)["observed_ids"]))
    frozen.check(embeddings(run, generation)["observed_sha256"])
    tensors = load_file(embeddings.artefact(run, generation))
    rows, prompts, blocks = (tensors[name].numpy() for name in ("embeddings", "prompts", "blocks"))
    return sigma_package.Observed(rows.astype(np.float64), prompts, blocks)


def _logdet(observed: sigma_package.Observed, total: int) -> dict[str, list[float] | None]:
    """log det G as [estimate, low, high], plug-in and corrected; None where blocks are too few or too similar.

    The plug-in treats blocks as independent, as published; the corrected estimate treats prompts so.
    """
    rows = observed.rows
    count, m = rows.shape
    nothing = {"logdet_plug_in": None, "logdet_corrected": None}
    if count < sigma_package.least_rows(m):
        return nothing
    gram = rows.T @ rows
    try:
        leverages = sigma_package.leverages(rows, gram)
        plug_in = sigma_package.logdet_estimate(gram, count, total, "none", leverages=leverages)
        corrected = sigma_package.grouped_logdet_estimate(rows, observed.prompts, total)
    except sigma_package.SingularGram:  # a collapse, which the tracks show
        return nothing
    return {"logdet_plug_in": list(plug_in[:3]), "logdet_corrected": list(corrected[:3])}


@stage()
def sigma(run: View, generation: int) -> dict:
    """Both SIGMA tracks, their drifts from generation 0 with bands, and the surface proxies of the responses.

    All are of the same number of blocks at both generations: of the prompts whose responses have `response_blocks`
    blocks at both. `prompts_left_out` counts the others.
    """
    # Unobserved: as many blocks as a generation trains on.
    budget = sigma_package.Budget(run.params.blocks_per_generation, run.params.sigma_rho, run.params.sigma_delta)
    unobserved, rho, delta = budget
    first, last = sigma_package.common(read_embeddings(run, 0), read_embeddings(run, generation))
    lines, kept = read_responses(run, generation), np.unique(last.prompts)
    left_out = len(lines) - len(kept)
    if not len(last.rows):
        raise ValueError(f"{run.folder}: no prompt has a long enough response at generations 0 and {generation}.")
    gram, count = last.rows.T @ last.rows, len(last.rows)
    total = count + unobserved
    # Of these blocks too: both proxies depend on the amount of text.
    texts = [" ".join(blocks_of(run, lines[prompt]["response"])) for prompt in kept]
    surface = {
        "hashed_ngram_hhi": text_metrics.hashed_ngram_hhi(texts),
        "response_distinct_2": text_metrics.distinct_n(texts, 2),
    }
    health = sigma_package.health_checks(last.rows, rho, delta)
    if left_out:
        health.append(
            f"{left_out} of {len(lines)} prompts are left out of generations 0 and {generation}: their responses are "
            "too short at one of them."
        )
    return {
        "observed_blocks": count,
        "blocks_per_prompt": count // len(kept),
        "prompts_left_out": left_out,
        "total_blocks": total,
        "dimension": embeddings(run, generation)["dimension"],
        "live_dimensions": last.rows.shape[1],
        "health": health,
        "track_one": sigma_package.track_one(gram, count, total, rho, delta),
        "track_one_sharp": sigma_package.track_one(gram, count, total, rho, delta, "water_filling"),
        "track_two": sigma_package.track_two(gram, count, delta),
        **_logdet(last, total),
        "drifts": sigma_package.banded_drifts(first, last, budget, run.seed),
        "bucket_drifts": sigma_package.bucket_drifts(first, last, [line["bucket"] for line in lines], budget, run.seed),
        **text_metrics.with_intervals(surface),
    }


# ---- coherence


COHERENT_RESPONSES = 64  # a sentence costs as much to embed as a block, and 64 responses give a precise mean


def _prompt_similarity(run: View, generation: int, embed: encoder.Encoder) -> estimate.Estimate:
    """Mean over prompts of the cosine of the prompt and the mean of the blocks of its response, if it has any."""
    found = read_embeddings(run, generation)
    prompts = embedding.shared_embeddings(embed, tuple(line["text"] for line in read_responses(run, generation)))
    cosines = []
    for index, prompt in enumerate(embedding.live_space(run).project(prompts)):
        mean = found.rows[found.prompts == index].sum(axis=0)
        norm = np.linalg.norm(mean) * np.linalg.norm(prompt)
        cosines.append(mean @ prompt / norm if norm > 0 else np.nan)
    return text_metrics.mean_over_texts(cosines)


def _mauve(run: View, generation: int, embed: encoder.Encoder) -> dict[str, float | list[float]]:
    """MAUVE of the continuations against the held-out text; {} unless its package is installed."""
    if run.read("package mauve-text") is None:
        return {}
    lines = read_lines(continuations.artefact(run, generation))
    references = embedding.shared_embeddings(embed, tuple(line["reference"] for line in lines))
    texts = embed([line["continuation"] for line in lines]).numpy()
    return text_metrics.with_intervals({"mauve": text_metrics.mauve(texts, references, stable_seed(run.seed, "mauve"))})


@stage()
def coherence(run: View, generation: int) -> dict:
    """Coherence of evenly spaced responses, similarity of responses and prompts, and MAUVE if it is installed."""
    embed = embedding.sentence_encoder()
    texts = [line["response"] for line in read_responses(run, generation)]
    chosen = texts[:: -(-len(texts) // COHERENT_RESPONSES)]
    metrics = {
        "coherence": text_metrics.coherence(chosen, lambda batch: embed(batch).numpy()),
        "prompt_similarity": _prompt_similarity(run, generation, embed),
    }
    return text_metrics.with_intervals(metrics) | _mauve(run, generation, embed)


# For grids of many runs: no continuations, and SIGMA with the rest.
LIGHT = {name: measured for name, measured in STAGES.items() if name != "continuations"} | {"sigma": sigma}
