"""Paired statistics over runs: the unit is the seed, and conditions share their seeds.

Every function takes the tidy table, one row per (condition, seed, generation) of one model, and refuses it
when a cell is missing, doubled or not finite.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import pandas as pd
import pingouin
from scipy import special, stats
from statsmodels.stats.power import TTestPower

from . import forecast

DESIGN = ("condition", "seed", "generation")
EFFECTS = ("condition", "generation", "interaction")
CONTROL, TREATMENT = "fresh", "recursive"
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


def require_complete(table: pd.DataFrame, metric: str) -> None:
    """Raises ValueError unless every (condition, seed, generation) cell holds one finite value of `metric`.

    pingouin drops a subject with a missing cell without a word, so every function here calls this first.
    At least two seeds are needed: with one there is no variation between runs to compare anything with.
    """
    for name in (*DESIGN, metric):
        if name not in table.columns:
            raise ValueError(f"The table has no column {name!r}; its columns are {', '.join(table.columns)}.")
    if "model" in table.columns and table["model"].nunique() > 1:
        raise ValueError(f"The table mixes the models {', '.join(table['model'].unique())}: select one.")

    counts = table.groupby(list(DESIGN), observed=True).size()
    cells = product(*(table[name].unique() for name in DESIGN))
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
    if table["seed"].nunique() < 2:
        raise ValueError(f"{metric} was measured with one seed: statistics over runs need at least two.")


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean over runs with its t interval, mean ± t_{(1+level)/2, n−1} s/√n.

    `values` (n,); a single value has a mean but no interval (NaN), no value has neither.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return Interval(values[0] if len(values) else np.nan, np.nan, np.nan)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(values.mean(), values.mean() - half, values.mean() + half)


def summary(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean over seeds and its 95 % t interval: columns condition, generation, mean, low, high."""
    require_complete(table, metric)
    groups = table.groupby(["condition", "generation"])[metric]
    cells = product(table["condition"].unique(), sorted(table["generation"].unique()))
    rows = [(*cell, *mean_interval(groups.get_group(cell))) for cell in cells]
    return pd.DataFrame(rows, columns=["condition", "generation", "mean", "low", "high"])


