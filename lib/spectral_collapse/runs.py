"""Runs and their stages: what is computed once, where its record is kept, and when it is made again."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import PreTrainedModel

from . import corpora, models, paths, processes, provenance, speed
from .params import base_params
from .schema import Params, split_condition

BASELINE = "baseline"


class Run:
    """One condition at one seed: its folder, its real text, and what this process knows of its generations."""

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
        self.folder = paths.run_folder(params.profile, params.model, condition, seed)
        self.device = models.pick_device(params.device)
        torch.set_num_threads(params.threads)
        self._real = real
        self.results: dict[tuple[str, int], dict] = {}
        # The model in memory and the hash of its file: one at a time, kept by the base run for all generations.
        self.loaded: tuple[str, PreTrainedModel] | None = None

    @functools.cached_property
    def real(self) -> corpora.RealText:
        """The real text, tokenised; shared with the base run."""
        return self._real or corpora.RealText(self.params)

    @functools.cached_property
    def base(self) -> "Run":
        """The run that holds generation 0 of this seed: this one, if it is the baseline; with `base` that profile's."""
        if self.condition == BASELINE and self.params.base is None:
            return self
        return Run(base_params(self.params), BASELINE, self.seed, real=self.real, say=self.say)

    def owner(self, generation: int) -> "Run":
        """The run that a generation belongs to: the base run for generation 0, this one for the others."""
        return self.base if generation == 0 else self

    def path(self, generation: int, name: str) -> Path:
        """File of a generation."""
        return paths.generation_folder(self.owner(generation).folder, generation) / name


@dataclass(eq=False)
class Stage:
    """A step of a generation, computed once: stage(run, generation) is its result, kept as the record <name>.json.

    Later calls find it again, also those of another process. It is computed again, and `run.say` tells why, where
    its record is damaged or was made from other parameters, code or inputs. Declared by `stage`.
    """

    compute: Callable[[Run, int], dict]
    name: str
    parameters: tuple[str, ...]
    code: tuple[ModuleType | Callable, ...]
    inputs: Callable[[Run, int], dict[str, Any]]
    file: str | None

    def __post_init__(self):
        functools.update_wrapper(self, self.compute)
        # Now: the files may be edited while this process goes on with what it has imported.
        self.code_hash = provenance.code_hash(self.compute, *self.code)

    def __call__(self, run: Run, generation: int) -> dict:
        """The result."""
        run = run.owner(generation)
        if (self.name, generation) not in run.results:
            run.results[self.name, generation] = self._result(run, generation)
        return run.results[self.name, generation]

    def artefact(self, run: Run, generation: int) -> Path:
        """The stage's file, made again if it is gone or altered.

        Raises ValueError if what is made again has another hash than the record says.
        """
        run, path = run.owner(generation), run.path(generation, self.file)
        digest = f"{path.stem}_sha256"
        recorded = self(run, generation)[digest]
        if processes.once(lambda: path.exists() and provenance.file_hash(path) == recorded):
            return path
        if path.exists():
            run.say(f"{_shown(path)} does not match its record and is made again.")
        if self.compute(run, generation)[digest] != recorded:
            raise ValueError(
                f"{path}: made again, it is not what its record says (another machine or library?): "
                f"delete {run.folder} to start this run afresh."
            )
        return path

    def _result(self, run: Run, generation: int) -> dict:
        path = run.path(generation, f"{self.name}.json")
        key = {
            "parameters": {name: getattr(run.params, name) for name in self.parameters},
            "code": self.code_hash,
            "inputs": self.inputs(run, generation),
        }
        found = processes.once(lambda: self._recorded(run, path, key))
        return self._record(run, generation, path, key) if found is None else found

    def _recorded(self, run: Run, path: Path, key: dict) -> dict | None:
        try:
            return provenance.read_result(path, key)
        except FileNotFoundError:
            return None
        except provenance.StaleRecord as reason:
            run.say(f"{_shown(path)} is made again: {reason}.")
            return None

    def _record(self, run: Run, generation: int, path: Path, key: dict) -> dict:
        started = time.perf_counter()
        with speed.metered() as speeds:
            computed = self.compute(run, generation)
        result = processes.once(lambda: computed)  # of which another process's may differ in the last digit
        about = {
            "profile": run.params.profile,
            "model": run.params.model,
            "condition": run.condition,
            "seed": run.seed,
            "generation": generation,
            "stage": self.name,
            "parameters": run.params.model_dump(exclude={"data_path", "held_out_path"}),
        }
        return provenance.write_record(
            path,
            result,
            key=key,
            about=about,
            seconds=time.perf_counter() - started,
            device=str(run.device),
            speeds=speeds,
        )


def stage(
    *,
    parameters: tuple[str, ...],
    code: tuple[ModuleType | Callable, ...],
    inputs: Callable[[Run, int], dict[str, Any]],
    file: str | None = None,
    name: str | None = None,
) -> Callable[[Callable[[Run, int], dict]], Stage]:
    """Declares `compute(run, generation)` as a Stage, named as the function unless `name` is given.

    What its result depends on: `parameters` of the profile; `code`, the modules and functions that compute uses
    (compute itself is always one); `inputs(run, generation)`, seeds and hashes of what earlier stages made. `run`
    is always the run that the generation belongs to. A stage that writes `file` beside its record gives the file's
    hash in its result, as <stem of file>_sha256.
    """
    return lambda compute: Stage(compute, name or compute.__name__, parameters, code, inputs, file)


def _shown(path: Path) -> Path:
    return path.relative_to(paths.results_root())
