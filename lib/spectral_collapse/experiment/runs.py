"""Runs and their stages: what is computed once, where its record is, and when it is computed again.

The key of a record is noted, not declared: a stage computes on a `View` of its run, which notes every parameter, part
of the real text, file and result of another stage that the stage reads, and refuses what it cannot note. A record is
valid while the same reads give the same values, and while the code that the stage uses (`closure`) is the same.
"""

import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from ..machine import devices, processes, speed
from ..record import closure, paths, provenance
from ..record.params import BASELINE, base_params, folders, name_of
from ..record.schema import Params, Unnoted, Watched, split_condition
from ..text import checkpoints, corpora


class Run:
    """One condition at one seed: its folder, its real text, and an in-process cache of its results."""

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
        self.source, self.weights = split_condition(condition, params.weights)
        own, *parent = [
            paths.results_root() / folder / paths.path_name(condition) / f"seed_{seed}" for folder in folders(params)
        ]
        self.folder, self.parent = own, parent[0] if parent else None  # a variant reads the runs of its profile
        self.device = devices.pick_device(params.device)
        self._real = real
        self.found: dict[tuple[str, int], Found] = {}
        # The model in memory and the hash of its file: the base run keeps one at a time for all generations.
        self.loaded: tuple[str, PreTrainedModel] | None = None

    @functools.cached_property
    def real(self) -> corpora.RealText:
        """The real text, tokenised; shared with the base run."""
        return self._real or corpora.RealText(self.params)

    @functools.cached_property
    def base(self) -> "Run":
        """The run that holds generation 0 of this seed: the baseline of this profile, or of its `base`."""
        if self.condition == BASELINE and self.params.base is None:
            return self
        return Run(base_params(self.params), BASELINE, self.seed, real=self.real, say=self.say)

    def owner(self, generation: int) -> "Run":
        """The run that a generation belongs to: the base run for generation 0, otherwise this one."""
        return self.base if generation == 0 else self

    def path(self, generation: int, name: str) -> Path:
        """Where this run writes a file of a generation."""
        return paths.generation_folder(self.owner(generation).folder, generation) / name

    def places(self, generation: int, name: str) -> list[Path]:
        """Where the file may be: `path`; then, for a variant, in the runs of its profile, which it only reads."""
        owner = self.owner(generation)
        return [
            paths.generation_folder(folder, generation) / name for folder in filter(None, (owner.folder, owner.parent))
        ]


class Found(NamedTuple):
    """A stage's result, and all parameters that it depends on, directly or through other stages, with their values."""

    result: dict[str, Any]
    parameters: dict[str, Any]


# ---- the view of a run that a stage computes on


class _Part:
    """The real text in a view: every part that is read is noted by its hash."""

    def __init__(self, view: "View"):
        self._view = view

    @property
    def held_out(self) -> torch.Tensor:
        return self._view.read("real held_out")

    @property
    def separator(self) -> int:
        return self._view.read("real separator")

    @property
    def tokenizer(self) -> Any:
        return self._view.read("real tokenizer")

    def baseline(self, seed: int) -> torch.Tensor:
        return self._of(seed, "baseline")

    def slice(self, seed: int, index: int) -> torch.Tensor:
        return self._of(seed, f"slice {index}")

    def openings(self, seed: int) -> list[list[int]]:
        return self._of(seed, "openings")

    def _of(self, seed: int, name: str) -> Any:
        if seed != self._view.seed:
            raise Unnoted(f"the real text of seed {seed} is not that of this run's seed, {self._view.seed}.")
        return self._view.read(f"real {name}")

    def __getattr__(self, name: str) -> Any:
        raise Unnoted(f"a stage reads real.{name}, which its record does not note.")


class _Noted(Mapping):
    """Another stage's result in a view: every value that is read is noted by its hash."""

    def __init__(self, view: "View", name: str, result: dict[str, Any]):
        self._view, self._name, self._result = view, name, result

    def __getitem__(self, key: str) -> Any:
        self._view.note(f"{self._name} {key}", self._result.get(key))
        return self._result[key]

    def __iter__(self) -> Iterator[str]:
        self._view.note(f"{self._name}", list(self._result))
        return iter(self._result)

    def __len__(self) -> int:
        return len(list(iter(self)))


