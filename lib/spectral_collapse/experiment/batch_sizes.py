"""The spectrum against the number of blocks, the batch's and the expected loss's: kept in results/batch_sizes.

python -m spectral_collapse.batch_sizes CHECKPOINT TEXT    # a model of others and its text, beside `smoke`'s: an hour
"""

import argparse
import sys
import time
from pathlib import Path

import pandas as pd
import scipy.stats
import torch
from transformers import PreTrainedModel

from .. import curvature, estimate
from ..machine import processes
from ..model import build
from ..record import cli, closure, params, paths, provenance
from ..text import corpora
from . import loop, runs

BLOCK_TOKENS = 32
POOL = 256  # blocks in all: the largest batch
DRAWS = {POOL: 1, 128: 1, 64: 1, 32: 2, 16: 4, 8: 8, 4: 8}  # disjoint batches of every size
STEPS, PROBES = 10, 2
# The batch's estimates and, of the same quantities, those of the expected loss.
PAIRS = {
    "bulk_sigma": "population_bulk_sigma",
    "effective_rank": "population_effective_rank",
    "log_spectral_ratio": "population_log_ratio",
}


def measured(model: PreTrainedModel, batch: torch.Tensor, seed: int) -> dict[str, float]:
    """Both estimates of one batch (B, T) with their 95 % intervals, `<name>_low` and `<name>_high`."""
    ours = curvature.spectral_signature(model, batch, steps=STEPS, probes=PROBES, seed=seed)
    result = curvature.as_result(ours)
    result |= curvature.as_result(curvature.population_signature(model, batch, ours, seed=seed))
    half = float(scipy.stats.t.ppf(0.975, len(batch) - 1)) * ours.lambda_max_batch_error
    result["batch_lambda_max_interval"] = [ours.lambda_max - half, ours.lambda_max + half]
    row = {"outliers": len(ours.outliers), "lambda_max": ours.lambda_max}
    row["held_out_lambda_max"] = result["held_out_lambda_max"]
    intervals = {"lambda_max": "lambda_max_interval", "batch_lambda_max": "batch_lambda_max_interval"}
    for name in (*PAIRS, *PAIRS.values()):
        row[name] = result[name]
        intervals[name] = f"{name}_interval"
    for name, interval in intervals.items():
        row[f"{name}_low"], row[f"{name}_high"] = result[interval]
    return row


def draws(model: PreTrainedModel, blocks: torch.Tensor, seed: int = 0) -> pd.DataFrame:
    """A row a batch of the blocks (POOL, T): blocks, draw, and what is `measured` of it. Batches of one size are
    disjoint, and drawn without replacement from all blocks."""
    rows = []
    batches = [(size, draw) for size, number in DRAWS.items() for draw in range(number)]
    for size, draw in processes.steps(batches, "batches"):
        order = estimate.generator("batch_sizes", seed, size).permutation(len(blocks))
        chosen = torch.from_numpy(order[draw * size : (draw + 1) * size].copy())
        found = measured(model, blocks[chosen], estimate.stable_seed("batch_sizes", seed, size, draw))
        rows.append({"blocks": size, "draw": draw, **found})
    return pd.DataFrame(rows)


# Of each quantity the batch's value and that of the expected loss, and whose interval each has.
COMPARED = {
    "bulk_sigma": ("bulk_sigma", "population_bulk_sigma", "population_bulk_sigma"),
    "effective_rank": ("effective_rank", "population_effective_rank", "population_effective_rank"),
    "lambda_max": ("batch_lambda_max", "lambda_max", "lambda_max"),
}


def coverage(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a model and quantity: how many batches, all but the largest, have an interval that holds what all blocks
    say of the expected loss (of λ_max, the largest eigenvalue of all blocks).

    Columns model, quantity, reference; batch, expected: batches that hold it with the batch's interval and with that
    of the expected loss; batches: their number, and defined: of those, how many have the latter.
    """
    rows = []
    for model, found in frame.groupby("model", sort=False):
        smaller = found[found["blocks"] < found["blocks"].max()]
        for quantity, (batch, expected, reference) in COMPARED.items():
            value = float(found.loc[found["blocks"].idxmax(), reference])
            held = {
                name: int(((smaller[f"{column}_low"] <= value) & (value <= smaller[f"{column}_high"])).sum())
                for name, column in (("batch", batch), ("expected", expected))
            }
            defined = int(smaller[f"{expected}_low"].notna().sum())
            row = {"model": model, "quantity": quantity, "reference": value, **held}
            rows.append({**row, "batches": len(smaller), "defined": defined})
    return pd.DataFrame(rows).set_index(["model", "quantity"])


def storyworld_model() -> tuple[PreTrainedModel, torch.Tensor]:
    """The base model of `smoke`, first seed, and POOL blocks of its held-out text."""
    settings = params.load("smoke", block_tokens=BLOCK_TOKENS)
    run = runs.Run(settings, params.BASELINE, settings.seeds[0])
    loop.training(run, 0)
    text = params.load("smoke", block_tokens=BLOCK_TOKENS, held_out_blocks=POOL)
    return loop.load(run, 0), corpora.RealText(text).held_out


def checkpoint_model(checkpoint: Path, text: Path) -> tuple[PreTrainedModel, torch.Tensor]:
    """A checkpoint as it is, and POOL blocks of a text that its trainers held out, or not."""
    given = {"checkpoint": str(checkpoint), "corpus": "tinystories", "data_path": str(text)}
    settings = params.load("smoke", block_tokens=BLOCK_TOKENS, held_out_blocks=POOL, **given)
    real = corpora.RealText(settings)
    return build.initial_model(settings, real.tokenizer, settings.seeds[0]), real.held_out


def write_study(folder: Path, checkpoint: Path, text: Path) -> None:
    """Runs the study and writes batches.csv and its record study.json into `folder`."""
    started = time.perf_counter()
    code = closure.code_hash(draws)  # before an hour in which the files may be edited
    made = {"storyworld": storyworld_model(), checkpoint.name: checkpoint_model(checkpoint, text)}
    tables = [draws(model, blocks).assign(model=name) for name, (model, blocks) in made.items()]
    sizes = {f"{name}_parameters": build.parameter_count(model) for name, (model, _) in made.items()}
    keys = {"pool": POOL, "block_tokens": BLOCK_TOKENS, "steps": STEPS, "probes": PROBES}
    inputs = {"text_sha256": provenance.file_hash(text)}
    inputs["model_sha256"] = provenance.file_hash(checkpoint / "model.safetensors")
    provenance.write_study(
        folder,
        {"batches": pd.concat(tables)},
        sizes | keys,
        key={"parameters": keys, "code": code, "inputs": inputs},
        about={"stage": "batch_sizes", "text": text.name, "checkpoint": checkpoint.name},
        seconds=time.perf_counter() - started,
        device="cpu",
    )


def main(arguments: list[str]) -> int:
    """Runs the study on a checkpoint and a text."""
    parser = argparse.ArgumentParser(prog="python -m spectral_collapse.batch_sizes")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text", type=Path)
    chosen = parser.parse_args(arguments)
    folder = paths.results_root() / "batch_sizes"

    def study() -> str:
        write_study(folder, chosen.checkpoint.expanduser(), chosen.text.expanduser())
        return f"The study is in {folder}."

    return cli.outcome(study)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
