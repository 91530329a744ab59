"""The studies that come with the project: their committed records, and what every paper shows of them."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from .. import curvature, estimate
from ..analysis import series, statistics
from ..experiment import batch_sizes as sizes
from ..experiment import estimators
from ..record import paths
from ..record.evidence import PACKS, read_study
from ..record.params import load, profiles
from ..sigma import TRACKS
from . import formatting, tables
from .formatting import bracket_of, interval_of, number_of, pair_of

PUBLISHED_DIMENSION = 384  # of the published series' embeddings
PRETRAINED = "smollm2_offline"  # the profile of pretrained weights whose records come with the project
PRETRAINED_METRICS = (
    *("held_out_perplexity", "distinct_2", "distinct_4", "rare_token_coverage", "predictive_entropy"),
    *("lambda_max", "bulk_sigma", "log_spectral_ratio", "log_published_ratio"),
    *("track_two_drift", "logdet_drift", "track_one_drift"),
)
PRETRAINED_SERIES = (
    *("held_out_perplexity", "distinct_2", "predictive_entropy"),
    *("log_spectral_ratio", "log_published_ratio", "track_two_drift"),
)


def committed(profile: str, *stages: str) -> list[dict]:
    """Results of stages of a profile's base model, first seed, from the packed studies. ValueError as `series.results`
    raises it."""
    params = load(profile)
    first = (params.conditions[:1], params.seeds[:1], [0], PACKS)
    return [result for stage in stages for *_, result in series.results(params, stage, *first)]


def estimator_noise() -> pd.DataFrame:
    """`estimators.values` of the committed study of the profile `estimators`."""
    params = load("estimators")
    results = committed("estimators", *(f"estimators_{batch}" for batch in range(params.estimator_batches)))
    return estimators.values(results, params.estimator_steps)


def batch_sizes() -> tuple[pd.DataFrame, dict]:
    """The committed study of the number of blocks (`batch_sizes`): a row a model and batch, and its record.

    ValueError where it is missing, or its table is not the one that its record describes.
    """
    result, found = read_study("batch_sizes", ["batches"], source=PACKS)
    return found["batches"], result


def batch_sizes_values(found: pd.DataFrame, study: Mapping) -> dict[str, str]:
    """sizes.{pool,tokens}, of the study; sizes.<model>.parameters; sizes.<model>.<quantity>.{batch,expected}, "2 of 24"
    batches whose interval holds what all blocks say, of those that have one; sizes.<model>.{batch,expected}.<blocks>,
    mean σ_bulk over batches of so many blocks."""
    text = {"sizes.pool": str(study["pool"]), "sizes.tokens": str(study["block_tokens"])}
    for (model, quantity), row in sizes.coverage(found).iterrows():
        text[f"sizes.{model}.{quantity}.batch"] = f"{row['batch']:.0f} of {row['batches']:.0f}"
        text[f"sizes.{model}.{quantity}.expected"] = f"{row['expected']:.0f} of {row['defined']:.0f}"
    for (model, blocks), batches in found.groupby(["model", "blocks"]):
        text[f"sizes.{model}.batch.{blocks}"] = number_of(batches["bulk_sigma"].mean())
        text[f"sizes.{model}.expected.{blocks}"] = number_of(batches["population_bulk_sigma"].mean())
        text[f"sizes.{model}.parameters"] = f"{study[f'{model}_parameters']:,}"
    return text


def _published_widths(result: dict) -> list[float]:
    """The published width of every probe of a curvature result."""
    return [
        curvature.interpolated_iqr(np.asarray(nodes), np.asarray(weights))
        for nodes, weights in zip(result["nodes"], result["weights"], strict=True)
    ]


def pretrained_table(result: dict) -> pd.DataFrame:
    """Both estimators on a pretrained model: the published one by probe, and what the probes say together."""
    widths = _published_widths(result)
    exact = series.exact_lambda(result)
    ratios = [curvature.published_ratio(exact, width) for width in widths]
    rows = [
        ("IQR, published, by probe", ", ".join(map(number_of, widths))),
        (r"$\lambda/$IQR, published, by probe", ", ".join(map(number_of, ratios))),
        (r"$\lambda$ of largest $|\lambda|$", number_of(exact)),
        (r"\quad by power iteration", number_of(result["published_lambda_max"])),
        ("IQR, bracket", bracket_of(result, "iqr_bracket")),
        (r"$\lambda_{\max}$ $\pm$ residual", pair_of(result, "lambda_max", "residual")),
        (r"$\lambda_{\max}$ $\pm$ s.e.\ over blocks", pair_of(result, "lambda_max", "batch_error")),
        (r"$\lambda_{\min}$ $\pm$ residual", pair_of(result, "lambda_min", "residual")),
        (r"$\mathrm{tr}(H)/n$", interval_of(result, "mean_eigenvalue")),
        (r"$\sigma_{\mathrm{bulk}}$", interval_of(result, "bulk_sigma")),
        (r"$\log(\lambda_{\max}/\sigma_{\mathrm{bulk}})$", interval_of(result, "log_spectral_ratio")),
    ]
    cells = [[tables.Raw(name), tables.Number(value)] for name, value in rows]
    return pd.DataFrame(cells, columns=pd.Index(["Quantity", "Value"], dtype=object), dtype=object)


def noise_values(noise: pd.DataFrame) -> dict[str, str]:
    """noise.<quantity>.<column of the summary>; noise.{probes,batches,fewest,most}, of probes, batches and steps."""
    text = {}
    for name, column in estimators.summary(noise).items():
        show = formatting.format_percent if name.startswith("cv") else formatting.format_number
        text |= {f"noise.{quantity}.{name}": show(value) for quantity, value in column.items()}
    return text | {
        "noise.probes": str(noise["probe"].nunique()),
        "noise.batches": str(noise["batch"].nunique()),
        "noise.fewest": str(noise["steps"].min()),
        "noise.most": str(noise["steps"].max()),
    }


def pretrained_values(result: dict) -> dict[str, str]:
    """pretrained.<quantity> of a curvature result."""
    widths = _published_widths(result)
    return {
        "pretrained.parameters": f"{result['parameters'] / 1e6:.0f} million",
        "pretrained.probes": str(result["probes"]),
        "pretrained.steps": str(result["steps"]),
        "pretrained.blocks": str(result["blocks"]),
        "pretrained.iqr.least": number_of(min(widths)),
        "pretrained.iqr.most": number_of(max(widths)),
        "pretrained.iqr.bracket": bracket_of(result, "iqr_bracket"),
        "pretrained.log_spectral_ratio": interval_of(result, "log_spectral_ratio"),
    }


# Packed studies whose power iteration was stopped early.
POWER_ITERATIONS = {"tinystories": "tinystories", "ablations": "ablations", "small": "small", "pretrained": PRETRAINED}


def power_iteration_errors() -> dict[str, pd.DataFrame]:
    """`series.power_iteration_errors` of all committed curvature records, by study."""
    found = {}
    for name, study in POWER_ITERATIONS.items():
        places = [place for place in PACKS.content(study) if place.endswith("/curvature.json")]
        found[name] = series.power_iteration_errors(PACKS.record(place)["result"] for place in places)
    return found


def power_iteration_values(errors: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """power.<study>.{models,off,far,sign,median,worst.found,worst.exact}: models, those whose |λ| is below 0.99 and
    0.8 of the exact one, those of the wrong sign, the median relative error of |λ|, and the worst model's λ."""
    text = {}
    for study, frame in errors.items():
        worst = frame.loc[frame["share"].idxmin()]
        text |= {
            f"power.{study}.models": str(len(frame)),
            f"power.{study}.off": str((frame["share"] < 0.99).sum()),
            f"power.{study}.far": str((frame["share"] < 0.8).sum()),
            f"power.{study}.sign": str((~frame["same_sign"]).sum()),
            f"power.{study}.median": formatting.format_percent((frame["share"] - 1).abs().median()),
            f"power.{study}.worst.found": number_of(worst["found"]),
            f"power.{study}.worst.exact": number_of(worst["exact"]),
        }
    return text


