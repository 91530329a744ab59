"""The study of SIGMA's intervals for log det G: how often they cover the truth, in results/work/sigma_coverage.

python -m spectral_collapse.experiment.sigma_coverage TEXT    # TEXT: a file of real text; half an hour of one core
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from .. import estimate, sigma
from ..machine import processes
from ..record import cli, closure, paths, provenance
from ..text import corpora, encoder
from ..text import metrics as text_metrics

DIMENSIONS = (32, 128, 384)
RATIOS = (1.3, 2.6, 5.0, 10.0)  # n_A / m
SHRINKAGE_RATIOS = (0.5, 0.8, 1.0, 1.3, 2.6, 5.0)
CORRECTIONS = ("none", "wishart", "leverage")
LEVEL = 0.95
FREEDOM = 5  # of the Student-t columns: x'Σ⁻¹x has a variance, and no fourth moment
UNSEEN = 1e12  # n for drawn columns: n ≫ n_A, where log det G − m log n is log det Σ
BLOCK_WORDS = 64
DELTA = 1e-3
POPULATIONS = ("gaussian", "student_t", "minilm")


class Population(NamedTuple):
    """Columns in `dim` dimensions: drawn ones of known Σ, or random subsets of a finite set of rows."""

    sample: Callable[[np.random.Generator, int], np.ndarray]
    dim: int
    n_total: float
    truth: float  # log det G


def drawn(name: str, dim: int) -> Population:
    """Gaussian or multivariate Student-t columns, tr Σ = 1, eigenvalues of Σ from 1 to 1e-4 in geometric steps.

    Coverage and errors of the estimates of log det G are the same for any Σ; those of shrinkage are not.
    """
    eigenvalues = np.geomspace(1, 1e-4, dim)
    eigenvalues /= eigenvalues.sum()

    def sample(rng: np.random.Generator, count: int) -> np.ndarray:
        rows = rng.normal(size=(count, dim)) * np.sqrt(eigenvalues)
        if name == "student_t":
            rows *= np.sqrt((FREEDOM - 2) / rng.chisquare(FREEDOM, size=(count, 1)))
        return rows

    return Population(sample, dim, UNSEEN, dim * math.log(UNSEEN) + np.log(eigenvalues).sum())


def finite(embeddings: np.ndarray, dim: int) -> Population:
    """Random subsets of real embeddings (N, m) in their `dim` leading live directions, or in all if there are fewer."""
    live = sigma.live_space(embeddings).project(embeddings)
    _, vectors = np.linalg.eigh(live.T @ live)
    rows = live @ vectors[:, ::-1][:, :dim]
    truth = sigma.cholesky_logdet(rows.T @ rows)
    return Population(
        lambda rng, count: rows[rng.choice(len(rows), count, replace=False)], rows.shape[1], len(rows), truth
    )


def coverage(population: Population, ratio: float, replicates: int, seed: int) -> list[dict]:
    """One row per correction: mean and s.d. of the error, mean half-width, coverage with its Wilson interval."""
    count = round(ratio * population.dim)
    errors = {correction: [] for correction in CORRECTIONS}
    for replicate in range(replicates):
        rows = population.sample(estimate.generator("sigma_coverage", seed, count, replicate), count)
        gram = rows.T @ rows
        leverages = sigma.leverages(rows, gram)
        for correction in CORRECTIONS:
            e = sigma.logdet_estimate(gram, count, population.n_total, correction, LEVEL, leverages)
            held = e.low <= population.truth <= e.high
            errors[correction].append((e.value - population.truth, (e.high - e.low) / 2, held))
    cell = {"dimensions": population.dim, "n_observed": count, "n_total": population.n_total, "replicates": replicates}
    table = []
    for correction, found in errors.items():
        error, half, held = np.array(found, dtype=float).T
        interval = binomtest(int(held.sum()), replicates).proportion_ci(method="wilson")
        row = {"mean_error": error.mean(), "sd_error": error.std(ddof=1), "mean_half_width": half.mean()}
        row |= {"coverage": held.mean(), "coverage_low": interval.low, "coverage_high": interval.high}
        table.append({"correction": correction, **cell, **row})
    return table


def shrinkage(population: Population, ratio: float, replicates: int, seed: int) -> dict:
    """Errors of Track II with δ, and of Ledoit and Wolf's shrinkage, as estimates of log det Σ (here log det G/n)."""
    count = round(ratio * population.dim)
    truth = population.truth - population.dim * math.log(population.n_total)
    found = []
    for replicate in range(replicates):
        rows = population.sample(estimate.generator("sigma_shrinkage", seed, count, replicate), count)
        track = sigma.regularized_logdet(rows, DELTA) - population.dim * math.log(count)
        found.append((track - truth, sigma.shrunk_logdet(rows) - truth))
    mean, deviation = np.mean(found, axis=0), np.std(found, axis=0, ddof=1)
    row = {"dimensions": population.dim, "n_observed": count, "replicates": replicates, "delta": DELTA}
    row |= {"delta_mean_error": mean[0], "delta_sd": deviation[0]}
    return row | {"shrunk_mean_error": mean[1], "shrunk_sd": deviation[1]}


