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

# ---- text of a generation


def draw(
    run: View,
    generation: int,
    prompts: list[list[int]],
    seeds: list[int],
    new_tokens: int,
    what: str,
    stop_token: int | None = None,
) -> list[list[int]]:
    """Continuations by the model of a generation, with the profile's decoding."""
    params, model = run.params, load(run, generation)
    return generate.sample(
        model,
        prompts,
        seeds,
        new_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        batch_size=params.sampling_batch,
        stop_token=stop_token,
        suppress_tokens=build.tokens_without_text(model, run.real.tokenizer),
        description=f"{run.condition} {generation}: {what}",
    )


def write(run: View, writer: int) -> torch.Tensor:
    """One synthetic block (N, T) from generation `writer` for each real context or opening.

    With the profile's decoding of synthetic text, the best of its `candidates`, resampled if it asks for that.
    """
    params = run.params
    if params.prompting == "context":
        prompts = run.real.slice(run.seed, writer if params.writing_contexts == "new" else 0).tolist()
        kept = 0
    else:
        prompts = run.real.openings(run.seed)
        kept = params.opening_tokens
    # A continuation does not depend on the condition's name: equal models write equal texts.
    seeds = [
        stable_seed(run.seed, params.corpus, context, writer, *([candidate] if candidate else []))
        for context in range(len(prompts))
        for candidate in range(params.candidates)
    ]
    prompts = [prompt for prompt in prompts for _ in range(params.candidates)]
    model = load(run, writer)
    drawn = generate.sample(
        model,
        prompts,
        seeds,
        params.block_tokens - kept,
        **interventions.decoding(params),
        batch_size=params.sampling_batch,
        suppress_tokens=build.tokens_without_text(model, run.real.tokenizer),
        description=f"{run.condition} {writer}: writing",
    )
    written = torch.tensor([prompt[:kept] + block for prompt, block in zip(prompts, drawn, strict=True)])
    if params.candidates > 1:
        written = interventions.choose(run, written.unflatten(0, (-1, params.candidates)))
    if params.rarity_exponent > 0:
        written = interventions.rare_sample(written, params.rarity_exponent, run.seed, writer)
    return written


def _compose(run: View, generation: int) -> dict[str, torch.Tensor]:
    """Blocks (N, T) of the generation, and which of them are synthetic (N,).

    `accumulate` draws again from what all generations wrote, so that each keeps what was written for it (N, T).
    """
    count, shift = run.params.blocks_per_generation, run.params.shift_generation
    if shift is not None and generation >= shift:
        other = interventions.other_domain(run, generation)
        return {"blocks": other, "synthetic": torch.zeros(count, dtype=torch.bool)}
    original = run.real.slice(run.seed, 0)
    order = estimate.generator(run.seed, run.source, generation)
    match run.source:
        case "fresh":
            blocks, synthetic = run.real.slice(run.seed, generation), torch.zeros(count, dtype=torch.bool)
        case "static":
            blocks, synthetic = original, torch.zeros(count, dtype=torch.bool)
        case "recursive":
            blocks, synthetic = write(run, generation - 1), torch.ones(count, dtype=torch.bool)
        case "mixed":
            real = torch.from_numpy(order.permutation(count)[: round(run.params.real_fraction * count)])
            synthetic = torch.ones(count, dtype=torch.bool)
            synthetic[real] = False
            blocks = torch.where(synthetic[:, None], write(run, generation - 1), original)
        case "accumulate":
            written = write(run, generation - 1)
            earlier = [load_file(text.artefact(run, each))["written"].long() for each in range(1, generation)]
            everything = torch.cat([original, *earlier, written])
            kept = torch.from_numpy(order.permutation(len(everything))[:count])
            return {"blocks": everything[kept], "synthetic": kept >= count, "written": written}
        case unknown:
            raise ValueError(f"no rule composes the text of source {unknown!r}: add one to loop._compose.")
    return {"blocks": blocks, "synthetic": synthetic}


@stage(file="text.safetensors")
def text(run: View, generation: int) -> dict:
    """Makes the training blocks of generation ≥ 1: their number, and how many are synthetic."""
    composed = _compose(run, generation)
    path = run.path(generation, "text.safetensors")
    tensors = {name: tensor.contiguous() for name, tensor in composed.items()}
    tensors |= {name: tensors[name].to(torch.int32) for name in tensors.keys() - {"synthetic"}}
    provenance.write_atomically(path, lambda temporary: save_file(tensors, temporary))
    return {
        "text_sha256": provenance.file_hash(path),
        "blocks": len(composed["blocks"]),
        "synthetic_blocks": int(composed["synthetic"].sum()),
    }


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
    """The recipe without what is meant for the generations after the base model."""
    return recipe_of(run, steps=None, dropout=0.0, sharpness_radius=0.0, **changes)


