"""The studies that every paper shows, from the records that come with the project.

paper/studies.yaml names the profile of each; it is the only place that does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..record import paths
from ..record.evidence import PACKS, read_study
from ..record.params import load, profiles, read_yaml
from ..record.schema import Params
from . import estimators, mechanism, primary, report, rescue, series, sigma_settings, theory, warning
from .statistics import CONTROL, TREATMENT

SHOWN = paths.ROOT / "paper" / "studies.yaml"


def shown() -> dict[str, Any]:
    """The studies by name, each with its profile, or its profiles by name."""
    return read_yaml(SHOWN)


def packed(profile: str, *stages: str) -> list[dict]:
    """Results of stages of a profile's base model, first seed, from the packed studies. ValueError as `series.results`
    raises it."""
    params = load(profile)
    first = (params.conditions[:1], params.seeds[:1], [0], PACKS)
    return [result for stage in stages for *_, result in series.results(params, stage, *first)]


def estimator_noise(profile: str) -> pd.DataFrame:
    """`estimators.noise` of the packed study of a profile."""
    params = load(profile)
    results = packed(profile, *(f"estimators_{batch}" for batch in range(params.estimator_batches)))
    return estimators.noise(results, params.estimator_steps)


def batch_sizes() -> tuple[pd.DataFrame, dict]:
    """The packed study of the number of blocks (`experiment.batch_sizes`): a row a model and batch, and its record.

    ValueError where it is missing, or its table is not the one that its record describes.
    """
    result, found = read_study("batch_sizes", ["batches"], source=PACKS)
    return found["batches"], result


def sigma_coverage() -> pd.DataFrame:
    """The study of SIGMA's intervals (`experiment.sigma_coverage`), made here or packed: a row a cell and method.

    ValueError where it is missing, or its table is not the one that its record describes.
    """
    return read_study("sigma_coverage", ["coverage"])[1]["coverage"]


def mechanism_study(profile: str) -> mechanism.Study:
    """The packed study of the mechanism."""
    return mechanism.read(load(profile), PACKS)


def drifts(profile: str) -> pd.DataFrame:
    """`series.drifts` of the packed runs of a profile."""
    return series.drifts(load(profile), source=PACKS)


def settings_drifts(profile: str) -> pd.DataFrame:
    """`sigma_settings.compared` of the packed runs of a profile with both settings."""
    return sigma_settings.compared(drifts(profile), sigma_settings.settings(load(profile)))


def sigma_differences(profile: str) -> pd.DataFrame:
    """S2 less S1 of the packed runs of a profile: last drifts, a row a seed, a column a track."""
    found, names = drifts(profile), sigma_settings.settings(load(profile))
    tracks = found["track"].unique()
    return pd.DataFrame({track: sigma_settings.differences(found, names, track) for track in tracks})


def power_iteration_errors(studies: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """`series.power_iteration_errors` of all curvature records of packed studies, by name."""
    found = {}
    for name, study in studies.items():
        places = [place for place in PACKS.content(study) if place.endswith("/curvature.json")]
        found[name] = series.power_iteration_errors(PACKS.record(place)["result"] for place in places)
    return found


def analysed(profile: str) -> report.Analysis:
    """`report.analyse` of the packed runs of a profile."""
    return report.analyse(runs(profile), drifts(profile))


@dataclass(frozen=True)
class Confirmatory:
    """A packed study that named its hypotheses: parameters, `report.analyse`, `primary.verdicts`, `warning.warnings`,
    `rescue.recovered`, results of the stage training, and the commits of this repository at which its runs were made.
    """

    params: Params
    analysis: report.Analysis
    verdicts: pd.DataFrame
    warnings: pd.DataFrame
    recovered: pd.DataFrame
    training: list[tuple[str, int, int, dict]]
    commits: list[str]


def confirmatory(profile: str) -> Confirmatory:
    """The packed study of a profile with primary hypotheses."""
    params, analysis = load(profile), analysed(profile)
    table = analysis.table
    curve = warning.detection_curve(table, analysis.outcomes[:1] + analysis.candidates)
    last = {"generations": [params.generations], "source": PACKS}
    dosed = series.results(params, "doses", params.conditions, **last) if params.rescue_doses else []
    places = PACKS.content(profile)
    commits = {places[place]["git"]["commit"] for place in places if place.endswith("/training.json")}
    return Confirmatory(
        params=params,
        analysis=analysis,
        verdicts=primary.verdicts(params, table, analysis.alarms),
        warnings=warning.warnings(analysis, curve, warning.costs(params, source=PACKS)),
        recovered=rescue.recovered(table, dosed),
        training=list(series.results(params, "training", source=PACKS)),
        commits=sorted(commits),
    )


def samples(profile: str, count: int = 2) -> pd.DataFrame:
    """The first stories of the first seed's models: columns condition ("": the base model), generation, story.

    All are drawn with the same random numbers, so that none is chosen.
    """
    params = load(profile)
    where = {"seeds": params.seeds[:1], "generations": [0, params.generations], "source": PACKS}
    found: dict[tuple[str, int], list[str]] = {}
    for condition, _, generation, result in series.results(params, "evaluation", **where):
        found[condition if generation else "", generation] = result["stories"][:count]
    rows = [(*model, story) for model, stories in found.items() for story in stories]
    return pd.DataFrame(rows, columns=["condition", "generation", "story"])


def implied_recursion(profile: str) -> dict[str, float]:
    """`theory.implied` of a profile's treatment in the encoder's live dimensions; blocks, tokens of a generation."""
    params = load(profile)
    *_, first = next(iter(series.results(params, "sigma", source=PACKS)))
    blocks = params.blocks_per_generation
    found = theory.implied(runs(profile), first["live_dimensions"], TREATMENT)
    return found | {"dimensions": first["live_dimensions"], "blocks": blocks, "tokens": blocks * params.block_tokens}


# ---- pretrained weights


def runs(profile: str) -> pd.DataFrame:
    """`series.table` of the packed runs of a profile."""
    return series.table(load(profile), source=PACKS)


def long_runs(*profiles: str) -> pd.DataFrame:
    """`series.table` of the packed runs of SIGMA's stages (`experiment.seeds --sigma`), of all profiles together."""
    stages = ("training", "evaluation", "anchors", "sigma")
    return pd.concat([series.table(load(name), stages=stages, source=PACKS) for name in profiles], ignore_index=True)


def before_and_after(runs: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Metrics of runs of few seeds: index metric and seed, columns start (generation 0), the two conditions at the last
    generation, and difference, treatment less control."""
    last = runs["generation"].max()
    wide = runs.set_index(["condition", "generation", "seed"])[list(metrics)].sort_index()
    columns = {"start": (CONTROL, 0), **{name: (name, last) for name in (TREATMENT, CONTROL)}}
    found = pd.DataFrame({name: wide.loc[cell].T.stack() for name, cell in columns.items()})
    return found.assign(difference=found[TREATMENT] - found[CONTROL]).rename_axis(["metric", "seed"])


def common_sign(values: pd.Series) -> int:
    """1 or −1 where all values have this sign, otherwise 0."""
    signs = set(np.sign(values))
    return int(signs.pop()) if len(signs) == 1 else 0


def waiting() -> list[str]:
    """Profiles of pretrained weights of which no record comes with the project."""
    return [
        name for name in profiles() if load(name).checkpoint is not None and not PACKS.has(f"{name}/{load(name).model}")
    ]