class View:
    """A run as a stage sees it: every read is noted, and a read that cannot be noted is refused.

    `parameters` and `inputs` hold what was read, `depends` all parameters behind it, directly or through other stages.
    Names and places are not noted: condition, device, say, path, and the parameters of `schema.PLACES`.
    """

    def __init__(self, run: Run, code: str):
        self.run, self.code, self.parameters, self.inputs, self.depends = run, code, {}, {}, {}
        self.condition, self.device, self.say, self.path = run.condition, run.device, run.say, run.path
        self.params = Watched(run.params, self._note_parameter)
        self.real = _Part(self)
        self._values: dict[str, Any] = {}
        self.params.threads  # noqa: B018  (the number of threads changes the last digit of any sum)

    @property
    def seed(self) -> int:
        return self.read("seed")

    @property
    def source(self) -> str:
        return self.read("source")

    @property
    def weights(self) -> str:
        return self.read("weights")

    def __getattr__(self, name: str) -> Any:
        raise Unnoted(f"a stage reads run.{name}, which its record does not note.")

    def _note_parameter(self, name: str, value: Any) -> None:
        self.parameters[name] = self.depends[name] = value
        if name == "checkpoint":
            self.read("checkpoint")

    def note(self, name: str, value: Any) -> None:
        """Notes an input by the hash of its value."""
        self.inputs[name] = provenance.digest(value)

    def read(self, name: str) -> Any:
        """An input by its name, noted: `seed`; `source` and `weights` of the condition; `checkpoint`; a part of the
        real text, as `real slice 3`; a file of the project, as `file params/prompts/stories.jsonl`; the version of a
        package, as `package numpy`; a value of another stage, as `loop.training 2 model_sha256`.

        KeyError where there is no such stage.
        """
        if name in self._values:
            return self._values[name]
        match name.split(" "):
            case ["seed" | "source" as attribute]:
                value = getattr(self.run, attribute)
            case ["weights"]:
                value = self.run.weights
                if split_condition(self.run.condition, "")[1] == "":  # the condition does not say: the profile does
                    self.depends["weights"] = value
            case ["checkpoint"]:
                value = checkpoints.checkpoint_hash(self.run.params)
            case ["real", *part]:
                value, self.inputs[name], decided = self.run.real.part(" ".join(part), self.run.seed)
                self.depends |= decided
                self._values[name] = value
                return value
            case ["file", file]:
                value = provenance.file_hash(paths.ROOT / file)
            case ["package", package]:
                try:
                    value = importlib.metadata.version(package)
                except importlib.metadata.PackageNotFoundError:
                    value = None
            case [stage, generation, *key]:
                noted = self.result(_stage(stage), int(generation))
                return noted.get(key[0]) if key else list(noted)
            case _:
                raise KeyError(name)
        self.note(name, value)
        self._values[name] = value
        return value

    def file(self, path: Path) -> Path:
        """A file of the project, noted by its hash."""
        self.read(f"file {path.relative_to(paths.ROOT)}")
        return path

    def result(self, stage: "Stage", generation: int) -> Mapping[str, Any]:
        """The result of another stage, noted by the values that are read of it."""
        found = stage.found(self.run, generation)
        if self.run.owner(generation).params.profile == self.run.params.profile:
            self.depends |= found.parameters
        return _Noted(self, f"{stage.identity} {generation}", found.result)

    def recorded(self, identity: str, generation: int) -> Mapping[str, Any]:
        """`result` of the stage that records call `identity`, as `measure.anchors`."""
        return self.result(_stage(identity), generation)

    def identity(self) -> str:
        """Hash of the code and of all reads so far: it identifies training states that are saved on the way."""
        return provenance.text_hash(provenance.canonical([self.code, self.parameters, self.inputs]))


def bare(run: "Run | View") -> Run:
    """The run itself, whose reads are not noted: the caller notes what the result depends on."""
    return getattr(run, "run", run)  # no isinstance: the classes would be code that every stage uses


# ---- stages

_STAGES: dict[str, "Stage"] = {}


def _stage(identity: str) -> "Stage":
    """The stage with a name as records hold it; KeyError where there is none."""
    if identity not in _STAGES:
        module = f"{__package__}.{identity.rpartition('.')[0]}"
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            raise KeyError(identity) from None
    return _STAGES[identity]


# Inputs that a person changes, rather than the code or the machine.
_OF_PEOPLE = ("seed", "source", "weights", "checkpoint", "real", "file")


class _Outdated(NamedTuple):
    """Why a record is not valid, in a clause, and whether a person's change is the reason."""

    reason: str
    by_people: bool