def pretrained_runs() -> pd.DataFrame:
    """`series.table` of the committed runs on pretrained weights."""
    return series.table(load(PRETRAINED), source=PACKS)


def _by_seed(runs: pd.DataFrame, metric: str) -> dict[str, pd.Series]:
    """A metric by seed: `start`, at generation 0, and the two conditions at the last generation."""
    last = runs["generation"].max()
    wanted = {"start": (statistics.CONTROL, 0)}
    wanted |= {condition: (condition, last) for condition in (statistics.TREATMENT, statistics.CONTROL)}
    return {
        name: runs[(runs["condition"] == condition) & (runs["generation"] == generation)]
        .set_index("seed")[metric]
        .sort_index()
        for name, (condition, generation) in wanted.items()
    }


def _listed(values: pd.Series) -> str:
    return ", ".join(map(number_of, values))


def pretrained_runs_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Metrics on pretrained weights, a value a seed: before, after the last generation of either condition, and the
    difference of the two. Few seeds make no interval, and none is given."""
    rows = []
    for metric in PRETRAINED_METRICS:
        found = _by_seed(runs, metric)
        columns = (*found.values(), found[statistics.TREATMENT] - found[statistics.CONTROL])
        rows.append([tables.label(metric), *map(tables.Number, map(_listed, columns))])
    return tables.frame_of(rows, ["Metric", "Generation 0", "Recursive", "Fresh", "Recursive less fresh"])


def _in_all(differences: pd.Series, above: str, below: str, neither: str) -> str:
    """The word for differences, one a seed, that are all positive, all negative, or neither."""
    word = above if (differences > 0).all() else below if (differences < 0).all() else None
    return neither if word is None else f"{word} for every seed"


def pretrained_runs_values(runs: pd.DataFrame) -> dict[str, str]:
    """Values of `pretrained_runs` and of its design.

    pretrained.M.{start,recursive,fresh}, a metric by seed; pretrained.M.{recursive,fresh}.moved, whether it rose or
    fell from generation 0 in all seeds, and pretrained.M.word, whether recursion ends above the control in all;
    pretrained.runs.{profile,seeds,generations,blocks,tokens}, of the design, and pretrained.study.{blocks,tokens}, of
    the Hessian study's; pretrained.waiting, profiles of pretrained weights of which no record is here.
    """
    params, study = load(PRETRAINED), load("smollm2")
    text = {
        "pretrained.study.blocks": f"{study.blocks_per_generation:,}",
        "pretrained.study.tokens": str(study.block_tokens),
        "pretrained.runs.seeds": str(len(params.seeds)),
        "pretrained.runs.generations": str(params.generations),
        "pretrained.runs.blocks": str(params.blocks_per_generation),
        "pretrained.runs.tokens": str(params.block_tokens),
        "pretrained.runs.profile": formatting.escape(PRETRAINED),
    }
    for metric in PRETRAINED_METRICS:
        found = _by_seed(runs, metric)
        gap = found[statistics.TREATMENT] - found[statistics.CONTROL]
        text |= {f"pretrained.{metric}.{name}": _listed(values) for name, values in found.items()}
        for condition in (statistics.TREATMENT, statistics.CONTROL):
            moved = found[condition] - found["start"]
            text[f"pretrained.{metric}.{condition}.moved"] = _in_all(moved, "rose", "fell", "did not move to one side")
        text[f"pretrained.{metric}.word"] = _in_all(gap, "higher", "lower", "not to one side of it for every seed")
    waiting = [
        name for name in profiles() if load(name).checkpoint is not None and not PACKS.has(f"{name}/{load(name).model}")
    ]
    return text | {"pretrained.waiting": ", ".join(rf"\texttt{{{formatting.escape(name)}}}" for name in waiting)}


def sigma_coverage() -> pd.DataFrame:
    """The study of SIGMA's intervals (`sigma_coverage`), made here or committed: a row a cell and correction.

    ValueError where it is missing, or its table is not the one that its record describes.
    """
    return read_study("sigma_coverage", ["coverage"])[1]["coverage"]


def coverage_values(covered: pd.DataFrame) -> dict[str, str]:
    """coverage.<correction>.{least,most} over columns and n_A/m at the study's largest m, the encoder's."""
    text = {}
    for correction, shares in covered[covered["m"] == covered["m"].max()].groupby("correction")["coverage"]:
        text[f"coverage.{correction}.least"] = formatting.format_percent(shares.min())
        text[f"coverage.{correction}.most"] = formatting.format_percent(shares.max())
    return text


def drifts(profile: str) -> pd.DataFrame:
    """`series.drifts` of the committed runs of a profile of SIGMA's."""
    return series.drifts(load(profile), source=PACKS)


