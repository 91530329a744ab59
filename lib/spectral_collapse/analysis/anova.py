"""Analysis of variance, condition × generation: of conditions that share their seeds, and of runs of their own.

Sums of squares and the Greenhouse–Geisser factor have closed forms for complete tables, which hold for two seeds too:
no test of sphericity decides whether to correct, the correction is always made.

Permutation p-values stand beside the parametric ones. Under the hypothesis that conditions do not differ at all, whole
runs may change their condition: within a seed where conditions are paired, freely where they are not. That hypothesis
covers the effect of condition and the interaction. Generations have an order and are not exchanged, so that the effect
of generation has no permutation p. No normality and no sphericity are needed.
"""

import numpy as np
import pandas as pd
from scipy import stats

from .statistics import ROUNDING, require_complete

EFFECTS = ("condition", "generation", "interaction")
PERMUTATIONS = 999
_FIGURES = ["df1", "df2", "F", "p_uncorrected", "epsilon", "p", "eta", "p_permutation"]


def _undefined() -> pd.DataFrame:
    """Frame of `EFFECTS` and `_FIGURES` without figures."""
    return pd.DataFrame({"effect": EFFECTS}).assign(**dict.fromkeys(_FIGURES, np.nan))


def _epsilon(errors: np.ndarray, contrasts: int) -> float:
    """Greenhouse and Geisser's (1959) ε = (tr Σ)²/(k tr Σ²) of the covariance Σ of k orthonormal `contrasts`.

    `errors` (subjects, cells): deviations of the effect itself, whose covariance has Σ's eigenvalues and zeros; ε does
    not depend on its scale. 1/k ≤ ε ≤ 1, and ε = 1/k where Σ has rank one, as with two seeds. NaN without errors.
    """
    covariance = errors.T @ errors
    total = float(np.trace(covariance)) ** 2
    return total / (contrasts * float((covariance**2).sum())) if total > 0 else np.nan


def _row(df1: int, df2: int, effect: float, error: float, subjects: float, epsilon: float = 1.0) -> list[float]:
    """The figures of `_FIGURES` but the last, from the sums of squares of the effect, of its error, and of all terms
    that involve subjects."""
    f = effect / df1 / (error / df2) if error > 0 else np.nan
    ps = stats.f.sf(f, df1, df2), stats.f.sf(f, epsilon * df1, epsilon * df2)
    eta = effect / (effect + subjects) if effect + subjects > 0 else np.nan
    return [df1, df2, f, float(ps[0]), epsilon, float(ps[1]), eta]


def _permutation_p(ratios: np.ndarray) -> float:
    """Share of the F ratios (n,) that reach the first, the observed one: at least 1/n."""
    return float(np.mean(ratios >= ratios[0] * (1 - 1e-9)))


def _paired_terms(values: np.ndarray) -> dict[str, np.ndarray]:
    """Each seed's share in an effect, from values (…, seeds, conditions, generations), in that shape; their mean over
    seeds is the effect and their scatter its error."""
    centred = values - values.mean((-2, -1), keepdims=True)
    condition, generation = centred.mean(-1, keepdims=True), centred.mean(-2, keepdims=True)
    terms = condition, generation, centred - condition - generation
    return {name: np.broadcast_to(term, centred.shape) for name, term in zip(EFFECTS, terms, strict=True)}


def repeated_measures_anova(table: pd.DataFrame, metric: str, permutations: int = PERMUTATIONS) -> pd.DataFrame:
    """Two-way repeated-measures ANOVA, condition × generation, with the seed as subject.

    Generation 0 is the same model in every condition, so that its differences are zero by construction and
    would dilute the effects: the ANOVA uses generations ≥ 1. One row per effect (`EFFECTS`) with columns
    effect, df1, df2 (uncorrected), F, p_uncorrected, epsilon (Greenhouse–Geisser), p (with df1 and df2
    multiplied by epsilon), eta (generalised η², Bakeman 2005) and p_permutation: the share, among `permutations`
    seeded draws and the observed one, of exchanges of whole runs within seeds whose F is as large.

    With s seeds an effect's error covariance has rank s − 1 at most, hence 1/df1 ≤ epsilon ≤ (s − 1)/df1 whatever the
    truth: with three seeds and df1 = 12 epsilon cannot exceed 1/6, and p is conservative: without an effect it fell
    below 0.05 in 0 of 300 simulated interactions, p_permutation in 4 %.

    F, epsilon and every p are NaN where seeds do not vary in the effect's error term (a constant metric, say);
    with one condition or one generation after 0 there is nothing to cross and every figure is NaN.
    ValueError for an incomplete table.
    """
    require_complete(table, metric)
    later = table[table["generation"] >= 1]
    if later["condition"].nunique() < 2 or later["generation"].nunique() < 2:
        return _undefined()
    wide = later.pivot(index="seed", columns=["condition", "generation"], values=metric).sort_index(axis=1)
    seeds, conditions = len(wide), later["condition"].nunique()
    values = wide.to_numpy(float).reshape(seeds, conditions, -1)
    if np.ptp(values) <= ROUNDING * np.abs(values).max():
        return _undefined()
    generations = values.shape[-1]
    freedom = conditions - 1, generations - 1, (conditions - 1) * (generations - 1)
    subjects = float(((values - values.mean(0)) ** 2).sum())  # every term that involves seeds
    result = _undefined()
    for row, (term, df) in enumerate(zip(_paired_terms(values).values(), freedom, strict=True)):
        mean = term.mean(0)
        errors = (term - mean).reshape(seeds, -1)
        squares = seeds * float((mean**2).sum()), float((errors**2).sum())
        result.loc[row, _FIGURES[:-1]] = _row(df, df * (seeds - 1), *squares, subjects, _epsilon(errors, df))

    rng = np.random.default_rng(0)
    order = np.broadcast_to(np.arange(values.shape[1]), (permutations + 1, *values.shape[:2]))
    order = np.concatenate([order[:1], rng.permuted(order[1:], axis=-1)])
    drawn = _paired_terms(np.take_along_axis(values[None], order[..., None], axis=-2))
    for row, effect in enumerate(EFFECTS):
        term = drawn[effect]
        mean = term.mean(-3, keepdims=True)
        errors = term - mean
        # Without variation in the error term, F is a quotient of rounding errors.
        if np.abs(errors[0]).max() <= ROUNDING * np.abs(values).max():
            result.loc[row, ["F", "p_uncorrected", "epsilon", "p"]] = np.nan
        elif effect != "generation":
            scatter = np.maximum((errors**2).sum((-3, -2, -1)), np.finfo(float).tiny)
            result.loc[row, "p_permutation"] = _permutation_p((mean**2).sum((-3, -2, -1)) / scatter)
    return result


