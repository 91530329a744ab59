"""Analysis of variance, condition × generation: of conditions that share their seeds, and of runs of their own.

Permutation p-values stand beside the parametric ones. Under the hypothesis that conditions do not differ at all, whole
runs may change their condition: within a seed where conditions are paired, freely where they are not. That hypothesis
covers the effect of condition and the interaction. Generations have an order and are not exchanged, so that the effect
of generation has no permutation p. No normality and no sphericity are needed.
"""

import numpy as np
import pandas as pd
import pingouin

from .statistics import ROUNDING, require_complete

EFFECTS = ("condition", "generation", "interaction")
PERMUTATIONS = 999
_FIGURES = ["df1", "df2", "F", "p_uncorrected", "epsilon", "p", "eta", "p_permutation"]


def _result(anova: pd.DataFrame | None) -> pd.DataFrame:
    """Frame of `EFFECTS` and `_FIGURES` from pingouin's (its columns in the order of `_FIGURES`), NaN without one."""
    result = pd.DataFrame({"effect": EFFECTS}).assign(**dict.fromkeys(_FIGURES, np.nan))
    if anova is not None:
        result[_FIGURES[:-1]] = anova.to_numpy(float)
    return result


def _permutation_p(ratios: np.ndarray) -> float:
    """Share of the F ratios (n,) that reach the first, the observed one: at least 1/n."""
    return float(np.mean(ratios >= ratios[0] * (1 - 1e-9)))


def _paired_terms(values: np.ndarray) -> dict[str, np.ndarray]:
    """Each seed's share in an effect, from values (…, seeds, conditions, generations); their mean over seeds is the
    effect and their scatter its error."""
    centred = values - values.mean((-2, -1), keepdims=True)
    condition, generation = centred.mean(-1, keepdims=True), centred.mean(-2, keepdims=True)
    return dict(zip(EFFECTS, (condition, generation, centred - condition - generation), strict=True))


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
        return _result(None)
    with np.errstate(divide="ignore", invalid="ignore"):
        anova = pingouin.rm_anova(later, dv=metric, within=["condition", "generation"], subject="seed")
    result = _result(anova[["ddof1", "ddof2", "F", "p_unc", "eps", "p_GG_corr", "ng2"]])

    wide = later.pivot(index="seed", columns=["condition", "generation"], values=metric).sort_index(axis=1)
    values = wide.to_numpy(float).reshape(len(wide), later["condition"].nunique(), -1)
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
        return _result(None)
    with np.errstate(divide="ignore", invalid="ignore"):
        anova = pingouin.mixed_anova(
            later, dv=metric, within="generation", subject="run", between="condition", correction=True, effsize="ng2"
        )
    anova = anova.reindex(columns=["DF1", "DF2", "F", "p_unc", "eps", "p_GG_corr", "ng2"])  # two generations: no p_GG
    result = _result(anova)
    result["p"] = result["p"].fillna(result["p_uncorrected"])

    wide = later.pivot(index=["condition", "run"], columns="generation", values=metric)
    values, groups = wide.to_numpy(float), wide.index.get_level_values("condition").to_numpy()
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
