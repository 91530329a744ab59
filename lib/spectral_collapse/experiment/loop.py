"""The recursion: text and weights of the generations, from the base model on."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from .. import estimate
from ..estimate import stable_seed
from ..machine import devices, parallel
from ..model import build, generate, train
from ..record import provenance
from . import interventions
from .runs import Run, View, bare, stage


def save(run: View, generation: int, file: str, tensors: dict[str, torch.Tensor]) -> str:
    """Writes the file of a stage and returns its hash."""
    path, tensors = run.path(generation, file), {name: tensor.contiguous() for name, tensor in tensors.items()}
    provenance.write_atomically(path, lambda temporary: save_file(tensors, temporary))
    return provenance.file_hash(path)


# ---- text of a generation


def sample(
    run: View,
    generation: int,
    prompts: list[list[int]],
    seeds: list[int],
    new_tokens: int,
    what: str,
    stop_token: int | None = None,
    decoding: dict[str, Any] | None = None,
) -> list[list[int]]:
    """Continuations by the model of a generation, by default with the profile's decoding; `what` names them in the
    progress bar."""
    params, model = run.params, load(run, generation)
    if decoding is None:
        decoding = {"temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p}
    return generate.sample(
        model,
        prompts,
        seeds,
        new_tokens,
        **decoding,
        batch_size=params.sampling_batch,
        stop_token=stop_token,
        suppress_tokens=build.tokens_without_text(model, run.real.tokenizer),
        description=f"{run.condition} {generation}: {what}",
    )


def synthetic_blocks(run: View, writer: int) -> torch.Tensor:
    """One block (N, T) by the model of generation `writer` for each real context or opening, with the profile's
    interventions: decoding, the best of `candidates`, resampling by rarity."""
    params = run.params
    if params.prompting == "context":
        prompts = run.real.slice(run.seed, writer if params.writing_contexts == "new" else 0).tolist()
        kept = 0
    else:
        prompts = run.real.openings(run.seed)
        kept = params.opening_tokens
    # The condition is no part of the seed: equal models write equal texts.
    seeds = [
        stable_seed(run.seed, params.corpus, context, writer, *([candidate] if candidate else []))
        for context in range(len(prompts))
        for candidate in range(params.candidates)
    ]
    prompts = [prompt for prompt in prompts for _ in range(params.candidates)]
    length = params.block_tokens - kept
    sampled = sample(run, writer, prompts, seeds, length, "writing", decoding=interventions.decoding(params))
    blocks = torch.tensor([prompt[:kept] + block for prompt, block in zip(prompts, sampled, strict=True)])
    if params.candidates > 1:
        blocks = interventions.choose(run, blocks.unflatten(0, (-1, params.candidates)))
    if params.rarity_exponent > 0:
        blocks = interventions.rare_sample(blocks, params.rarity_exponent, run.seed, writer)
    return blocks


def _compose(run: View, generation: int) -> dict[str, torch.Tensor]:
    """Training blocks (N, T) of the generation, and which of them are synthetic (N,); for `accumulate`, which samples
    from the synthetic blocks of all generations, also those written for this one (N, T)."""
    count, shift = run.params.blocks_per_generation, run.params.shift_generation
    none, every = torch.zeros(count, dtype=torch.bool), torch.ones(count, dtype=torch.bool)
    if shift is not None and generation >= shift:
        return {"blocks": interventions.other_domain(run, generation), "synthetic": none}
    original = run.real.slice(run.seed, 0)
    order = estimate.generator(run.seed, run.source, generation)
    match run.source:
        case "fresh":
            return {"blocks": run.real.slice(run.seed, generation), "synthetic": none}
        case "static":
            return {"blocks": original, "synthetic": none}
        case "recursive":
            return {"blocks": synthetic_blocks(run, generation - 1), "synthetic": every}
        case "mixed":
            real = torch.from_numpy(order.permutation(count)[: round(run.params.real_fraction * count)])
            synthetic = every.index_fill(0, real, False)
            mixed = torch.where(synthetic[:, None], synthetic_blocks(run, generation - 1), original)
            return {"blocks": mixed, "synthetic": synthetic}
        case "accumulate":
            written = synthetic_blocks(run, generation - 1)
            earlier = [load_file(text.artefact(run, each))["written"].long() for each in range(1, generation)]
            everything = torch.cat([original, *earlier, written])
            kept = torch.from_numpy(order.permutation(len(everything))[:count])
            return {"blocks": everything[kept], "synthetic": kept >= count, "written": written}
        case unknown:
            raise ValueError(f"no rule composes the text of source {unknown!r}: add one to loop._compose.")


@stage(file="text.safetensors")
def text(run: View, generation: int) -> dict:
    """Makes the training blocks of generation ≥ 1; their number, and how many are synthetic."""
    tensors = _compose(run, generation)
    count, synthetic = len(tensors["blocks"]), int(tensors["synthetic"].sum())
    tensors |= {name: tensors[name].to(torch.int32) for name in tensors.keys() - {"synthetic"}}
    digest = save(run, generation, "text.safetensors", tensors)
    return {"text_sha256": digest, "blocks": count, "synthetic_blocks": synthetic}


def blocks(run: View, generation: int) -> torch.Tensor:
    """Training blocks (N, T) of generation ≥ 1."""
    return load_file(text.artefact(run, generation))["blocks"].long()


# ---- weights


def recipe_of(run: View, **changes: Any) -> train.Recipe:
    """The profile's training recipe, with changes."""
    names = [field.name for field in dataclasses.fields(train.Recipe) if field.name not in changes]
    fields = {name: getattr(run.params, name) for name in names}
    fields["precision"] = devices.pick_precision(fields["precision"], run.device)
    return train.Recipe(**fields, **changes)


