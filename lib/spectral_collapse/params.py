"""The one schema of every profile: read, checked and explained before anything runs."""

import ast
import difflib
import itertools
import types
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from . import paths

SOURCES = ("recursive", "fresh", "static", "mixed", "accumulate")
CONDITIONS = tuple(source + suffix for source in SOURCES for suffix in ("", "_carry", "_restart"))
# Names that choose what to run; they belong to a notebook's execution, not to the profile.
SELECTORS = ("profile", "seed", "condition")
# What a profile with a `base` may set for itself: all that happens after generation 0.
AFTER_BASE = (
    *("profile", "base", "seeds", "conditions", "generations", "weights", "real_fraction", "shift_generation"),
    *("blocks_per_generation", "perplexity_bound", "checkpoint_steps", "prompting", "opening_tokens"),
    *("epochs", "steps", "batch_size", "learning_rate", "weight_decay", "warmup_fraction", "schedule"),
    *("decay_fraction", "dropout", "sharpness_radius", "trust_memory", "trust_gain", "track_two_tolerance"),
    *("writing_temperature", "writing_top_k", "writing_top_p", "writing_contexts", "rarity_exponent", "candidates"),
    *("estimator_probes", "estimator_batches", "estimator_steps"),
)
# Where things are on this machine, and how it computes: the base's as well.
PLACES = ("data_path", "held_out_path", "device", "precision", "micro_batch", "gradient_checkpointing")
SCALED = ("blocks_per_generation", "steps")  # what the scale of a grid multiplies
GRID, DEMONSTRATION = "ablations", "smoke"  # the grid of the paper, and the factor of notebook 5 as committed
PLAIN = (bool, int, float, str, list, dict, types.NoneType)