def mixed_anova(table: pd.DataFrame, metric: str, permutations: int = PERMUTATIONS) -> pd.DataFrame:
    """Mixed ANOVA for unpaired designs: condition between runs, generation within them.

    For tables whose conditions have seeds of their own, in equal numbers or not; where they share seeds,
    `repeated_measures_anova` uses the pairing and sees smaller effects. Columns as there, over generations ≥ 1; the
    effect of condition has one value a run, hence no epsilon (NaN), and its p is the uncorrected one. Epsilon is that
    of the covariance within conditions. p_permutation: whole runs exchange their conditions.

    NaN as in `repeated_measures_anova`. ValueError where a run lacks a generation or has one twice, and where a
    condition has fewer than two runs.
    """
    require_complete(table, metric, paired=False)
    later = table[table["generation"] >= 1]
    later = later.assign(run=later["condition"].astype(str) + ", seed " + later["seed"].astype(str))
    if later["condition"].nunique() < 2 or later["generation"].nunique() < 2:
        return _undefined()
    wide = later.pivot(index=["condition", "run"], columns="generation", values=metric)
    values, groups = wide.to_numpy(float), wide.index.get_level_values("condition").to_numpy()
    if np.ptp(values) <= ROUNDING * np.abs(values).max():
        return _undefined()
    runs, generations = values.shape
    means = wide.groupby("condition").transform("mean").to_numpy(float)  # (runs, generations): of each run's condition
    shapes = means - means.mean(-1, keepdims=True)
    course = values.mean(0) - values.mean()
    levels = values.mean(-1) - means.mean(-1)
    within = values - values.mean(-1, keepdims=True) - shapes
    squares = (
        generations * float(((means.mean(-1) - values.mean()) ** 2).sum()),
        runs * float((course**2).sum()),
        float(((shapes - course) ** 2).sum()),
    )
    errors = generations * float((levels**2).sum()), float((within**2).sum())
    between, repeated = len(np.unique(groups)) - 1, generations - 1
    df = runs - between - 1
    epsilon = _epsilon(within, repeated)
    result = _undefined()
    for row, figures in enumerate(
        (
            (between, df, squares[0], errors[0], sum(errors)),
            (repeated, df * repeated, squares[1], errors[1], sum(errors), epsilon),
            (between * repeated, df * repeated, squares[2], errors[1], sum(errors), epsilon),
        )
    ):
        result.loc[row, _FIGURES[:-1]] = _row(*figures)
    result.loc[0, "epsilon"] = np.nan

    rng = np.random.default_rng(0)
    order = np.tile(np.arange(len(values)), (permutations + 1, 1))
    order[1:] = rng.permuted(order[1:], axis=-1)
    drawn = values[order]  # (permutations + 1, runs, generations)
    level = drawn.mean(-1, keepdims=True)
    shape = drawn - level
    for row, term in ((0, level), (2, shape)):
        # Deviations from the mean over runs: their condition means are the effect, their scatter within the error.
        term = term - term.mean(-2, keepdims=True)
        means = np.stack([term[:, groups == name].mean(-2) for name in np.unique(groups)], axis=-2)
        counts = np.array([(groups == name).sum() for name in np.unique(groups)])
        between = (counts[:, None] * means**2).sum((-2, -1))
        within = (term**2).sum((-2, -1)) - between
        if np.sqrt(max(within[0], 0)) <= ROUNDING * np.abs(values).max() * np.sqrt(term[0].size):
            result.loc[row, ["F", "p_uncorrected", "epsilon", "p"]] = np.nan
        else:
            scatter = np.maximum(within, np.finfo(float).tiny)
            result.loc[row, "p_permutation"] = _permutation_p(between / scatter)
    if np.isnan(result.loc[2, "F"]):  # the effect of generation has the interaction's error term
        result.loc[1, ["F", "p_uncorrected", "epsilon", "p"]] = np.nan
    return result
