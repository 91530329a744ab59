"""The studies that every paper shows, from the records that come with the project.

paper/studies.yaml names the profile of each; it is the only place that does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..record import paths, provenance
from ..record.params import BASELINE, load, profiles, read_yaml
from . import estimators, mechanism, series, sigma_settings
from .statistics import CONTROL, TREATMENT

SHOWN = paths.ROOT / "paper" / "studies.yaml"


def shown() -> dict[str, Any]:
    """The studies by name, each with its profile, or its profiles by name."""
    return read_yaml(SHOWN)


def committed(profile: str, *stages: str) -> list[dict]:
    """Results of stages of a profile's base model, first seed, from the records that come with the project.

    ValueError naming the file where one is missing or damaged.
    """
    params = load(profile)
    run = paths.run_folder(params.profile, params.model, BASELINE, params.seeds[0], paths.COMMITTED)
    results = []
    for stage in stages:
        path = paths.generation_folder(run, 0) / f"{stage}.json"
        try:
            results.append(provenance.read_result(path))
        except (FileNotFoundError, provenance.StaleRecord) as reason:
            raise ValueError(f"{path} cannot be used ({reason}): restore it from the repository.") from None
    return results


def estimator_noise(profile: str) -> pd.DataFrame:
    """`estimators.noise` of the committed study of a profile."""
    params = load(profile)
    results = committed(profile, *(f"estimators_{batch}" for batch in range(params.estimator_batches)))
    return estimators.noise(results, params.estimator_steps)


def batch_sizes() -> tuple[pd.DataFrame, dict]:
    """The committed study of the number of blocks (`experiment.batch_sizes`): a row a model and batch, and its record.

    ValueError where it is missing, or its table is not the one that its record describes.
    """
    result, found = provenance.read_study(paths.COMMITTED / "batch_sizes", ["batches"])
    return found["batches"], result


def sigma_coverage() -> pd.DataFrame:
    """The study of SIGMA's intervals (`experiment.sigma_coverage`), made here or committed: a row a cell and method.

    ValueError where it is missing, or its table is not the one that its record describes.
    """
    return provenance.read_study(paths.study_folder("sigma_coverage"), ["coverage"])[1]["coverage"]


def mechanism_study(profile: str) -> mechanism.Study:
    """The committed study of the mechanism."""
    return mechanism.read(load(profile), paths.COMMITTED)


def drifts(profile: str) -> pd.DataFrame:
    """`series.drifts` of the committed runs of a profile."""
    return series.drifts(load(profile), root=paths.COMMITTED)


def settings_drifts(profile: str) -> pd.DataFrame:
    """`sigma_settings.compared` of the committed runs of a profile with both settings."""
    return sigma_settings.compared(drifts(profile), sigma_settings.settings(load(profile)))


def sigma_differences(profile: str) -> pd.DataFrame:
    """S2 less S1 of the committed runs of a profile: last drifts, a row a seed, a column a track."""
    found, names = drifts(profile), sigma_settings.settings(load(profile))
    tracks = found["track"].unique()
    return pd.DataFrame({track: sigma_settings.differences(found, names, track) for track in tracks})


def power_iteration_errors(profiles: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """`series.power_iteration_errors` of the committed curvature records of profiles, or of all cells of a grid."""
    found = {}
    for name, profile in profiles.items():
        files = sorted(paths.COMMITTED.glob(f"{profile}*/*/*/seed_*/generation_*/curvature.json"))
        found[name] = series.power_iteration_errors(map(provenance.read_result, files))
    return found


# ---- pretrained weights


def runs(profile: str) -> pd.DataFrame:
    """`series.table` of the committed runs of a profile."""
    return series.table(load(profile), root=paths.COMMITTED)


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
        name
        for name in profiles()
        if load(name).checkpoint is not None and not (paths.COMMITTED / name / load(name).model).exists()
    ]
