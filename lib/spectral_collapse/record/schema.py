"""The schema of profiles: every parameter, its values, and the validation errors."""

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from . import paths

SOURCES = ("recursive", "fresh", "static", "mixed", "accumulate")
CONDITIONS = tuple(source + suffix for source in SOURCES for suffix in ("", "_carry", "_restart"))
# Names, places, and how this machine computes: no result depends on them beyond rounding. The content of a text or a
# checkpoint enters records by its hash.
PLACES = (
    *("profile", "base", "variant", "model", "data_path", "held_out_path"),
    *("device", "micro_batch", "gradient_checkpointing", "checkpoint_steps"),
)
# What is run, and when it stops; no result depends on them.
DESIGN = ("seeds", "conditions", "generations", "primary", "perplexity_bound", "layerwise_spectra")
# Names that select a run; they belong to an execution of a notebook, not to the profile.
SELECTORS = ("profile", "seed", "condition")


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Naming(_Group):
    """What the runs are called."""

    profile: str = Field(description="name of its file in params/ and of the first folder of its records")
    variant: str | None = Field(
        default=None,
        description="name of runs whose values differ from the profile's file; null: named by what differs",
    )
    base: str | None = Field(default=None, description="profile whose generation 0 the runs start from; null: this one")


class Design(_Group):
    """What is run: conditions, seeds, generations."""

    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        min_length=1, description="one run of every condition for each seed"
    )
    conditions: list[Literal[CONDITIONS]] = Field(
        min_length=1,
        description="where training text comes from, and with a suffix which weights a generation starts from",
    )
    generations: int = Field(ge=1, description="generations after the base model")
    weights: Literal["restart", "carry"] = Field(
        description="a generation starts from generation 0 (restart) or from the one before (carry); "
        "the suffix _restart or _carry of a condition overrides it"
    )
    real_fraction: float = Field(ge=0, le=1, description="share of real blocks in the `mixed` condition")
    shift_generation: int | None = Field(
        default=None, ge=1, description="first generation that is trained on another domain; null: none"
    )
    rescue_doses: list[Annotated[int, Field(ge=1)]] = Field(
        default=[],
        description="steps of real text, as multiples of a generation's, after which a rescue of the last generation "
        "is measured; none: one generation's alone, of every generation",
    )
    primary: list[str] = Field(
        default=[],
        max_length=4,
        description="hypotheses that the runs decide (`analysis.primary`), with Holm's correction over them; none: the "
        "runs are a demonstration",
    )


class Text(_Group):
    """Real text, and how it is cut into blocks. Lengths are in tokens unless the name says otherwise."""

    corpus: Literal["storyworld", "tinystories"] = Field(description="source of real text")
    data_path: str | None = Field(
        description="local file that replaces the hub: plain text, or .jsonl with a key `text`; ~ is expanded"
    )
    held_out_path: str | None = Field(description="its held-out split; null: the last tenth of data_path")
    documents: int = Field(ge=1, description="real documents that are read; of a file at most")
    vocabulary_size: int = Field(ge=257, description="of the byte-level BPE tokenizer of models trained from scratch")
    block_tokens: int = Field(ge=8, description="length of a training and of a held-out block")
    blocks_per_generation: int = Field(ge=1, description="training blocks of every generation")
    held_out_blocks: int = Field(ge=2, description="blocks of held-out real text for perplexity")


class Model(_Group):
    """The model, and the training that makes generation 0."""

    model: str = Field(description="short name: the second folder of the records")
    checkpoint: str | None = Field(
        description="hub name, local folder or .gguf file; null: `architecture` is trained from scratch"
    )
    architecture: Literal["llama", "gpt2", "opt", "qwen2"] = Field(
        default="llama", description="of a model trained from scratch"
    )
    revision: str | None = Field(description="commit hash of a hub checkpoint")
    hidden_size: int = Field(ge=8, description="width; a multiple of twice the heads")
    layers: int = Field(ge=1, description="transformer layers")
    heads: int = Field(ge=1, description="attention heads")
    baseline_blocks: int = Field(
        ge=0, description="real blocks for a base model from scratch, the same for all seeds; later slices follow them"
    )
    baseline_epochs: int = Field(ge=0, description="epochs of that training")
    baseline_learning_rate: float = Field(ge=0, description="its peak learning rate")
    baseline_sequence_tokens: int = Field(
        ge=8, description="sequence length in the base model's training, tuned or from scratch"
    )
    tuning_blocks: int = Field(
        default=0, ge=0, description="real blocks that a checkpoint is tuned on before generation 0; 0: it is not tuned"
    )
    tuning_epochs: int = Field(default=1, ge=1, description="epochs of that tuning")
    tuning_learning_rate: float | None = Field(
        default=None, gt=0, description="its peak learning rate; null: learning_rate"
    )
    perplexity_bound: float = Field(gt=1, description="no model with a higher held-out perplexity is measured")


