"""Profiles: read from files, grids and notebooks, and validated before anything runs."""

import ast
import copy
import functools
import hashlib
import itertools
import re
import types
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from . import cli, paths
from .schema import CONDITIONS, DESIGN, PLACES, Params, check_selectors, nearest_name, sentence, unknown_name, validated

# What a profile with a `base` may set: everything after generation 0.
AFTER_BASE = (
    *(
        "profile",
        "variant",
        "base",
        "seeds",
        "conditions",
        "generations",
        "weights",
        "real_fraction",
        "shift_generation",
    ),
    *("blocks_per_generation", "perplexity_bound", "checkpoint_steps", "prompting", "opening_tokens"),
    *("epochs", "steps", "batch_size", "learning_rate", "weight_decay", "gradient_clip", "warmup_fraction"),
    *("schedule", "decay_fraction", "dropout", "sharpness_radius", "trust_memory", "trust_gain", "track_two_tolerance"),
    *("writing_temperature", "writing_top_k", "writing_top_p", "writing_contexts", "rarity_exponent", "candidates"),
    *("estimator_probes", "estimator_batches", "estimator_steps"),
)
# Places on this machine and how it computes: the base takes these too.
SHARED_WITH_BASE = ("data_path", "held_out_path", "device", "precision", "micro_batch", "gradient_checkpointing")
SCALED = ("blocks_per_generation", "steps")  # what the scale of a grid multiplies
GRID, DEMONSTRATION = "ablations", "smoke"  # the paper's grid, and the factor in notebook 5's outputs
PLAIN = (bool, int, float, str, list, dict, types.NoneType)


def profiles() -> list[str]:
    """Names of the profiles in params/, without grids."""
    files = sorted(paths.PARAMS.glob("*.yaml"))
    return [file.stem for file in files if b"\nfactors:" not in file.read_bytes()]


@functools.lru_cache(maxsize=64)  # a grid reads the same few files for each of its cells
def _parsed(text: str) -> tuple[Any, list[str]]:
    """The value of a YAML text, and the keys of a mapping, each as often as it is written."""
    values = yaml.safe_load(text)
    pairs = yaml.compose(text, Loader=yaml.SafeLoader).value if isinstance(values, dict) else []
    return values, [key.value for key, _ in pairs if isinstance(key.value, str)]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ValueError naming the file, and a key that is written twice."""
    try:
        values, names = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = profiles()
        near = f" (the nearest is {nearest_name(path.stem, known)!r})" if known else ""
        raise ValueError(
            f"{path.name} is not in {path.parent}: the profiles there are {', '.join(known)}{near}."
        ) from None
    except Exception as error:  # whatever PyYAML's converters raise, as for `!!int x` or 2001-13-45
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{path}: not readable as YAML ({reason}).") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected lines of the form 'key: value'.")
    keys = Counter(names)
    if twice := [key for key in keys if keys[key] > 1]:  # PyYAML keeps the last
        raise ValueError(f"{path}: parameter {paths.shown(twice[0])} is written twice: delete one of the two lines.")
    return copy.deepcopy(values)


def _file(profile: str) -> Path:
    path = paths.PARAMS / f"{paths.path_name(profile)}.yaml"
    grid = paths.PARAMS / f"{profile.split('.')[0]}.yaml"
    return grid if _is_cell(profile) else path


# ---- grids: a file with `factors`, each cell of which is a profile


def _is_cell(profile: str) -> bool:
    name = paths.path_name(profile)
    return "." in name and not (paths.PARAMS / f"{name}.yaml").exists()


class _Entry(BaseModel):
    """Part of a grid's schema, so that misspelt names, levels and tests are refused when the grid is read."""

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

    A grid with the key `grid` takes the factors that it lists from that grid. ValueError where `factors` is missing or
    an entry does not fit `_Grid`.
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
            raise unknown_name(f"factor of grid {values['grid']!r}", unknown[0], list(whole["factors"]))
        values = {**whole, **values, "factors": {factor: whole["factors"][factor] for factor in kept}}
    if not isinstance(values.get("factors"), dict):
        raise ValueError(f"{path}: a grid needs 'factors'.")
    for factor in values["factors"].values():
        if isinstance(factor, dict) and isinstance(factor.get("levels"), dict):
            # Levels may be written as numbers, and empty where they change nothing.
            factor["levels"] = {str(level): changes or {} for level, changes in factor["levels"].items()}
    values = {"scale": 1, **values}
    try:
        _Grid.model_validate(values)
    except ValidationError as error:
        known = itertools.chain(*(entry.model_fields for entry in (_Grid, _Factor, _Test)))
        raise ValueError(sentence(error, path.name, list(known))) from None
    return values


