"""Dynamic mode decomposition of short series: how fast a track moves, where to, and whether that forecasts it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Dynamics:
    """x(t+1) = K x(t) + b for a series x(t) ∈ R^k: the Koopman operator on the observables 1, x_1, …, x_k."""

    matrix: np.ndarray
    offset: np.ndarray

    @property
    def rate(self) -> float:
        """Largest |eigenvalue| of K: the factor by which the distance to the fixed point changes a generation."""
        return float(np.abs(np.linalg.eigvals(self.matrix)).max())

    @property
    def fixed_point(self) -> np.ndarray:
        """x* = K x* + b, shape (k,); NaN where the series has no limit (rate ≥ 1)."""
        if self.rate >= 1:
            return np.full(len(self.offset), np.nan)
        return np.linalg.solve(np.eye(len(self.offset)) - self.matrix, self.offset)

    def forecast(self, start: np.ndarray, steps: int) -> np.ndarray:
        """x(1), …, x(steps) from x(0) = `start` (k,); shape (steps, k)."""
        found, state = [], np.atleast_1d(np.asarray(start, dtype=np.float64))
        for _ in range(steps):
            state = self.matrix @ state + self.offset
            found.append(state)
        return np.array(found).reshape(steps, len(self.offset))


def _columns(series: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(series, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if not np.isfinite(values).all():
        raise ValueError("the series has a missing value: dynamics need every generation.")
    return values


def fit_dynamics(series: Sequence[float] | np.ndarray) -> Dynamics:
    """Least-squares fit of x(t+1) = K x(t) + b to a series (T,) or (T, k), generation by generation.

    Minimum-norm where the series does not determine K (a constant series gives K = 0). ValueError for fewer than
    k + 3 generations. Source: Schmid 2010 (J. Fluid Mech. 656), with the constant as an observable.
    """
    values = _columns(series)
    if len(values) < values.shape[1] + 3:
        raise ValueError(f"{len(values)} generations are too few for {values.shape[1]} series: give k + 3.")
    # Centred and scaled, so that "minimum norm" does not depend on units.
    centre, scale = values.mean(0), values.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    states = (values - centre) / scale
    design = np.column_stack([np.ones(len(states) - 1), states[:-1]])
    solution, *_ = np.linalg.lstsq(design, states[1:], rcond=None)
    matrix = solution[1:].T * scale[:, None] / scale
    return Dynamics(matrix, centre + scale * solution[0] - matrix @ centre)


@dataclass(frozen=True)
class ForecastScore:
    """Root-mean-square errors over held-out generations; skill = 1 − (model/naive)², 0 if no better than naive."""

    model_rmse: np.ndarray
    naive_rmse: np.ndarray
    forecasts: int

    @property
    def skill(self) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 - (self.model_rmse / self.naive_rmse) ** 2


def score_forecast(series: Sequence[float] | np.ndarray, horizon: int = 1, first: int | None = None) -> ForecastScore:
    """Forecasts `horizon` generations ahead from every origin, each fitted to the past alone, against persistence.

    `first` is the first origin's number of known generations, half the series by default. The naive forecast is
    the last known value. ValueError where nothing is left to forecast.
    """
    values = _columns(series)
    first = max(len(values) // 2, values.shape[1] + 3) if first is None else first
    origins = range(first, len(values) - horizon + 1)
    if not origins:
        raise ValueError(f"{len(values)} generations leave none to forecast {horizon} ahead after the first {first}.")
    model, naive = [], []
    for known in origins:
        truth = values[known + horizon - 1]
        last = values[known - 1]
        model.append(fit_dynamics(values[:known]).forecast(last, horizon)[-1] - truth)
        naive.append(last - truth)
    return ForecastScore(*(np.sqrt(np.mean(np.square(errors), axis=0)) for errors in (model, naive)), len(origins))


def forecasts(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Linear dynamics of a metric run by run (`fit_dynamics`), scored one generation ahead.

    Columns condition, seed; rate, the factor by which the distance to the fixed point changes a generation;
    fixed_point (NaN where the rate is 1 or more); model_rmse and naive_rmse over the held-out generations, the naive
    forecast being the last value. All NaN for runs of fewer than five generations.
    """
    rows = []
    for (condition, seed), run in table.sort_values("generation").groupby(["condition", "seed"], sort=False):
        values = run[metric].to_numpy(float)
        numbers = [np.nan] * 4
        if len(values) >= 5:
            dynamics, score = fit_dynamics(values), score_forecast(values)
            numbers = [dynamics.rate, dynamics.fixed_point[0], score.model_rmse[0], score.naive_rmse[0]]
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
