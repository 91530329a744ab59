"""The study of a profile: all stages of all runs as small tables, and their committed copy in results/mechanism."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from ..experiment import loop, measure
from ..experiment import mechanism as stages
from ..experiment.runs import Run
from ..machine import devices, processes
from ..mechanism import eigenvectors, tracking
from ..record import closure, evidence, params, paths, provenance
from ..record.params import BASELINE
from ..record.schema import Params
from . import series

PROFILE = "mechanism"
OUTCOMES = ("held_out_perplexity", "distinct_2")
WHOLE = "all"  # the part that is the whole network

# One number a run and generation: from the whole network, the last layer, the outputs, the eigenvectors.
_OF_NETWORK = (
    *("real_gradient_norm", "own_gradient_norm", "real_own_cosine", "gradient_cosine_start", "gradient_cosine_before"),
    *("relative_drift_start", "relative_drift_before"),
)
_OF_LAST_LAYER = ("activation_rank", "activation_entropy_rank", "anisotropy", "cka_start")
_OF_OUTPUTS = ("next_token_entropy", "calibration_error", "rare_mass_ratio")
QUANTITIES = (
    *_OF_NETWORK[:2], "gradient_signal", *_OF_NETWORK[2:], "drift_aligned", "eigenspace_overlap",
    *_OF_LAST_LAYER, *_OF_OUTPUTS,
)  # fmt: skip
# The twelve of them that tell the story.
HEADLINE = (
    *("real_gradient_norm", "gradient_signal", "real_own_cosine", "gradient_cosine_start"),
    *("relative_drift_start", "drift_aligned", "eigenspace_overlap", "activation_rank"),
    *("cka_start", "next_token_entropy", "calibration_error", "rare_mass_ratio"),
)
_NOISE = ("noise_scale_blocks", "noise_scale_blocks_standard_error")
_WORDS = ("condition", "part", "layer", "fate", "since")


@dataclass(frozen=True)
class Study:
    """Tables of a profile's runs. Every row has condition, seed and generation; generation 0 stands in each condition.

    quantities: `QUANTITIES`, noise scales, `OUTCOMES`, one row a run and generation. parts and layers: by part of
    the network, and by layer. outliers: the leading eigenvectors of generation 0, followed (`tracking.follow`).
    planes and lines: the loss around every generation, and along the lines to it from generation 0 (`since` start) and
    from the generation before (`since` before).
    """

    quantities: pd.DataFrame
    parts: pd.DataFrame
    layers: pd.DataFrame
    outliers: pd.DataFrame
    planes: pd.DataFrame
    lines: pd.DataFrame


_TABLES = tuple(field.name for field in fields(Study))


def _runs(settings: Params, say: Callable[[str], None]) -> Iterator[Run]:
    """Every run; those of a seed share the base run, which holds generation 0 and the model in memory."""
    first = Run(settings, BASELINE, settings.seeds[0], say=say)
    for seed in settings.seeds:
        base = Run(settings, BASELINE, seed, real=first.real, say=say)
        for condition in settings.conditions:
            run = Run(settings, condition, seed, real=first.real, say=say)
            run.base = base
            yield run


STAGES = ("training", "evaluation", "mechanism", "eigenpairs", "landscape")


def _of_run(run: Run, generation: int) -> dict[str, dict]:
    """The stages' results of one generation, computed where they are not there."""
    with provenance.locked(run.base.folder, run.say):
        for stage in (loop.training, measure.evaluation, stages.mechanism, stages.eigenpairs):
            stage(run, 0)
    with provenance.locked(run.owner(generation).folder, run.say):
        return {
            "training": loop.training(run, generation),
            "evaluation": measure.evaluation(run, generation),
            "mechanism": stages.mechanism(run, generation),
            "eigenpairs": stages.eigenpairs(run, generation),
            "landscape": stages.slices(run, generation),
        }


def _layer_name(index: int) -> str:
    return f"layer {index - 1}" if index else "embedding"