def counts_values() -> dict[str, str]:
    """Whole numbers of blocks that the published S1 series consists of: Track I − Track II = m log(n_A(t)/n_A(0)).

    published.counts.{base,least,most,series,error}: the n_A(0) from 100 to 1,900 for which whole n_A(t) come nearest to
    every printed difference, the least and greatest n_A(t), their number, and the largest distance in nats.
    """
    points = pd.read_csv(paths.PUBLISHED / "sigma_fin_s1_points.csv")
    gaps = (points["track1_drift"] - points["track2_drift"]).to_numpy()[points["generation"] > 0]
    bases = np.arange(100, 1901)[:, None]
    counts = np.round(bases * np.exp(gaps / PUBLISHED_DIMENSION))
    errors = np.abs(PUBLISHED_DIMENSION * np.log(counts / bases) - gaps).max(axis=1)
    best = int(errors.argmin())
    return {
        "published.counts.base": str(int(bases[best, 0])),
        "published.counts.least": str(int(counts[best].min())),
        "published.counts.most": str(int(counts[best].max())),
        "published.counts.series": str(len(gaps)),
        "published.counts.error": formatting.format_number(float(errors[best])),
    }


def _last(drifts: pd.DataFrame) -> pd.DataFrame:
    return drifts[drifts["generation"] == drifts["generation"].max()]