@dataclass(eq=False)
class Stage:
    """A step of a generation, computed once: stage(run, generation) returns its result, kept as the record <name>.json.

    Later calls, also of other processes, find the record. It is computed again, and `run.say` tells why, if it is
    damaged or was made by other code. A record that was made from other parameters, texts or files is never
    overwritten: ValueError says so. Declared by `stage`.
    """

    compute: Callable[[Any, int], dict]
    name: str
    file: str | None

    def __post_init__(self):
        functools.update_wrapper(self, self.compute)
        self.identity = f"{self.compute.__module__.removeprefix(f'{__package__}.')}.{self.name}"
        _STAGES[self.identity] = self

    @functools.cached_property
    def code_hash(self) -> str:
        """Hash of the code that the stage uses."""
        # Of all stages at the first use of any: not at import, which should cost nothing, and not one by one, since
        # the files may be edited while this process goes on with what it has imported.
        for stage in (*_STAGES.values(), self):
            if "code_hash" not in vars(stage):
                vars(stage)["code_hash"] = closure.code_hash(stage.compute)
        return vars(self)["code_hash"]

    def __call__(self, run: Run | View, generation: int) -> Mapping[str, Any]:
        """The result."""
        if isinstance(run, View):
            return run.result(self, generation)
        return self.found(run, generation).result

    def found(self, run: Run, generation: int) -> Found:
        """The result, with the parameters that it depends on."""
        run = run.owner(generation)
        torch.set_num_threads(run.params.threads)
        if (self.identity, generation) not in run.found:
            run.found[self.identity, generation] = self._find(run, generation) or self._record(run, generation)
        return run.found[self.identity, generation]

    def artefact(self, run: Run | View, generation: int) -> Path:
        """The stage's file, computed again if it is missing or altered. ValueError if the new file does not have the
        hash that the record holds."""
        digest = f"{Path(self.file).stem}_sha256"
        recorded, run = self(run, generation)[digest], bare(run).owner(generation)
        places = run.places(generation, self.file)
        own, intact = places[0], lambda path: path.exists() and provenance.file_hash(path) == recorded
        if (path := processes.once(lambda: next(filter(intact, places), None))) is not None:
            return path
        if own.exists():
            run.say(f"{_shown(own)} does not match its record and is made again.")
        with speed.metered():  # of no record: its time is not another's
            again = self.compute(View(run, self.code_hash), generation)[digest]
        if again != recorded:
            raise ValueError(
                f"{own}: made again, it is not what its record says (another machine or library?): "
                f"delete {run.folder} to start this run afresh."
            )
        return own

    def _find(self, run: Run, generation: int) -> Found | None:
        """The result of a valid record; None where there is none."""
        own, *others = run.places(generation, f"{self.name}.json")
        reasons = []
        for path in (own, *others):
            if (record := processes.once(lambda path=path: _readable(path))) is None:
                continue
            view = View(run, self.code_hash)
            outdated = _Outdated(record, False) if isinstance(record, str) else self._difference(view, record["key"])
            if outdated is None:
                if path != own or record["parameters"] != provenance.plain(view.depends):
                    provenance.write_again(own, {**record, "parameters": provenance.plain(view.depends)})
                return Found(record["result"], view.depends)
            if not outdated.by_people:
                where = "" if path == own else f" in {_shown(own.parent)}"
                reasons.append(f"{_shown(path)} is made again{where}: {outdated.reason}.")
            elif path == own:
                raise ValueError(
                    f"{_shown(own)} was made with other settings: {outdated.reason}. Finished records are not "
                    f"overwritten: set `variant` to a name for these runs, or delete {run.folder}."
                )
        for reason in reasons:
            run.say(reason)
        return None

    def _difference(self, view: View, key: dict[str, Any]) -> _Outdated | None:
        """How a record's key differs from now; `view` repeats its reads in their first order."""
        changed = []
        for name, then in key.get("parameters", {}).items():
            if name in Params.model_fields:  # otherwise the code that read it has changed
                getattr(view.params, name)
                if (now := provenance.plain(view.parameters.get(name))) != then:
                    changed.append(provenance.change(name, then, now))
        if changed:
            return _Outdated(f"its parameters changed ({', '.join(changed)})", True)
        if key.get("code") != self.code_hash:
            return _Outdated("its code changed", False)
        for name, then in key.get("inputs", {}).items():
            try:
                view.read(name)
            except KeyError:
                return _Outdated(f"its inputs changed ({name})", False)
            if (now := view.inputs[name]) != then:
                by_people = name.split(" ")[0] in _OF_PEOPLE
                return _Outdated(f"its inputs changed ({provenance.change(name, then, now)})", by_people)
        return None

    def _record(self, run: Run, generation: int) -> Found:
        view = View(run, self.code_hash)
        with speed.metered() as meter:
            computed = self.compute(view, generation)
        result = processes.once(lambda: computed)  # another process's may differ in the last digit
        about = {
            "profile": name_of(run.params),
            "model": run.params.model,
            "condition": run.condition,
            "seed": run.seed,
            "generation": generation,
            "stage": self.name,
            "parameters": view.depends,
        }
        result = provenance.write_record(
            run.path(generation, f"{self.name}.json"),
            result,
            key={"parameters": view.parameters, "code": self.code_hash, "inputs": view.inputs},
            about=about,
            seconds=meter.seconds,
            device=str(run.device),
            speeds=meter.speeds,
        )
        return Found(result, view.depends)


def stage(*, file: str | None = None, name: str | None = None) -> Callable[[Callable[[Any, int], dict]], Stage]:
    """Declares `compute(run, generation)` as a Stage, with the name of the function unless `name` is given.

    `run` is a `View` of the run that the generation belongs to. The result of a stage that writes `file` beside its
    record holds the hash of the file as <stem of file>_sha256.
    """
    return lambda compute: Stage(compute, name or compute.__name__, file)


def _readable(path: Path) -> dict[str, Any] | str | None:
    """A record; or a clause why it cannot be used; or None where there is none."""
    try:
        return provenance.read_record(path)
    except FileNotFoundError:
        return None
    except provenance.StaleRecord as reason:
        return str(reason)


def _shown(path: Path) -> Path:
    root = paths.results_root()
    return path.relative_to(root) if path.is_relative_to(root) else path