class Training(_Group):
    """Training of a generation."""

    epochs: int = Field(ge=1, description="epochs of a generation")
    steps: int | None = Field(default=None, ge=1, description="optimizer steps of a generation, instead of epochs")
    batch_size: int = Field(ge=1, description="sequences of an optimizer step")
    learning_rate: float = Field(gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(ge=0, description="of AdamW")
    gradient_clip: float = Field(gt=0, description="largest norm of a gradient; a longer one is scaled down to it")
    warmup_fraction: float = Field(ge=0, lt=1, description="first share of the steps, of rising learning rate")
    schedule: Literal["constant", "linear", "cosine", "warmup_stable_decay"] = Field(
        description="of the learning rate after the warm-up"
    )
    decay_fraction: float = Field(default=0.2, gt=0, le=1, description="last share of the steps of warmup_stable_decay")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="dropout of every sublayer's output, after generation 0"
    )
    sharpness_radius: float = Field(
        default=0.0, ge=0, description="ρ of sharpness-aware minimization after generation 0; 0: none"
    )
    trust_memory: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Monitor-Trust-Regulator: share of the old trust that is kept; null: no regulator",
    )
    trust_gain: float = Field(
        default=5.0, gt=0, description="its loss of trust per relative contraction of the precursors"
    )
    track_two_tolerance: float | None = Field(
        default=None, ge=0, description="nats: training stops once Track II's band lies below minus this; null: never"
    )
    checkpoint_steps: int = Field(ge=1, description="optimizer steps between two saved training states")


class Sampling(_Group):
    """Sampling, for the evaluation and for the synthetic text."""

    prompting: Literal["context", "opening"] = Field(
        description="prompts are real blocks (context) or the first tokens of real documents (opening)"
    )
    opening_tokens: int = Field(ge=1, description="prompt length under `opening`")
    temperature: float = Field(gt=0, description="of sampling")
    top_k: int = Field(ge=0, description="tokens that may be drawn; 0: all")
    top_p: float = Field(gt=0, le=1, description="nucleus: least probability of the tokens that may be drawn")
    sampling_batch: int = Field(
        ge=1, description="sequences that are drawn at a time; fewer if they do not fit into memory"
    )


class Writing(_Group):
    """Sampling of the synthetic text, where it differs."""

    writing_temperature: float | None = Field(default=None, gt=0, description="null: temperature")
    writing_top_k: int | None = Field(default=None, ge=0, description="null: top_k")
    writing_top_p: float | None = Field(default=None, gt=0, le=1, description="null: top_p")
    writing_contexts: Literal["same", "new"] = Field(
        default="same", description="every generation continues the same real contexts or new ones"
    )
    rarity_exponent: float = Field(
        default=0.0, ge=0, description="exponent of resampling by the inverse frequency of tokens; 0: none"
    )
    candidates: int = Field(
        default=1, ge=1, description="continuations drawn for each context; the one that adds most diversity is kept"
    )


class Evaluation(_Group):
    """Text metrics and SIGMA."""

    evaluation_stories: int = Field(ge=2, description="stories that are sampled without a prompt for the text metrics")
    story_tokens: int = Field(ge=8, description="their largest length")
    prompt_bank: str = Field(description="a file of params/prompts, without its suffix .jsonl")
    response_tokens: int = Field(
        ge=8, description="tokens of a response that are drawn at a time, until it has the words of its blocks"
    )
    response_blocks: int = Field(
        ge=1, description="blocks of every response that are embedded; 4 with 200 prompts give twice the dimensions"
    )
    response_block_words: int = Field(ge=2, description="words of a response in one embedded block")
    sigma_delta: float = Field(gt=0, description="δ of log det(A + δI)")
    sigma_rho: float = Field(gt=0, description="ρ, bound of the squared norm of an embedding")


class Curvature(_Group):
    """Spectra of the Hessian, and the study of their estimators."""

    curvature_blocks: int = Field(ge=1, description="frozen held-out blocks of the loss whose Hessian is taken")
    lanczos_steps: int = Field(ge=4, description="Hessian-vector products of the first probe; others take one")
    lanczos_probes: int = Field(ge=2, description="random start vectors")
    curvature_memory_gb: float = Field(
        gt=0, description="GiB that curvature may take; it decides the precision of what is kept, hence is fixed"
    )
    layerwise_spectra: bool = Field(
        default=True, description="whether to measure the spectrum of every part of the network, for the first seed"
    )
    estimator_probes: int = Field(ge=2, description="probes of the study of the estimators' own noise")
    estimator_batches: int = Field(ge=2, description="its batches of curvature_blocks held-out blocks each")
    estimator_steps: list[Annotated[int, Field(ge=4)]] = Field(min_length=2, description="its numbers of Lanczos steps")


