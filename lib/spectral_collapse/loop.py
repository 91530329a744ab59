"""The recursion: from the base model through the generations, each step a record that is made once."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from . import (
    corpora,
    curvature,
    generate,
    hessian,
    lanczos,
    models,
    paths,
    provenance,
    seeding,
    sigma,
    storyworld,
    text_metrics,
    train,
)
from . import params as params_module
from .params import Params
from .seeding import stable_seed

BASELINE = "baseline"

# What each stage's numbers depend on: these parameters, and the code in STAGE_CODE below. A stage is made
# again when one of them changes, and left alone when something else does.
_TEXT = ("corpus", "documents", "vocabulary_size", "block_tokens", "checkpoint", "revision")
_FIT = ("batch_size", "weight_decay", "warmup_fraction", "schedule", "threads")
_SAMPLING = ("temperature", "top_k", "top_p", "sampling_batch", "threads")
STAGE_PARAMETERS: dict[str, tuple[str, ...]] = {
    "baseline": (
        *("hidden_size", "layers", "heads", "baseline_blocks", "baseline_epochs", "baseline_learning_rate"),
        *("baseline_sequence_tokens", *_TEXT, *_FIT),
    ),
    "text": ("blocks_per_generation", "prompting", "opening_tokens", "real_fraction", *_SAMPLING),
    "training": ("epochs", "learning_rate", *_FIT),
    "evaluation": ("held_out_blocks", "block_tokens", "evaluation_stories", "story_tokens", *_SAMPLING),
    "responses": ("prompt_bank", "response_tokens", *_SAMPLING),
    "curvature": (
        *("curvature_blocks", "block_tokens", "lanczos_steps", "lanczos_probes"),
        *("published_power_iterations", "curvature_memory_gb", "threads"),
    ),
    "sigma": ("response_block_words", "sigma_delta", "sigma_rho", "blocks_per_generation", "threads"),
}
# Records of a generation; the base model's training is the stage `baseline` under the name of the others.
STAGES = ("text", "training", "evaluation", "responses", "curvature", "sigma")


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


class Run:
    """One condition at one seed: its folder, its generations, and the records of their stages.

    Every stage is computed once and found again by later calls, also those of another process. A stage
    whose record is damaged, or was made from other parameters, code or inputs, is computed again, and so
    are the weights and texts it needs if they are gone; `say` tells which and why.
    """

    def __init__(
        self,
        params: Params,
        condition: str,
        seed: int,
        *,
        real: corpora.RealText | None = None,
        say: Callable[[str], None] = print,
    ):
        self.params, self.condition, self.seed, self.say = params, condition, seed, say
        self.folder = paths.run_folder(params.profile, params.model, condition, seed)
        self.device = models.pick_device(params.device)
        torch.set_num_threads(params.threads)
        self._real = real
        self._results: dict[tuple[str, int], dict] = {}
        self._loaded: tuple[str, PreTrainedModel] | None = None
        self.source, self.weights = params_module.split_condition(condition, params.weights)

    # ---- what a run is made of

    @functools.cached_property
    def real(self) -> corpora.RealText:
        """The real text, tokenised; shared with the base run."""
        return self._real or corpora.RealText(self.params)

    @functools.cached_property
    def base(self) -> "Run":
        """The run that holds generation 0 of this seed: this one, if it is the baseline."""
        if self.condition == BASELINE:
            return self
        return Run(self.params, BASELINE, self.seed, real=self.real, say=self.say)

    def _owner(self, generation: int) -> "Run":
        return self.base if generation == 0 else self

    def path(self, generation: int, name: str) -> Path:
        """File of a generation; generation 0 belongs to the base run."""
        return paths.generation_folder(self._owner(generation).folder, generation) / name

    # ---- records

    def _stage(self, name: str, generation: int, inputs: dict[str, Any], compute: Callable[[], dict]) -> dict:
        """Result of a stage: read if its record holds, otherwise computed and written."""
        if (name, generation) in self._results:
            return self._results[name, generation]
        path = self.path(generation, f"{name}.json")
        kind = BASELINE if name == "training" and generation == 0 else name
        key = {
            "parameters": {parameter: getattr(self.params, parameter) for parameter in STAGE_PARAMETERS[kind]},
            "code": provenance.code_hash(*STAGE_CODE[kind]),
            "inputs": inputs,
        }
        try:
            result = provenance.read_result(path, key)
        except FileNotFoundError:
            result = self._compute(name, generation, path, key, compute)
        except provenance.StaleRecord as reason:
            self.say(f"{path.relative_to(paths.results_root())} is made again: {reason}.")
            result = self._compute(name, generation, path, key, compute)
        self._results[name, generation] = result
        return result

    def _compute(self, name: str, generation: int, path: Path, key: dict, compute: Callable[[], dict]) -> dict:
        started = time.perf_counter()
        result = compute()
        about = {
            "profile": self.params.profile,
            "model": self.params.model,
            "condition": BASELINE if generation == 0 else self.condition,
            "seed": self.seed,
            "generation": generation,
            "stage": name,
            "parameters": self.params.model_dump(exclude={"data_path", "held_out_path"}),
        }
        return provenance.write_record(
            path, result, key=key, about=about, seconds=time.perf_counter() - started, device=str(self.device)
        )

    def _artefact(self, path: Path, sha256: str) -> bool:
        return path.exists() and provenance.file_hash(path) == sha256

    # ---- text of a generation

    def text(self, generation: int) -> dict:
        """Record of the training blocks of generation ≥ 1: their source, and the hash of text.safetensors."""
        inputs = {"real_text": self.real.sha256, "seed": self.seed, "source": self.source}
        if self.source in ("recursive", "mixed", "accumulate"):
            inputs["writer"] = self._owner(generation - 1).training(generation - 1)["model_sha256"]
        if self.source == "accumulate" and generation > 1:
            inputs["earlier"] = self.text(generation - 1)["text_sha256"]
        return self._stage("text", generation, inputs, lambda: self._make_text(generation))

    def _make_text(self, generation: int) -> dict:
        blocks, synthetic = self._compose(generation)
        path = self.path(generation, "text.safetensors")
        tensors = {"blocks": blocks.to(torch.int32).contiguous(), "synthetic": synthetic.contiguous()}
        provenance.write_atomically(path, lambda temporary: save_file(tensors, temporary))
        return {
            "text_sha256": provenance.file_hash(path),
            "blocks": len(blocks),
            "synthetic_blocks": int(synthetic.sum()),
            "example": self.real.tokenizer.decode(blocks[0]),
        }

    def _compose(self, generation: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Blocks (N, T) of the generation, and which of them are synthetic (N,)."""
        count = self.params.blocks_per_generation
        if self.source == "fresh":
            return self.real.slice(self.seed, generation), torch.zeros(count, dtype=torch.bool)
        original = self.real.slice(self.seed, 0)
        if self.source == "static":
            return original, torch.zeros(count, dtype=torch.bool)
        written = self._write(generation - 1)
        if self.source == "recursive":
            return written, torch.ones(count, dtype=torch.bool)
        draw = seeding.generator(self.seed, self.source, generation)
        if self.source == "mixed":
            kept = torch.from_numpy(draw.permutation(count)[: round(self.params.real_fraction * count)])
            synthetic = torch.ones(count, dtype=torch.bool)
            synthetic[kept] = False
            return torch.where(synthetic[:, None], written, original), synthetic
        pools = [original, *(self._write(earlier) for earlier in range(generation - 1)), written]
        everything = torch.cat(pools)
        kept = torch.from_numpy(draw.permutation(len(everything))[:count])
        return everything[kept], kept >= count

    def _write(self, writer: int) -> torch.Tensor:
        """One synthetic block (N, T) from generation `writer` for each real context or opening."""
        params = self.params
        if params.prompting == "context":
            prompts = self.real.slice(self.seed, 0).tolist()
            kept = 0
        else:
            prompts = self.real.openings(self.seed)
            kept = params.opening_tokens
        # A continuation does not depend on the condition's name: equal models write equal texts.
        seeds = [stable_seed(self.seed, params.corpus, context, writer) for context in range(len(prompts))]
        drawn = self._draw(writer, prompts, seeds, params.block_tokens - kept, "writing")
        return torch.tensor([prompt[:kept] + block for prompt, block in zip(prompts, drawn, strict=True)])

    def _draw(
        self,
        generation: int,
        prompts: list[list[int]],
        seeds: list[int],
        new_tokens: int,
        what: str,
        stop_token: int | None = None,
    ) -> list[list[int]]:
        """Continuations by the model of a generation, with the profile's decoding."""
        params = self.params
        return generate.sample(
            self.load(generation),
            prompts,
            seeds,
            new_tokens,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            batch_size=params.sampling_batch,
            stop_token=stop_token,
            description=f"{self.condition} {generation}: {what}",
        )

    def blocks(self, generation: int) -> torch.Tensor:
        """Training blocks (N, T) of a generation, made again if their file is gone or altered."""
        path = self.path(generation, "text.safetensors")
        record = self.text(generation)
        if not self._artefact(path, record["text_sha256"]):
            self._make_text(generation)
        return load_file(path)["blocks"].long()

    # ---- weights

    def training(self, generation: int) -> dict:
        """Record of a generation's training: loss curve, and the hash of model.safetensors."""
        if generation == 0:
            inputs = {"real_text": self.real.sha256, "seed": self.seed}
            return self.base._stage("training", 0, inputs, self.base._train_baseline)
        start = 0 if self.weights == "restart" else generation - 1
        inputs = {
            "start": self._owner(start).training(start)["model_sha256"],
            "text": self.text(generation)["text_sha256"],
            "seed": self.seed,
        }
        return self._stage("training", generation, inputs, lambda: self._train_generation(generation, start))

    def _recipe(self, **changes: Any) -> train.Recipe:
        fields = {field.name: getattr(self.params, field.name) for field in dataclasses.fields(train.Recipe)}
        return train.Recipe(**{**fields, **changes})

    def _fit(
        self,
        generation: int,
        model: PreTrainedModel,
        blocks: torch.Tensor,
        recipe: train.Recipe,
        identity: list,
    ) -> dict:
        state = self.path(generation, "training_state.safetensors")
        state.parent.mkdir(parents=True, exist_ok=True)
        try:
            losses = train.train(
                model,
                blocks,
                recipe,
                seed_parts=(self.seed, "training", generation),
                state=state,
                state_steps=self.params.checkpoint_steps,
                identity=provenance.text_hash(provenance.canonical([identity, dataclasses.asdict(recipe)])),
                description=f"{self.condition} {generation}: training",
                say=self.say,
            )
        except train.TrainingDiverged as error:
            partial = {"diverged": True, "losses": error.losses}
            provenance.write_text(self.path(generation, "diverged.json"), provenance.canonical(partial) + "\n")
            raise
        path = self.path(generation, "model.safetensors")
        # Tied tensors share memory and are stored once.
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.named_parameters()}
        provenance.write_atomically(path, lambda temporary: save_file(tensors, temporary))
        state.unlink(missing_ok=True)
        last = losses[-max(1, len(losses) // 4) :]
        return {
            "model_sha256": provenance.file_hash(path),
            "parameters": models.parameter_count(model),
            "steps": len(losses),
            "training_loss": sum(last) / len(last) if last else None,
            "curve": _thinned(losses),
        }

    def _train_baseline(self) -> dict:
        params = self.params
        model = models.initial_model(params, self.real.tokenizer, self.seed).to(self.device)
        if params.baseline_epochs == 0:
            recipe, blocks = self._recipe(epochs=0), torch.empty(0, params.block_tokens, dtype=torch.long)
        else:
            blocks = self.real.baseline(self.seed)
            # As many tokens in a batch as with blocks of the usual length.
            batch = max(1, params.batch_size * params.block_tokens // params.baseline_sequence_tokens)
            recipe = self._recipe(
                epochs=params.baseline_epochs, learning_rate=params.baseline_learning_rate, batch_size=batch
            )
        return self._fit(0, model, blocks, recipe, [self.real.sha256, self.seed])

    def _train_generation(self, generation: int, start: int) -> dict:
        model = self.load(start)
        self._loaded = None  # it is about to change
        identity = [self._owner(start).training(start)["model_sha256"], self.text(generation)["text_sha256"]]
        result = self._fit(generation, model, self.blocks(generation), self._recipe(), identity)
        self._loaded = (result["model_sha256"], model)
        return result

    def load(self, generation: int) -> PreTrainedModel:
        """The model of a generation, trained again if its file is gone or altered."""
        owner = self._owner(generation)
        digest = owner.training(generation)["model_sha256"]
        if self._loaded and self._loaded[0] == digest:
            return self._loaded[1]
        path = self.path(generation, "model.safetensors")
        if not self._artefact(path, digest):
            if path.exists():
                self.say(f"{path.relative_to(paths.results_root())} does not match its record: trained again.")
            if generation == 0:
                again = owner._train_baseline()
            else:
                again = owner._train_generation(generation, 0 if owner.weights == "restart" else generation - 1)
            if again["model_sha256"] != digest:
                raise ValueError(
                    f"{path}: training again gave other weights than recorded (another machine or library?): "
                    "delete the folder of this run to start it afresh."
                )
        model = models.initial_model(self.params, self.real.tokenizer, self.seed).to(self.device)
        try:
            missing, unexpected = model.load_state_dict(load_file(path, device=str(self.device)), strict=False)
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read ({error}): delete it to have it made again.") from None
        tied = set(model.all_tied_weights_keys) if hasattr(model, "all_tied_weights_keys") else set()
        if unexpected or set(missing) - tied:
            raise ValueError(f"{path} does not belong to this model: delete it to have it made again.")
        model.tie_weights()
        self._loaded = (digest, model.eval())
        return model

    # ---- measurements

    def evaluation(self, generation: int) -> dict:
        """Held-out perplexity, surface metrics of unconditional stories, and storyworld's tail metrics."""
        owner = self._owner(generation)
        inputs = {
            "model": owner.training(generation)["model_sha256"],
            "real_text": self.real.sha256,
            "seed": self.seed,
        }
        return owner._stage("evaluation", generation, inputs, lambda: owner._evaluate(generation))

    def _evaluate(self, generation: int) -> dict:
        params, tokenizer = self.params, self.real.tokenizer
        model = self.load(generation)
        result = train.perplexity(model, self.real.held_out, params.batch_size)
        # The same seeds for every model: differences between models are not differences between draws.
        seeds = [stable_seed(self.seed, "story", index) for index in range(params.evaluation_stories)]
        end = self.real.separator
        drawn = self._draw(generation, [[end]] * len(seeds), seeds, params.story_tokens, "stories", stop_token=end)
        stories = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in drawn]
        result |= text_metrics.surface_metrics(stories)
        if params.corpus == "storyworld":
            result |= storyworld.tail_metrics(stories)
        return result | {"stories": stories[:5]}

    def responses(self, generation: int) -> dict:
        """Record of the responses to the frozen prompt bank, and the hash of responses.jsonl."""
        owner = self._owner(generation)
        prompts = prompt_bank(self.params.prompt_bank)
        inputs = {
            "model": owner.training(generation)["model_sha256"],
            "prompts": provenance.text_hash(provenance.canonical(prompts)),
            "seed": self.seed,
        }
        return owner._stage("responses", generation, inputs, lambda: owner._respond(generation))

    def _respond(self, generation: int) -> dict:
        params, tokenizer = self.params, self.real.tokenizer
        prompts = prompt_bank(params.prompt_bank)
        tokens = tokenizer([prompt["text"] for prompt in prompts], add_special_tokens=False).input_ids
        # Of one length, whatever the model does: the number of embedded blocks should not drift.
        starts = [[self.real.separator, *ids] for ids in tokens]
        seeds = [stable_seed(self.seed, "response", prompt["id"]) for prompt in prompts]
        drawn = self._draw(generation, starts, seeds, params.response_tokens, "responses")
        lines = [
            {**prompt, "response": tokenizer.decode(ids, skip_special_tokens=True)}
            for prompt, ids in zip(prompts, drawn, strict=True)
        ]
        path = self.path(generation, "responses.jsonl")
        provenance.write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return {"responses_sha256": provenance.file_hash(path), "prompts": len(lines), "examples": lines[:3]}

    def read_responses(self, generation: int) -> list[dict[str, str]]:
        """Prompts with their responses, drawn again if their file is gone or altered."""
        owner = self._owner(generation)
        path = self.path(generation, "responses.jsonl")
        digest = self.responses(generation)["responses_sha256"]
        if not self._artefact(path, digest) and owner._respond(generation)["responses_sha256"] != digest:
            raise ValueError(f"{path}: drawing again gave other responses than recorded: delete this run's folder.")
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def curvature(self, generation: int) -> dict:
        """Our spectral signature and the published one, of the Hessian on the frozen held-out blocks."""
        owner = self._owner(generation)
        inputs = {
            "model": owner.training(generation)["model_sha256"],
            "real_text": self.real.sha256,
            "seed": self.seed,
        }
        return owner._stage("curvature", generation, inputs, lambda: owner._measure_curvature(generation))

    def _measure_curvature(self, generation: int) -> dict:
        params = self.params
        model = self.load(generation)
        batch = self.real.held_out[: params.curvature_blocks]
        seed = stable_seed(self.seed, "curvature")
        budget = int(params.curvature_memory_gb * 2**30)
        ours = curvature.spectral_signature(
            model,
            batch,
            steps=params.lanczos_steps,
            probes=params.lanczos_probes,
            seed=seed,
            memory_budget=budget,
        )
        # The published width is read off the first of the same runs: the estimators differ, not their data.
        published = curvature.published_signature(
            model,
            batch,
            nodes=ours.nodes[0],
            weights=ours.weights[0],
            power_iterations=params.published_power_iterations,
            seed=seed,
            memory_budget=budget,
        )
        return curvature.as_result(ours) | curvature.as_result(published)

    def sigma(self, generation: int, encoder: Callable[[], models.Encoder]) -> dict:
        """Both SIGMA tracks and the surface proxy of the responses; drifts are taken when series are read."""
        owner = self._owner(generation)
        inputs = {
            "responses": self.responses(generation)["responses_sha256"],
            "encoder": models.Encoder.sha256,
        }
        return owner._stage("sigma", generation, inputs, lambda: owner._measure_sigma(generation, encoder()))

    def _measure_sigma(self, generation: int, encoder: models.Encoder) -> dict:
        params = self.params
        responses = [line["response"] for line in self.read_responses(generation)]
        blocks = [block for text in responses for block in sigma.split_blocks(text, params.response_block_words)]
        if not blocks:
            raise ValueError(f"{self.folder}: no response fills half a block of {params.response_block_words} words.")
        gram = sigma.GramAccumulator(encoder.dimension)
        gram.update(encoder(blocks).numpy(), rho=params.sigma_rho)
        # What the model wrote and nobody embedded: as many blocks as a generation trains on.
        total = gram.n + params.blocks_per_generation
        delta, rho = params.sigma_delta, params.sigma_rho
        return {
            "observed_blocks": gram.n,
            "total_blocks": total,
            "dimension": encoder.dimension,
            "track_one": sigma.track_one(gram.gram, gram.n, total, rho=rho, delta=delta),
            "track_two": sigma.track_two(gram.gram, gram.n, delta=delta),
            "hashed_ngram_hhi": text_metrics.hashed_ngram_hhi(responses),
            "response_distinct_2": text_metrics.distinct_n(responses, 2),
        }

    # ---- a whole run

    def generation(self, generation: int) -> dict[str, dict]:
        """Trains and measures one generation (embedding excepted, which `sigma` does); the stages' results."""
        with provenance.locked(self.base.folder, self.say):
            self._require_coherent_base()
        with provenance.locked(self._owner(generation).folder, self.say):
            return {
                "training": self._owner(generation).training(generation),
                "evaluation": self.evaluation(generation),
                "responses": self.responses(generation),
                "curvature": self.curvature(generation),
            }

    def _require_coherent_base(self) -> None:
        found, bound = self.evaluation(0)["held_out_perplexity"], self.params.perplexity_bound
        if not found <= bound:
            raise IncoherentBaseline(
                f"{self.params.model}, seed {self.seed}: the base model's held-out perplexity is {found:.2f}, above "
                f"perplexity_bound {bound:g}; train it longer (baseline_epochs, baseline_blocks): "
                "the decline of an incoherent model cannot be measured."
            )


def _thinned(losses: list[float], points: int = 100) -> dict[str, list]:
    """Loss curve as at most `points` means over equal runs of steps, with the last step of each."""
    size = max(1, -(-len(losses) // points))
    runs = [losses[start : start + size] for start in range(0, len(losses), size)]
    ends = [min(len(losses), (index + 1) * size) for index in range(len(runs))]
    return {"step": ends, "loss": [sum(run) / len(run) for run in runs]}


STAGE_CODE = {
    "baseline": (Run._train_baseline, Run._fit, Run._recipe, _thinned, train, corpora, seeding, models, storyworld),
    "text": (Run._compose, Run._write, Run._draw, corpora, generate, seeding, models, storyworld),
    "training": (Run._train_generation, Run._fit, Run._recipe, _thinned, train, seeding, models),
    "evaluation": (Run._evaluate, Run._draw, train, corpora, generate, seeding, text_metrics, storyworld),
    "responses": (Run._respond, Run._draw, generate, seeding),
    "curvature": (Run._measure_curvature, curvature, hessian, lanczos, corpora, seeding),
    "sigma": (Run._measure_sigma, sigma, models, text_metrics),
}
