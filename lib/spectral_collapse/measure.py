"""The measurements of a generation: its text, its responses, its curvature, their Gram matrix."""

import functools
import json
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from . import (
    corpora,
    generate,
    loop,
    models,
    paths,
    provenance,
    seeding,
    storyworld,
    text_metrics,
    train,
)
from . import curvature as curvature_package
from . import sigma as sigma_package
from .runs import Run, stage
from .seeding import stable_seed


class IncoherentBaseline(ValueError):
    """The base model's held-out perplexity is above the profile's bound."""


def prompt_bank(name: str) -> list[dict[str, str]]:
    """Prompts of `params/prompts/<name>.jsonl`: dictionaries with id, bucket and text, in file order."""
    path = paths.PROMPTS / f"{paths.path_name(name)}.jsonl"
    if not path.exists():
        banks = ", ".join(sorted(file.stem for file in paths.PROMPTS.glob("*.jsonl")))
        raise ValueError(f"prompt_bank {name!r} is not in params/prompts: the banks there are {banks}.")
    prompts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len({prompt["id"] for prompt in prompts}) < len(prompts):
        raise ValueError(f"{path}: a prompt id stands twice.")
    return prompts


def _model_inputs(run: Run, generation: int) -> dict[str, Any]:
    """What a measurement of the model on real text depends on."""
    model = loop.training(run, generation)["model_sha256"]
    return {"model": model, "real_text": run.real.sha256, "seed": run.seed}


@stage(
    parameters=("held_out_blocks", "block_tokens", "evaluation_stories", "story_tokens", *loop.SAMPLING),
    code=(loop.draw, train, corpora, generate, seeding, text_metrics, storyworld),
    inputs=_model_inputs,
)
def evaluation(run: Run, generation: int) -> dict:
    """Held-out perplexity, surface metrics of unconditional stories, and storyworld's tail metrics."""
    params, tokenizer = run.params, run.real.tokenizer
    model = loop.load(run, generation)
    result = train.perplexity(model, run.real.held_out, params.batch_size)
    # The same seeds for every model: differences between models are not differences between draws.
    seeds = [stable_seed(run.seed, "story", index) for index in range(params.evaluation_stories)]
    end = run.real.separator
    drawn = loop.draw(run, generation, [[end]] * len(seeds), seeds, params.story_tokens, "stories", stop_token=end)
    stories = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in drawn]
    result |= text_metrics.surface_metrics(stories)
    if params.corpus == "storyworld":
        result |= storyworld.tail_metrics(stories)
    return result | {"stories": stories[:5]}


def _prompt_inputs(run: Run, generation: int) -> dict[str, Any]:
    return {
        "model": loop.training(run, generation)["model_sha256"],
        "prompts": provenance.text_hash(provenance.canonical(prompt_bank(run.params.prompt_bank))),
        "seed": run.seed,
    }


@stage(
    parameters=("prompt_bank", "response_tokens", *loop.SAMPLING),
    code=(loop.draw, generate, seeding),
    inputs=_prompt_inputs,
    file="responses.jsonl",
)
def responses(run: Run, generation: int) -> dict:
    """Draws the responses to the frozen prompt bank: their number, the first three, and the hash of responses.jsonl."""
    params, tokenizer = run.params, run.real.tokenizer
    prompts = prompt_bank(params.prompt_bank)
    tokens = tokenizer([prompt["text"] for prompt in prompts], add_special_tokens=False).input_ids
    # Of one length, whatever the model does: the number of embedded blocks should not drift.
    starts = [[run.real.separator, *ids] for ids in tokens]
    seeds = [stable_seed(run.seed, "response", prompt["id"]) for prompt in prompts]
    drawn = loop.draw(run, generation, starts, seeds, params.response_tokens, "responses")
    lines = [
        {**prompt, "response": tokenizer.decode(ids, skip_special_tokens=True)}
        for prompt, ids in zip(prompts, drawn, strict=True)
    ]
    path = run.path(generation, "responses.jsonl")
    provenance.write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return {"responses_sha256": provenance.file_hash(path), "prompts": len(lines), "examples": lines[:3]}


def read_responses(run: Run, generation: int) -> list[dict[str, str]]:
    """Prompts with their responses."""
    lines = responses.artefact(run, generation).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


_SPECTRUM = ("curvature_blocks", "block_tokens", "lanczos_steps", "lanczos_probes", "curvature_memory_gb", "threads")
_SPECTRUM_CODE = (curvature_package, corpora, seeding)