class Mechanism(_Group):
    """What changes inside the models."""

    mechanism_blocks: int = Field(
        ge=4, description="held-out blocks, and as many of the generation's own, of gradients and activations"
    )
    eigenvectors: int = Field(ge=1, description="leading Hessian eigenvectors of generation 0 that are followed")
    landscape_points: int = Field(ge=3, description="grid points along each axis of a slice of the loss; odd")


class Machine(_Group):
    """How this machine computes."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(description="auto: CUDA, otherwise MPS, otherwise the CPU")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32", description="of matrix products in training; auto: bfloat16 where a GPU has it"
    )
    micro_batch: int | None = Field(
        default=None, ge=1, description="sequences whose gradient is taken at a time; null: as many as fit"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass: less memory, a third more time"
    )
    threads: int = Field(ge=1, description="CPU threads; fixed, because it changes the last digit of sums")


GROUPS = (Naming, Design, Text, Model, Training, Sampling, Writing, Evaluation, Curvature, Mechanism, Machine)


class Params(*reversed(GROUPS)):  # pydantic takes the fields of the last base first
    """All parameters of a profile, as flat keys; `GROUPS` name them by subject."""

    @model_validator(mode="after")
    def _combination(self) -> "Params":
        def refuse(key: str, reason: str):
            raise ValueError(f"{key}: {reason}")

        for key in ("profile", "model", "prompt_bank", "variant"):
            if (value := getattr(self, key)) is not None:
                paths.path_name(value)
        for key, longest in (("profile", paths.LONGEST - 40), ("variant", 39)):
            if len(getattr(self, key) or "") > longest:
                refuse(key, f"{longest} characters at most, since both name a folder together.")
        for key in ("data_path", "held_out_path", "checkpoint"):
            if (value := getattr(self, key)) is not None and not _may_be_path(value):
                refuse(key, f"{paths.shown(value)} is no path: it holds a NUL, or ~ and an unknown user.")
        for key in ("seeds", "conditions", "primary"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                refuse(key, "the same entry stands twice.")
        if self.corpus == "storyworld" and (self.data_path or self.held_out_path):
            refuse("data_path", "storyworld is embedded and reads no file: set corpus to tinystories.")
        if self.held_out_path and not self.data_path:
            refuse("held_out_path", "needs data_path, the file it is the held-out split of.")
        if self.hidden_size % (2 * self.heads):
            refuse("heads", f"hidden_size {self.hidden_size} must be a multiple of twice the {self.heads} heads.")
        if self.prompting == "opening" and self.opening_tokens >= self.block_tokens:
            refuse("opening_tokens", f"must leave room in a block of {self.block_tokens} tokens.")
        if self.curvature_blocks > self.held_out_blocks:
            refuse("curvature_blocks", f"there are only {self.held_out_blocks} held_out_blocks.")
        if self.estimator_batches * self.curvature_blocks > self.held_out_blocks:
            refuse("estimator_batches", f"times curvature_blocks exceeds the {self.held_out_blocks} held_out_blocks.")
        if self.landscape_points % 2 == 0:
            refuse("landscape_points", "must be odd, so that the model itself is on the grid.")
        if self.checkpoint is not None and self.architecture != "llama":
            refuse("architecture", "a checkpoint has its own: leave it out, or set checkpoint to null.")
        if self.checkpoint is None and self.tuning_blocks:
            refuse(
                "tuning_blocks", "without a checkpoint there is none to tune: give baseline_blocks, or a checkpoint."
            )
        if self.checkpoint is None and not (self.baseline_blocks and self.baseline_epochs):
            refuse(
                "baseline_blocks",
                "without a checkpoint the base model must be trained: give blocks and epochs.",
            )
        if self.checkpoint is None and self.baseline_sequence_tokens < self.longest_sequence:
            refuse(
                "baseline_sequence_tokens",
                f"sampling reaches {self.longest_sequence} tokens, a length the base model must have seen.",
            )
        if self.writing_contexts == "new" and self.prompting != "context":
            refuse("writing_contexts", "openings are no contexts: set prompting to context.")
        return self

    @property
    def base_training(self) -> tuple[int, int, float]:
        """Blocks, epochs and learning rate of the training that makes generation 0; no blocks: there is none."""
        if self.checkpoint is None:
            return self.baseline_blocks, self.baseline_epochs, self.baseline_learning_rate
        rate = self.learning_rate if self.tuning_learning_rate is None else self.tuning_learning_rate
        return self.tuning_blocks, self.tuning_epochs, rate

    @property
    def longest_sequence(self) -> int:
        """Longest sequence of prompt and continuation drawn from the model, prompt bank apart."""
        context = 2 * self.block_tokens if self.prompting == "context" else self.block_tokens
        return max(context, self.story_tokens)


class Unnoted(RuntimeError):
    """A stage reads something that its record does not note."""


class Watched:
    """Parameters that report each read of one that determines results: `note(name, value)`.

    A local checkpoint is noted by the name of its folder; whoever reads its content notes that.
    """

    def __init__(self, params: Params, note: Callable[[str, Any], None]):
        self._params, self._note = params, note

    def __getattr__(self, name: str) -> Any:
        if name in Params.model_fields:
            value = getattr(self._params, name)
            if name not in PLACES:
                self._note(name, noted(name, value))
            return value
        if isinstance(derived := getattr(Params, name, None), property):
            return derived.fget(self)
        raise Unnoted(f"a stage reads params.{name}, which its record does not note: read each parameter by its name.")


def noted(name: str, value: Any) -> Any:
    """A parameter's value as records hold it."""
    if name == "checkpoint" and value is not None and value[:1] in "/~.":
        return Path(value).expanduser().resolve().name
    return value