class Params(BaseModel):
    """Everything that determines a run's numbers. Lengths are in tokens unless the name says otherwise."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    profile: str = Field(description="name of the profile: the first folder under results/")
    base: str | None = Field(default=None, description="profile whose generation 0 the runs start from; null: this one")

    # design
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        min_length=1, description="one run of every condition for each seed"
    )
    conditions: list[Literal[CONDITIONS]] = Field(min_length=1, description="see `SOURCES`")
    generations: int = Field(ge=1, description="generations after the base model")
    weights: Literal["restart", "carry"] = Field(
        description="each generation starts from generation 0 (restart) or from the one before (carry); "
        "a condition named with the suffix _restart or _carry fixes it for itself"
    )
    real_fraction: float = Field(ge=0, le=1, description="share of real blocks in the `mixed` condition")
    shift_generation: int | None = Field(
        default=None, ge=1, description="first generation trained on another domain (`interventions.other_domain`)"
    )

    # text
    corpus: Literal["storyworld", "tinystories"] = Field(description="source of real text")
    data_path: str | None = Field(description="local text file used instead of the hub; ~ is expanded")
    held_out_path: str | None = Field(description="its held-out split; null: the last tenth of data_path")
    documents: int = Field(ge=1, description="real documents read (storyworld, hub) or at most read (file)")
    vocabulary_size: int = Field(ge=257, description="byte-level BPE, for models trained from scratch")
    block_tokens: int = Field(ge=8, description="length of a training and of a held-out block")
    blocks_per_generation: int = Field(ge=1, description="training blocks of every generation")
    held_out_blocks: int = Field(ge=2, description="blocks of held-out real text for perplexity")

    # model
    model: str = Field(description="short name: the second folder under results/")
    checkpoint: str | None = Field(description="hub name or local folder; null: train `architecture` from scratch")
    architecture: Literal["llama", "gpt2", "opt", "qwen2"] = "llama"
    revision: str | None = Field(description="commit hash of a hub checkpoint")
    hidden_size: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    baseline_blocks: int = Field(ge=0, description="real blocks the base model trains on, all seeds alike")
    baseline_epochs: int = Field(ge=0)
    baseline_learning_rate: float = Field(ge=0)
    baseline_sequence_tokens: int = Field(ge=8, description="training length of the base model")
    perplexity_bound: float = Field(gt=1, description="held-out perplexity above which nothing is measured")

    # training of a generation
    epochs: int = Field(ge=1)
    steps: int | None = Field(default=None, ge=1, description="optimizer steps of a generation, instead of epochs")
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup_fraction: float = Field(ge=0, lt=1)
    schedule: Literal["constant", "linear", "cosine", "warmup_stable_decay"]
    decay_fraction: float = Field(default=0.2, gt=0, le=1, description="last share of the steps of warmup_stable_decay")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of every sublayer's output, after generation 0")
    sharpness_radius: float = Field(
        default=0.0, ge=0, description="ρ of sharpness-aware minimization after generation 0; 0: none"
    )
    trust_memory: float | None = Field(
        default=None, ge=0, lt=1, description="Monitor-Trust-Regulator: share of the old trust kept; null: none"
    )
    trust_gain: float = Field(default=5.0, gt=0, description="its loss of trust per relative contraction")
    track_two_tolerance: float | None = Field(
        default=None, ge=0, description="nats: training stops once Track II's band lies below minus this; null: never"
    )
    checkpoint_steps: int = Field(ge=1, description="optimizer steps between two saved training states")

    # sampling
    prompting: Literal["context", "opening"]
    opening_tokens: int = Field(ge=1, description="prompt length under `opening`")
    temperature: float = Field(gt=0)
    top_k: int = Field(ge=0, description="0: no limit")
    top_p: float = Field(gt=0, le=1)
    sampling_batch: int = Field(ge=1, description="sequences drawn at a time; fewer where they do not fit into memory")

    # writing of synthetic text, where it differs from sampling for the evaluation
    writing_temperature: float | None = Field(default=None, gt=0, description="null: temperature; top_k, top_p alike")
    writing_top_k: int | None = Field(default=None, ge=0)
    writing_top_p: float | None = Field(default=None, gt=0, le=1)
    writing_contexts: Literal["same", "new"] = Field(
        default="same", description="real contexts that are continued: the same or new ones every generation"
    )
    rarity_exponent: float = Field(
        default=0.0, ge=0, description="resampling of blocks by the inverse frequency of their tokens; 0: none"
    )
    candidates: int = Field(
        default=1, ge=1, description="continuations of a context, of which the most diversifying one is kept"
    )

    # evaluation
    evaluation_stories: int = Field(ge=2, description="unconditional stories sampled for the text metrics")
    story_tokens: int = Field(ge=8, description="longest of them")
    prompt_bank: str = Field(description="a file of params/prompts, without .jsonl")
    response_tokens: int = Field(ge=8, description="length of every response to the prompt bank")
    response_block_words: int = Field(ge=2, description="words of a response in one embedded block")
    sigma_delta: float = Field(gt=0)
    sigma_rho: float = Field(gt=0, description="cap of the squared norm of an embedding")

    # curvature
    curvature_blocks: int = Field(ge=1, description="frozen held-out blocks of the loss whose Hessian is taken")
    lanczos_steps: int = Field(ge=4)
    lanczos_probes: int = Field(ge=2)
    published_power_iterations: int = Field(ge=1, description="limit of the published estimator's power iteration")
    curvature_memory_gb: float = Field(
        gt=0, description="GiB that curvature may take; fixed, because what is kept in which type follows from it"
    )

    estimator_probes: int = Field(ge=2, description="probes of the study of the estimators' own noise")
    estimator_batches: int = Field(ge=2, description="its batches of curvature_blocks held-out blocks each")
    estimator_steps: list[Annotated[int, Field(ge=4)]] = Field(min_length=2, description="its numbers of Lanczos steps")

    # mechanism
    mechanism_blocks: int = Field(
        ge=4, description="held-out blocks, and as many of the generation's own, of gradients and activations"
    )
    eigenvectors: int = Field(ge=1, description="leading Hessian eigenvectors of generation 0 that are followed")
    landscape_points: int = Field(ge=3, description="grid points along each axis of a slice of the loss; odd")

    # machine
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(description="auto: CUDA, else MPS, else the CPU")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32", description="of the training's products (auto: see `models.pick_precision`)"
    )
    micro_batch: int | None = Field(
        default=None, ge=1, description="sequences of a batch whose gradient is taken at a time; null: as many as fit"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="activations made again in the backward pass: less memory, a third more time"
    )
    threads: int = Field(ge=1, description="CPU threads; fixed, because it changes the last digit of sums")

    @model_validator(mode="after")
    def _combination(self) -> "Params":
        def refuse(key: str, reason: str):
            raise ValueError(f"{key}: {reason}")

        for key in ("profile", "model", "prompt_bank"):
            paths.path_name(getattr(self, key))
        for key in ("data_path", "held_out_path", "checkpoint"):
            if (value := getattr(self, key)) is not None and not _may_be_path(value):
                refuse(key, f"{paths.shown(value)} is no path: it holds a NUL, or ~ and an unknown user.")
        for key in ("seeds", "conditions"):
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
        if self.base is not None:
            other = self.base_params()
            apart = [name for name in Params.model_fields if getattr(self, name) != getattr(other, name)]
            if wrong := [name for name in apart if name not in AFTER_BASE]:
                refuse("base", f"generation 0 of {self.base} has another {', '.join(wrong)}: set base to null.")
        return self

    def base_params(self) -> "Params":
        """Parameters of the profile that generation 0 belongs to. ValueError where that one has a base too."""
        if self.base is None:
            return self
        # Before it is loaded, or two profiles that name each other would be loaded for ever.
        if (further := _profile_values(self.base).get("base")) is not None:
            raise ValueError(f"base: {self.base} starts from {paths.shown(further)} itself: name that.")
        return load(self.base, **{name: getattr(self, name) for name in PLACES})

    @property
    def longest_sequence(self) -> int:
        """Longest sequence of prompt and continuation drawn from the model, prompt bank apart."""
        context = 2 * self.block_tokens if self.prompting == "context" else self.block_tokens
        return max(context, self.story_tokens)


def _may_be_path(text: str) -> bool:
    try:
        Path(text).expanduser()
    except RuntimeError:  # ~ and a user that there is not
        return False
    return "\0" not in text


def _nearest_name(name: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(name[:100], known, n=1, cutoff=0.0)[0]


MOST = 10  # problems in one message


def _sentence(error: ValidationError, source: str, known: Iterable[str]) -> str:
    """One sentence a problem: the key, the reason, and the nearest of the known names for an unknown key."""
    lines, problems = [], error.errors()
    for problem in problems[:MOST]:
        key = ".".join(str(part)[:100] for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown parameter {key!r}; the nearest valid name is {_nearest_name(key, known)!r}")
        elif problem["type"] == "missing":
            lines.append(f"parameter {key!r} is missing")
        elif problem["type"] == "value_error":
            lines.append(str(problem["ctx"]["error"]))
        else:
            value = problem["input"]
            near = ""
            if problem["type"] == "literal_error" and isinstance(value, str):
                choices = [part.strip("' ") for part in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]
                near = f" (nearest: {_nearest_name(value, choices)!r})"
            elif problem["type"] == "float_type" and isinstance(value, str):
                near = " (YAML reads 1e-3 as text: write 1.0e-3)"
            lines.append(f"parameter {key!r}: {problem['msg'].lower()}, not {paths.shown(value)}{near}")
    if len(problems) > MOST:
        lines.append(f"and {len(problems) - MOST} more")
    return f"{source}: " + "; ".join(lines)


def check(values: dict[str, Any], source: str = "parameters") -> Params:
    """Validated parameters, or a ValueError that names each wrong key, the reason and the nearest name."""
    # JSON and papermill turn 1.0 into 1: an int is welcome where a float is wanted.
    floats = {name for name, field in Params.model_fields.items() if field.annotation in (float, float | None)}
    small = {key for key in floats & values.keys() if type(values[key]) is int and abs(values[key]) < 2**53}
    values = {str(key): float(value) if key in small else value for key, value in values.items()}
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ValueError(_sentence(error, source, [*Params.model_fields, *SELECTORS])) from None


def profiles() -> list[str]:
    """Names of the profiles in params/, without grids of them."""
    files = sorted(paths.PARAMS.glob("*.yaml"))
    return [file.stem for file in files if b"\nfactors:" not in file.read_bytes()]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or a ValueError naming the file, and the key if one stands twice."""
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        pairs = yaml.compose(text, Loader=yaml.SafeLoader).value if isinstance(values, dict) else []
    except FileNotFoundError:
        raise ValueError(
            f"{path.name} is not in {path.parent}: the profiles there are {', '.join(profiles())}."
        ) from None
    except Exception as error:  # PyYAML lets through whatever its converters raise, of `!!int x` or 2001-13-45
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{path}: not readable as YAML ({reason}).") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected lines of the form 'key: value'.")
    keys = Counter(key.value for key, _ in pairs if isinstance(key.value, str))
    if twice := [key for key in keys if keys[key] > 1]:  # of which PyYAML keeps the last
        raise ValueError(f"{path}: parameter {paths.shown(twice[0])} stands twice: delete one of the two lines.")
    return values


