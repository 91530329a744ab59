"""SIGMA's experiment as its paper reports it: S1 beside S2, under its artefacts' names, and the three checks of it.

python -m spectral_collapse.sigma_experiment PROFILE    # when the profile's runs are there: make sigma PROFILE=...
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas as pd
import yaml
from scipy.stats import pearsonr, spearmanr

from .. import sigma
from ..analysis import series
from ..estimate import generator
from ..experiment import encoded, runs
from ..machine import devices
from ..record import cli, provenance
from ..record import params as params_module
from ..record.schema import Params, split_condition
from ..sigma import Budget, Observed
from ..text import corpora, encoder, prompts
from . import figures, tables
from . import output as paper

# The published artefacts' prefixes and columns; a domain is a prompt bank.
PREFIXES = {"finance": "fin", "technology": "tech", "stories": "stories"}
COLUMNS = {"track_two_drift": "track2_drift", "track_one_drift": "track1_drift"}
COLUMNS |= {
    "track_one_sharp_drift": "track1_sharp_drift",
    "response_distinct_2": "distinct2",
    "hashed_ngram_hhi": "hhi",
    "logdet_drift": "logdet_drift",
}
SIZES = (500, 1000, 2000)  # of the observed set, as the review asks
SPLITS = 50
TRACK_NAMES = {"track_two": "Track II", "track_one": "Track I", "track_one_sharp": "Track I, sharp"}
TRACK_NAMES |= {"logdet": "log det, corrected"}


def settings(params: Params) -> dict[str, str]:
    """The conditions that are S1 (weights restart) and S2 (weights are carried), {} unless the profile has both.

    Both train on synthetic text alone, or both on the `mixed` text of one real fraction α.
    """
    found: dict[str, list[str]] = {}
    for condition in params.conditions:
        source, weights = split_condition(condition, params.weights)
        if source in ("recursive", "mixed"):
            found.setdefault(source, []).append((weights, condition))
    pairs = [dict(conditions) for conditions in found.values() if len(dict(conditions)) == 2]
    return {"S1": pairs[0]["restart"], "S2": pairs[0]["carry"]} if pairs else {}


# ---- tables of the paper


def points(table: pd.DataFrame, condition: str) -> pd.DataFrame:
    """What the plots show: means over the seeds by generation, to six decimals, with the published column names."""
    columns = [name for name in COLUMNS if name in table]
    rows = table[table["condition"] == condition].groupby("generation")[columns].mean()
    return rows.rename(columns=COLUMNS).round(6).reset_index()


def summary(points: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Final drift and OLS slope of both tracks and whether they agree, from the exported points alone (Table 1)."""
    rows = []
    for setting, series_ in points.items():
        drifts = [series_[name].to_numpy() for name in ("track2_drift", "track1_drift")]
        scalars = [value for drift in drifts for value in (drift[-1], sigma.ols_slope(drift, series_["generation"]))]
        rows.append((setting, series_["generation"].iloc[-1], *scalars, sigma.track_agreement(*drifts[::-1])))
    names = ["track2_final_drift", "track2_slope", "track1_final_drift", "track1_slope", "agree"]
    return pd.DataFrame(rows, columns=["setting", "final_generation", *names])