def studied_factors(grid: str) -> list[str]:
    """The factors of a grid, without the demonstration of notebook 5."""
    return [factor for factor in read_grid(grid)["factors"] if factor != DEMONSTRATION]


def grid_files(grid: str) -> list[Path]:
    """The file of a grid, after the files of the profiles it extends and of the grid whose factors it takes."""
    whole = read_grid(grid)
    extended = {factor.get("extends", whole["extends"]) for factor in whole["factors"].values()}
    files = [file for profile in sorted(extended) for file in profile_files(profile)]
    return list(dict.fromkeys([*files, *([_file(whole["grid"])] if "grid" in whole else []), _file(grid)]))


def read_factor(grid: str, factor: str) -> dict[str, Any]:
    """A factor of a grid, with the names of its levels as text. ValueError with the nearest name if it is unknown."""
    known = read_grid(grid)["factors"]
    if factor not in known:
        raise unknown_name(f"factor of grid {grid!r}", factor, list(known))
    return known[factor]


def _cell(profile: str) -> tuple[str, dict[str, Any]]:
    """The profile that a cell `<grid>.<factor>.<level>` extends, and its changes."""
    grid, *rest = profile.split(".", 2)
    if len(rest) < 2:
        raise ValueError(f"{profile!r} is no cell of grid {grid!r}: name one as {grid}.<factor>.<level>.")
    values, factor = read_grid(grid), read_factor(grid, rest[0])
    if rest[1] not in factor["levels"]:
        raise unknown_name(f"level of factor {rest[0]!r}", rest[1], list(factor["levels"]))
    changes = {**factor.get("shared", {}), **factor["levels"][rest[1]]}
    whole = [name for name in SCALED if type(changes.get(name)) is int]
    scaled = {name: max(1, round(changes[name] * values["scale"])) for name in whole}
    return factor.get("extends", values["extends"]), {**changes, **scaled}


def profile_files(profile: str) -> list[Path]:
    """The file of a profile, after those of the profiles it extends; for a cell, the files of its grid."""
    if _is_cell(profile):
        return grid_files(profile.split(".")[0])
    values, files = read_yaml(_file(profile)), [_file(profile)]
    if "factors" in values:
        raise ValueError(f"{profile!r} is a grid: name a cell of it, as {profile}.<factor>.<level>.")
    while (parent := values.get("extends")) is not None:
        if not isinstance(parent, str) or _file(parent) in files:
            raise ValueError(f"{files[0]}: extends must name a profile that does not extend it too, not {parent!r}.")
        values = read_yaml(_file(parent))
        if "factors" in values:
            raise ValueError(f"{files[0]}: extends must name a profile, and {parent!r} is a grid.")
        files.insert(0, _file(parent))
    return files


def _profile_values(profile: str) -> dict[str, Any]:
    if _is_cell(profile):
        parent, changes = _cell(profile)
        return {**_profile_values(parent), "base": parent, **changes, "profile": profile}
    values: dict[str, Any] = {}
    for path in profile_files(profile):
        values |= read_yaml(path)
    values.pop("extends", None)
    return values


def base_params(params: Params) -> Params:
    """Parameters of the profile that generation 0 belongs to. ValueError if that profile has a base as well."""
    if params.base is None:
        return params
    # Checked before loading: two profiles that name each other would load forever.
    if (further := _profile_values(params.base).get("base")) is not None:
        raise ValueError(f"base: {params.base} starts from {paths.shown(further)} itself: name that.")
    return load(params.base, **{name: getattr(params, name) for name in SHARED_WITH_BASE})