def _thinned(losses: list[float], points: int = 100) -> dict[str, list]:
    """Loss curve as at most `points` means over equal runs of steps, with the last step of each."""
    size = max(1, -(-len(losses) // points))
    runs = [losses[start : start + size] for start in range(0, len(losses), size)]
    ends = [min(len(losses), (index + 1) * size) for index in range(len(runs))]
    return {"step": ends, "loss": [sum(run) / len(run) for run in runs]}


def learn(
    run: View,
    generation: int,
    model: PreTrainedModel,
    blocks: torch.Tensor,
    recipe: train.Recipe,
    what: str = "training",
) -> tuple[list[float], Path]:
    """Trains `model` in place on blocks (N, T) of token ids: its losses in nats per token, one a step, and the file of
    the training's state, to be deleted once what was learned is kept.

    Goes on from a saved state of the same training: one that was reached by reading the same of the run. `what` names
    the training in its random numbers, its file and its messages. Raises train.TrainingDiverged.
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


def _fit(
    run: View,
    generation: int,
    model: PreTrainedModel,
    blocks: torch.Tensor,
    recipe: train.Recipe,
) -> dict:
    """Trains `model` in place and writes model.safetensors."""
    try:
        losses, state = learn(run, generation, model, blocks, recipe)
    except train.TrainingDiverged as error:
        partial = {"diverged": True, "losses": error.losses}
        provenance.write_text(run.path(generation, "diverged.json"), provenance.canonical(partial) + "\n")
        raise
    path = run.path(generation, "model.safetensors")
    # Tied tensors share memory and are stored once.
    tensors = {
        name: parallel.full_tensor(tensor.detach()).cpu().contiguous() for name, tensor in model.named_parameters()
    }
    provenance.write_atomically(path, lambda temporary: save_file(tensors, temporary))
    state.unlink(missing_ok=True)
    last = losses[-max(1, len(losses) // 4) :]
    if not last and len(blocks):  # no step: the loss that the first would have found
        last = train.block_losses(model, blocks, recipe.batch_size).tolist()
    return {
        "model_sha256": provenance.file_hash(path),
        "parameters": build.parameter_count(model),
        "steps": len(losses),
        "training_loss": sum(last) / len(last) if last else None,
        "curve": _thinned(losses),
    }


def _train_base(run: View, generation: int) -> dict:
    params = run.params
    blocks, epochs, rate = params.base_training
    model = parallel.place(build.initial_model(params, run.real.tokenizer, run.seed), run.device)
    if blocks == 0:  # without a step on the contexts, so that their loss is known
        return _fit(run, generation, model, run.real.slice(run.seed, 0), _base_recipe(run, epochs=0))
    # As many tokens in a batch as with blocks of the usual length.
    batch = max(1, params.batch_size * params.block_tokens // params.baseline_sequence_tokens)
    recipe = _base_recipe(run, epochs=epochs, learning_rate=rate, batch_size=batch)
    return _fit(run, generation, model, run.real.baseline(run.seed), recipe)


def _start(run: View, generation: int) -> int:
    """The generation whose weights a generation starts from."""
    return 0 if run.weights == "restart" else generation - 1


def _regulated_recipe(run: View, generation: int) -> train.Recipe:
    """The recipe at the learning rate that the generations before leave, without steps where that is 0."""
    if not interventions.regulated(run.params):
        return recipe_of(run)
    factor = interventions.intensity(run, generation)
    return recipe_of(run, learning_rate=factor * run.params.learning_rate) if factor > 0 else recipe_of(run, steps=0)


def _train_generation(run: View, generation: int) -> dict:
    text_blocks, recipe = blocks(run, generation), _regulated_recipe(run, generation)
    model = load(run, _start(run, generation))  # last, since whatever else is measured may load another
    holder = bare(run).base
    holder.loaded = None  # it is about to change
    result = _fit(run, generation, model, text_blocks, recipe)
    holder.loaded = (result["model_sha256"], model)
    return result


@stage(file="model.safetensors")
def training(run: View, generation: int) -> dict:
    """Trains a generation's model: loss curve, and the hash of model.safetensors."""
    return _train_generation(run, generation) if generation else _train_base(run, generation)


def load(run: Run | View, generation: int) -> PreTrainedModel:
    """The model of a generation, trained again if its file is gone or altered."""
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
