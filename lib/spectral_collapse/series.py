"""From records to the tidy table: one row for each model, condition, seed and generation."""

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from . import paths, provenance
from .runs import BASELINE
from .schema import Params
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
        *("held_out_lambda_max", "held_out_lambda_min"),
        *("population_bulk_sigma", "population_log_ratio"),
        *("population_spectral_variance", "population_effective_rank"),
    ),
    "sigma": ("hashed_ngram_hhi", "response_distinct_2"),
    "coherence": ("coherence", "prompt_similarity", "mauve"),
}

log = logging.getLogger(__name__)


def results(
    params: Params,
    stage: str,
    conditions: list[str] | None = None,
    seeds: list[int] | None = None,
    generations: Iterable[int] | None = None,
    root: Path | None = None,
) -> Iterator[tuple[str, int, int, dict]]:
    """(condition, seed, generation, result) of a stage for the profile's runs, generation 0 from the base run.

    `root`: where the profile's records are, `paths.results_root()` if None. Raises ValueError naming the file where
    one is missing or damaged.
    """
    for condition in conditions or params.conditions:
        for seed in seeds or params.seeds:
            for generation in generations or range(params.generations + 1):
                owner, profile = condition, params.profile
                if generation == 0:
                    owner, profile = BASELINE, params.base or params.profile
                run = paths.run_folder(profile, params.model, owner, seed, root)
                path = paths.generation_folder(run, generation) / f"{stage}.json"
                try:
                    yield condition, seed, generation, provenance.read_result(path)
                except FileNotFoundError:
                    raise ValueError(
                        f"{path} is missing: run the notebook of condition {owner!r}, seed {seed}."
                    ) from None
                except provenance.StaleRecord as reason:
                    raise ValueError(f"{path} cannot be used, {reason}: run its notebook again to remake it.") from None


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
    """Tidy table of the profile's runs: model, condition, seed, generation, then the metrics of the stages.

    A metric that there is not (storyworld's tails on other text, MAUVE without its package) has no column, and neither
    has one of the expected loss (`curvature.PopulationSignature`) that so few blocks leave undefined for some model.
    Drifts are differences to generation 0 of the same seed.
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
            {"model": params.model, "condition": condition, "seed": seed, "generation": generation, **row}
            for (condition, seed, generation), row in rows.items()
        ]
    )
    metrics = [name for name in frame if name not in ("model", "condition", "seed", "generation")]
    # JSON has no NaN: an undefined value arrives as None.
    frame = frame.astype(dict.fromkeys(metrics, float))
    of_loss = [name for name in metrics if name.startswith(("population_", "held_out_lambda_"))]
    if undefined := [name for name in of_loss if frame[name].isna().any()]:
        log.warning("%s: undefined for some model, and left out: raise curvature_blocks.", ", ".join(undefined))
    return frame.drop(columns=undefined)


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
