"""Measurements of a generation: text metrics, predictions on real text, responses to prompts, curvature."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from .. import curvature as curvature_package
from ..estimate import stable_seed
from ..model import precursors, train
from ..record import provenance
from ..text import metrics as text_metrics
from ..text import storyworld
from ..text.prompts import bank_file, prompt_bank
from . import loop
from .runs import Run, View, stage


class IncoherentBaseline(ValueError):
    """The base model's held-out perplexity is above the profile's bound."""


@stage()
def evaluation(run: View, generation: int) -> dict:
    """Held-out perplexity; of unconditional stories surface metrics, coverage of rare tokens and storyworld's tails."""
    params, tokenizer = run.params, run.real.tokenizer
    model = loop.load(run, generation)
    result = train.perplexity(model, run.real.held_out, params.batch_size)
    # The same seeds for every model: differences between models are not differences between draws.
    seeds = [stable_seed(run.seed, "story", index) for index in range(params.evaluation_stories)]
    end = run.real.separator
    drawn = loop.sample(run, generation, [[end]] * len(seeds), seeds, params.story_tokens, "stories", stop_token=end)
    stories = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in drawn]
    metrics = text_metrics.surface_metrics(stories)
    metrics["rare_token_coverage"] = precursors.rare_token_coverage(drawn, run.real.held_out.flatten().tolist())
    if params.corpus == "storyworld":
        metrics |= storyworld.tail_metrics(stories)
    return result | text_metrics.with_intervals(metrics) | {"stories": stories[:5]}


def _write_lines(path: Path, lines: list[dict[str, str]]) -> str:
    """Writes one JSON document per line and returns the hash of the file."""
    provenance.write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return provenance.file_hash(path)


def read_lines(path: Path) -> list[dict[str, str]]:
    # Not splitlines(): a model may write U+2028 and the like, which it takes for ends of lines.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")]


@stage(file="continuations.jsonl")
def continuations(run: View, generation: int) -> dict:
    """Continues the first half of every held-out block: BLEU and ROUGE-L against its second half."""
    tokenizer, blocks = run.real.tokenizer, run.real.held_out.tolist()
    half = run.params.block_tokens // 2
    seeds = [stable_seed(run.seed, "continuation", index) for index in range(len(blocks))]
    new_tokens = run.params.block_tokens - half
    contexts, references = [block[:half] for block in blocks], [block[half:] for block in blocks]
    sampled = loop.sample(run, generation, contexts, seeds, new_tokens, "continuations")
    texts = [tokenizer.batch_decode(part, skip_special_tokens=True) for part in (contexts, sampled, references)]
    names = "context", "continuation", "reference"
    lines = [dict(zip(names, line, strict=True)) for line in zip(*texts, strict=True)]
    digest = _write_lines(run.path(generation, "continuations.jsonl"), lines)
    metrics = {"bleu": text_metrics.bleu(*texts[1:]), "rouge_l": text_metrics.rouge_l(*texts[1:])}
    return {"continuations_sha256": digest, **text_metrics.with_intervals(metrics)}


@stage(file="anchors.safetensors")
def anchors(run: View, generation: int) -> dict:
    """Predictive entropy on the held-out blocks, and the drift of their representations since the generation before, 0
    at generation 0."""
    model = loop.load(run, generation)
    entropies, after = precursors.anchor_statistics(model, run.real.held_out, run.params.batch_size)
    digest = loop.save(run, generation, "anchors.safetensors", {"representations": after})
    before = load_file(anchors.artefact(run, generation - 1))["representations"] if generation else after
    metrics = {
        "predictive_entropy": text_metrics.mean_over_texts(entropies),
        "representation_drift": precursors.representation_drift(before, after),
    }
    return {"anchors_sha256": digest, **text_metrics.with_intervals(metrics)}


ROUNDS = 4  # of response_tokens each; a response that is then too short is counted as such


def blocks_of(run: View, response: str) -> list[str]:
    """The first `response_blocks` blocks of a response, [] where it has fewer."""
    wanted = run.params.response_blocks
    blocks = text_metrics.split_blocks(response, run.params.response_block_words)[:wanted]
    return blocks if len(blocks) == wanted else []


