"""The study of the mechanism: the results of all runs as small tables, and what they say."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from ..estimate import Estimate
from ..experiment import mechanism as stages
from ..machine import devices
from ..mechanism import eigenvectors, tracking
from ..record import closure, evidence, params, paths, provenance
from ..record.schema import Params
from . import series
from .mediation import gaps
from .statistics import CONTROL, TREATMENT, holm, paired_tests, sides

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
_NOT_FLOATS = ("condition", "part", "layer", "fate", "since", "seed", "generation", "outlier")


@dataclass(frozen=True)
class Study:
    """Tables of a profile's runs. Every row has condition, seed and generation; every condition has generation 0.

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


def _layer_name(index: int) -> str:
    return f"layer {index - 1}" if index else "embedding"


def _rows(params: Params, found: dict[str, dict]) -> dict[str, list[dict]]:
    """Rows that the results of one generation add to every table but `outliers`."""
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
    """A table whose measurements are floats: undefined ones arrive as None, since JSON has no NaN."""
    frame = pd.DataFrame(rows)
    return frame.astype({name: float for name in frame.columns if name not in _NOT_FLOATS})


def tables(runs: Iterable[tuple[str, int, list[dict[str, dict]]]], settings: Params) -> Study:
    """The study of a profile's runs (`experiment.mechanism.measured`)."""
    found: dict[str, list[dict]] = {name: [] for name in _TABLES}
    for condition, seed, generations in runs:
        spectra = []
        for generation, results in enumerate(generations):
            at = {"condition": condition, "seed": seed, "generation": generation}
            for name, rows in _rows(settings, results).items():
                found[name] += [at | row for row in rows]
            pairs = results["eigenpairs"]
            spectra.append(tracking.Spectrum(*(pairs[key] for key in ("values", "from_before", "from_start", "sunk"))))
        followed = tracking.follow(spectra, settings.eigenvectors)
        found["outliers"] += [{"condition": condition, "seed": seed, **one._asdict()} for one in followed]
    return Study(**{name: _frame(rows) for name, rows in found.items()})


def folder_of(settings: Params) -> Path:
    """`<results>/<profile>/<model>/mechanism`."""
    return paths.model_folder(params.name_of(settings), settings.model) / "mechanism"


def write(study: Study, settings: Params) -> Path:
    """Writes the tables as CSV, and their record study.json, into `folder_of`, and returns that folder."""
    folder = folder_of(settings)
    values = settings.model_dump(exclude={"data_path", "held_out_path"})
    provenance.write_study(
        folder,
        {name: getattr(study, name) for name in _TABLES},
        {},
        key={"parameters": values, "code": closure.code_hash(stages.measured, tables)},
        about={"stage": "mechanism_study", "profile": settings.profile, "model": settings.model},
        seconds=series.seconds([settings], stages.STAGES),
        device=str(devices.pick_device(settings.device)),
    )
    return folder


def read(settings: Params, source: evidence.Source | None = None) -> Study:
    """The study that `write` left. ValueError where it is missing, or a table is not the one its record describes."""
    return Study(**evidence.read_study(params.folders(settings)[0] / "mechanism", _TABLES, source=source)[1])


# ---- what the tables say


def _last(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["generation"] == table["generation"].max()]


def differences(quantities: pd.DataFrame, names: Sequence[str] = QUANTITIES) -> pd.DataFrame:
    """Treatment less control at the last generation, paired by seed: columns quantity, recursive, fresh (means),
    difference, low, high (95 % t interval), p, p_holm (over all quantities), word: `higher` or `lower` where p_holm is
    below 0.05, else `not distinguishable`."""
    last = _last(quantities)
    pair = last[last["condition"].isin([TREATMENT, CONTROL])]
    rows = []
    for name in names:
        gaps(quantities, name)  # refuses what cannot be compared
        test = paired_tests(pair, name).iloc[0]
        means = pair.groupby("condition")[name].mean()
        rows.append((name, means[TREATMENT], means[CONTROL], test["difference"], test["low"], test["high"], test["p"]))
    frame = pd.DataFrame(rows, columns=["quantity", "recursive", "fresh", "difference", "low", "high", "p"])
    frame["p_holm"] = holm(frame["p"])
    return frame.assign(word=sides(frame))


def means(quantities: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with their t intervals: columns condition, quantity, at (first or last generation), mean, low,
    high."""
    ends = {"first": quantities[quantities["generation"] == 0], "last": _last(quantities)}
    rows = [
        (condition, name, at, *Estimate.mean(runs[name]))
        for at, end in ends.items()
        for condition, runs in end.groupby("condition")
        for name in QUANTITIES
    ]
    return pd.DataFrame(rows, columns=["condition", "quantity", "at", "mean", "low", "high"])


def fate_counts(outliers: pd.DataFrame) -> pd.DataFrame:
    """Number of outliers of generation 0, over all seeds, with each fate at the last generation: a row a condition, a
    column a fate, their number `all`, and `factor`, the median factor of the eigenvalues that have not merged."""
    last = _last(outliers)
    counts = pd.crosstab(last["condition"], last["fate"]).reindex(columns=list(tracking.FATES), fill_value=0)
    cell = ["condition", "seed", "outlier"]
    first = outliers[outliers["generation"] == 0].set_index(cell)["value"]
    factors = last.set_index(cell)["value"] / first
    return counts.assign(all=counts.sum(axis=1), factor=factors.groupby("condition").median())


def merging(outliers: pd.DataFrame) -> Estimate:
    """Share of the leading eigenvectors of generation 0 that merged by the last generation, recursive less fresh: mean
    over seeds with its 95 % t interval."""
    last = _last(outliers)
    merged = (last["fate"] == "merges").groupby([last["condition"], last["seed"]]).mean()
    return Estimate.mean(merged[TREATMENT] - merged[CONTROL])


def conditions(study: Study) -> pd.DataFrame:
    """Of every condition: noise_start and noise, the median noise scale in blocks at generation 0 and at the last;
    aligned, the mean share of the drift in the leading eigenspace over `chance`, that of a random direction; barrier,
    the largest over seeds from generation 0 to the last, and step_barrier, between successive generations; rises, in
    how many of the `runs` the loss rises all along the line to the last generation."""
    rows = {}
    for condition, runs in study.lines.groupby("condition"):
        own = study.quantities[study.quantities["condition"] == condition]
        last = _last(own)
        whole = _last(runs[runs["since"] == "start"])
        along = whole[whole["t"].between(0, 1)].pivot(index="t", columns="seed", values="loss")
        rows[condition] = {
            "noise_start": own.loc[own["generation"] == 0, "noise_scale_blocks"].median(),
            "noise": last["noise_scale_blocks"].median(),
            "chance": (chance := last["drift_aligned_by_chance"].iloc[0]),
            "aligned": last["drift_aligned"].mean() / chance,
            "barrier": whole["barrier"].max(),
            "step_barrier": runs.loc[runs["since"] == "before", "barrier"].max(),
            "rises": (along.diff().dropna() > 0).all().sum(),
            "runs": along.shape[1],
        }
    return pd.DataFrame.from_dict(rows, orient="index")