def check(values: dict[str, Any], source: str = "parameters") -> Params:
    """Validated parameters that agree with their base; ValueError that names each wrong key and the reason."""
    params = validated(values, source)
    try:
        base = base_params(params)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    apart = [name for name in Params.model_fields if getattr(params, name) != getattr(base, name)]
    if wrong := [name for name in apart if name not in AFTER_BASE]:
        raise ValueError(
            f"{source}: base: generation 0 of {params.base} has another {', '.join(wrong)}: set base to null."
        )
    return params


# ---- what command lines give


def _is_text(kind: Any) -> bool:
    """Whether a parameter is text: str, a choice, or one of these or None."""
    return kind is str or get_origin(kind) is Literal or any(map(_is_text, get_args(kind)))


def _from_yaml(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        read = yaml.safe_load(value)
    except Exception:  # whatever PyYAML's converters raise
        raise ValueError(f"{key}: {paths.shown(value)} is not readable as YAML.") from None
    try:
        return float(read) if isinstance(read, str) else read  # YAML reads 1e-3 as text
    except ValueError:
        return read


def from_text(key: str, value: Any) -> Any:
    """The value of a parameter from a command line; values other than text are returned as they are.

    papermill's -p, Snakemake's --config and `launch` do not know the types of the schema. This function alone reads
    text as YAML where the schema wants a number or a list, and null as None where text is optional. ValueError where
    the text is not readable.
    """
    kind = Params.model_fields[key].annotation if key in Params.model_fields else None
    if get_origin(kind) is list:
        (item,), whole = get_args(kind), _from_yaml(key, value)
        return [_from_yaml(key, one) for one in whole] if isinstance(whole, list) and not _is_text(item) else whole
    if _is_text(kind):
        return None if value in ("null", "~") and types.NoneType in get_args(kind) else value
    return _from_yaml(key, value)


def load(profile: str, **overrides: Any) -> Params:
    """Parameters of `params/<profile>.yaml` with overrides, which may be text from a command line (`from_text`)."""
    path = _file(profile)
    values = {**_profile_values(profile), **{key: from_text(key, value) for key, value in overrides.items()}}
    if values.get("profile") != profile:
        raise ValueError(f"{path}: its key profile must be {profile!r}, the name of the file.")
    return check(values, path.name)


# ---- variants


def changes(settings: Params) -> dict[str, tuple[Any, Any]]:
    """Parameters that determine results and differ from the profile's file: name to (the file's value, this one)."""
    if not _file(settings.profile).exists():
        return {}
    defaults = {name: field.get_default() for name, field in Params.model_fields.items() if not field.is_required()}
    file = {**defaults, **_profile_values(settings.profile)}
    names = [name for name in Params.model_fields if name not in (*PLACES, *DESIGN)]
    return {name: (file.get(name), value) for name in names if (value := getattr(settings, name)) != file.get(name)}


def _brief(value: Any) -> str:
    text = "-".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(text).name)


def name_of(settings: Params) -> str:
    """Name of the folder of the runs: the profile; or `<profile>+<variant>` if settings that determine results differ
    from its file, so that the file's runs are kept. The parameter `variant` names it, or else what differs does, as in
    `default+temperature=0.7`."""
    differ = changes(settings)
    if settings.variant is None and not differ:
        return settings.profile
    variant = settings.variant or paths.VARIANT.join(f"{name}={_brief(new)}" for name, (_, new) in differ.items())
    if settings.variant is None and len(variant) > (room := min(60, paths.LONGEST - 1 - len(settings.profile))):
        mark = hashlib.sha256(repr(differ).encode()).hexdigest()[:8]
        variant = f"{variant[: room - 9].rstrip('+=.-_')}{paths.VARIANT}{mark}"
    return paths.path_name(f"{settings.profile}{paths.VARIANT}{variant}")


def where(settings: Params) -> str:
    """A sentence that says where the records of a variant are; empty for an unchanged profile."""
    if (name := name_of(settings)) == settings.profile:
        return ""
    differ = ", ".join(
        f"{key} {paths.shown(old)} -> {paths.shown(new)}" for key, (old, new) in changes(settings).items()
    )
    return (
        f"Variant of {settings.profile}{f' ({differ})' if differ else ''}: its records are in "
        f"{paths.results_root() / name}; what it does not change is taken from {settings.profile}."
    )