def _spectrum_options(run: Run) -> dict[str, Any]:
    params = run.params
    return {
        "steps": params.lanczos_steps,
        "probes": params.lanczos_probes,
        # The same probes for every generation and condition of a seed.
        "seed": stable_seed(run.seed, "curvature"),
        "memory_budget": int(params.curvature_memory_gb * 2**30),
    }


@stage(parameters=(*_SPECTRUM, "published_power_iterations"), code=_SPECTRUM_CODE, inputs=_model_inputs)
def curvature(run: Run, generation: int) -> dict:
    """Our spectral signature and the published one, of the Hessian on the frozen held-out blocks."""
    options = _spectrum_options(run)
    model, batch = loop.load(run, generation), run.real.held_out[: run.params.curvature_blocks]
    state = run.path(generation, "curvature_state.json")
    identity = provenance.text_hash(provenance.canonical([_model_inputs(run, generation), options, len(batch)]))
    ours = curvature_package.spectral_signature(model, batch, **options, state=state, identity=identity)
    # The published width is read off the first of the same runs: the estimators differ, not their data.
    published = curvature_package.published_signature(
        model,
        batch,
        nodes=ours.nodes[0],
        weights=ours.weights[0],
        power_iterations=run.params.published_power_iterations,
        seed=options["seed"],
        memory_budget=options["memory_budget"],
    )
    state.unlink(missing_ok=True)
    return curvature_package.as_result(ours) | curvature_package.as_result(published)


@stage(parameters=_SPECTRUM, code=_SPECTRUM_CODE, inputs=_model_inputs)
def layers(run: Run, generation: int) -> dict:
    """The signature of each part of the network: of the Hessian's diagonal block in its parameters."""
    model, batch = loop.load(run, generation), run.real.held_out[: run.params.curvature_blocks]
    parts = curvature_package.layerwise_signatures(model, batch, **_spectrum_options(run))
    # Without the nodes of every part, which would be most of the record, and which nothing reads.
    drop = ("nodes", "weights")
    return {
        part: {name: value for name, value in curvature_package.as_result(signature).items() if name not in drop}
        for part, signature in parts
    }


# ---- SIGMA

sentence_encoder = functools.cache(models.Encoder)  # loaded only if something is left to embed
REFERENCE_BLOCKS = 200  # of storyworld: with the prompts of all banks more than twice the encoder's dimension


@functools.cache
def _live_space(embed: models.Encoder) -> sigma_package.LiveSpace:
    """The encoder's live directions, found on the same text for every profile: all prompt banks, and storyworld."""
    prompts = [prompt["text"] for bank in sorted(paths.PROMPTS.glob("*.jsonl")) for prompt in prompt_bank(bank.stem)]
    stories = storyworld.generate_stories(REFERENCE_BLOCKS, stable_seed("storyworld", "encoder"))
    return sigma_package.live_space(embed([*prompts, *stories]).numpy())


@stage(
    parameters=("response_block_words", "sigma_rho", "threads"),
    code=(_live_space, sigma_package, models, storyworld, text_metrics),
    inputs=lambda run, generation: {
        "responses": responses(run, generation)["responses_sha256"],
        "encoder": models.Encoder.sha256,
    },
    file="embeddings.safetensors",
)
def embeddings(run: Run, generation: int) -> dict:
    """Embeds the responses, block by block, in the encoder's live directions.

    The observed set is the prompt bank; the record of generation 0 holds its ids, the others their hash.
    Raises ValueError for an embedding beyond the energy cap ρ, and where there is no block.
    """
    params, embed = run.params, sentence_encoder()
    lines = read_responses(run, generation)
    observed = sigma_package.ObservedSet(tuple(line["id"] for line in lines))
    pieces = [sigma_package.split_blocks(line["response"], params.response_block_words) for line in lines]
    texts = [text for piece in pieces for text in piece]
    if not texts:
        raise ValueError(f"{run.folder}: no response fills half a block of {params.response_block_words} words.")
    rows, space = embed(texts).numpy(), _live_space(embed)
    sigma_package.GramAccumulator(space.dim).update(rows, rho=params.sigma_rho)  # refuses what exceeds the cap
    tensors = {
        "embeddings": torch.from_numpy(space.project(rows).astype(np.float32)),
        "prompts": torch.tensor([index for index, piece in enumerate(pieces) for _ in piece]),
        "blocks": torch.tensor([index for piece in pieces for index in range(len(piece))]),
    }
    path = run.path(generation, "embeddings.safetensors")
    provenance.write_atomically(path, lambda temporary: save_file(tensors, temporary))
    return {
        "embeddings_sha256": provenance.file_hash(path),
        "observed_sha256": observed.sha256,
        **({"observed_ids": list(observed.ids)} if generation == 0 else {}),
        "dimension": space.dim,
        "live_dimensions": space.m_eff,
        "dead_coordinates": list(space.dead_coordinates),
    }