def _file(profile: str) -> Path:
    path = paths.PARAMS / f"{paths.path_name(profile)}.yaml"
    grid = paths.PARAMS / f"{profile.split('.')[0]}.yaml"
    return grid if _is_cell(profile) else path


# ---- grids: a file with `factors`, each cell of which is a profile


def _is_cell(profile: str) -> bool:
    name = paths.path_name(profile)
    return "." in name and not (paths.PARAMS / f"{name}.yaml").exists()


def _nearest(what: str, name: Any, known: Iterable[str]) -> ValueError:
    near = _nearest_name(str(name), known)
    return ValueError(f"unknown {what} {paths.shown(name)}; the nearest valid name is {near!r}.")


class _Entry(BaseModel):
    """What a grid may hold: names, levels and tests that are misspelt are refused when it is read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Test(_Entry):
    metric: str
    level: str
    against: str | None = None
    control: Literal[CONDITIONS] | None = None
    region: list[float | None] = Field(min_length=2, max_length=2)


class _Factor(_Entry):
    question: str
    reference: str
    levels: dict[str, dict[str, Any]] = Field(min_length=1)
    hypothesis: str
    test: _Test
    shared: dict[str, Any] = {}
    extends: str | None = None


class _Grid(_Entry):
    extends: str
    scale: float = Field(default=1, gt=0)
    factors: dict[str, _Factor] = Field(min_length=1)
    grid: str | None = None

    @model_validator(mode="after")
    def _names(self) -> "_Grid":
        for factor, entry in self.factors.items():
            for name in (factor, *entry.levels):  # they name folders and profiles
                paths.path_name(name)
        for name in {self.extends, *(entry.extends or self.extends for entry in self.factors.values())}:
            if _is_cell(name):
                raise ValueError(f"extends: {name!r} is a cell of a grid: name a profile.")
        return self


def read_grid(name: str) -> dict[str, Any]:
    """A grid of profiles: `extends` (a profile), `scale`, and `factors` by name, each with its `levels`.

    A grid with the key `grid` takes the factors that it lists from that other one. ValueError where `factors` is
    missing, or an entry is not what `_Grid` says.
    """
    path = _file(name)
    values = read_yaml(path)
    if "grid" in values:
        if "grid" in read_yaml(_file(values["grid"])):
            raise ValueError(f"{path}: grid must name a grid that takes its factors from no other.")
        whole, kept = read_grid(values["grid"]), values.get("factors")
        kept = list(whole["factors"]) if kept is None else kept
        if not isinstance(kept, list) or not all(isinstance(factor, str) for factor in kept):
            raise ValueError(f"{path}: factors must list names of factors of grid {values['grid']!r}.")
        if unknown := [factor for factor in kept if factor not in whole["factors"]]:
            raise _nearest(f"factor of grid {values['grid']!r}", unknown[0], list(whole["factors"]))
        values = {**whole, **values, "factors": {factor: whole["factors"][factor] for factor in kept}}
    if not isinstance(values.get("factors"), dict):
        raise ValueError(f"{path}: a grid needs 'factors'; this is no grid.")
    for factor in values["factors"].values():
        if isinstance(factor, dict) and isinstance(factor.get("levels"), dict):
            # Written as numbers, or as nothing where a level changes nothing.
            factor["levels"] = {str(level): changes or {} for level, changes in factor["levels"].items()}
    values = {"scale": 1, **values}
    try:
        _Grid.model_validate(values)
    except ValidationError as error:
        known = itertools.chain(*(entry.model_fields for entry in (_Grid, _Factor, _Test)))
        raise ValueError(_sentence(error, path.name, list(known))) from None
    return values


def studied_factors(grid: str) -> list[str]:
    """The factors of a grid, less the one of the committed notebook, of which nothing is learned."""
    return [factor for factor in read_grid(grid)["factors"] if factor != DEMONSTRATION]


def grid_files(grid: str) -> list[Path]:
    """The file of a grid, after those of the grid it takes its factors from and of the profiles it extends."""
    whole = read_grid(grid)
    extended = {factor.get("extends", whole["extends"]) for factor in whole["factors"].values()}
    files = [file for profile in sorted(extended) for file in profile_files(profile)]
    return list(dict.fromkeys([*files, *([_file(whole["grid"])] if "grid" in whole else []), _file(grid)]))


def read_factor(grid: str, factor: str) -> dict[str, Any]:
    """A factor of a grid, its levels' names as text. ValueError naming the nearest for an unknown one."""
    known = read_grid(grid)["factors"]
    if factor not in known:
        raise _nearest(f"factor of grid {grid!r}", factor, list(known))
    return known[factor]


