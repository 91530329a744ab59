"""The study of the number of blocks: its rows, what it counts, and what the paper says of it."""

import math

import pandas as pd
import torch
from spectra import frozen_blocks, tiny
from spectral_collapse.analysis import estimators, series, studies
from spectral_collapse.experiment import batch_sizes
from spectral_collapse.paper import figures
from spectral_collapse.paper import studies as report


def made_up() -> pd.DataFrame:
    """Two models' batches: intervals of the batch miss what all blocks say, but for one; one batch says nothing."""
    rows = []
    for model in ("one", "two"):
        for blocks, draw in ((4, 0), (4, 1), (8, 0)):
            row = {"model": model, "blocks": blocks, "draw": draw, "outliers": 2, "held_out_lambda_max": 1.0}
            for name in ("bulk_sigma", "effective_rank", "batch_lambda_max"):
                row |= {name: 3.0, f"{name}_low": 2.0 - draw, f"{name}_high": 4.0}
            for name in ("population_bulk_sigma", "population_effective_rank", "lambda_max"):
                value = math.nan if (blocks, draw) == (4, 1) else 1.5
                row |= {name: value, f"{name}_low": value - 1, f"{name}_high": value + 1}
            rows.append(row)
    return pd.DataFrame(rows)


def test_a_batch_covers_what_all_blocks_say_by_either_interval():
    found = estimators.batch_coverage(made_up())
    assert list(found.index.get_level_values("quantity").unique()) == ["bulk_sigma", "effective_rank", "lambda_max"]
    row = found.loc[("two", "bulk_sigma")]
    assert (row["reference"], row["batch"], row["expected"], row["batches"], row["defined"]) == (1.5, 1, 1, 2, 1)


def test_values_and_figure_of_the_study():
    study = {"pool": 8, "block_tokens": 32, "one_parameters": 139_584, "two_parameters": 7}
    values = report.batch_sizes_values(made_up(), estimators.batch_coverage(made_up()), study)
    assert values["sizes.one.bulk_sigma.batch"] == "1 of 2" and values["sizes.one.bulk_sigma.expected"] == "1 of 1"
    assert values["sizes.one.parameters"] == "139,584" and values["sizes.two.expected.4"] == "1.50"
    panels = figures.batch_sizes(made_up()).axes
    assert [axes.get_title() for axes in panels] == ["one", "two", "", ""]


def test_batches_of_one_size_are_disjoint_and_have_both_estimates(monkeypatch):
    monkeypatch.setattr(batch_sizes, "DRAWS", {8: 1, 4: 2})
    seen = []

    def kept(model, batch, seed):
        seen.append({tuple(block) for block in batch.tolist()})
        return measured(model, batch, seed)

    measured = batch_sizes.measured
    monkeypatch.setattr(batch_sizes, "measured", kept)
    blocks = frozen_blocks(8, 6)
    found = batch_sizes.draws(tiny("gpt2", torch.float32), blocks)
    assert list(found["blocks"]) == [8, 4, 4] and not seen[1] & seen[2] and seen[1] | seen[2] == seen[0]
    assert (found["batch_lambda_max_low"] < found["lambda_max"]).all()
    for name in (*batch_sizes.PAIRS, "population_bulk_sigma", "lambda_max", "held_out_lambda_max"):
        assert name in found


def test_a_metric_of_the_expected_loss_that_is_undefined_for_one_model_has_no_column(monkeypatch):
    def results(params, stage, *rest, **options):
        for generation, width in enumerate((0.5, None)):
            result = {"published_lambda_max": 1.0, "lambda_min": -1.0, "published_iqr": 0.1, "held_out_lambda_max": 2.0}
            yield (
                "fresh",
                1,
                generation,
                result | {"population_bulk_sigma": width, "lambda_max": 3.0},
            )

    monkeypatch.setattr(series, "results", results)
    params = type("Params", (), {"model": "m", "weights": "restart"})()
    found = series.table(params, stages=("curvature",))
    assert "population_bulk_sigma" not in found and list(found["held_out_lambda_max"]) == [2.0, 2.0]


def test_the_committed_study_has_batches_whose_width_falls_and_estimates_of_the_expected_loss_that_do_not():
    found, study = studies.batch_sizes()
    assert study["pool"] == batch_sizes.POOL and set(found["blocks"]) == set(batch_sizes.DRAWS)
    for _, rows in found.groupby("model"):
        means = rows.groupby("blocks")[["bulk_sigma", "population_bulk_sigma"]].mean()
        assert means["bulk_sigma"].is_monotonic_decreasing
        ends = means.iloc[0] / means.iloc[-1]
        assert ends["bulk_sigma"] > 3 and ends["population_bulk_sigma"] < 2
    counts = estimators.batch_coverage(found).loc[(slice(None), "bulk_sigma"), :]
    assert (counts["batch"] <= 3).all() and (counts["expected"] >= 22).all()
