"""The study of the number of blocks: the spectrum of a batch and of the expected loss, in results/work/batch_sizes.

python -m spectral_collapse.experiment.batch_sizes PROFILE CHECKPOINT TEXT    # an hour

Two models: the base model of a profile (committed: `smoke`), and a checkpoint of others with a text for it.
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
DRAWS = {POOL: 1, 128: 1, 64: 1, 32: 2, 16: 4, 8: 8, 4: 8}  # number of disjoint batches of each size
STEPS, PROBES = 10, 2
# Estimates of the batch and, of the same quantities, those of the expected loss.
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
    names = (*PAIRS, *PAIRS.values())
    row = {"outliers": len(ours.outliers)}
    row |= {name: result[name] for name in ("lambda_max", "held_out_lambda_max", *names)}
    for name in ("lambda_max", "batch_lambda_max", *names):
        row[f"{name}_low"], row[f"{name}_high"] = result[f"{name}_interval"]
    return row


def draws(model: PreTrainedModel, blocks: torch.Tensor, seed: int = 0) -> pd.DataFrame:
    """One row a batch of the blocks (POOL, T): blocks, draw, and what is `measured`. Batches of one size are disjoint
    and drawn without replacement."""
    rows = []
    batches = [(size, draw) for size, number in DRAWS.items() for draw in range(number)]
    for size, draw in processes.steps(batches, "batches"):
        order = estimate.generator("batch_sizes", seed, size).permutation(len(blocks))
        chosen = torch.from_numpy(order[draw * size : (draw + 1) * size].copy())
        found = measured(model, blocks[chosen], estimate.stable_seed("batch_sizes", seed, size, draw))
        rows.append({"blocks": size, "draw": draw, **found})
    return pd.DataFrame(rows)


def base_model(profile: str) -> tuple[PreTrainedModel, torch.Tensor]:
    """The base model of a profile, first seed, and POOL blocks of its held-out text."""
    settings = params.load(profile, block_tokens=BLOCK_TOKENS)
    run = runs.Run(settings, params.BASELINE, settings.seeds[0])
    text = params.load(profile, block_tokens=BLOCK_TOKENS, held_out_blocks=POOL)
    return loop.load(run, 0), corpora.RealText(text).held_out


def checkpoint_model(profile: str, checkpoint: Path, text: Path) -> tuple[PreTrainedModel, torch.Tensor]:
    """A checkpoint, and POOL blocks of a text, which its training may or may not have seen; else as the profile."""
    given = {"checkpoint": str(checkpoint), "corpus": "tinystories", "data_path": str(text)}
    settings = params.load(profile, block_tokens=BLOCK_TOKENS, held_out_blocks=POOL, **given)
    real = corpora.RealText(settings)
    return build.initial_model(settings, real.tokenizer, settings.seeds[0]), real.held_out


def write_study(folder: Path, profile: str, checkpoint: Path, text: Path) -> str:
    """Runs the study and writes batches.csv and its record study.json into `folder`; where it is."""
    started = time.perf_counter()
    code = closure.code_hash(draws)  # at the start: the files may be edited within the hour
    made = {"storyworld": base_model(profile), checkpoint.name: checkpoint_model(profile, checkpoint, text)}
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
    return f"The study is in {folder}."


def main(arguments: list[str]) -> int:
    """Runs the study."""
    parser = argparse.ArgumentParser(prog="python -m spectral_collapse.experiment.batch_sizes")
    parser.add_argument("profile")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text", type=Path)
    chosen = parser.parse_args(arguments)
    models = chosen.profile, chosen.checkpoint.expanduser(), chosen.text.expanduser()
    return cli.outcome(lambda: write_study(paths.results_root() / "batch_sizes", *models))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