@stage(file="responses.jsonl")
def responses(run: View, generation: int) -> dict:
    """Samples the responses to the frozen prompt bank; their number, and the hash of responses.jsonl.

    `response_tokens` tokens at a time until a response has the words of all its blocks, at most ROUNDS times and within
    the positions of the model.
    """
    params, tokenizer = run.params, run.real.tokenizer
    prompts = prompt_bank(run.file(bank_file(params.prompt_bank)).stem)
    tokens = tokenizer([prompt["text"] for prompt in prompts], add_special_tokens=False).input_ids
    starts = [[run.real.separator, *ids] for ids in tokens]
    positions = getattr(loop.load(run, generation).config, "max_position_embeddings", None) or math.inf
    drawn: list[list[int]] = [[] for _ in prompts]
    for number in range(ROUNDS):
        texts = tokenizer.batch_decode(drawn, skip_special_tokens=True)
        so_far = {
            place: start + ids
            for place, (start, ids, text) in enumerate(zip(starts, drawn, texts, strict=True))
            if not blocks_of(run, text) and len(start) + len(ids) + params.response_tokens <= positions
        }
        if not so_far:
            break
        seeds = [stable_seed(run.seed, "response", prompts[i]["id"], *([number] if number else [])) for i in so_far]
        more = loop.sample(run, generation, list(so_far.values()), seeds, params.response_tokens, "responses")
        for place, ids in zip(so_far, more, strict=True):
            drawn[place] += ids
    texts = tokenizer.batch_decode(drawn, skip_special_tokens=True)
    lines = [{**prompt, "response": text} for prompt, text in zip(prompts, texts, strict=True)]
    digest = _write_lines(run.path(generation, "responses.jsonl"), lines)
    return {"responses_sha256": digest, "prompts": len(lines)}


def read_responses(run: Run | View, generation: int) -> list[dict[str, str]]:
    """Prompts with their responses."""
    return read_lines(responses.artefact(run, generation))


def _spectrum_options(run: View) -> dict[str, Any]:
    params = run.params
    return {
        "steps": params.lanczos_steps,
        "probes": params.lanczos_probes,
        "later_steps": 1,  # which the moments need, and nothing else is taken from later probes
        # The same probes for every generation and condition of a seed.
        "seed": stable_seed(run.seed, "curvature"),
        "memory_budget": int(params.curvature_memory_gb * 2**30),
    }


@stage()
def curvature(run: View, generation: int) -> dict:
    """Signatures of the Hessian on the frozen held-out blocks: ours, the published one, read off our first Lanczos run,
    and the estimate for the expected loss."""
    options = _spectrum_options(run)
    common = {name: options[name] for name in ("seed", "memory_budget")}
    model, batch = loop.load(run, generation), run.real.held_out[: run.params.curvature_blocks]
    state = run.path(generation, "curvature_state.json")
    with provenance.room(state.parent):
        ours = curvature_package.spectral_signature(model, batch, **options, state=state, identity=run.identity())
    expected = curvature_package.population_signature(model, batch, ours, **common)
    published = curvature_package.published_signature(model, batch, signature=ours, **common)
    state.unlink(missing_ok=True)
    as_result = curvature_package.as_result
    return as_result(ours) | as_result(expected) | as_result(published)


@stage()
def layers(run: View, generation: int) -> dict:
    """The signature of each part of the network: of the Hessian's diagonal block in its parameters.

    Without the nodes, which nothing reads and which would be most of the record.
    """
    model, batch = loop.load(run, generation), run.real.held_out[: run.params.curvature_blocks]
    parts = curvature_package.layerwise_signatures(model, batch, **_spectrum_options(run))
    drop = ("nodes", "weights")
    return {
        part: {name: value for name, value in curvature_package.as_result(signature).items() if name not in drop}
        for part, signature in parts
    }


STAGES: dict[str, Callable[[Run, int], dict]] = {
    "training": loop.training,
    "evaluation": evaluation,
    "continuations": continuations,
    "anchors": anchors,
    "responses": responses,
    "curvature": curvature,
}


def generation(run: Run, generation: int, stages: dict[str, Callable[[Run, int], dict]] = STAGES) -> dict[str, dict]:
    """Trains and measures one generation; the results by stage. Embeddings are notebook 4's (`encoded`).

    Raises IncoherentBaseline where the base model is not worth measuring.
    """
    with provenance.locked(run.base.folder, run.say):
        found, bound = evaluation(run, 0)["held_out_perplexity"], run.params.perplexity_bound
        if not found <= bound:
            raise IncoherentBaseline(
                f"{run.params.model}, seed {run.seed}: the base model's held-out perplexity is {found:.2f}, above "
                f"perplexity_bound {bound:g}; train it longer (baseline_epochs, baseline_blocks): "
                "the decline of an incoherent model cannot be measured."
            )
        anchors(run, 0)
    with provenance.locked(run.owner(generation).folder, run.say):
        return {name: measured(run, generation) for name, measured in stages.items()}