def repeated_measures_anova(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Two-way repeated-measures ANOVA, condition × generation, with the seed as subject.

    Generation 0 is the same model in every condition, so that its differences are zero by construction and
    would dilute the effects: the ANOVA uses generations ≥ 1. One row per effect (`EFFECTS`) with columns
    effect, df1, df2 (uncorrected), F, p_uncorrected, epsilon (Greenhouse–Geisser), p (with df1 and df2
    multiplied by epsilon) and eta (generalised η², Bakeman 2005).

    With s seeds an effect's error covariance has rank s − 1 at most, hence 1/df1 ≤ epsilon ≤ (s − 1)/df1
    whatever the truth: with three seeds and df1 = 12 epsilon cannot exceed 1/6, and p is conservative.

    F, epsilon and p are NaN where seeds do not vary in the effect's error term (a constant metric, say);
    with one condition or one generation after 0 there is nothing to cross and every figure is NaN.
    """
    require_complete(table, metric)
    later = table[table["generation"] >= 1]
    figures = ["df1", "df2", "F", "p_uncorrected", "epsilon", "p", "eta"]
    result = pd.DataFrame({"effect": EFFECTS}).assign(**dict.fromkeys(figures, np.nan))
    if later["condition"].nunique() < 2 or later["generation"].nunique() < 2:
        return result

    with np.errstate(divide="ignore", invalid="ignore"):
        anova = pingouin.rm_anova(later, dv=metric, within=["condition", "generation"], subject="seed")
    result[figures] = anova[["ddof1", "ddof2", "F", "p_unc", "eps", "p_GG_corr", "ng2"]].to_numpy(float)

    # Without variation in the error term, F is a quotient of rounding errors.
    wide = later.pivot(index="seed", columns=["condition", "generation"], values=metric).sort_index(axis=1)
    values = wide.to_numpy(float).reshape(len(wide), later["condition"].nunique(), -1)
    deviations = values - values.mean(0)  # (seeds, conditions, generations)
    seeds = deviations.mean((1, 2), keepdims=True)
    conditions = deviations.mean(2, keepdims=True) - seeds
    generations = deviations.mean(1, keepdims=True) - seeds
    errors = (conditions, generations, deviations - conditions - generations - seeds)
    exact = [np.abs(error).max() <= ROUNDING * np.abs(values).max() for error in errors]
    result.loc[exact, ["F", "p_uncorrected", "epsilon", "p"]] = np.nan
    return result


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


def effect_sizes(table: pd.DataFrame, metric: str, control: str = CONTROL) -> dict[str, EffectSize]:
    """`cohen_d` of every condition against the control at the last generation."""
    wide = _by_condition(table, metric, None, control)
    return {condition: cohen_d(wide[condition], wide[control]) for condition in wide.columns.drop(control)}


def within_run_spearman(table: pd.DataFrame, metrics: Sequence[str], condition: str = TREATMENT) -> pd.DataFrame:
    """Spearman's ρ of every two metrics over the generations of a run, averaged over the condition's runs.

    Columns metric_a, metric_b, rho, low, high, runs. The interval is the 95 % t interval of the mean over
    runs, cut to [−1, 1]: for three runs of six generations it covered 85-93 % in simulation, a bootstrap over
    runs 74 %, and Fisher's z is infinite at ρ = ±1, which a short series often reaches. A run where either
    metric is constant, or with fewer than three generations, has no ρ and is left out; `runs` counts the
    others, and rho is NaN if there are none.
    """
    for metric in metrics:
        require_complete(table, metric)
    chosen = table[table["condition"] == condition]
    if chosen.empty:
        raise ValueError(f"Condition {condition!r} is not among {', '.join(table['condition'].unique())}.")
    runs = [run[list(metrics)].corr("spearman", min_periods=3) for _, run in chosen.groupby("seed")]
    rows = []
    for first, second in combinations(metrics, 2):
        rhos = np.array([run.loc[first, second] for run in runs])
        rhos = rhos[np.isfinite(rhos)]
        mean, low, high = mean_interval(rhos)
        rows.append((first, second, mean, np.clip(low, -1, 1), np.clip(high, -1, 1), len(rhos)))
    return pd.DataFrame(rows, columns=["metric_a", "metric_b", "rho", "low", "high", "runs"])


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


# Text for the paper

_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "`": r"\textasciigrave{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",  # in braces, or a row that starts with one would be an argument of the \\ before it
        "*": "{*}",
        **{character: "\\" + character for character in "{}$&#%_"},
    }
)
# Whatever pdflatex does not set in the OT1 and T1 encodings alike: both have ASCII, most accented Latin
# letters and the common punctuation.
_NOT_SET_BY_LATEX = re.compile("[^ -~¡-ª¬®-º¼-ÏÑ-Ýß-ïñ-ýÿ-ăĆ-ďĒ-ėĚ-ĥĨ-ĭİ-ķĹ-ľŁ-ňŌ-ťŨ-űŴ-žȘșȚț‐‑–—‘’“”†‡•…‰€™]")


def escape(text: str) -> str:
    """LaTeX that prints `text` on one line, whatever it contains.

    White space becomes single spaces. A character that pdflatex may have no glyph for is printed as its code
    point (U+1F600), so that it neither stops the compilation nor vanishes.
    """
    text = unicodedata.normalize("NFC", " ".join(text.split())).translate(_ESCAPES)
    text = re.sub(r"([-',])(?=\1)", r"\1{}", text)  # no ligatures: -- is two hyphens, not a dash
    return _NOT_SET_BY_LATEX.sub(lambda match: rf"\texttt{{U+{ord(match[0]):04X}}}", text)


def format_number(x: float) -> str:
    """`x` to three significant digits as LaTeX for running text; scientific from 1e5 on and below 1e-3."""
    if np.isnan(x):
        return "--"
    if np.isinf(x):
        return r"$\infty$" if x > 0 else r"$-\infty$"
    digits, exponent = f"{x:.2e}".split("e")
    exponent = int(exponent)
    if x == 0:
        return "0"
    if not -3 <= exponent < 5:
        return rf"${digits}\times10^{{{exponent}}}$"
    text = f"{float(f'{x:.2e}'):.{max(0, 2 - exponent)}f}"
    return f"${text}$" if x < 0 else text


def format_percent(share: float) -> str:
    r"""A share in percent with two significant digits from one on, `4.5\,\%`; `--` where there is none."""
    return rf"{100 * share:.{0 if abs(share) >= 0.0995 else 1}f}\,\%" if np.isfinite(share) else "--"


def format_interval(interval: Interval) -> str:
    """`12.3 [11.1, 13.5]`."""
    estimate, low, high = map(format_number, interval)
    return f"{estimate} [{low}, {high}]"


def format_p(p: float) -> str:
    """A p-value to three decimals, `$<0.001$` below that."""
    if np.isnan(p):
        return "--"
    return "$<0.001$" if p < 0.001 else f"{p:.3f}"


def values(table: pd.DataFrame) -> dict[str, str]:
    """Every number of the paper that derives from the tidy table, as LaTeX for running text.

    Keys (M metric, C condition, A, B metrics): seeds, generations (the last one), model, detectable.d;
    M.C.first, M.C.last (mean at the first and last generation with t interval), M.C.peak_generation (where
    the mean is greatest, the earlier at a tie); anova.M.{condition,generation,interaction}.{F,p,df,eta} with
    Greenhouse-Geisser p; against `fresh` at the last generation d.M.C (d_av with bootstrap interval),
    diff.M.C (mean difference with t interval) and word.M.C: `higher` or `lower` if the Holm-adjusted paired
    t-test gives p < 0.05, else `not distinguishable`; rho.A.B over the generations of `recursive` runs.
    Keys that need an absent control or treatment are absent too.
    """
    conditions, metrics = list(table["condition"].unique()), metric_names(table)
    text = {
        "seeds": str(table["seed"].nunique()),
        "generations": str(table["generation"].max()),
        "model": escape(table["model"].iloc[0]),
        "detectable.d": format_number(detectable_effect(table["seed"].nunique())),
    }
    for metric in metrics:
        for condition, series in summary(table, metric).groupby("condition"):
            intervals = [Interval(*row) for row in series[["mean", "low", "high"]].to_numpy()]
            text[f"{metric}.{condition}.first"] = format_interval(intervals[0])
            text[f"{metric}.{condition}.last"] = format_interval(intervals[-1])
            text[f"{metric}.{condition}.peak_generation"] = str(series["generation"].iloc[series["mean"].argmax()])
        for row in repeated_measures_anova(table, metric).itertuples():
            key = f"anova.{metric}.{row.effect}"
            text[f"{key}.F"], text[f"{key}.p"] = format_number(row.F), format_p(row.p)
            text[f"{key}.df"] = f"{row.df1:.0f}, {row.df2:.0f}" if np.isfinite(row.df1) else "--"
            text[f"{key}.eta"] = format_number(row.eta)
        if CONTROL not in conditions:
            continue
        for condition, effect in effect_sizes(table, metric).items():
            text[f"d.{metric}.{condition}"] = format_interval(effect.d_av)
        for row in paired_tests(table, metric).itertuples():
            difference = Interval(row.difference, row.low, row.high)
            text[f"diff.{metric}.{row.condition}"] = format_interval(difference)
            word = "higher" if row.difference > 0 else "lower"
            text[f"word.{metric}.{row.condition}"] = word if row.p_holm < 0.05 else "not distinguishable"
    if TREATMENT in conditions:
        for row in within_run_spearman(table, metrics).itertuples():
            rho = format_interval(Interval(row.rho, row.low, row.high))
            text[f"rho.{row.metric_a}.{row.metric_b}"] = text[f"rho.{row.metric_b}.{row.metric_a}"] = rho
    return text