def _tracks(drifts: pd.DataFrame) -> list[str]:
    """The tracks that have drifts, in their order."""
    return [track for track in TRACKS if track in set(drifts["track"])]


def _over_runs(runs: pd.DataFrame) -> estimate.Interval:
    """Mean drift of runs with its t interval; of a single run the drift with its own band, if it has one."""
    if len(runs) > 1:
        return statistics.mean_interval(runs["drift"])
    return estimate.Interval(*runs[["drift", "low", "high"]].iloc[0])


def injection_values(drifts: pd.DataFrame) -> dict[str, str]:
    """injection.<track>.<condition>, the last drift, mean over seeds with its interval; injection.temperature, .seeds,
    .generations, of those runs."""
    params = load("sigma_injection")
    text = {
        f"injection.{track}.{condition}": formatting.format_interval(_over_runs(runs))
        for (condition, track), runs in _last(drifts).groupby(["condition", "track"])
    }
    return text | {
        "injection.temperature": f"{params.temperature:g}",
        "injection.seeds": str(len(params.seeds)),
        "injection.generations": str(params.generations),
    }


# SIGMA's settings: S1 restarts the weights from the base model, S2 carries them over.
SETTINGS = {"recursive_restart": "S1", "recursive_carry": "S2"}
BANKS = {"stories": "sigma_s1s2", "finance": "sigma_s1s2_finance", "technology": "sigma_s1s2_technology"}


def settings_table(by_bank: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Prompt bank and setting: number of runs, and the last drift of every track with its interval, `_over_runs`."""
    rows = []
    for bank, found in by_bank.items():
        for condition, runs in _last(found).groupby("condition", sort=False):
            cells = [formatting.format_interval(_over_runs(runs[runs["track"] == track])) for track in _tracks(runs)]
            rows.append([bank, SETTINGS[condition], runs["seed"].nunique(), *map(tables.Number, cells)])
    names = [tables.label(f"{track}_drift") for track in _tracks(next(iter(by_bank.values())))]
    return tables.frame_of(rows, ["Prompts", "Setting", "Runs", *names])


def _by_setting(found: pd.DataFrame, track: str) -> pd.DataFrame:
    """Last drifts of a track, a row a seed, columns S1 and S2."""
    last = _last(found[found["track"] == track])
    return last.pivot(index="seed", columns="condition", values="drift").rename(columns=SETTINGS)


def settings_differences(found: pd.DataFrame, track: str) -> pd.Series:
    """Last drift of a track in S2 less that in S1, by seed."""
    by_setting = _by_setting(found, track)
    return by_setting["S2"] - by_setting["S1"]


def settings_values(found: pd.DataFrame) -> dict[str, str]:
    """Of the stories' runs: settings.<track>.{S1,S2}, the last drift; settings.<track>.difference, S2 less S1 paired by
    seed, both with intervals over runs; settings.{seeds,generations}."""
    last = _last(found)
    text = {"settings.seeds": str(last["seed"].nunique()), "settings.generations": str(last["generation"].iloc[0])}
    for track in last["track"].unique():
        gap = statistics.mean_interval(settings_differences(found, track))
        text[f"settings.{track}.difference"] = formatting.format_interval(gap)
        for setting, values in _by_setting(found, track).items():
            text[f"settings.{track}.{setting}"] = formatting.format_interval(statistics.mean_interval(values))
    return text
