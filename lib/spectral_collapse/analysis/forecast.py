"""Linear dynamics of short series: how fast a metric moves, where to, and whether that forecasts it."""

import numpy as np
import pandas as pd


def fit_dynamics(series: np.ndarray) -> tuple[float, float]:
    """K and b of the least-squares fit x(t+1) = K x(t) + b to a series (T,).

    Dynamic mode decomposition of one observable beside the constant 1; |K| is the factor by which the distance to the
    fixed point b/(1 − K) changes a generation. Minimum-norm where the series does not determine K (a constant series
    gives K = 0). ValueError for fewer than four generations. Source: Schmid 2010 (J. Fluid Mech. 656).
    """
    if len(series) < 4:
        raise ValueError(f"{len(series)} generations are too few for dynamics: give four.")
    # Centred and scaled, so that "minimum norm" does not depend on units.
    centre, scale = series.mean(), series.std() or 1.0
    states = (series - centre) / scale
    design = np.column_stack([np.ones(len(states) - 1), states[:-1]])
    (offset, rate), *_ = np.linalg.lstsq(design, states[1:], rcond=None)
    return float(rate), float(centre + scale * offset - rate * centre)


def forecast_errors(series: np.ndarray) -> tuple[float, float]:
    """Root-mean-square errors one generation ahead of `fit_dynamics` and of persistence, the last known value.

    Every forecast is fitted to the past alone, of half the series and of four generations at least.
    """
    known = range(max(len(series) // 2, 4), len(series))
    lines = (fit_dynamics(series[:now]) for now in known)
    model = [rate * series[now - 1] + offset - series[now] for now, (rate, offset) in zip(known, lines, strict=True)]
    naive = [series[now - 1] - series[now] for now in known]
    return tuple(float(np.sqrt(np.mean(np.square(errors)))) for errors in (model, naive))


def forecasts(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Linear dynamics of a metric run by run (`fit_dynamics`), scored one generation ahead.

    Columns condition, seed; rate, the factor by which the distance to the fixed point changes a generation;
    fixed_point (NaN where the rate is 1 or more); model_rmse and naive_rmse over the held-out generations
    (`forecast_errors`). All NaN for runs of fewer than five generations.
    """
    rows = []
    for (condition, seed), run in table.sort_values("generation", kind="stable").groupby(
        ["condition", "seed"], sort=False
    ):
        values = run[metric].to_numpy(float)
        numbers = [np.nan] * 4
        if len(values) >= 5:
            rate, offset = fit_dynamics(values)
            limit = offset / (1 - rate) if abs(rate) < 1 else np.nan
            numbers = [abs(rate), limit, *forecast_errors(values)]
        rows.append((condition, seed, *numbers))
    return pd.DataFrame(rows, columns=["condition", "seed", "rate", "fixed_point", "model_rmse", "naive_rmse"])


def forecast_summary(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """`forecasts` over the runs of each condition: columns condition, rate (mean), with_limit, runs, fixed_point (mean
    over the runs that have one), model_rmse, naive_rmse and skill of all runs' held-out generations together."""
    rows = []
    for condition, runs in forecasts(table, metric).groupby("condition", sort=False):
        model, naive = (float(np.sqrt((runs[name] ** 2).mean())) for name in ("model_rmse", "naive_rmse"))
        skill = 1 - (model / naive) ** 2 if naive > 0 else np.nan
        limit = runs["fixed_point"]
        rows.append((condition, runs["rate"].mean(), limit.notna().sum(), len(runs), limit.mean(), model, naive, skill))
    names = ["condition", "rate", "with_limit", "runs", "fixed_point", "model_rmse", "naive_rmse", "skill"]
    return pd.DataFrame(rows, columns=names)
