"""Paired statistics over runs: the unit is the seed, and conditions share their seeds.

Every function takes the tidy table, one row per (condition, seed, generation) of one model, and refuses one with a cell
that is missing, doubled or not finite.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special, stats

from ..estimate import Estimate
from ..record.schema import split_condition
from . import metrics

ALPHA = 0.05  # below which a corrected p is called significant
CELL = ("condition", "seed", "generation")
SAME = "not distinguishable"
CONTROL, TREATMENT = "fresh", "recursive"
MARGIN = 0.05  # "no difference" means less than this share of the base model's value
ROUNDING = 64 * np.finfo(float).eps  # differences below this share of the values are rounding errors, not variation


class EffectSize(NamedTuple):
    """Standardised paired differences, see `cohen_d`."""

    d_z: Estimate
    d_av: float
    g_z: float


def metric_names(table: pd.DataFrame) -> list[str]:
    """Columns of the tidy table that hold a metric; an empty one was not measured."""
    return [name for name in table.columns if name not in ("model", "weights", *CELL) and table[name].notna().any()]


def matched_controls(table: pd.DataFrame, control: str = CONTROL) -> dict[str, str | None]:
    """Condition to the control it is compared with: the condition with the control's text and its own weights.

    Weights that are carried over have had g times the updates of restarted ones by generation g: `recursive_carry` is
    compared with `fresh_carry`, never with a `fresh` that restarts. None where the table has no such control; a control
    is matched with itself. The column `weights`, where the table has it, says what each condition does with its
    weights; without it only the suffixes of the names do. ValueError where the table has no control at all.
    """
    names = list(table["condition"].unique())
    kinds = {name: split_condition(name, "") for name in names}
    if "weights" in table:
        kept = table.drop_duplicates("condition").set_index("condition")["weights"]
        kinds = {name: (source, kept[name]) for name, (source, _) in kinds.items()}
    source = split_condition(control, "")[0]
    found = {weights: name for name, (text, weights) in kinds.items() if text == source}
    if not found:
        raise ValueError(f"Control {control!r} is not among the conditions {', '.join(names)}.")
    return {name: found.get(weights) for name, (_, weights) in kinds.items()}


def require_complete(table: pd.DataFrame, metric: str, paired: bool = True) -> None:
    """Raises ValueError unless every (condition, seed, generation) cell holds one finite value of `metric`.

    Paired, every condition needs every seed; otherwise conditions may have seeds of their own, and every run that
    exists needs every generation. pingouin drops a subject with a missing cell without a word, so every function here
    calls this first. A condition needs at least two seeds: with one there is no variation between runs to compare
    anything with.
    """
    for name in (*CELL, metric):
        if name not in table.columns:
            raise ValueError(f"The table has no column {name!r}; its columns are {', '.join(table.columns)}.")
    if "model" in table.columns and table["model"].nunique() > 1:
        raise ValueError(f"The table mixes the models {', '.join(table['model'].unique())}: select one.")

    infinite = ~np.isfinite(table[metric].to_numpy(float))
    counts = table.groupby(list(CELL), observed=True).size()
    generations = table["generation"].unique()
    if paired:
        runs = list(product(*(table[name].unique() for name in CELL[:2])))
    else:
        runs = list(table[list(CELL[:2])].drop_duplicates().itertuples(index=False))
    problems = {"doubled": list(counts.index[counts > 1])}
    if len(counts) < len(runs) * len(generations):
        known = set(counts.index)
        problems["missing"] = [cell for run in runs for g in generations if (cell := (*run, g)) not in known]
    if infinite.any():
        problems["not finite"] = list(table.loc[infinite, list(CELL)].itertuples(index=False))
    found = [
        f"{kind}: " + "; ".join("{}, seed {}, generation {}".format(*cell) for cell in cells)
        for kind, cells in problems.items()
        if cells
    ]
    if found:
        raise ValueError(
            f"{metric} needs one finite value per condition, seed and generation: {'. '.join(found)}. "
            "`make results` measures what is missing."
        )
    seeds = table.groupby("condition", observed=True)["seed"].nunique()
    if seeds.min() < 2:
        raise ValueError(
            f"{metric} was measured with one seed in condition {seeds.idxmin()!r}: "
            "statistics over runs need at least two."
        )


def changes(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Changes of every run from its generation 0: rows (condition, seed), a column for every later generation.

    ValueError for an incomplete table and for one without generation 0.
    """
    require_complete(table, metric)
    if not (table["generation"] == 0).any():
        raise ValueError(f"The table has no generation 0, from which changes of {metric} are taken.")
    values = table.pivot(index=["condition", "seed"], columns="generation", values=metric).sort_index()
    return values.drop(columns=0).sub(values[0], axis=0)