def read_embeddings(run: Run, generation: int) -> sigma_package.Observed:
    """The embedded blocks of a checkpoint, checked against the observed set that generation 0 froze."""
    frozen = sigma_package.ObservedSet(tuple(embeddings(run, 0)["observed_ids"]))
    frozen.check(embeddings(run, generation)["observed_sha256"])
    tensors = load_file(embeddings.artefact(run, generation))
    rows, prompts, blocks = (tensors[name].numpy() for name in ("embeddings", "prompts", "blocks"))
    return sigma_package.Observed(rows.astype(np.float64), prompts, blocks)


def _logdet(rows: np.ndarray, gram: np.ndarray, total: int) -> dict[str, list[float] | None]:
    """log det G as [estimate, low, high], plug-in and corrected; None where the rows (n_A, m) are too few."""
    count, m = rows.shape
    if count <= m:
        return {"logdet_plug_in": None, "logdet_corrected": None}
    leverages = sigma_package.leverages(rows, gram)
    return {
        name: list(sigma_package.logdet_estimate(gram, count, total, correction, leverages=leverages)[:3])
        for name, correction in (("logdet_plug_in", "none"), ("logdet_corrected", "leverage"))
    }


def _sigma_inputs(run: Run, generation: int) -> dict[str, Any]:
    return {
        "generation_0": embeddings(run, 0)["embeddings_sha256"],
        "embeddings": embeddings(run, generation)["embeddings_sha256"],
        "responses": responses(run, generation)["responses_sha256"],
        "seed": run.seed,
    }


@stage(
    parameters=("sigma_delta", "sigma_rho", "blocks_per_generation"),
    code=(read_embeddings, _logdet, sigma_package, seeding, text_metrics),
    inputs=_sigma_inputs,
)
def sigma(run: Run, generation: int) -> dict:
    """Both SIGMA tracks, their drifts from generation 0 with bands, and the surface proxies of the responses."""
    # What the model wrote and nobody embedded: as many blocks as a generation trains on.
    budget = sigma_package.Budget(run.params.blocks_per_generation, run.params.sigma_rho, run.params.sigma_delta)
    unobserved, rho, delta = budget
    first, last = read_embeddings(run, 0), read_embeddings(run, generation)
    gram, count = last.rows.T @ last.rows, len(last.rows)
    total = count + unobserved
    lines = read_responses(run, generation)
    texts = [line["response"] for line in lines]
    return {
        "observed_blocks": count,
        "total_blocks": total,
        "dimension": embeddings(run, generation)["dimension"],
        "live_dimensions": last.rows.shape[1],
        "health": sigma_package.health_checks(last.rows, rho, delta),
        "track_one": sigma_package.track_one(gram, count, total, rho, delta),
        "track_one_sharp": sigma_package.track_one(gram, count, total, rho, delta, "water_filling"),
        "track_two": sigma_package.track_two(gram, count, delta),
        **_logdet(last.rows, gram, total),
        "drifts": sigma_package.banded_drifts(first, last, budget, run.seed),
        "bucket_drifts": sigma_package.bucket_drifts(first, last, [line["bucket"] for line in lines], budget, run.seed),
        "hashed_ngram_hhi": text_metrics.hashed_ngram_hhi(texts),
        "response_distinct_2": text_metrics.distinct_n(texts, 2),
    }


def generation(run: Run, generation: int) -> dict[str, dict]:
    """Trains and measures one generation (embedding excepted, which notebook 4 does); the stages' results.

    Raises IncoherentBaseline where the base model is not worth measuring.
    """
    with provenance.locked(run.base.folder, run.say):
        _require_coherent_base(run)
    with provenance.locked(run.owner(generation).folder, run.say):
        return {
            "training": loop.training(run, generation),
            "evaluation": evaluation(run, generation),
            "responses": responses(run, generation),
            "curvature": curvature(run, generation),
        }


def _require_coherent_base(run: Run) -> None:
    found, bound = evaluation(run, 0)["held_out_perplexity"], run.params.perplexity_bound
    if not found <= bound:
        raise IncoherentBaseline(
            f"{run.params.model}, seed {run.seed}: the base model's held-out perplexity is {found:.2f}, above "
            f"perplexity_bound {bound:g}; train it longer (baseline_epochs, baseline_blocks): "
            "the decline of an incoherent model cannot be measured."
        )
