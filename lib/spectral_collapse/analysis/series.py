"""From records to the tidy table: one row for each model, condition, seed and generation."""

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import digamma

from ..curvature import largest_eigenvalue
from ..record import evidence, packfile, paths, provenance
from ..record.evidence import Source
from ..record.params import BASELINE, base_params, folders
from ..record.schema import DESIGN, PLACES, Params, noted, split_condition
from . import metrics
from .statistics import ALPHA

log = logging.getLogger(__name__)


class MissingRecord(ValueError):
    """A record that is not there."""


def results(
    params: Params,
    stage: str,
    conditions: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    generations: Iterable[int] | None = None,
    source: Source | None = None,
) -> Iterator[tuple[str, int, int, dict]]:
    """(condition, seed, generation, result) of a stage for the profile's runs, generation 0 from the base run.

    `source`: the only place to look in; None: `evidence.sources`. Raises ValueError naming the record where one is
    missing or damaged, or was made with other values of parameters that its result depends on; a parameter that only
    one of the two has is not compared.
    """
    for condition, seed, generation, _, record in records(params, stage, conditions, seeds, generations, source):
        yield condition, seed, generation, record["result"]


def records(
    params: Params,
    stage: str,
    conditions: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    generations: Iterable[int] | None = None,
    source: Source | None = None,
) -> Iterator[tuple[str, int, int, PurePath, dict]]:
    """(condition, seed, generation, place, record) as `results`; `MissingRecord` where one is not there."""
    conditions = params.conditions if conditions is None else conditions
    seeds = params.seeds if seeds is None else seeds
    generations = range(params.generations + 1) if generations is None else list(generations)
    # One folder of one source for each: records of two are never mixed.
    own, base = ((settings, *evidence.holding(folders(settings), source)) for settings in (params, base_params(params)))
    for condition, seed, generation in itertools.product(conditions, seeds, generations):
        (settings, held, folder), owner = (own, condition) if generation else (base, BASELINE)
        place = paths.generation_folder(folder / owner / f"seed_{seed}", generation) / f"{stage}.json"
        again = f"run the notebook of condition {owner!r}, seed {seed}"
        try:
            record = held.record(place)
        except FileNotFoundError:
            raise MissingRecord(f"{held.shown(place)} is missing: {again}.") from None
        except provenance.StaleRecord as reason:
            raise ValueError(f"{held.shown(place)} cannot be used, {reason}: {held.remedy}.") from None
        if differ := disagreements(record, settings):
            told = ", ".join(f"{name} {then!r}, not {now!r}" for name, (then, now) in differ.items())
            raise ValueError(
                f"{held.shown(place)} was made with {told}: {again} with the values that you ask for, or ask for "
                "those of the record."
            )
        yield condition, seed, generation, place, record


def seconds(profiles: Iterable[Params], stages: Iterable[str]) -> float:
    """Seconds that the records of the profiles' runs took, each counted once, whenever it was made."""
    found = {
        place: record["timing"]["wall_seconds"]
        for params, stage in itertools.product(profiles, stages)
        for *_, place, record in records(params, stage)
    }
    return sum(found.values())


def disagreements(record: dict, params: Params) -> dict[str, tuple[Any, Any]]:
    """Parameters that a record's result depends on and that have another value: name to (the record's, this one)."""
    then = packfile.behind(record)
    names = [name for name in then if name in Params.model_fields and name not in (*PLACES, *DESIGN)]
    now = {name: noted(name, getattr(params, name)) for name in names}
    return {name: (then[name], now[name]) for name in names if then[name] != now[name]}


def unrecorded(params: Params) -> set[str]:
    """Parameters that are newer than the profile's records."""
    *_, record = next(records(params, "training", generations=[0]))
    if record["schema_version"] != provenance.LISTED:
        return set()
    return Params.model_fields.keys() - record["parameters"].keys() - set(PLACES)


def ends(params: Params, stage: str) -> list[tuple[str, dict]]:
    """(label, result) of a stage for the first seed: generation 0, then the last generation of every condition.
    ValueError as `results`."""
    found = list(results(params, stage, seeds=params.seeds[:1], generations=(0, params.generations)))
    (*_, start), last = found[0], [one for one in found if one[2] > 0]
    return [("generation 0", start)] + [
        (f"{metrics.condition_label(name)}, generation {number}", result) for name, _, number, result in last
    ]