def coverage_study(embeddings: np.ndarray, replicates: int, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Coverage and shrinkage over populations, dimensions and n_A/m; `embeddings` (N, 384) are the real ones."""
    covered, shrunk = [], []
    for m in DIMENSIONS:
        for name in POPULATIONS:
            population = finite(embeddings, m) if name == "minilm" else drawn(name, m)
            cell = {"population": name, "m": m}
            for ratio in processes.steps(RATIOS, f"{name}, m = {m}"):
                covered += [{**cell, "ratio": ratio, **row} for row in coverage(population, ratio, replicates, seed)]
            for ratio in SHRINKAGE_RATIOS:
                shrunk.append({**cell, "ratio": ratio, **shrinkage(population, ratio, max(2, replicates // 10), seed)})
    return pd.DataFrame(covered), pd.DataFrame(shrunk)


def real_embeddings(text: Path, blocks: int) -> np.ndarray:
    """MiniLM embeddings of `blocks` blocks of 64 words, spread evenly over the documents of a text file.

    ValueError where the text is too short.
    """
    stories = corpora.read_documents(text)
    found = [block for story in stories for block in text_metrics.split_blocks(story, BLOCK_WORDS)]
    if len(found) < blocks:
        raise ValueError(f"{text} holds {len(found)} blocks of {BLOCK_WORDS} words; {blocks} are asked for.")
    return encoder.Encoder()([found[int(place)] for place in np.linspace(0, len(found) - 1, blocks)]).numpy()


def write_study(folder: Path, text: Path, blocks: int = 8000, replicates: int = 2000) -> str:
    """Runs the study and writes coverage.csv, shrinkage.csv and their record study.json into `folder`; where it is."""
    started = time.perf_counter()
    code = closure.code_hash(coverage_study, real_embeddings)  # at the start: the files may be edited meanwhile
    covered, shrunk = coverage_study(real_embeddings(text, blocks), replicates)
    parameters = {"blocks": blocks, "block_words": BLOCK_WORDS, "replicates": replicates, "level": LEVEL}
    inputs = {"text_sha256": provenance.file_hash(text), "encoder": encoder.Encoder.sha256}
    provenance.write_study(
        folder,
        {"coverage": covered, "shrinkage": shrunk},
        {},
        key={"parameters": parameters, "code": code, "inputs": inputs},
        about={"stage": "sigma_coverage", "text": text.name},
        seconds=time.perf_counter() - started,
        device="cpu",
    )
    return f"The study is in {folder}."


def main(arguments: list[str]) -> int:
    """Runs the study on a text file."""
    parser = argparse.ArgumentParser(prog="python -m spectral_collapse.experiment.sigma_coverage")
    parser.add_argument("text", type=Path)
    chosen = parser.parse_args(arguments)
    return cli.outcome(lambda: write_study(paths.results_root() / "sigma_coverage", chosen.text.expanduser()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
