"""The Hessian study's own records, recomputed: what its widths, its eigenvalues and its text metrics say by themselves.

Numbers of the result files of github.com/Thaman-N/hessian-analysis at commit 19bd2d97 (11 February 2026), one run each:
`results/published/hessian_public_*.csv`. They are that study's measurements, never this project's.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from ..curvature import interpolated_iqr, quantile_bracket
from ..record import paths

BASE = "smollmgeneration"  # the run that holds generation 0 of all runs of SmolLM2
RUNS = {
    "treatment_gen": "recursive",
    "control_generation": "fresh",
    "control_b_gen": "static",
    BASE: "base",
}
REMOVED = 10  # nodes of largest |value| that are taken for single eigenvalues, as `signature.MOST_OUTLIERS`


def _read(name: str, folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / f"hessian_public_{name}.csv")


def bulk_sigma(nodes: np.ndarray, weights: np.ndarray, removed: int = REMOVED) -> float:
    """Standard deviation of the spectrum seen by one probe, without the `removed` nodes of largest |value|:
    √(Σ w θ² − (Σ w θ)²) over the others. A single eigenvalue has a weight of about 1/n, so that removing it leaves the
    total weight unchanged to that order.

    >>> bulk_sigma(np.array([-1.0, 1.0, 50.0]), np.array([0.5, 0.5, 0.0]), removed=1)
    1.0
    """
    kept = np.argsort(-np.abs(nodes))[removed:]
    theta, mass = nodes[kept], weights[kept]
    return float(np.sqrt(mass @ theta**2 - (mass @ theta) ** 2))


def spectra(folder: Path = paths.PUBLISHED) -> pd.DataFrame:
    """One row for each spectrum of the repository, base models first.

    run, description, generation, nodes (their number); lambda_max, the recorded eigenvalue of largest size, and second,
    the largest size of a Lanczos node but one; published_iqr, published_ratio, as recorded, and recomputed_iqr, by
    `interpolated_iqr` from the recorded nodes; iqr_low, iqr_high, the bracket that these nodes prove of the
    interquartile range (`quantile_bracket`): where it begins at 0 the width is not identified; sigma, `bulk_sigma`;
    log_ratio, log(λ_max/σ), NaN where λ_max is negative. failed: there is no spectrum, and the ratio is recorded as 0.
    """
    nodes = dict(tuple(_read("nodes", folder).sort_values("node").groupby(["run", "generation"])))
    rows = []
    for row in _read("summary", folder).itertuples():
        largest = max((row.eigenvalue_1, row.eigenvalue_2, row.eigenvalue_3), key=abs)
        own = nodes.get((row.run, row.generation))
        found = {"failed": own is None}
        if own is not None:
            theta, mass = own["node"].to_numpy(), (own["weight"] / own["weight"].sum()).to_numpy()
            quartiles = [quantile_bracket([theta], [mass], level) for level in (0.25, 0.75)]
            sigma = bulk_sigma(theta, mass)
            found |= {
                "second": np.sort(np.abs(theta))[-2],
                "recomputed_iqr": interpolated_iqr(theta, mass),
                "iqr_low": max(0.0, quartiles[1][0] - quartiles[0][1]),
                "iqr_high": quartiles[1][1] - quartiles[0][0],
                "sigma": sigma,
                "log_ratio": np.log(largest / sigma) if largest > 0 else np.nan,
            }
        names = ("run", "description", "generation", "nodes", "published_iqr", "published_ratio")
        rows.append({name: getattr(row, name) for name in names} | {"lambda_max": largest} | found)
    return pd.DataFrame(rows)


def claimed(spectra: pd.DataFrame, folder: Path = paths.PUBLISHED) -> pd.DataFrame:
    """The table that the study prints of its run on SmolLM2 beside its own records, a row a condition and generation.

    printed, the ratio of the table; recorded, that of the files (published_ratio).
    """
    printed = pd.read_csv(folder / "hessian_smollm2_135m.csv").melt("generation", var_name="condition")
    conditions = spectra["run"].map(RUNS).rename("condition")
    known = spectra.assign(condition=conditions).dropna(subset="condition")
    recorded = known.set_index(["condition", "generation"])["published_ratio"]
    first = printed["condition"].where(printed["generation"] > 0, "base")
    found = recorded.reindex(pd.MultiIndex.from_arrays([first, printed["generation"]])).to_numpy()
    return printed.rename(columns={"value": "printed"}).assign(recorded=found)


def text_metrics(folder: Path = paths.PUBLISHED) -> pd.DataFrame:
    """The study's own text metrics of SmolLM2: condition, generation, perplexity, entropy (Shannon's), repetition.

    Its file lists "Treatment (Recursive)" twice, SmolLM2 first and then GPT-2: the first row of a condition and
    generation is taken.
    """
    names = {"Treatment (Recursive)": "recursive", "Control A (Fresh)": "fresh", "Control B (Static)": "static"}
    renamed = {
        "Experiment": "condition",
        "Generation": "generation",
        "Perplexity": "perplexity",
        "Shannon_Entropy": "entropy",
        "Repetition_Ratio": "repetition",
    }
    table = _read("text_metrics", folder).rename(columns=renamed)[list(renamed.values())]
    table = table[table["condition"].isin(names)].replace({"condition": names})
    return table.drop_duplicates(["condition", "generation"]).sort_values(
        ["condition", "generation"], ignore_index=True
    )


def findings(spectra: pd.DataFrame, printed: pd.DataFrame, text: pd.DataFrame) -> dict[str, float | int]:
    """What the records say, in numbers.

    spectra, failed: their number; negative, those whose eigenvalue of largest size is negative; isolated.{value,times},
    the eigenvalue that exceeds the next most, and how many times; width_error, the largest distance of a recomputed
    width from the recorded one, relative; unidentified, widths whose bracket begins at 0; overlapping, pairs of
    SmolLM2's widths whose brackets overlap, and pairs, all of them; controls.{lambda,ratio,sigma}.{least,most}, of the
    trained controls of SmolLM2; differing, cells of the printed table of recursion that are more than 1 % off the
    recorded ones, and cells, all of them; nodes.{recursive,controls}, of a spectrum; of {perplexity,entropy}:
    {recursive,control}.{first,last}, of the recursive run and the mean of the controls at generation 1 and at the last.
    """
    known = spectra[~spectra["failed"]]
    small = known[known["run"].isin(RUNS)]
    controls = small[small["run"].isin(["control_generation", "control_b_gen"])]
    ends = small[["iqr_low", "iqr_high"]].to_numpy()
    pairs = [(a, b) for i, a in enumerate(ends) for b in ends[i + 1 :]]
    isolation = known["lambda_max"].abs() / known["second"]
    of_recursion = printed[(printed["condition"] == "recursive") & (printed["generation"] > 0)]
    found = {
        "spectra": len(known),
        "failed": int(spectra["failed"].sum()),
        "negative": int((known["lambda_max"] < 0).sum()),
        "isolated.value": known["lambda_max"][isolation.idxmax()],
        "isolated.times": isolation.max(),
        "width_error": float((known["recomputed_iqr"] / known["published_iqr"] - 1).abs().max()),
        "unidentified": int((known["iqr_low"] == 0).sum()),
        "pairs": len(pairs),
        "overlapping": int(sum(max(a[0], b[0]) <= min(a[1], b[1]) for a, b in pairs)),
        "nodes.recursive": int(small.loc[small["run"] == "treatment_gen", "nodes"].iloc[0]),
        "nodes.controls": int(controls["nodes"].iloc[0]),
        "cells": len(of_recursion),
        "differing": int(((of_recursion["printed"] / of_recursion["recorded"] - 1).abs() > 0.01).sum()),
    }
    for name, column in {"lambda": "lambda_max", "ratio": "published_ratio", "sigma": "sigma"}.items():
        found |= {f"controls.{name}.least": controls[column].min(), f"controls.{name}.most": controls[column].max()}
    for name in ("perplexity", "entropy"):
        means = text.assign(group=text["condition"].where(text["condition"] == "recursive", "control"))
        means = means.groupby(["group", "generation"])[name].mean()
        for group in ("recursive", "control"):
            found |= {f"{name}.{group}.first": means[group, 1], f"{name}.{group}.last": means[group].iloc[-1]}
    return found