def _may_be_path(text: str) -> bool:
    try:
        Path(text).expanduser()
    except RuntimeError:  # ~ and a user that there is not
        return False
    return "\0" not in text


def nearest_name(name: str, known: Iterable[str]) -> str:
    """The known name with the most similar spelling."""
    return difflib.get_close_matches(name[:100], known, n=1, cutoff=0.0)[0]


MOST = 10  # problems in one message


def sentence(error: ValidationError, source: str, known: Iterable[str]) -> str:
    """One clause a problem: the key, the reason, and for an unknown key the nearest known name."""
    lines, problems = [], error.errors()
    for problem in problems[:MOST]:
        key = ".".join(str(part)[:100] for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown parameter {key!r}; the nearest valid name is {nearest_name(key, known)!r}")
        elif problem["type"] == "missing":
            lines.append(f"parameter {key!r} is missing")
        elif problem["type"] == "value_error":
            lines.append(str(problem["ctx"]["error"]))
        else:
            value = problem["input"]
            near = ""
            if problem["type"] == "literal_error" and isinstance(value, str):
                choices = [part.strip("' ") for part in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]
                near = f" (nearest: {nearest_name(value, choices)!r})"
            elif problem["type"] == "float_type" and isinstance(value, str):
                near = " (YAML reads 1e-3 as text: write 1.0e-3)"
            elif problem["type"] == "list_type":
                near = f" (write a list as [a, b], for papermill also as -y '{key}: [a, b]')"
            lines.append(f"parameter {key!r}: {problem['msg'].lower()}, not {paths.shown(value)}{near}")
    if len(problems) > MOST:
        lines.append(f"and {len(problems) - MOST} more")
    return f"{source}: " + "; ".join(lines)


def validated(values: dict[str, Any], source: str = "parameters") -> Params:
    """Validated parameters, or a ValueError that names each wrong key, the reason and the nearest name."""
    # JSON and papermill turn 1.0 into 1: an int is welcome where a float is wanted.
    floats = {name for name, field in Params.model_fields.items() if field.annotation in (float, float | None)}
    small = {key for key in floats & values.keys() if type(values[key]) is int and abs(values[key]) < 2**53}
    values = {str(key): float(value) if key in small else value for key, value in values.items()}
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ValueError(sentence(error, source, [*Params.model_fields, *SELECTORS])) from None


def unknown_name(what: str, name: Any, known: Iterable[str]) -> ValueError:
    """The error of a name that is not among the known ones, with the nearest of those."""
    near = nearest_name(str(name), known)
    return ValueError(f"unknown {what} {paths.shown(name)}; the nearest valid name is {near!r}.")


def check_selectors(seed: Any, condition: Any) -> None:
    """ValueError unless these name a run of a profile."""
    if type(seed) is not int or seed < 0:
        raise ValueError(f"parameter 'seed' must be a whole number from 0 on, not {seed!r}.")
    if condition not in CONDITIONS:
        raise unknown_name("condition", condition, CONDITIONS)


def split_condition(condition: str, weights: str) -> tuple[str, str]:
    """(source of text, weights) of a condition: `recursive_carry` fixes weights, `recursive` takes the profile's."""
    for suffix in ("carry", "restart"):
        if condition.endswith("_" + suffix):
            return condition.removesuffix("_" + suffix), suffix
    return condition, weights