def _rows(params: Params, found: dict[str, dict]) -> dict[str, list[dict]]:
    """What the results of one generation add to each table but `outliers`."""
    mechanism, pairs = found["mechanism"], found["eigenpairs"]
    k, slices = params.eigenvectors, found["landscape"]
    quantities = {
        **{name: mechanism["parts"][WHOLE][name] for name in _OF_NETWORK},
        **{name: mechanism["layers"][-1][name] for name in _OF_LAST_LAYER},
        **{name: mechanism[name] for name in (*_OF_OUTPUTS, "gradient_signal", *_NOISE)},
        **{name: pairs[name] for name in ("drift_aligned", "drift_aligned_by_chance")},
        "eigenspace_overlap": eigenvectors.subspace_overlap(np.asarray(pairs["from_start"])[:k, :k]),
        **{name: found["evaluation"][name] for name in OUTCOMES},
        "parameters": found["training"]["parameters"],
    }
    return {
        "quantities": [quantities],
        "parts": [{"part": part} | values for part, values in mechanism["parts"].items()],
        "layers": [{"layer": _layer_name(index)} | values for index, values in enumerate(mechanism["layers"])],
        "planes": [
            {"a": a, "b": b, "loss": loss}
            for a, row in zip(slices["offsets"], slices["plane"], strict=True)
            for b, loss in zip(slices["offsets"], row, strict=True)
        ],
        "lines": [
            {"since": since, "t": t, "loss": loss, "barrier": slices["barriers"][since]}
            for since, losses in slices["lines"].items()
            for t, loss in zip(slices["places"], losses, strict=True)
        ],
    }


def _frame(rows: list[dict]) -> pd.DataFrame:
    """A table whose numbers are floats: JSON has no NaN, and what is undefined arrives as None."""
    frame = pd.DataFrame(rows)
    whole = {"seed", "generation", "outlier"}
    return frame.astype({name: float for name in frame.columns if name not in {*_WORDS, *whole}})


def measured(settings: Params, say: Callable[[str], None] = print) -> Study:
    """The study of the profile's runs, from their records where those are current and computed where not."""
    if settings.mechanism_blocks > settings.held_out_blocks:
        raise ValueError(
            f"mechanism_blocks is {settings.mechanism_blocks} and there are only {settings.held_out_blocks} "
            "held_out_blocks: lower the one or raise the other."
        )
    tables: dict[str, list[dict]] = {name: [] for name in _TABLES}
    for run in processes.steps(list(_runs(settings, say)), "mechanism, runs"):
        spectra = []
        for generation in range(settings.generations + 1):
            found = _of_run(run, generation)
            at = {"condition": run.condition, "seed": run.seed, "generation": generation}
            for name, rows in _rows(settings, found).items():
                tables[name] += [at | row for row in rows]
            spectra.append(tracking.Spectrum(*(found["eigenpairs"][name] for name in tracking.Spectrum._fields)))
        followed = tracking.follow(spectra, settings.eigenvectors)
        tables["outliers"] += [{"condition": run.condition, "seed": run.seed, **one._asdict()} for one in followed]
    return Study(**{name: _frame(rows) for name, rows in tables.items()})


def folder_of(settings: Params) -> Path:
    """`<results>/<profile>/<model>/mechanism`."""
    return paths.model_folder(params.name_of(settings), settings.model) / "mechanism"


def write(study: Study, settings: Params) -> Path:
    """Writes the study's tables as CSV, and their record study.json, into `folder_of`; the folder."""
    folder = folder_of(settings)
    values = settings.model_dump(exclude={"data_path", "held_out_path"})
    provenance.write_study(
        folder,
        {name: getattr(study, name) for name in _TABLES},
        {},
        key={"parameters": values, "code": closure.code_hash(measured)},
        about={"stage": "mechanism_study", "profile": settings.profile, "model": settings.model},
        seconds=series.seconds([settings], STAGES),
        device=str(devices.pick_device(settings.device)),
    )
    return folder


def read(settings: Params, source: evidence.Source | None = None) -> Study:
    """The study that `write` left. ValueError where it is missing, or a table is not the one its record describes."""
    return Study(**evidence.read_study(params.folders(settings)[0] / "mechanism", _TABLES, source=source)[1])


def committed() -> tuple[Study, Params]:
    """The study that comes with the project, of the profile `mechanism`, and its parameters."""
    settings = params.load(PROFILE)
    return read(settings, evidence.PACKS), settings