def exact_lambda(curvature: dict) -> float:
    """Eigenvalue of largest |λ| in a curvature result, with its sign, by Lanczos: the target of power iteration."""
    return largest_eigenvalue(curvature["lambda_max"], curvature["lambda_min"])


def log_published_ratio(curvature: dict) -> float:
    """log(|λ| / IQR), the log of the published ratio; |·|, since its λ of largest |λ| may be negative.

    λ is exact (`exact_lambda`) and not from power iteration, which stopped after 2, 20 or 30 products in some records
    (`power_iteration_errors`). The IQR is bounded below by 1e-6, under which the published ratio is set to 0.
    """
    return math.log(abs(exact_lambda(curvature)) / max(curvature["published_iqr"], 1e-6))


def power_iteration_errors(curvatures: Iterable[dict]) -> pd.DataFrame:
    """Errors of power iteration in curvature results, a row each: found and exact (signed), share = |found| / |exact|,
    same_sign."""
    frame = pd.DataFrame(
        [(result["published_lambda_max"], exact_lambda(result)) for result in curvatures], columns=["found", "exact"]
    )
    share = frame["found"].abs() / frame["exact"].abs()
    return frame.assign(share=share, same_sign=frame["found"] * frame["exact"] > 0)


# ---- drifts


def constant_counts(sigma: dict) -> bool:
    """Whether a result of the stage `sigma` has the same number of blocks as generation 0 by design."""
    return "blocks_per_prompt" in sigma


def expected_logdet(m: int, n: int) -> float:
    """E log det of the Gram matrix of n Gaussian columns of covariance I: Σ_i ψ((n − i + 1)/2) + m log 2, i = 1 … m."""
    return float(digamma((n - np.arange(m)) / 2).sum() + m * math.log(2))


def count_effect(first: dict, last: dict) -> float:
    """Contribution of the numbers of blocks to Track II's drift between two results of `sigma`, for Gaussian columns:
    the change of E log det A − m log n_A at constant covariance."""
    m = last["live_dimensions"]
    at_first, at_last = (
        expected_logdet(m, result["observed_blocks"]) - m * math.log(result["observed_blocks"])
        for result in (first, last)
    )
    return at_last - at_first


def track_drifts(first: dict, last: dict) -> dict[str, dict[str, float]]:
    """Drift of every track between two results of the stage `sigma`, with its band where it has one.

    Results with the same number of blocks at all checkpoints hold their drifts. In older ones (`constant_counts`) a
    drift also measured the number of blocks, which is corrected as far as their records allow. Track I: m log(n/n₀),
    exactly its term in the counts, is added; one more block changes the rest by 0.002 nats. Track II: `count_effect` is
    subtracted, exact for Gaussian columns and δ → 0; on sentence embeddings of TinyStories (n_A = 414 to 465, 381
    dimensions) one more block changed it by 1.1 to 1.3 nats before, and by −0.1 to 0.1 after. Corrected
    log-determinant: log det G minus its expectation for Gaussian columns, which removes n; one more block changed it by
    0.2. The sharp Track I cannot be corrected and has no drift; bands, standard errors and p-values are NaN.
    """
    if constant_counts(last):
        return last["drifts"]
    m, none = last["live_dimensions"], dict.fromkeys(("low", "high", "standard_error", "p_value"), math.nan)
    counts = [result["total_blocks"] for result in (first, last)]
    estimates = [
        result["logdet_corrected"][0] - expected_logdet(m, n) if result["logdet_corrected"] else math.nan
        for result, n in zip((first, last), counts, strict=True)
    ]
    moved = {
        "track_two": last["track_two"] - first["track_two"] - count_effect(first, last),
        "logdet": estimates[1] - estimates[0],
        "track_one": last["track_one"] - first["track_one"] + m * math.log(counts[1] / counts[0]),
    }
    return {track: {"drift": drift, **none} for track, drift in moved.items()}


