"""What curvature estimators do when the model does not change: over probes, batches, steps and numbers of blocks."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..curvature import Nodes, Quadrature, interpolated_iqr, published_ratio
from .series import exact_lambda

# The published width, the moments that replace it, and λ_max, which both estimators share.
QUANTITIES = ("published_iqr", "published_iqr_pooled", "lambda_max", "spectral_sigma", "bulk_sigma")
POOLED = 4  # probes


def noise(results: Sequence[dict], steps: Sequence[int]) -> pd.DataFrame:
    """Every quantity by batch, probe and number of steps, from results of the stages `estimators_<batch>`: columns
    batch, probe, steps, quantity, value.

    σ_bulk leaves out as many outliers as every probe of the batch has converged at the fewest steps, so that it is the
    same quantity at all of them. `published_iqr_pooled` is the published width of the union of the nodes of four
    probes, a quarter of the weights each, in the row of the first of them.
    """
    rows = []
    for batch, result in enumerate(results):
        n = result["parameters"]
        runs = [
            Quadrature(np.array(alphas), np.array(betas))
            for alphas, betas in zip(result["alphas"], result["betas"], strict=True)
        ]
        count = min(Nodes.of(run.truncated(min(steps)), n).outliers(n) for run in runs)
        for number in steps:
            heads = [run.truncated(number) for run in runs]
            for probe, head in enumerate(heads):
                nodes = Nodes.of(head, n)
                found = {
                    "published_iqr": interpolated_iqr(head.nodes, head.weights),
                    "lambda_max": head.nodes[-1],
                    "spectral_sigma": _sigma(nodes, n, 0),
                    "bulk_sigma": _sigma(nodes, n, count),
                }
                pool = heads[probe : probe + POOLED]
                if probe % POOLED == 0 and len(pool) == POOLED:
                    every, weight = (np.concatenate([getattr(q, name) for q in pool]) for name in ("nodes", "weights"))
                    found["published_iqr_pooled"] = interpolated_iqr(every, weight)
                rows += [(batch, probe, number, name, value) for name, value in found.items()]
    frame = pd.DataFrame(rows, columns=["batch", "probe", "steps", "quantity", "value"])
    present = [name for name in QUANTITIES if name in set(frame["quantity"])]  # a pool takes four probes
    return frame.assign(quantity=pd.Categorical(frame["quantity"], present))


def _sigma(nodes: Nodes, n: int, leave_out: int) -> float:
    """Standard deviation of the spectrum of one probe, without the largest |θ|."""
    weights, values = nodes.weights[leave_out:] * n / (n - leave_out), nodes.nodes[leave_out:]
    return math.sqrt(weights @ values**2 - (weights @ values) ** 2)


def noise_summary(frame: pd.DataFrame) -> pd.DataFrame:
    """How far each quantity moves, a row each: coefficients of variation over probes (mean over batches) and over
    batches (of means over probes), both at the fewest steps; and the median over batches and probes of its value at
    each number of steps, relative to that at the most."""
    fewest, most = frame["steps"].min(), frame["steps"].max()
    rows = []
    for quantity in frame["quantity"].cat.categories:
        part = frame[frame["quantity"] == quantity]
        first = part[part["steps"] == fewest].groupby("batch")["value"]
        means = first.mean()
        wide = part.pivot_table(index=["batch", "probe"], columns="steps", values="value")
        ratios = wide.div(wide[most], axis=0).median()
        rows.append(
            {
                "quantity": quantity,
                "cv_probes": float((first.std() / means.abs()).mean()),
                "cv_batches": float(means.std() / means.abs().mean()),
                **{f"at_{steps}": float(ratio) for steps, ratio in ratios.items() if steps != most},
            }
        )
    return pd.DataFrame(rows).set_index("quantity")


# Of each quantity: the batch's interval, that of the expected loss, and whose value of all blocks is the reference.
COMPARED = {
    "bulk_sigma": ("bulk_sigma", "population_bulk_sigma", "population_bulk_sigma"),
    "effective_rank": ("effective_rank", "population_effective_rank", "population_effective_rank"),
    "lambda_max": ("batch_lambda_max", "lambda_max", "lambda_max"),
}


def batch_coverage(frame: pd.DataFrame) -> pd.DataFrame:
    """How many batches have an interval that covers the value of all blocks, by model and quantity, from the study of
    the number of blocks (`experiment.batch_sizes`); of λ_max that value is the largest eigenvalue of all blocks.

    Columns model, quantity, reference; batch and expected, batches whose own interval and whose interval of the
    expected loss covers it; batches, their number; defined, the number of those that have the latter interval.
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


def mean_widths(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean σ_bulk of the batch and of the expected loss over all batches of a size, by model and blocks."""
    return frame.groupby(["model", "blocks"])[["bulk_sigma", "population_bulk_sigma"]].mean()


def published_by_probe(curvature: dict) -> pd.DataFrame:
    """The published estimator on every probe of a curvature result: columns iqr and ratio."""
    widths = [
        interpolated_iqr(np.asarray(nodes), np.asarray(weights))
        for nodes, weights in zip(curvature["nodes"], curvature["weights"], strict=True)
    ]
    exact = exact_lambda(curvature)
    return pd.DataFrame({"iqr": widths, "ratio": [published_ratio(exact, width) for width in widths]})


def power_iteration_summary(errors: pd.DataFrame) -> dict[str, float]:
    """`series.power_iteration_errors` in numbers: models; off and far, those whose |λ| is below 0.99 and 0.8 of the
    exact one; sign, those of the wrong sign; median relative error of |λ|; worst.found and worst.exact, λ of the worst
    model."""
    worst = errors.loc[errors["share"].idxmin()]
    return {
        "models": len(errors),
        "off": int((errors["share"] < 0.99).sum()),
        "far": int((errors["share"] < 0.8).sum()),
        "sign": int((~errors["same_sign"]).sum()),
        "median": float((errors["share"] - 1).abs().median()),
        "worst.found": worst["found"],
        "worst.exact": worst["exact"],
    }
