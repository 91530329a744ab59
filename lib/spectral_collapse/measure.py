"""The measurements of a generation: its text, its responses, its curvature, their Gram matrix."""

import json
from collections.abc import Callable
from typing import Any

from . import (
    corpora,
    generate,
    hessian,
    lanczos,
    loop,
    models,
    paths,
    provenance,
    seeding,
    storyworld,
    text_metrics,
    train,
)
from . import curvature as curvature_module
from . import sigma as sigma_module
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
_SPECTRUM_CODE = (curvature_module, hessian, lanczos, corpora, seeding)


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
    ours = curvature_module.spectral_signature(model, batch, **options, state=state, identity=identity)
    # The published width is read off the first of the same runs: the estimators differ, not their data.
    published = curvature_module.published_signature(
        model,
        batch,
        nodes=ours.nodes[0],
        weights=ours.weights[0],
        power_iterations=run.params.published_power_iterations,
        seed=options["seed"],
        memory_budget=options["memory_budget"],
    )
    state.unlink(missing_ok=True)
    return curvature_module.as_result(ours) | curvature_module.as_result(published)


@stage(parameters=_SPECTRUM, code=_SPECTRUM_CODE, inputs=_model_inputs)
def layers(run: Run, generation: int) -> dict:
    """The signature of each part of the network: of the Hessian's diagonal block in its parameters."""
    model, batch = loop.load(run, generation), run.real.held_out[: run.params.curvature_blocks]
    parts = curvature_module.layerwise_signatures(model, batch, **_spectrum_options(run))
    # Without the nodes of every part, which would be most of the record, and which nothing reads.
    drop = ("nodes", "weights")
    return {
        part: {name: value for name, value in curvature_module.as_result(signature).items() if name not in drop}
        for part, signature in parts
    }


@stage(
    parameters=("response_block_words", "sigma_delta", "sigma_rho", "blocks_per_generation", "threads"),
    code=(sigma_module, models, text_metrics),
    inputs=lambda run, generation: {
        "responses": responses(run, generation)["responses_sha256"],
        "encoder": models.Encoder.sha256,
    },
)
def sigma(run: Run, generation: int, encoder: Callable[[], models.Encoder]) -> dict:
    """Both SIGMA tracks and the surface proxy of the responses; drifts are taken when series are read."""
    params, embed = run.params, encoder()
    texts = [line["response"] for line in read_responses(run, generation)]
    blocks = [block for text in texts for block in sigma_module.split_blocks(text, params.response_block_words)]
    if not blocks:
        raise ValueError(f"{run.folder}: no response fills half a block of {params.response_block_words} words.")
    gram = sigma_module.GramAccumulator(embed.dimension)
    gram.update(embed(blocks).numpy(), rho=params.sigma_rho)
    # What the model wrote and nobody embedded: as many blocks as a generation trains on.
    total = gram.n + params.blocks_per_generation
    delta, rho = params.sigma_delta, params.sigma_rho
    return {
        "observed_blocks": gram.n,
        "total_blocks": total,
        "dimension": embed.dimension,
        "track_one": sigma_module.track_one(gram.gram, gram.n, total, rho=rho, delta=delta),
        "track_two": sigma_module.track_two(gram.gram, gram.n, delta=delta),
        "hashed_ngram_hhi": text_metrics.hashed_ngram_hhi(texts),
        "response_distinct_2": text_metrics.distinct_n(texts, 2),
    }


def generation(run: Run, generation: int) -> dict[str, dict]:
    """Trains and measures one generation (embedding excepted, which `sigma` does); the stages' results.

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