def count_finding(pairs: list[tuple[dict, dict]]) -> dict[str, str]:
    """How well the numbers of blocks predict Track I's recorded drifts, from pairs of results of `sigma` (generation 0,
    later generation).

    r2 = 1 − Σ(d − p)²/Σ(d − d̄)² of the drifts d and p = −m log(n/n₀), which has no fitted constant; drifts, their
    number; significant, the number with bootstrap p < 0.05; most, the largest |d − p|.
    """
    drifts = np.array([last["track_one"] - first["track_one"] for first, last in pairs])
    counts = np.array(
        [last["live_dimensions"] * math.log(last["total_blocks"] / first["total_blocks"]) for first, last in pairs]
    )
    tests = [last["drifts"]["track_one"]["p_value"] for _, last in pairs]
    left, spread = drifts + counts, float(((drifts - drifts.mean()) ** 2).sum())
    return {
        "r2": f"{1 - left @ left / spread:.5f}" if spread > 0 else "--",
        "drifts": str(len(drifts)),
        "significant": str(sum(p is not None and p < ALPHA for p in tests)),
        "most": f"{np.abs(left).max():.2f}",
    }


def measured(stage: str, result: dict, start: dict) -> dict[str, tuple[Any, Any, Any]]:
    """Metrics of a stage's result: name to (value, low, high), the 95 % interval within the run, None or NaN where the
    record has none. Drifts are differences to the result `start` of generation 0, by `track_drifts`."""
    found = {
        name: (value, *(result.get(f"{name}_interval") or (None, None)))
        for name, value in metrics.columns(stage, result).items()
    }
    if stage == "curvature":
        found["log_published_ratio"] = log_published_ratio(result), None, None
    if stage == "sigma":
        for track, drift in track_drifts(start, result).items():
            found[f"{track}_drift"] = drift["drift"], drift["low"], drift["high"]
    return found


def table(
    params: Params,
    conditions: list[str] | None = None,
    seeds: list[int] | None = None,
    stages: tuple[str, ...] = metrics.STAGES,
    source: Source | None = None,
) -> pd.DataFrame:
    """Tidy table of the profile's runs: model, condition, weights (restart or carry), seed, generation, then the
    metrics of the stages.

    There is no column for a metric that was not measured (storyworld's tails on other text, MAUVE without its package),
    for the corrected log-determinant if a checkpoint has too few blocks, or for a metric of the expected loss
    (`curvature.PopulationSignature`) that is undefined for some model. Drifts are differences to generation 0 of the
    same seed, by `track_drifts`.
    """
    rows: dict[tuple[str, int, int], dict] = {}
    start: dict = {}
    for stage in stages:
        for condition, seed, generation, result in results(params, stage, conditions, seeds, source=source):
            start = result if generation == 0 else start  # `results` begins every run with it
            found = measured(stage, result, start)
            rows.setdefault((condition, seed, generation), {}).update({name: value[0] for name, value in found.items()})
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
    if "logdet_drift" in frame and frame["logdet_drift"].isna().any():
        log.warning("logdet_drift: undefined for some model, and left out: it needs more blocks than dimensions.")
        frame = frame.drop(columns="logdet_drift")
    names = [name for name in frame if name not in ("model", "condition", "weights", "seed", "generation")]
    # JSON has no NaN: an undefined value arrives as None.
    frame = frame.astype(dict.fromkeys(names, float))
    of_loss = [name for name in names if name.startswith(("population_", "held_out_lambda_"))]
    if undefined := [name for name in of_loss if frame[name].isna().any()]:
        log.warning("%s: undefined for some model, and left out: raise curvature_blocks.", ", ".join(undefined))
    return frame.drop(columns=undefined)


def drifts(
    params: Params,
    conditions: list[str] | None = None,
    seeds: list[int] | None = None,
    source: Source | None = None,
) -> pd.DataFrame:
    """Drift of every SIGMA track of the profile's runs with its band: condition, seed, generation, track, drift, low,
    high, standard_error, p_value (of drift ≠ 0), by `track_drifts`. The band is the bootstrap's over prompts, within
    the run, and NaN where the number of blocks changed."""
    rows, start = [], {}
    for condition, seed, generation, result in results(params, "sigma", conditions, seeds, source=source):
        start = result if generation == 0 else start
        run = {"condition": condition, "seed": seed, "generation": generation}
        rows += [{**run, "track": track, **found} for track, found in track_drifts(start, result).items()]
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
