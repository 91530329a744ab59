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
from scipy import optimize, special, stats
from statsmodels.stats.weightstats import ttost_paired

from ..estimate import Interval
from ..record.schema import Params, split_condition
from . import forecast

DESIGN = ("condition", "seed", "generation")
CONTROL, TREATMENT = "fresh", "recursive"
MARGIN = 0.05  # "no difference" means less than this share of the base model's value
ROUNDING = 64 * np.finfo(float).eps  # differences below this share of the values are rounding errors, not variation


class EffectSize(NamedTuple):
    """Standardised paired differences, see `cohen_d`."""

    d_z: Interval
    d_av: float
    g_z: float


def metric_names(table: pd.DataFrame) -> list[str]:
    """Columns of the tidy table that hold a metric; one that is empty throughout was not measured."""
    return [name for name in table.columns if name not in ("model", "weights", *DESIGN) and table[name].notna().any()]


def limits(params: Params) -> list[str]:
    """What the statistics of a profile's runs will not judge, a sentence each; known before anything is trained.

    ValueError where there is nothing to judge at all: fewer than two seeds, no treatment, or no control.
    """
    seeds, conditions = len(params.seeds), params.conditions
    if seeds < 2:
        raise ValueError(f"seeds: statistics over runs need at least two, and there is {seeds}: add one.")
    for name in (TREATMENT, CONTROL):
        if name not in conditions:
            raise ValueError(f"conditions: statistics need {name!r}, and there is {', '.join(conditions)}: add it.")
    weights = {"condition": conditions, "weights": [split_condition(name, params.weights)[1] for name in conditions]}
    unmatched = [name for name, control in matched_controls(pd.DataFrame(weights)).items() if control is None]
    found = []
    if unmatched:
        found.append(
            f"{', '.join(unmatched)}: no control has the same weights ({CONTROL}_carry or {CONTROL}_restart), so that "
            "nothing is compared."
        )
    if seeds < 3:
        found.append("Two seeds: a band of one control run has no width, so that no alarm, lead or rescue is judged.")
    if params.generations < 2:
        found.append("One generation: there is no analysis of variance and no correlation over generations.")
    least = least_p("sign", seeds)
    if seeds > 2:
        several = "" if least >= 0.05 else f" after Holm's correction over more than {int(0.05 / least)} metrics"
        found.append(f"{seeds} seeds: the sign test gives p ≥ {least:.2g}: no lead can be called earlier{several}.")
    return found


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
    known = set(counts.index)
    problems = {
        "missing": [cell for cell in cells if cell not in known],
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


def control_of(table: pd.DataFrame, condition: str, control: str = CONTROL) -> str | None:
    """The condition's control by `matched_controls`. ValueError where the table lacks the condition or any control."""
    controls = matched_controls(table, control)
    if condition not in controls:
        raise ValueError(f"Condition {condition!r} is not among {', '.join(controls)}.")
    return controls[condition]


def changes(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Changes of every run from its generation 0: rows (condition, seed), a column for every later generation.

    ValueError for an incomplete table and for one without generation 0.
    """
    require_complete(table, metric)
    if not (table["generation"] == 0).any():
        raise ValueError(f"The table has no generation 0, from which changes of {metric} are taken.")
    values = table.pivot(index=["condition", "seed"], columns="generation", values=metric).sort_index()
    return values.drop(columns=0).sub(values[0], axis=0)


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
    differences: d_z overstates the effect by 77 % at three seeds and 25 % at five.

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
    correction = np.exp(special.gammaln(half) - special.gammaln(half - 0.5)) / np.sqrt(half)
    return EffectSize(Interval(d_z, *ends), d_av, float(correction * d_z) if np.isfinite(d_z) else d_z)


def _pairs(
    table: pd.DataFrame, metric: str, generation: int | None, control: str
) -> dict[str, tuple[np.ndarray, np.ndarray] | None]:
    """Values (seeds,) of every condition but the controls at one generation, and those of its `matched_controls`, in
    the order of seeds; None where it has no such control."""
    require_complete(table, metric)
    generation = table["generation"].max() if generation is None else generation
    wide = table[table["generation"] == generation].pivot(index="seed", columns="condition", values=metric)
    if wide.empty:
        raise ValueError(f"The table has no generation {generation}; it ends at {table['generation'].max()}.")
    return {
        name: None if matched is None else (wide[name].to_numpy(float), wide[matched].to_numpy(float))
        for name, matched in matched_controls(table, control).items()
        if name != matched
    }


def _holm(p: pd.Series) -> np.ndarray:
    """Holm's adjustment over the tests that were made, NaN for the others."""
    return pingouin.multicomp(p.to_numpy(float), method="holm")[1] if p.notna().any() else p.to_numpy(float)


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
    """Every condition against its matched control at one generation (the last by default), paired by seed.

    Columns: condition, difference (mean over seeds, condition − control) with its 95 % t interval low, high;
    t, df, p of the paired t-test; p_holm, adjusted over the conditions of this metric and generation;
    p_permutation, two-sided over all 2ⁿ sign flips of the differences (NaN beyond 20 seeds). The last needs
    no normality, only symmetry, but cannot fall below `least_p("sign-flip", n)`: 0.25 with three seeds. All NaN for a
    condition without a control of its own weights (`matched_controls`).

    Where no seed differs t is NaN and p is 1; where all differ by the same amount t is infinite and p is 0.
    """
    rows = []
    for condition, pair in _pairs(table, metric, generation, control).items():
        if pair is None:
            rows.append((condition, *[np.nan] * 8))
            continue
        differences = _differences(*pair)
        n = len(differences)
        t = _standardised(differences.mean(), differences.std(ddof=1)) * np.sqrt(n)
        p = 1.0 if np.isnan(t) else 2 * stats.t.sf(abs(t), n - 1)
        rows.append((condition, *mean_interval(differences), t, n - 1, p, p, _sign_flip_p(differences)))
    names = ["condition", "difference", "low", "high", "t", "df", "p", "p_holm", "p_permutation"]
    result = pd.DataFrame(rows, columns=names)
    return result.assign(p_holm=_holm(result["p"]))


def margin_of(table: pd.DataFrame, metric: str, share: float = MARGIN) -> float:
    """Margin for `equivalence`, in units of the metric: `share` of its mean at generation 0, which no condition moves.

    log(1 + share) for a metric that is a logarithm itself; NaN for one that is 0 at generation 0, such as a drift.
    """
    if metric.startswith("log_"):
        return float(np.log1p(share))
    size = abs(table.loc[table["generation"] == 0, metric].mean())
    return float(share * size) if size > 0 else np.nan  # so it is without generation 0


def equivalence(
    table: pd.DataFrame,
    metric: str,
    margin: float,
    generation: int | None = None,
    control: str = CONTROL,
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
    if not margin > 0:
        raise ValueError(f"An equivalence margin is a positive number in units of {metric}, not {margin}.")
    rows = []
    for condition, pair in _pairs(table, metric, generation, control).items():
        if pair is None:
            rows.append((condition, *[np.nan] * 3, margin, np.nan))
            continue
        differences = _differences(*pair)
        interval = mean_interval(differences, 2 * level - 1)
        if np.ptp(differences) == 0:
            p = float(abs(interval.estimate) >= margin)
        else:
            p = float(ttost_paired(differences, np.zeros(len(differences)), -margin, margin)[0])
        rows.append((condition, *interval, margin, p))
    result = pd.DataFrame(rows, columns=["condition", "difference", "low", "high", "margin", "p"])
    result["p_holm"] = _holm(result["p"])
    return result.assign(equivalent=result["p_holm"] < 1 - level)


def effect_sizes(table: pd.DataFrame, metric: str, control: str = CONTROL) -> dict[str, EffectSize]:
    """`cohen_d` of every condition against its matched control at the last generation; none without one."""
    return {name: cohen_d(*pair) for name, pair in _pairs(table, metric, None, control).items() if pair is not None}


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


def detectable_effect(n: int, tests: int = 1, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest d_z that a two-sided paired t-test with `n` seeds detects at level `alpha` with this power.

    Of several `tests` corrected by Holm's method, what the first step detects, at level alpha/tests: with five seeds
    1.68 for one test and 2.63 for five; with three 3.26 and 7.32. The power is integrated over the spread s that the
    seeds may show, P(|Z + d√n| > t_{1−α/2, n−1} s); where libraries evaluate the noncentral t distribution it is NaN,
    or off, at these degrees of freedom.
    """
    if n < 2:
        raise ValueError(f"A paired t-test needs at least two seeds, not {n}.")
    critical = stats.t.isf(alpha / tests / 2, n - 1)
    nodes, weights = np.polynomial.legendre.leggauss(500)
    bounds = critical * np.sqrt(stats.chi2.ppf((nodes + 1) / 2, n - 1) / (n - 1))

    def missing(d: float) -> float:
        rejected = special.ndtr(d * np.sqrt(n) - bounds) + special.ndtr(-bounds - d * np.sqrt(n))
        return float(rejected @ weights) / 2 - power

    return float(optimize.brentq(missing, 0, 2 * critical))


def least_p(test: str, n: int) -> float:
    """The least p that a test can give with `n` seeds, whatever the data; after Holm's correction times the tests.

    `sign` (one-sided sign test): 2^{−n}; `sign-flip` (two-sided): 2^{1−n}; `exchange` (of the two runs of a seed, by
    which well separated runs stay so when all are exchanged, `detection.separation`): 2^{1−n}. A t test has none.
    ValueError for another name.
    """
    least = {"sign": 2.0**-n, "sign-flip": 2.0 ** (1 - n), "exchange": 2.0 ** (1 - n), "t": 0.0}
    if test not in least:
        raise ValueError(f"There is no test {test!r}: there are {', '.join(least)}.")
    return least[test]
