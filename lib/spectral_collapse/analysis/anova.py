"""Analysis of variance, condition × generation, of conditions that share their seeds.

Sums of squares and the Greenhouse–Geisser factor have closed forms for complete tables, which hold for two seeds too:
no test of sphericity decides whether to correct, the correction is always made.

Permutation p-values stand beside the parametric ones. Under the hypothesis that conditions do not differ at all, the
whole runs of a seed may change their conditions. That hypothesis covers the effect of condition and the interaction.
Generations have an order and are not exchanged, so that the effect of generation has no permutation p. No normality and
no sphericity are needed.
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


def _fill(
    result: pd.DataFrame,
    row: int,
    df1: int,
    df2: int,
    squares: tuple[np.ndarray, np.ndarray],
    subjects: float,
    epsilon: float,
    errors: np.ndarray,
    size: float,
) -> None:
    """Writes the figures of an effect, from its sums of squares and its errors' (draws,) each, the observed one first;
    `subjects`: squares of all terms that involve subjects.

    Where the observed `errors` are rounding errors of values of this size, F would be a quotient of such.
    """
    effect, error = (float(each[0]) for each in squares)
    eta = effect / (effect + subjects) if effect + subjects > 0 else np.nan
    result.loc[row, ["df1", "df2", "eta"]] = df1, df2, eta
    if np.abs(errors).max() <= ROUNDING * size:
        return
    f = effect / df1 / (error / df2)
    ps = stats.f.sf(f, df1, df2), stats.f.sf(f, epsilon * df1, epsilon * df2)
    result.loc[row, ["F", "p_uncorrected", "epsilon", "p"]] = f, float(ps[0]), epsilon, float(ps[1])
    if EFFECTS[row] != "generation":
        ratios = squares[0] / np.maximum(squares[1], np.finfo(float).tiny)
        # The share of the ratios that reach the observed one: at least 1/draws.
        result.loc[row, "p_permutation"] = float(np.mean(ratios >= ratios[0] * (1 - 1e-9)))


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
    freedom = conditions - 1, values.shape[-1] - 1, (conditions - 1) * (values.shape[-1] - 1)
    subjects = float(((values - values.mean(0)) ** 2).sum())  # every term that involves seeds
    order = np.broadcast_to(np.arange(conditions), (permutations + 1, seeds, conditions))
    order = np.concatenate([order[:1], np.random.default_rng(0).permuted(order[1:], axis=-1)])  # the first: as observed
    drawn = _paired_terms(np.take_along_axis(values[None], order[..., None], axis=-2))
    result = _undefined()
    for row, (effect, df) in enumerate(zip(EFFECTS, freedom, strict=True)):
        mean = drawn[effect].mean(-3, keepdims=True)
        errors = drawn[effect] - mean
        squares = seeds * (mean**2).sum((-3, -2, -1)), (errors**2).sum((-3, -2, -1))
        epsilon = _epsilon(errors[0].reshape(seeds, -1), df)
        _fill(result, row, df, df * (seeds - 1), squares, subjects, epsilon, errors[0], np.abs(values).max())
    return result