def verdict(estimate: Estimate, region: tuple[float, float]) -> str:
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
    rows = [(*cell, *Estimate.mean(groups.get_group(cell))) for cell in cells]
    return pd.DataFrame(rows, columns=["condition", "generation", "mean", "low", "high"])


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a − b (n,), without what rounding alone leaves of it: of differences, and of their variation."""
    tolerance = ROUNDING * np.abs([a, b]).max()
    differences = np.where(np.abs(a - b) <= tolerance, 0.0, a - b)
    return differences if np.ptp(differences) > tolerance else np.full(len(differences), differences.mean())


def _standardised(mean: float, spread: float) -> float:
    """mean / spread; ±inf without spread, NaN if there is no mean either."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(mean) / spread)


def cohen_d(a: Sequence[float], b: Sequence[float]) -> EffectSize:
    """Cohen's d of paired samples a − b, `a` and `b` (n,) with one value per seed, in the same order.

    d_z = mean(a − b) / sd(a − b), the effect in units of the paired difference;
    d_av = mean(a − b) / √((var a + var b)/2), in units of the spread between runs (Cumming 2012);
    g_z = J d_z, Hedges' correction with J = Γ(ν/2) / (√(ν/2) Γ((ν − 1)/2)), ν = n − 1, unbiased for normal
    differences: d_z overstates the effect by 77 % at three seeds and 25 % at five; NaN with two, where there is none.

    Without spread a d is ±inf, or NaN if the mean difference is zero as well; its interval is NaN.

    The 95 % interval of d_z inverts the noncentral t distribution: exact for normal differences. d_av has none: its
    distribution depends on the unknown correlation of the pairs, and a bootstrap over few pairs is far too short (56 %
    instead of 95 % at three).
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2 or not np.isfinite([a, b]).all():
        raise ValueError(f"Paired samples need two or more finite pairs: got shapes {a.shape} and {b.shape}.")
    n = len(a)
    differences = _differences(a, b)
    d_z = _standardised(differences.mean(), differences.std(ddof=1))
    spread = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    d_av = _standardised(differences.mean(), spread if spread > ROUNDING * np.abs([a, b]).max() else 0.0)
    ends = np.nan, np.nan
    if np.isfinite(d_z):
        ends = special.nctdtrinc(n - 1, [0.975, 0.025], d_z * np.sqrt(n)) / np.sqrt(n)
    half = (n - 1) / 2
    correction = np.exp(special.gammaln(half) - special.gammaln(half - 0.5)) / np.sqrt(half) if n > 2 else np.nan
    return EffectSize(Estimate(d_z, *ends), d_av, float(correction * d_z) if np.isfinite(d_z) else d_z)


def _compared(
    table: pd.DataFrame,
    metric: str,
    generation: int | None,
    columns: Sequence[str],
    figures: Callable[[np.ndarray, np.ndarray], Sequence[float]],
) -> pd.DataFrame:
    """A row for every condition but the controls: the figures of its values (seeds,) at one generation and those of its
    `matched_controls`, paired by seed; NaN where it has no such control."""
    require_complete(table, metric)
    generation = table["generation"].max() if generation is None else generation
    wide = table[table["generation"] == generation].pivot(index="seed", columns="condition", values=metric)
    if wide.empty:
        raise ValueError(f"The table has no generation {generation}; it ends at {table['generation'].max()}.")
    rows = [
        (name, *(figures(*wide[[name, matched]].to_numpy(float).T) if matched else [np.nan] * len(columns)))
        for name, matched in matched_controls(table).items()
        if name != matched
    ]
    return pd.DataFrame(rows, columns=["condition", *columns])


def holm(p: pd.Series) -> np.ndarray:
    """Holm's adjustment over the tests that were made, NaN for the others."""
    import pingouin  # half a second, in every notebook whether it tests or not

    return pingouin.multicomp(p.to_numpy(float), method="holm")[1] if p.notna().any() else p.to_numpy(float)


def _sign_flip_p(differences: np.ndarray) -> float:
    """Share of the 2ⁿ sign flips whose sum is at least as far from zero as that of `differences` (n,)."""
    n = len(differences)
    if n > 20:
        return np.nan
    signs = 1 - 2 * (np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1)  # one of every ± pair; row 0 is +
    sums = np.abs(signs @ differences)
    return float(np.mean(sums >= sums[0] - ROUNDING * np.abs(differences).max()))


