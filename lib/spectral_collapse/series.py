"""From records to the tidy table: one row for each model, condition, seed and generation."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from . import paths, provenance
from .params import base_params
from .runs import BASELINE, folders
from .schema import DESIGN, PLACES, Params, noted, split_condition
from .sigma import TRACKS

# Numbers of a stage that become columns as they are.
_COLUMNS = {
    "training": ("training_loss",),
    "evaluation": (
        *("held_out_perplexity", "distinct_1", "distinct_2", "distinct_3", "distinct_4", "repetition_4"),
        *("type_token_ratio", "ngram_entropy_2", "self_bleu", "rare_token_coverage"),
        *("tail_mass_ratio", "tail_coverage", "slot_kl", "slot_entropy"),
    ),
    "continuations": ("bleu", "rouge_l"),
    "anchors": ("predictive_entropy", "representation_drift"),
    "curvature": (
        *(
            "lambda_max",
            "lambda_min",
            "bulk_sigma",
            "log_spectral_ratio",
            "spectral_variance",
            "effective_rank",
        ),
        *("published_iqr",),
    ),
    "sigma": ("hashed_ngram_hhi", "response_distinct_2"),
    "coherence": ("coherence", "prompt_similarity", "mauve"),
}


def results(
    params: Params,
    stage: str,
    conditions: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    generations: Iterable[int] | None = None,
    root: Path | None = None,
) -> Iterator[tuple[str, int, int, dict]]:
    """(condition, seed, generation, result) of a stage for the profile's runs, generation 0 from the base run.

    `root`: the only folder of records to look in; None: where runs write, then what comes with the project. Raises
    ValueError naming the file where one is missing or damaged, or was made with other values of parameters that its
    result depends on; parameters of which one of the two knows nothing are not compared.
    """
    for condition, seed, generation, _, record in _each(params, stage, conditions, seeds, generations, root):
        yield condition, seed, generation, record["result"]


def _each(
    params: Params,
    stage: str,
    conditions: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    generations: Iterable[int] | None = None,
    root: Path | None = None,
) -> Iterator[tuple[str, int, int, Path, dict]]:
    conditions = params.conditions if conditions is None else conditions
    seeds = params.seeds if seeds is None else seeds
    generations = range(params.generations + 1) if generations is None else list(generations)
    own, base = (_records(settings, root) for settings in (params, base_params(params)))
    for condition in conditions:
        for seed in seeds:
            for generation in generations:
                (settings, folder), owner = (own, condition) if generation else (base, BASELINE)
                path = paths.generation_folder(folder / owner / f"seed_{seed}", generation) / f"{stage}.json"
                again = f"run the notebook of condition {owner!r}, seed {seed}"
                try:
                    record = provenance.read_record(path)
                except FileNotFoundError:
                    raise ValueError(f"{path} is missing: {again}.") from None
                except provenance.StaleRecord as reason:
                    raise ValueError(f"{path} cannot be used, {reason}: run its notebook again to remake it.") from None
                if differ := disagreements(record, settings):
                    told = ", ".join(f"{name} {then!r}, not {now!r}" for name, (then, now) in differ.items())
                    raise ValueError(
                        f"{path} was made with {told}: {again} with what is asked for, or ask for the former."
                    )
                yield condition, seed, generation, path, record


def seconds(profiles: Iterable[Params], stages: Iterable[str]) -> float:
    """Seconds that the records of the profiles' runs took, each counted once, whenever it was made."""
    found = {
        path: record["timing"]["wall_seconds"]
        for params, stage in itertools.product(profiles, stages)
        for *_, path, record in _each(params, stage)
    }
    return sum(found.values())


def _records(params: Params, root: Path | None) -> tuple[Params, Path]:
    """The parameters, and the folder of their records: the first that is there, so that never two are mixed."""
    candidates = folders(params, root)
    return params, next((folder for folder in candidates if folder.is_dir()), candidates[0])