def _base_recipe(run: View, **changes: Any) -> train.Recipe:
    """The recipe of the base model, without what is for later generations only."""
    return recipe_of(run, steps=None, dropout=0.0, sharpness_radius=0.0, **changes)


def _loss_curve(losses: list[float], points: int = 100) -> dict[str, list]:
    """At most `points` means of losses over as many steps each, and the last step of each."""
    size = max(1, -(-len(losses) // points))
    parts = [losses[start : start + size] for start in range(0, len(losses), size)]
    ends = [min(len(losses), (index + 1) * size) for index in range(len(parts))]
    return {"step": ends, "loss": [sum(part) / len(part) for part in parts]}


def train_model(
    run: View,
    generation: int,
    model: PreTrainedModel,
    blocks: torch.Tensor,
    recipe: train.Recipe,
    what: str = "training",
) -> tuple[list[float], Path]:
    """Trains `model` in place on blocks (N, T) of token ids: its loss at every step, in nats per token, and the file of
    the training state, which the caller deletes once the weights are saved.

    Resumes from a saved state of the same training, that is, of the same code and inputs. `what` names the training in
    its random numbers, its file and its messages. Raises train.TrainingDiverged.
    """
    state = run.path(generation, f"{what}_state.safetensors")
    state.parent.mkdir(parents=True, exist_ok=True)
    losses = train.train(
        model,
        blocks,
        recipe,
        seed_parts=(run.seed, what, generation),
        state=state,
        state_steps=run.params.checkpoint_steps,
        identity=run.identity(),
        micro_batch=run.params.micro_batch or train.fitting_batch(model, blocks, recipe),
        description=f"{run.condition} {generation}: {what}",
        say=run.say,
    )
    return losses, state


def _train_and_save(
    run: View, generation: int, model: PreTrainedModel, blocks: torch.Tensor, recipe: train.Recipe
) -> dict:
    """Trains `model` in place and writes model.safetensors."""
    try:
        losses, state = train_model(run, generation, model, blocks, recipe)
    except train.TrainingDiverged as error:
        partial = {"diverged": True, "losses": error.losses}
        provenance.write_text(run.path(generation, "diverged.json"), provenance.canonical(partial) + "\n")
        raise
    # Tied tensors share memory and are stored once.
    tensors = {name: parallel.full_tensor(tensor.detach()).cpu() for name, tensor in model.named_parameters()}
    digest = save(run, generation, "model.safetensors", tensors)
    state.unlink(missing_ok=True)
    last = losses[-max(1, len(losses) // 4) :]
    if not last and len(blocks):  # without a step, the loss at the start
        last = train.block_losses(model, blocks, recipe.batch_size).tolist()
    return {
        "model_sha256": digest,
        "parameters": build.parameter_count(model),
        "steps": len(losses),
        "training_loss": sum(last) / len(last) if last else None,
        "curve": _loss_curve(losses),
    }


def _train_base(run: View, generation: int) -> dict:
    params = run.params
    blocks, epochs, rate = params.base_training
    model = parallel.place(build.initial_model(params, run.real.tokenizer, run.seed), run.device)
    if blocks == 0:  # no step, but the loss on the contexts is measured
        return _train_and_save(run, generation, model, run.real.slice(run.seed, 0), _base_recipe(run, epochs=0))
    # As many tokens in a batch as with blocks of the usual length.
    batch = max(1, params.batch_size * params.block_tokens // params.baseline_sequence_tokens)
    recipe = _base_recipe(run, epochs=epochs, learning_rate=rate, batch_size=batch)
    return _train_and_save(run, generation, model, run.real.baseline(run.seed), recipe)


def _regulated_recipe(run: View, generation: int) -> train.Recipe:
    """The recipe with the learning rate of `interventions.intensity`, without a step where that is 0."""
    if not interventions.regulated(run.params):
        return recipe_of(run)
    factor = interventions.intensity(run, generation)
    return recipe_of(run, learning_rate=factor * run.params.learning_rate) if factor > 0 else recipe_of(run, steps=0)


def _train_generation(run: View, generation: int) -> dict:
    text_blocks, recipe = blocks(run, generation), _regulated_recipe(run, generation)
    # Last: the line above may load other models.
    model = load(run, 0 if run.weights == "restart" else generation - 1)
    holder = bare(run).base
    holder.loaded = None  # training changes it in place
    result = _train_and_save(run, generation, model, text_blocks, recipe)
    holder.loaded = (result["model_sha256"], model)
    return result


@stage(file="model.safetensors")
def training(run: View, generation: int) -> dict:
    """Trains the model of a generation; the loss curve, and the hash of model.safetensors."""
    return _train_generation(run, generation) if generation else _train_base(run, generation)


def load(run: Run | View, generation: int) -> PreTrainedModel:
    """The model of a generation; trained again if its file is missing or altered."""
    digest, run = training(run, generation)["model_sha256"], bare(run)
    if run.base.loaded and run.base.loaded[0] == digest:
        return run.base.loaded[1]
    path = training.artefact(run, generation)
    run.base.loaded = None  # make room
    model = build.initial_model(run.params, run.real.tokenizer, run.seed)
    missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    if unexpected or set(missing) - set(model.all_tied_weights_keys):
        raise ValueError(f"{path} does not belong to this model: delete {run.folder} to start this run afresh.")
    model.tie_weights()
    model = parallel.place(model, run.device)
    run.base.loaded = (digest, model.eval())
    return model