def _assigned(cell: str) -> set[str]:
    """Names that a notebook cell assigns at its top level; none if it is not plain Python."""
    try:
        statements = ast.parse(cell).body
    except SyntaxError:
        return set()
    targets = [target for statement in statements if isinstance(statement, ast.Assign) for target in statement.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _given(namespace: dict[str, Any], first: str) -> dict[str, Any]:
    """Values assigned in the notebook's cell that assigns `first`, and in the cell that papermill injects after it.

    If the kernel keeps no history of cells (nbval): all plain values that are assigned so far.
    """
    cells = [_assigned(cell) | ({first} if cell.startswith("# Parameters") else set()) for cell in namespace["In"]]
    plain = {key for key, value in namespace.items() if isinstance(value, PLAIN) and not key.startswith("_")}
    names = set().union(*(names for names in cells if first in names)) or plain - {"In", "Out"}
    return {name: namespace[name] for name in names if name in namespace}


def _extended(profile: str, parent: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """What a notebook's parameters override: the profile's file, or for a user's own file the profile it extends."""
    if _file(profile).exists():
        stated = read_yaml(_file(profile)).get("extends")
        if parent not in (None, stated):
            raise ValueError(
                f"a file that extends {paths.shown(parent)} needs a name of its own: {profile!r} is "
                f"{_file(profile).name} in {paths.PARAMS}. Give your file a line 'profile: NAME'."
            )
        return _profile_values(profile)
    if parent is not None:
        return _profile_values(parent)
    missing = [name for name, field in Params.model_fields.items() if field.is_required() and name not in given]
    if missing:
        near = nearest_name(profile, profiles())
        raise ValueError(
            f"{profile!r} is no profile in {paths.PARAMS}, the nearest is {near!r}; a file of your own behind -f names "
            f"all parameters, or a profile that it extends: {missing[0]!r} is missing."
        )
    return {}


def collect(namespace: dict[str, Any]) -> Params:
    """Parameters of a notebook execution, from the notebook's `globals()`.

    papermill only warns of unknown names, and passes numbers and lists as text; here unknown names are refused, and
    text is read (`from_text`). Parameters override `params/<profile>.yaml`, so that `-f params/smoke.yaml` and
    `-p profile smoke` both work; a user's own file, with its own name, may extend a profile. `seed` and `condition`
    are checked and stay variables of the notebook. From here on input errors show their sentence alone
    (`cli.speak_plainly`).
    """
    cli.speak_plainly()
    given = _given(namespace, "profile")
    profile, parent = given.get("profile"), given.pop("extends", None)
    if not isinstance(profile, str):
        raise ValueError(f"parameter 'profile' must be a name such as 'default', not {profile!r}.")
    seed, condition = given.pop("seed", 0), given.pop("condition", CONDITIONS[0])
    values = {**_extended(profile, parent, given), **{key: from_text(key, value) for key, value in given.items()}}
    params = check(values, f"notebook parameters, profile {profile!r}")
    check_selectors(seed, condition)
    if place := where(params):
        print(place)
    return params


def collect_factor(namespace: dict[str, Any]) -> dict[str, Any]:
    """Factor, grid and `data_path` of an execution of notebook 5: the arguments of `factors.read`, checked."""
    cli.speak_plainly()
    given = _given(namespace, "factor")
    known = ("factor", "grid", "data_path")
    if unknown := sorted(given.keys() - set(known)):
        raise unknown_name("parameter", unknown[0], known)
    read_factor(given["grid"], given["factor"])
    return {"name": given["factor"], "grid": given["grid"], "data_path": from_text("data_path", given["data_path"])}


BASELINE = "baseline"


def folders(params: Params) -> list[PurePosixPath]:
    """Folders of a profile's records, relative to the root of the results: its own, and for a variant, which takes
    from there what it does not change, the profile's."""
    names = dict.fromkeys((name_of(params), params.profile))
    return [PurePosixPath(paths.path_name(name), paths.path_name(params.model)) for name in names]