def _cell(profile: str) -> tuple[str, dict[str, Any]]:
    """The profile that a cell `<grid>.<factor>.<level>` extends, and what it changes there."""
    grid, *rest = profile.split(".", 2)
    if len(rest) < 2:
        raise ValueError(f"{profile!r} is no cell of grid {grid!r}: name one as {grid}.<factor>.<level>.")
    values, factor = read_grid(grid), read_factor(grid, rest[0])
    if rest[1] not in factor["levels"]:
        raise _nearest(f"level of factor {rest[0]!r}", rest[1], list(factor["levels"]))
    changes = {**factor.get("shared", {}), **factor["levels"][rest[1]]}
    whole = [name for name in SCALED if type(changes.get(name)) is int]
    scaled = {name: max(1, round(changes[name] * values["scale"])) for name in whole}
    return factor.get("extends", values["extends"]), {**changes, **scaled}


def profile_files(profile: str) -> list[Path]:
    """The YAML file of a profile, after those of the profile it extends; of a cell, its grid's."""
    if _is_cell(profile):
        return grid_files(profile.split(".")[0])
    values = read_yaml(_file(profile))
    if "factors" in values:
        raise ValueError(f"{profile!r} is a grid: name a cell of it, as {profile}.<factor>.<level>.")
    parent = values.get("extends")
    if parent is None:
        return [_file(profile)]
    if not isinstance(parent, str) or "extends" in read_yaml(_file(parent)):
        raise ValueError(f"{_file(profile)}: extends must name a profile that extends no other, not {parent!r}.")
    return [_file(parent), _file(profile)]