def disagreements(record: dict, params: Params) -> dict[str, tuple[Any, Any]]:
    """Parameters that a record's result depends on and that have another value: name to (the record's, this one)."""
    # Before keys were noted, `parameters` were those of the whole profile, and those in the key of this stage alone.
    then = record["key"]["parameters"] if record["schema_version"] == provenance.LISTED else record["parameters"]
    names = [name for name in then if name in Params.model_fields and name not in (*PLACES, *DESIGN)]
    now = {name: noted(name, getattr(params, name)) for name in names}
    return {name: (then[name], now[name]) for name in names if then[name] != now[name]}


def ends(params: Params, stage: str) -> list[tuple[str, dict]]:
    """Results of a stage for the first seed, each with a label: generation 0, then the last of every condition.

    ValueError as `results` raises it.
    """
    found = list(results(params, stage, seeds=params.seeds[:1], generations=(0, params.generations)))
    (*_, start), last = found[0], [one for one in found if one[2] > 0]
    return [("generation 0", start)] + [(f"{name}, generation {number}", result) for name, _, number, result in last]


def log_published_ratio(curvature: dict) -> float:
    """log(|λ_max| / IQR) of the published estimator; its IQR is bounded below by the published 1e-6,
    under which the published ratio is set to 0."""
    return math.log(abs(curvature["published_lambda_max"]) / max(curvature["published_iqr"], 1e-6))


def table(
    params: Params,
    conditions: list[str] | None = None,
    seeds: list[int] | None = None,
    stages: tuple[str, ...] = tuple(_COLUMNS),
    root: Path | None = None,
) -> pd.DataFrame:
    """Tidy table of the profile's runs: model, condition, weights (restart or carry), seed, generation, then the
    metrics of the stages.

    A metric that there is not (storyworld's tails on other text, MAUVE without its package) has no column. Drifts are
    differences to generation 0 of the same seed.
    """
    rows: dict[tuple[str, int, int], dict] = {}
    for stage in stages:
        for condition, seed, generation, result in results(params, stage, conditions, seeds, root=root):
            row = rows.setdefault((condition, seed, generation), {})
            row |= {name: result[name] for name in _COLUMNS[stage] if name in result}
            if stage == "curvature":
                row["log_published_ratio"] = log_published_ratio(result)
            if stage == "sigma":
                row |= {f"{track}_drift": result["drifts"][track]["drift"] for track in TRACKS}
    frame = pd.DataFrame(
        [
            {
                "model": params.model,
                "condition": condition,
                "weights": split_condition(condition, params.weights)[1],
                "seed": seed,
                "generation": generation,
                **row,
            }
            for (condition, seed, generation), row in rows.items()
        ]
    )
    metrics = [name for name in frame if name not in ("model", "condition", "weights", "seed", "generation")]
    # JSON has no NaN: an undefined value arrives as None.
    return frame.astype(dict.fromkeys(metrics, float))


def drifts(
    params: Params,
    conditions: list[str] | None = None,
    seeds: list[int] | None = None,
    root: Path | None = None,
) -> pd.DataFrame:
    """Drift of every SIGMA track of the profile's runs with its band: condition, seed, generation, track, drift, low,
    high, standard_error, p_value (of drift ≠ 0). The band is the bootstrap's over prompts, within the run."""
    rows = [
        {"condition": condition, "seed": seed, "generation": generation, "track": track, **result["drifts"][track]}
        for condition, seed, generation, result in results(params, "sigma", conditions, seeds, root=root)
        for track in TRACKS
    ]
    frame = pd.DataFrame(rows)
    return frame.astype(dict.fromkeys(frame.columns[4:], float))


def bucket_drifts(params: Params, conditions: list[str] | None = None, seeds: list[int] | None = None) -> pd.DataFrame:
    """Track II's drift in every prompt bucket, as `drifts`, with columns bucket and blocks for track."""
    rows = [
        {"condition": condition, "seed": seed, "generation": generation, "bucket": bucket, **found}
        for condition, seed, generation, result in results(params, "sigma", conditions, seeds)
        for bucket, found in result["bucket_drifts"].items()
    ]
    frame = pd.DataFrame(rows)
    return frame.astype(dict.fromkeys(frame.columns[4:], float))
