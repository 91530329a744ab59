"""Paired statistics over runs: the unit is the seed, and conditions share their seeds.

Every function takes the tidy table, one row per (condition, seed, generation) of one model, and refuses it
when a cell is missing, doubled or not finite.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import pingouin
from scipy import special, stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from . import forecast

DESIGN = ("condition", "seed", "generation")
CONTROL, TREATMENT = "fresh", "recursive"
MARGIN = 0.05  # "no difference" means less than this share of the base model's value
ROUNDING = 1e-12  # differences below this share of the values are rounding errors, not variation


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


class EffectSize(NamedTuple):
    """Standardised paired differences, see `cohen_d`."""

    d_z: Interval
    d_av: Interval
    g_z: float


def metric_names(table: pd.DataFrame) -> list[str]:
    """Columns of the tidy table that hold a metric; one that is empty throughout was not measured."""
    return [name for name in table.columns if name not in ("model", *DESIGN) and table[name].notna().any()]


def require_complete(table: pd.DataFrame, metric: str, paired: bool = True) -> None:
    """Raises ValueError unless every (condition, seed, generation) cell holds one finite value of `metric`.

    Paired, every condition needs every seed; otherwise conditions may have seeds of their own, and every run that
    exists needs every generation. pingouin drops a subject with a missing cell without a word, so every function here
    calls this first. A condition needs at least two seeds: with one there is no variation between runs to compare
    anything with.
    """
    for name in (*DESIGN, metric):
        if name not in table.columns:
            raise ValueError(f"The table has no column {name!r}; its columns are {', '.join(table.columns)}.")
    if "model" in table.columns and table["model"].nunique() > 1:
        raise ValueError(f"The table mixes the models {', '.join(table['model'].unique())}: select one.")

    counts = table.groupby(list(DESIGN), observed=True).size()
    runs = product(*(table[name].unique() for name in DESIGN[:2]))
    if not paired:
        runs = table[list(DESIGN[:2])].drop_duplicates().itertuples(index=False)
    cells = [(*run, generation) for run in runs for generation in table["generation"].unique()]
    infinite = table.loc[~np.isfinite(table[metric].astype(float)), list(DESIGN)]
    problems = {
        "missing": [cell for cell in cells if cell not in counts.index],
        "doubled": list(counts.index[counts > 1]),
        "not finite": list(infinite.itertuples(index=False)),
    }
    found = [
        f"{kind}: " + "; ".join("{}, seed {}, generation {}".format(*cell) for cell in cells)
        for kind, cells in problems.items()
        if cells
    ]
    if found:
        raise ValueError(f"{metric} needs one finite value per condition, seed and generation. {'. '.join(found)}.")
    seeds = table.groupby("condition", observed=True)["seed"].nunique()
    if seeds.min() < 2:
        raise ValueError(
            f"{metric} was measured with one seed in condition {seeds.idxmin()!r}: "
            "statistics over runs need at least two."
        )


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean over runs with its t interval, mean ± t_{(1+level)/2, n−1} s/√n.

    `values` (n,); a single value has a mean but no interval (NaN), no value has neither.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return Interval(values[0] if len(values) else np.nan, np.nan, np.nan)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(values.mean(), values.mean() - half, values.mean() + half)


def verdict(estimate: Interval, region: tuple[float, float]) -> str:
    """Where an interval lies: `supported` if all of it is in the region [low, high], `contradicted` if none of it is,
    else `inconclusive`; `not tested` where there is no interval (one seed, for instance)."""
    low, high = region
    if np.isnan(estimate.low) or np.isnan(estimate.high):
        return "not tested"
    if low <= estimate.low and estimate.high <= high:
        return "supported"
    return "contradicted" if estimate.high < low or high < estimate.low else "inconclusive"


def summary(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean over seeds and its 95 % t interval: columns condition, generation, mean, low, high."""
    require_complete(table, metric)
    groups = table.groupby(["condition", "generation"])[metric]
    cells = product(table["condition"].unique(), sorted(table["generation"].unique()))
    rows = [(*cell, *mean_interval(groups.get_group(cell))) for cell in cells]
    return pd.DataFrame(rows, columns=["condition", "generation", "mean", "low", "high"])