def _profile_values(profile: str) -> dict[str, Any]:
    if _is_cell(profile):
        parent, changes = _cell(profile)
        return {**_profile_values(parent), "base": parent, **changes, "profile": profile}
    values: dict[str, Any] = {}
    for path in profile_files(profile):
        values |= read_yaml(path)
    values.pop("extends", None)
    return values


def load(profile: str, **overrides: Any) -> Params:
    """Parameters of `params/<profile>.yaml` with overrides."""
    path = _file(profile)
    values = {**_profile_values(profile), **overrides}
    if values.get("profile") != profile:
        raise ValueError(f"{path}: its profile must be called {profile!r}, as the file is.")
    return check(values, path.name)


def _assigned(cell: str) -> set[str]:
    """Names that a notebook cell assigns at its top level; none where it is not plain Python."""
    try:
        statements = ast.parse(cell).body
    except SyntaxError:
        return set()
    targets = [target for statement in statements if isinstance(statement, ast.Assign) for target in statement.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def collect(namespace: dict[str, Any]) -> Params:
    """Parameters of a notebook execution, from the notebook's `globals()`.

    The parameters are what was assigned in the cell that assigns `profile`, and in the one that papermill
    injects after it: papermill passes unknown names with no more than a warning, and here they are refused.
    Where the kernel keeps no history of cells (nbval), they are all plain values assigned so far.
    They override `params/<profile>.yaml`, so both `-f params/smoke.yaml` and `-p profile smoke` work.
    `seed` and `condition`, where a notebook has them, are checked and stay the notebook's own.
    """
    cells = [_assigned(cell) | ({"profile"} if cell.startswith("# Parameters") else set()) for cell in namespace["In"]]
    plain = {key for key, value in namespace.items() if isinstance(value, PLAIN) and not key.startswith("_")}
    names = set().union(*(names for names in cells if "profile" in names)) or plain - {"In", "Out"}
    given = {name: namespace[name] for name in names if name in namespace}
    profile = given.get("profile")
    if not isinstance(profile, str):
        raise ValueError(f"parameter 'profile' must be a name such as 'default', not {profile!r}.")
    seed, condition = given.pop("seed", 0), given.pop("condition", CONDITIONS[0])
    given.pop("extends", None)  # -f passes it on; the file says the same
    known = _profile_values(profile) if _file(profile).exists() else {}
    params = check({**known, **given}, f"notebook parameters, profile {profile!r}")
    check_selectors(seed, condition)
    return params


def check_selectors(seed: Any, condition: Any) -> None:
    """ValueError unless these name a run of a profile."""
    if type(seed) is not int or seed < 0:
        raise ValueError(f"parameter 'seed' must be a whole number from 0 on, not {seed!r}.")
    if condition not in CONDITIONS:
        raise _nearest("condition", condition, CONDITIONS)


def split_condition(condition: str, weights: str) -> tuple[str, str]:
    """(source of text, weights) of a condition: `recursive_carry` fixes weights, `recursive` takes the profile's."""
    for suffix in ("carry", "restart"):
        if condition.endswith("_" + suffix):
            return condition.removesuffix("_" + suffix), suffix
    return condition, weights