def proxies(points: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Surface proxies at both ends, and their correlations with Track II over the generations (Table 14).

    The formulas of the published headings are lost; its third correlation is read as Pearson's r with the HHI.
    """
    rows = []
    for setting, series_ in points.items():
        two, distinct, hhi = (series_[name] for name in ("track2_drift", "distinct2", "hhi"))
        moved = [two.nunique() > 1 and other.nunique() > 1 for other in (distinct, hhi)]
        rhos = [
            spearmanr(two, distinct).statistic if moved[0] else math.nan,
            pearsonr(two, hhi).statistic if moved[1] else math.nan,
            spearmanr(two, hhi).statistic if moved[1] else math.nan,
        ]
        ends = [other.iloc[place] for other in (distinct, hhi) for place in (0, -1)]
        rows.append((setting, *ends, *rhos))
    ends = ["distinct2_first", "distinct2_last", "hhi_first", "hhi_last"]
    return pd.DataFrame(rows, columns=["setting", *ends, "rho_distinct2", "r_hhi", "rho_hhi"])


def _shown(frame: pd.DataFrame, headings: Mapping[str, str], decimals: int = 3) -> pd.DataFrame:
    """The frame's numbers with fixed decimals, a minus sign in mathematics, under LaTeX headings."""

    def cell(value: object) -> object:
        if value in TRACK_NAMES:
            return TRACK_NAMES[value]
        if isinstance(value, (bool, np.bool_)):
            return "yes" if value else "no"
        if isinstance(value, float):
            return tables.Number(f"${value:.{decimals}f}$" if math.isfinite(value) else "--")
        return value

    shown = {name: heading for name, heading in headings.items() if name in frame}
    rows = [[cell(value) for value in row] for row in frame[list(shown)].itertuples(index=False)]
    return pd.DataFrame(rows, columns=pd.Index([tables.Raw(h) for h in shown.values()], dtype=object), dtype=object)


POINT_HEADINGS = {
    "generation": "Generation",
    "track2_drift": "Track II drift",
    "track1_drift": "Track I drift",
    "track1_sharp_drift": "Track I drift, sharp",
    "logdet_drift": r"$\log\det\Sigma$ drift",
}
SUMMARY_HEADINGS = {
    "setting": "Setting",
    "final_generation": "$G$",
    "track2_final_drift": "Track II, final",
    "track2_slope": "Track II, slope",
    "track1_final_drift": "Track I, final",
    "track1_slope": "Track I, slope",
    "agree": "Agreement",
}
PROXY_HEADINGS = {
    "setting": "Setting",
    "distinct2_first": "distinct-2 ($t=0$)",
    "distinct2_last": "distinct-2 ($t=G$)",
    "hhi_first": "HHI ($t=0$)",
    "hhi_last": "HHI ($t=G$)",
    "rho_distinct2": r"$\rho$(II, distinct-2)",
    "r_hhi": "$r$(II, HHI)",
    "rho_hhi": r"$\rho$(II, HHI)",
}


# ---- the experiment card


def card(params: Params, names: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """The ten tables that specify S1 and S2 (SIGMA, appendix C.2), from the profile; `names` are the conditions."""
    p, bank = params, prompts.prompt_bank(params.prompt_bank)
    share = p.real_fraction if names["S1"].startswith("mixed") else 0.0
    versions = provenance.environment(str(devices.pick_device(p.device)))
    prefix = PREFIXES.get(p.prompt_bank, p.prompt_bank)
    domain = prefix.upper()
    response = f"the first {p.response_blocks} blocks of {p.response_block_words} words"
    contents = {
        "model": {
            "Base model": p.checkpoint or f"{p.model}, trained on {p.baseline_blocks} blocks",
            "Epochs a generation": p.epochs,
            "Batch size": p.batch_size,
            "Learning rate": f"{p.learning_rate:g}, {p.schedule}, the same in all generations",
            "Optimiser": f"AdamW, weight decay {p.weight_decay:g}",
            "Precision": "float32",
        },
        "synthesis": {
            "Real fraction": f"{share:g}",
            "Context": f"{p.block_tokens} tokens",
            "Contexts": p.blocks_per_generation,
            "Prompt bank": f"{p.prompt_bank}, {len(bank)} prompts",
            "Generations": f"{p.generations} ({p.generations + 1} checkpoints)",
            "Synthetic pool": "one continuation a context and generation",
        },
        "decoding": {
            "Sampling": "nucleus, for training text and evaluation",
            "Temperature": f"{p.temperature:g}",
            "Top-p": f"{p.top_p:g}",
            "Top-k": p.top_k or "no limit",
            "Tokens, training": p.block_tokens,
            "Tokens, evaluation": f"{p.response_tokens} at a time, until there are all blocks",
        },
        "seeds": {
            "Base seeds": ", ".join(map(str, p.seeds)),
            "Domain": "part of the hash: the corpus for contexts, the prompt's id for responses",
            "Context": "stable hash of seed, domain, context and generation",
            "Sample": "a stream of random numbers of its own, in any batch and order",
        },
        "sigma": {
            "Encoder": f"all-MiniLM-L6-v2, frozen, SHA-256 {encoder.Encoder.sha256[:12]}",
            "Regularisation": f"delta = {p.sigma_delta:g}",
            "Energy cap": f"rho = {p.sigma_rho:g}, enforced",
            "Unobserved": f"{p.blocks_per_generation} blocks",
            "Baseline": "generation 0 of the same seed",
            "Observed set": "the prompt bank, frozen at generation 0, its hash checked at every checkpoint",
        },
        "metrics": {
            "Track II": "drift and OLS slope",
            "Track I": "drift and OLS slope, as published and sharp",
            "Proxies": "distinct-2 and hashed 3-gram HHI of the same responses",
            "Responses": response,
        },
        "software": {name: versions[name] for name in ("python", *provenance.PACKAGES, "machine", "device")},
        "artefacts": {
            "Tracks": f"figures/{prefix}_s1_two_tracks.pdf, figures/{prefix}_s2_two_tracks.pdf",
            "Points": f"tables/{prefix}_s1_two_tracks_points.tex, tables/{prefix}_s2_two_tracks_points.tex",
            "Summary": f"tables/tab_{prefix}_s1s2_summary.tex",
            "Proxies": f"figures/{prefix}_surface_proxies.pdf, tables/tab_{prefix}_proxies.tex",
            "Metrics": f"metrics/final/{domain}, metrics/true_recursion/{domain}",
        },
        "settings": {
            "S1": f"{names['S1']}: every generation starts from generation 0; text alone is carried on",
            "S2": f"{names['S2']}: every generation starts from the one before; text and weights are carried on",
        },
        "buckets": {name.replace("_", "-"): f"{count} prompts" for name, count in _buckets(bank).items()},
    }
    return {
        name: pd.DataFrame([(key, str(value)) for key, value in rows.items()], columns=["Item", "Value"])
        for name, rows in contents.items()
    }


def _buckets(bank: list[dict[str, str]]) -> Counter:
    return Counter(prompt["bucket"] for prompt in bank)


# ---- the review's checks


def noise_floor(observed: Observed, budget: Budget, splits: int = SPLITS, seed: int = 0) -> pd.DataFrame:
    """Drift between two observed sets of one model: random halves of its prompts, `splits` times.

    A row a track: its mean, which is 0 for a sound measurement, standard deviation, and the 95 % quantile of its size.
    """
    prompts, found = np.unique(observed.prompts), []
    for split in range(splits):
        order = generator("noise_floor", seed, split).permutation(prompts)
        halves = (order[: len(order) // 2], order[len(order) // 2 :])
        parts = [observed.select(np.isin(observed.prompts, half)) for half in halves]
        # No prompt is left out of either: the values alone.
        one, other = ([sigma.track_value(part, track, budget) for track in sigma.TRACKS] for part in parts)
        found.append(np.subtract(one, other))
    drifts = np.array(found)
    return pd.DataFrame(
        {
            "track": sigma.TRACKS,
            "mean": drifts.mean(0),
            "sd": drifts.std(0, ddof=1),
            "q95": np.quantile(np.abs(drifts), 0.95, axis=0),
            "blocks": len(observed.rows) // 2,
        }
    )


def sized(first: Observed, last: Observed, size: int) -> tuple[Observed, Observed] | None:
    """The same `size` blocks of both checkpoints, the first blocks of all prompts first; None where there are fewer."""
    both = sigma.common(first, last)
    if len(both[0].rows) < size:
        return None
    return tuple(each.select(np.lexsort((each.prompts, each.blocks))[:size]) for each in both)


def size_ablation(first: Observed, last: Observed, budget: Budget, seed: int = 0) -> pd.DataFrame:
    """Drift of every track on observed sets of SIZES blocks, as many as there are: a row a size and track."""
    rows = []
    for size in SIZES:
        if (pair := sized(first, last, size)) is not None:
            found = sigma.banded_drifts(*pair, budget, seed)
            rows += [{"n_observed": size, "track": track, **drift} for track, drift in found.items()]
    names = ["n_observed", "track", "drift", "low", "high", "standard_error", "p_value"]
    return pd.DataFrame(rows, columns=names)


def checks(params: Params) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`noise_floor` of every seed's base model, and `size_ablation` of every run from generation 0 to the last."""
    budget, real = Budget(params.blocks_per_generation, params.sigma_rho, params.sigma_delta), corpora.RealText(params)
    noise, sizes = [], []
    for seed, condition in product(params.seeds, params.conditions):
        run = runs.Run(params, condition, seed, real=real)
        first, last = (encoded.read_embeddings(run, generation) for generation in (0, params.generations))
        if condition == params.conditions[0]:
            noise.append(noise_floor(first, budget, seed=seed).assign(seed=seed))
        sizes.append(size_ablation(first, last, budget, seed).assign(condition=condition, seed=seed))
    return pd.concat(noise, ignore_index=True), pd.concat(sizes, ignore_index=True)


NOISE_HEADINGS = {"track": "Track", "seed": "Seed", "mean": "Mean drift", "sd": "s.d.", "q95": r"95\,\% of sizes below"}
SIZE_HEADINGS = {
    "condition": "Condition",
    "seed": "Seed",
    "track": "Track",
    "n_observed": "$n_A$",
    "drift": "Drift",
    "low": "Low",
    "high": "High",
    "standard_error": "s.e.",
}


# ---- all of it


def write(params: Params) -> list[str]:
    """Writes every artefact into the profile's generated folder; their names.

    The two-track reports need a profile with S1 and S2, the checks only the runs. ValueError naming a missing record.
    """
    output, prefix = paper.Output(params), PREFIXES.get(params.prompt_bank, params.prompt_bank)
    domain = prefix.upper()
    table, drifts = series.table(params, stages=("sigma",)), series.drifts(params)
    noise, sizes = checks(params)
    output.table(f"tab_{prefix}_noise_floor", _shown(noise, NOISE_HEADINGS))
    output.csv(f"final/{domain}/noise_floor.csv", noise)
    if len(sizes):
        output.table(f"tab_{prefix}_sizes", _shown(sizes, SIZE_HEADINGS))
        output.csv(f"final/{domain}/sizes.csv", sizes)
    names = settings(params)
    if not names:
        return output.written

    buckets = series.bucket_drifts(params)
    found = {setting: points(table, condition) for setting, condition in names.items()}
    homes = {"S1": ("final", ""), "S2": ("true_recursion", "_recursion")}
    by_setting = {setting: drifts[drifts["condition"] == condition] for setting, condition in names.items()}
    for setting, condition in names.items():
        small, (folder, suffix) = setting.lower(), homes[setting]
        output.figure(f"{prefix}_{small}_two_tracks", figures.sigma_tracks(by_setting[setting]))
        shown = _shown(found[setting], POINT_HEADINGS, 6)
        output.table(f"{prefix}_{small}_two_tracks_points", shown)
        output.csv(f"{folder}/{domain}/metrics_paper{suffix}.csv", found[setting])
        own = buckets[buckets["condition"] == condition]
        output.csv(f"{folder}/{domain}/metrics_buckets_paper{suffix}.csv", own)
    output.table(f"tab_{prefix}_s1s2_summary", _shown(summary(found), SUMMARY_HEADINGS))
    output.table(f"tab_{prefix}_proxies", _shown(proxies(found), PROXY_HEADINGS, 6))
    output.figure(f"{prefix}_surface_proxies", figures.sigma_overlay(found, by_setting))
    for number, (name, frame) in enumerate(card(params, names).items(), start=1):
        output.table(f"{prefix}_card_{number:02}_{name}", frame)
    return output.written


def main(arguments: list[str]) -> int:
    """Writes the artefacts of a profile; 1 with one sentence where that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m spectral_collapse.sigma_experiment")
    parser.add_argument("profile")
    parser.add_argument("-y", action="append", default=[], metavar="'KEY: VALUE'", dest="changes")
    given = parser.parse_args(arguments)
    changes = {key: value for change in given.changes for key, value in yaml.safe_load(change).items()}
    return cli.outcome(lambda: "\n".join(write(params_module.load(given.profile, **changes))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
