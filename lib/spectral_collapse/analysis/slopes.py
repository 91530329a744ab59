"""How fast a metric moves: the slope over generations of every run, and of conditions by a mixed linear model."""

import numpy as np
import pandas as pd
from scipy import linalg, stats

from ..estimate import Estimate
from .statistics import ROUNDING, matched_controls, paired_tests, require_complete


def run_slopes(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Least-squares slope over generations of every run, generation 0 included: columns condition, seed, slope.

    In units of the metric a generation. ValueError for an incomplete table, and for a single generation.
    """
    require_complete(table, metric, paired=False)
    if table["generation"].nunique() < 2:
        raise ValueError(f"{metric} was measured at one generation: a slope needs two.")
    wide = table.pivot(index=["condition", "seed"], columns="generation", values=metric)
    generations = wide.columns.to_numpy(float)
    centred = generations - generations.mean()
    slopes = wide.to_numpy(float) @ centred / (centred**2).sum()
    return wide.index.to_frame(index=False).assign(slope=slopes)


def slope_tests(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Slope of every condition, and its difference from its matched control's, paired by seed: one number a run.

    Columns condition, slope with its 95 % t interval slope_low, slope_high, then those of `statistics.paired_tests` on
    the slopes (difference, low, high, t, df, p, p_holm, p_permutation), NaN for controls and what has none.
    """
    require_complete(table, metric)
    found = run_slopes(table, metric).assign(generation=0)
    if "weights" in table:
        found = found.merge(table[["condition", "weights"]].drop_duplicates())
    tests = paired_tests(found, "slope")
    means = [
        (name, *Estimate.mean(found.loc[found["condition"] == name, "slope"])) for name in table["condition"].unique()
    ]
    return pd.DataFrame(means, columns=["condition", "slope", "slope_low", "slope_high"]).merge(
        tests, on="condition", how="left"
    )


def _slope_variance(between: np.ndarray, within: np.ndarray, noise: float, df: int, df_noise: int) -> float:
    """REML variance of a run's estimated slope, (Ψ + σ² W)_{22}, of the model in `mixed_model`; (2, 2) matrices.

    `between`: pooled covariance of the runs' fitted (intercept, slope), on `df` degrees of freedom; `noise`: residual
    variance, on `df_noise`; `within`: W = (ZᵀZ)⁻¹, so that E between = Ψ + σ² W. If between − noise·W is positive
    semidefinite, between is the estimate. Else variance components are 0: in the basis in which W is the identity and
    between is diag(λ), the estimate is diag(max(λ, σ²)), and the λ below σ² are pooled with the residual into σ²
    (Amemiya 1985).
    """
    values, vectors = linalg.eigh(between, within)  # vectorsᵀ W vectors = I
    total, freedom = noise * df_noise, df_noise
    for value in values:  # ascending
        if value * freedom >= total:
            break
        total, freedom = total + df * value, freedom + df
    directions = within @ vectors
    return float((directions * np.maximum(values, total / freedom) @ directions.T)[1, 1])


def mixed_model(table: pd.DataFrame, metric: str, level: float = 0.95) -> pd.DataFrame:
    """Slopes by condition from the linear mixed model of Laird and Ware (1982), by REML:

        y_rg = a_c + b_c g + u_r + v_r g + e_rg,   (u_r, v_r) ~ N(0, Ψ),  e_rg ~ N(0, σ²)

    with run r of condition c and generation g = 0, 1, …. One row for every condition but the controls: condition,
    difference b_c − b_control, from its matched control, with its interval low, high; t, df, p; note.

    All runs have the same generations, and the model is then an analysis of the runs' own least-squares lines: the
    estimate of b_c is the mean slope of the condition's runs, with variance (Ψ + σ²(ZᵀZ)⁻¹)_{22}/runs, and REML has a
    closed form (`_slope_variance`). No optimiser is needed, and none can stop short.

    The Wald statistic is held against t with (runs − conditions) degrees of freedom. Where the estimate of Ψ is not
    singular it is the t statistic of the runs' slopes, and exact; where runs do not differ in slope the test is
    conservative and rejects in 1 %. Ψ and σ are taken to be the same in all conditions: where one scatters more than
    the others its p is too small. Runs are taken as independent; where conditions share seeds and runs of a seed move
    together, the test is conservative and `slope_tests` is the sharper one.

    What cannot be fitted is a row of NaN whose note says why; where all is well the note is empty.
    """
    require_complete(table, metric, paired=False)
    controls = matched_controls(table)
    names = [name for name, matched in controls.items() if name != matched]
    lines = table.pivot(index=["condition", "seed"], columns="generation", values=metric)
    generations = lines.columns.to_numpy(float)
    values, groups = lines.to_numpy(float), lines.index.get_level_values("condition")
    df = len(values) - groups.nunique()

    def rows(note: str, spread: float = np.nan) -> pd.DataFrame:
        found = []
        for name in names:
            if controls[name] is None:
                found.append((name, *[np.nan] * 4, df, np.nan, "there is no control with the same weights."))
                continue
            members = [groups == one for one in (name, controls[name])]
            difference = coefficients[members[0], 1].mean() - coefficients[members[1], 1].mean()
            error = spread * np.sqrt(sum(1 / one.sum() for one in members))
            half, t = stats.t.ppf(0.5 + level / 2, df) * error, difference / error
            ends = (difference, difference - half, difference + half, t) if not note else [np.nan] * 4
            found.append((name, *ends, df, 2 * stats.t.sf(abs(ends[-1]), df), note))
        return pd.DataFrame(found, columns=["condition", "difference", "low", "high", "t", "df", "p", "note"])

    design = np.column_stack([np.ones_like(generations), generations - generations.mean()])
    coefficients = values @ np.linalg.pinv(design).T  # (runs, 2)
    if values.std() <= ROUNDING * np.abs(values).max():
        return rows("the metric does not vary.")
    if len(generations) < 3:
        return rows("slopes that vary between runs need three generations.")
    residuals = values - coefficients @ design.T
    within = np.linalg.inv(design.T @ design)
    centred = coefficients - pd.DataFrame(coefficients).groupby(groups).transform("mean").to_numpy()
    df_noise = len(values) * (len(generations) - 2)
    noise = float((residuals**2).sum()) / df_noise
    variance = _slope_variance(centred.T @ centred / df, within, noise, df, df_noise)
    if np.sqrt(variance / within[1, 1]) <= ROUNDING * np.abs(values).max():
        return rows("runs of a condition do not differ.")
    return rows("", np.sqrt(variance))