def _paired_d(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """d_z and d_av of samples along the last axis, (…, n) -> (…)."""
    tolerance = ROUNDING * np.maximum(np.abs(a), np.abs(b)).max(-1)
    mean = (a - b).mean(-1)
    mean = np.where(np.abs(mean) <= tolerance, 0.0, mean)
    spreads = (a - b).std(-1, ddof=1), np.sqrt((a.var(-1, ddof=1) + b.var(-1, ddof=1)) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        d_z, d_av = (mean / np.where(spread <= tolerance, 0.0, spread) for spread in spreads)
    return d_z, d_av


def cohen_d(a: Sequence[float], b: Sequence[float], resamples: int = 10_000, seed: int = 0) -> EffectSize:
    """Cohen's d of paired samples a − b, `a` and `b` (n,) with one value per seed, in the same order.

    d_z = mean(a − b) / sd(a − b), the effect in units of the paired difference;
    d_av = mean(a − b) / √((var a + var b)/2), in units of the spread between runs (Cumming 2012);
    g_z = J d_z, Hedges' correction with J = Γ(ν/2) / (√(ν/2) Γ((ν − 1)/2)), ν = n − 1, unbiased for normal
    differences: d_z overstates the effect by 77 % at three seeds and 25 % at five.

    Without spread a d is ±inf, or NaN if the mean difference is zero as well; its interval is NaN.

    The 95 % interval of d_z inverts the noncentral t distribution: exact for normal differences. That of d_av
    holds the percentiles of a seeded bootstrap over pairs; resamples without spread (one in nine repeats a
    single seed when n = 3) are left out, and below three pairs it is NaN. It is far too short for few seeds:
    for normal runs correlated by 0.5 and a true d_av of 2 and of 0 it covered 56 and 60 % in simulation at
    three seeds, 75 and 83 % at five, 85 and 90 % at ten.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2 or not np.isfinite([a, b]).all():
        raise ValueError(f"Paired samples need two or more finite pairs: got shapes {a.shape} and {b.shape}.")
    n = len(a)
    d_z, d_av = map(float, _paired_d(a, b))
    z_ends = av_ends = (np.nan, np.nan)
    if np.isfinite(d_z):
        z_ends = special.nctdtrinc(n - 1, [0.975, 0.025], d_z * np.sqrt(n)) / np.sqrt(n)
    if np.isfinite(d_av) and n > 2:
        picks = np.random.default_rng(seed).integers(n, size=(resamples, n))
        replicates = _paired_d(a[picks], b[picks])[1]
        av_ends = np.quantile(replicates[np.isfinite(replicates)], [0.025, 0.975])
    half = (n - 1) / 2
    correction = np.exp(special.gammaln(half) - special.gammaln(half - 0.5)) / np.sqrt(half)
    return EffectSize(Interval(d_z, *z_ends), Interval(d_av, *av_ends), float(correction * d_z))


def _by_condition(table: pd.DataFrame, metric: str, generation: int | None, control: str) -> pd.DataFrame:
    """Values at one generation, (seeds, conditions), the control among them."""
    require_complete(table, metric)
    generation = table["generation"].max() if generation is None else generation
    wide = table[table["generation"] == generation].pivot(index="seed", columns="condition", values=metric)
    if wide.empty:
        raise ValueError(f"The table has no generation {generation}; it ends at {table['generation'].max()}.")
    if control not in wide.columns:
        raise ValueError(f"Control {control!r} is not among the conditions {', '.join(wide.columns)}.")
    return wide[table["condition"].unique()]


def _sign_flip_p(differences: np.ndarray) -> float:
    """Share of the 2ⁿ sign flips whose sum is at least as far from zero as that of `differences` (n,)."""
    n = len(differences)
    if n > 20:
        return np.nan
    signs = 1 - 2 * (np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1)  # one of every ± pair; row 0 is +
    sums = np.abs(signs @ differences)
    return float(np.mean(sums >= sums[0] - ROUNDING * np.abs(differences).max()))


def paired_tests(
    table: pd.DataFrame, metric: str, generation: int | None = None, control: str = CONTROL
) -> pd.DataFrame:
    """Every condition against the control at one generation (the last by default), paired by seed.

    Columns: condition, difference (mean over seeds, condition − control) with its 95 % t interval low, high;
    t, df, p of the paired t-test; p_holm, adjusted over the conditions of this metric and generation;
    p_permutation, two-sided over all 2ⁿ sign flips of the differences (NaN beyond 20 seeds). The last needs
    no normality, only symmetry, but cannot fall below 2/2ⁿ: 0.25 with three seeds.

    Where no seed differs t is NaN and p is 1; where all differ by the same amount t is infinite and p is 0.
    """
    wide = _by_condition(table, metric, generation, control)
    n = len(wide)
    rows = []
    for condition in wide.columns.drop(control):
        a, b = wide[condition].to_numpy(float), wide[control].to_numpy(float)
        t = float(_paired_d(a, b)[0]) * np.sqrt(n)
        p = 1.0 if np.isnan(t) else 2 * stats.t.sf(abs(t), n - 1)
        rows.append((condition, *mean_interval(a - b), t, n - 1, p, p, _sign_flip_p(a - b)))
    names = ["condition", "difference", "low", "high", "t", "df", "p", "p_holm", "p_permutation"]
    result = pd.DataFrame(rows, columns=names)
    if rows:
        result["p_holm"] = pingouin.multicomp(result["p"].to_numpy(), method="holm")[1]
    return result


def margin_of(table: pd.DataFrame, metric: str, share: float = MARGIN) -> float:
    """Margin for `equivalence`, in units of the metric: `share` of its mean at generation 0, which no condition moves.

    log(1 + share) for a metric that is a logarithm itself; NaN for one that is 0 at generation 0, such as a drift.
    """
    if metric.startswith("log_"):
        return float(np.log1p(share))
    size = abs(table.loc[table["generation"] == 0, metric].mean())
    return float(share * size) if size > 0 else np.nan


def equivalence(
    table: pd.DataFrame,
    metric: str,
    margin: float,
    generation: int | None = None,
    control: str = CONTROL,
    level: float = 0.95,
) -> pd.DataFrame:
    """Is every condition within ± `margin` of the control at one generation (the last by default)? Paired by seed.

    Two one-sided t-tests (Schuirmann 1987): p is the greater of those of difference ≤ −margin and difference ≥ margin.
    Only a p below 1 − level says "no difference of this size"; a paired test that does not reject says nothing of it.
    The margin, in units of the metric, must be chosen before the data are seen.

    Columns condition, difference, low, high (t interval at 2 level − 1, 90 % by default, inside ± margin exactly where
    p < 1 − level), margin, p, p_holm (over the conditions of this metric and generation), equivalent (p_holm below
    1 − level). Where all seeds differ by the same amount p is 0 or 1. Of pairs that are equal but for noise with
    standard deviation s of their difference, three show it in four of five cases if the margin is 2.7 s, five if 1.6 s.
    """
    if not margin > 0:
        raise ValueError(f"An equivalence margin is a positive number in units of {metric}, not {margin}.")
    wide = _by_condition(table, metric, generation, control)
    rows = []
    for condition in wide.columns.drop(control):
        a, b = wide[condition].to_numpy(float), wide[control].to_numpy(float)
        interval = mean_interval(a - b, 2 * level - 1)
        if (a - b).std(ddof=1) <= ROUNDING * np.abs([a, b]).max():
            p = float(abs(interval.estimate) >= margin)
        else:
            p = float(ttost_paired(a, b, -margin, margin)[0])
        rows.append((condition, *interval, margin, p))
    result = pd.DataFrame(rows, columns=["condition", "difference", "low", "high", "margin", "p"])
    result["p_holm"] = pingouin.multicomp(result["p"].to_numpy(), method="holm")[1] if rows else []
    return result.assign(equivalent=result["p_holm"] < 1 - level)


def effect_sizes(table: pd.DataFrame, metric: str, control: str = CONTROL) -> dict[str, EffectSize]:
    """`cohen_d` of every condition against the control at the last generation."""
    wide = _by_condition(table, metric, None, control)
    return {condition: cohen_d(wide[condition], wide[control]) for condition in wide.columns.drop(control)}


def forecasts(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Linear dynamics of a metric run by run (`forecast.fit_dynamics`), scored one generation ahead.

    Columns condition, seed; rate, the factor by which the distance to the fixed point changes a generation;
    fixed_point (NaN where the rate is 1 or more); model_rmse and naive_rmse over the held-out generations, the naive
    forecast being the last value. All NaN for runs of fewer than five generations.
    """
    rows = []
    for (condition, seed), run in table.sort_values("generation").groupby(["condition", "seed"], sort=False):
        values = run[metric].to_numpy(float)
        numbers = [np.nan] * 4
        if len(values) >= 5:
            dynamics, score = forecast.fit_dynamics(values), forecast.score_forecast(values)
            numbers = [dynamics.rate, dynamics.fixed_point[0], score.model_rmse[0], score.naive_rmse[0]]
        rows.append((condition, seed, *numbers))
    return pd.DataFrame(rows, columns=["condition", "seed", "rate", "fixed_point", "model_rmse", "naive_rmse"])


def detectable_effect(n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest d_z that a two-sided paired t-test with `n` seeds detects at level `alpha` with this power.

    3.26 with three seeds and 1.68 with five; Holm's adjustment raises it further.
    """
    if n < 2:
        raise ValueError(f"A paired t-test needs at least two seeds, not {n}.")
    return float(TTestPower().solve_power(nobs=n, alpha=alpha, power=power))