def sides(tests: pd.DataFrame) -> np.ndarray:
    """Of tests with columns difference and p_holm: higher or lower where p_holm is below 0.05, else `SAME`."""
    return np.where(tests["p_holm"] < ALPHA, np.where(tests["difference"] > 0, "higher", "lower"), SAME)


def paired_tests(table: pd.DataFrame, metric: str, generation: int | None = None) -> pd.DataFrame:
    """Every condition against its matched control at one generation (the last by default), paired by seed.

    Columns: condition; difference, condition − control, mean over seeds with its 95 % t interval low, high; t, df, p of
    the paired t-test; p_holm, adjusted over the conditions; p_permutation, two-sided over all 2ⁿ sign flips of the
    differences (NaN beyond 20 seeds). The last needs no normality, only symmetry, but cannot fall below
    `power.least_p("sign-flip", n)`: 0.25 with three seeds. All NaN for a condition without a control of its own
    weights (`matched_controls`).

    Where no seed differs t is NaN and p is 1; where all differ by the same amount t is infinite and p is 0.
    """

    def figures(a: np.ndarray, b: np.ndarray) -> Sequence[float]:
        differences = _differences(a, b)
        n = len(differences)
        t = _standardised(differences.mean(), differences.std(ddof=1)) * np.sqrt(n)
        p = 1.0 if np.isnan(t) else 2 * stats.t.sf(abs(t), n - 1)
        return *Estimate.mean(differences), t, n - 1, p, p, _sign_flip_p(differences)

    names = ["difference", "low", "high", "t", "df", "p", "p_holm", "p_permutation"]
    result = _compared(table, metric, generation, names, figures)
    return result.assign(p_holm=holm(result["p"]))


def margin_of(table: pd.DataFrame, metric: str, share: float = MARGIN) -> float:
    """Margin for `equivalence`, in units of the metric: `share` of its mean at generation 0, which no condition moves.

    log(1 + share) for a logarithm; NaN for a metric that is 0 at generation 0, such as a drift.
    """
    if metrics.is_logarithm(metric):
        return float(np.log1p(share))
    size = abs(table.loc[table["generation"] == 0, metric].mean())
    return float(share * size) if size > 0 else np.nan  # so it is without generation 0


def equivalence(
    table: pd.DataFrame,
    metric: str,
    margin: float,
    generation: int | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """Is every condition within ± `margin` of its matched control at one generation (by default the last)? By seed.

    Two one-sided t-tests (Schuirmann 1987): p is the greater of those of difference ≤ −margin and difference ≥ margin.
    Only a p below 1 − level says "no difference of this size"; a paired test that does not reject says nothing of it.
    The margin, in units of the metric, must be chosen before the data are seen.

    Columns condition, difference, low, high (t interval at 2 level − 1, 90 % by default, inside ± margin exactly where
    p < 1 − level), margin, p, p_holm (over the conditions of this metric and generation), equivalent (p_holm below
    1 − level). Where all seeds differ by the same amount p is 0 or 1. Of pairs that are equal but for noise with
    standard deviation s of their difference, three show it in four of five cases if the margin is 2.7 s, five if 1.6 s.
    """
    from statsmodels.stats.weightstats import ttost_paired  # slow, as pingouin is

    if not margin > 0:
        raise ValueError(f"An equivalence margin is a positive number in units of {metric}, not {margin}.")

    def figures(a: np.ndarray, b: np.ndarray) -> Sequence[float]:
        differences = _differences(a, b)
        interval = Estimate.mean(differences, 2 * level - 1)
        if np.ptp(differences) == 0:
            return *interval, float(abs(interval.value) >= margin)
        return *interval, float(ttost_paired(differences, np.zeros(len(differences)), -margin, margin)[0])

    result = _compared(table, metric, generation, ["difference", "low", "high", "p"], figures)
    result.insert(4, "margin", margin)
    result["p_holm"] = holm(result["p"])
    return result.assign(equivalent=result["p_holm"] < 1 - level)


def effect_sizes(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """`cohen_d` of every condition against its matched control at the last generation: columns condition; d_z with its
    95 % interval low, high; g_z, d_av. Conditions without such a control have no row."""

    def figures(a: np.ndarray, b: np.ndarray) -> Sequence[float]:
        size = cohen_d(a, b)
        return *size.d_z, size.g_z, size.d_av

    matched = [name for name, control in matched_controls(table).items() if control is not None]
    return _compared(
        table[table["condition"].isin(matched)], metric, None, ["d_z", "low", "high", "g_z", "d_av"], figures
    )
