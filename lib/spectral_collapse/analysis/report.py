"""All that the statistics say of a profile's runs, computed once: frames that tables, figures and values format."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..curvature import published_ratio
from ..estimate import Estimate
from ..sigma import AIM
from . import anova, correlation, detection, early_warning, forecast, metrics, power, series, slopes, statistics
from .statistics import ALPHA, CONTROL, TREATMENT

RATIOS = ("log_spectral_ratio", "log_published_ratio")  # whose rise and fall is counted
DRIFTS = ("track_two_drift", "logdet_drift", "track_one_sharp_drift", "track_one_drift")
FOLLOWED = ("held_out_perplexity", "distinct_2", "track_two_drift")  # what others may lead by a lag


@dataclass(frozen=True)
class Analysis:
    """Frames of a tidy table of one model's runs, each with a column `metric` where nothing else is said.

    What a table cannot give is an empty frame: without the control nothing is compared, without the treatment besides
    there is no warning.
    """

    table: pd.DataFrame
    metrics: list[str]
    design: dict[str, float]  # what the number of seeds allows, see `_design`
    means: pd.DataFrame  # `statistics.summary`
    anova: pd.DataFrame  # `anova.repeated_measures_anova`
    paired: pd.DataFrame  # `statistics.paired_tests`, with the verdict by p_holm
    effect_sizes: pd.DataFrame  # `statistics.effect_sizes`
    equivalence: pd.DataFrame  # `statistics.equivalence`, of metrics with a margin
    slopes: pd.DataFrame  # `slopes.slope_tests`, with p_mixed of `slopes.mixed_model`, and is_control
    alarms: pd.DataFrame  # `early_warning.alarms`, of every condition
    detection: pd.DataFrame  # `detection.detection`; outcome: whether it is of their family
    leads: pd.DataFrame  # `early_warning.lead_summary`, with its outcome
    correlations: pd.DataFrame  # `correlation.within_run_spearman`: metric_a, metric_b
    lagged: pd.DataFrame  # `correlation.lagged_spearman`: leading, following
    best_lags: pd.DataFrame  # of `lagged`, before the first outcome (`best_lags`)
    icarus: pd.DataFrame  # `early_warning.icarus_counts`, of `RATIOS`
    forecasts: pd.DataFrame  # `forecast.forecast_summary`, of `DRIFTS`
    drifts: pd.DataFrame  # `drift_summary`: condition, track

    @property
    def outcomes(self) -> list[str]:
        """What a warning should precede, of the metrics that there are."""
        return [name for name in metrics.OUTCOMES if name in self.metrics]

    @property
    def candidates(self) -> list[str]:
        """The metrics that may warn."""
        return [name for name in self.metrics if name not in metrics.OUTCOMES]


def _each(names: Iterable[str], function: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
    """The function's frames below each other, each name in the column `metric`; an empty frame of no name."""
    return _joined(function(name).assign(metric=name) for name in names)


def _joined(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    found = list(frames)
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def analyse(table: pd.DataFrame, drifts: pd.DataFrame | None = None) -> Analysis:
    """The `Analysis` of a tidy table (`series.table`) and of `series.drifts`, if given.

    ValueError for an empty table, and for one with a missing cell (`statistics.require_complete`).
    """
    if table.empty:
        raise ValueError("The table holds no runs.")
    names, conditions = statistics.metric_names(table), set(table["condition"])
    generations = table["generation"].unique()
    compared = names if CONTROL in conditions else []
    treated = names if TREATMENT in conditions else []
    moved = compared if len(generations) > 1 else []
    warned = [name for name in moved if name not in metrics.OUTCOMES] if treated else []
    outcomes = [name for name in metrics.OUTCOMES if name in names] if warned else []
    followed = [name for name in FOLLOWED if name in names] if warned else []
    margins = {name: statistics.margin_of(table, name) for name in compared}

    alarms = early_warning.alarms(table, moved)
    tried = _joined(
        detection.detection(table, family, alarms).assign(outcome=family is outcomes)
        for family in (warned, outcomes)
        if family
    )
    lagged = correlation.lagged_spearman(table, warned, followed) if followed else pd.DataFrame()
    leads = (
        early_warning.lead_summary(alarms, warned, outcome, generations).assign(outcome=outcome) for outcome in outcomes
    )
    return Analysis(
        table=table,
        metrics=names,
        design=_design(table, int(tried["runs"].max()) if warned else 0, len(warned)),
        means=_each(names, lambda name: statistics.summary(table, name)),
        anova=_each(names, lambda name: anova.repeated_measures_anova(table, name)),
        paired=_each(compared, lambda name: _judged(statistics.paired_tests(table, name))),
        effect_sizes=_each(compared, lambda name: statistics.effect_sizes(table, name)),
        equivalence=_each(
            [name for name, margin in margins.items() if margin > 0],
            lambda name: statistics.equivalence(table, name, margins[name]),
        ),
        slopes=_each(moved, lambda name: _slopes(table, name)),
        alarms=alarms,
        detection=tried,
        leads=_joined(leads),
        correlations=correlation.within_run_spearman(table, treated) if treated else pd.DataFrame(),
        lagged=lagged,
        best_lags=_joined(best_lags(lagged, outcome) for outcome in outcomes[:1] if outcome in followed),
        icarus=_each([name for name in RATIOS if name in moved], lambda name: early_warning.icarus_counts(table, name)),
        forecasts=_each(
            [name for name in DRIFTS if name in names], lambda name: forecast.forecast_summary(table, name)
        ),
        drifts=pd.DataFrame() if drifts is None else drift_summary(drifts),
    )


def _design(table: pd.DataFrame, judged: int, tried: int) -> dict[str, float]:
    """seeds; tests, comparisons with a matched control; detectable, the least d_z after Holm's correction over these,
    and single, of one test; judged, treated runs with a band; of the sign test over those least_p, and least_p_holm
    over the metrics tried."""
    seeds = table["seed"].nunique()
    controls = statistics.matched_controls(table) if CONTROL in set(table["condition"]) else {}
    tests = max(1, sum(own not in (None, name) for name, own in controls.items()))
    least = power.least_p("sign", judged) if judged else np.nan
    return {
        "seeds": seeds,
        "tests": tests,
        "detectable": power.detectable_effect(seeds, tests),
        "single": power.detectable_effect(seeds),
        "judged": judged,
        "least_p": least,
        "least_p_holm": min(1.0, least * tried),
    }


def _judged(tests: pd.DataFrame) -> pd.DataFrame:
    """With the `statistics.sides` of `paired_tests`, none without a control."""
    return tests.assign(verdict=np.where(tests["p"].isna(), None, statistics.sides(tests)))


def _slopes(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    controls = statistics.matched_controls(table)
    models = slopes.mixed_model(table, metric)[["condition", "p"]].rename(columns={"p": "p_mixed"})
    tests = slopes.slope_tests(table, metric).merge(models, on="condition", how="left")
    return tests.assign(is_control=[controls[name] == name for name in tests["condition"]])


def best_lags(lagged: pd.DataFrame, following: str) -> pd.DataFrame:
    """Of each leading metric the lag with the greatest |ρ|: a row of `lagged`, NaN where no lag has a ρ."""
    rows = lagged[lagged["following"] == following]
    best = rows.loc[rows["rho"].abs().fillna(-1).groupby(rows["leading"]).idxmax()]
    return best.assign(lag=best["lag"].where(best["rho"].notna()))


# ---- SIGMA


def drift_summary(drifts: pd.DataFrame) -> pd.DataFrame:
    """Last drift over the runs of a condition, a row a condition and track (`series.drifts`).

    Columns condition, track; mean with its t interval low, high; least, greatest; error, the median standard error of a
    run (bootstrap over prompts); runs; tested, those with a p, which there is not where the number of blocks changed;
    moved, those with p < 0.05, without correction for the number of runs.
    """
    last = drifts[drifts["generation"] == drifts["generation"].max()]
    rows = []
    for (condition, track), runs in last.groupby(["condition", "track"], sort=False):
        mean, tests = Estimate.mean(runs["drift"]), runs["p_value"]
        ends = runs["drift"].min(), runs["drift"].max(), runs["standard_error"].median()
        rows.append((condition, track, *mean, *ends, len(runs), tests.notna().sum(), (tests < ALPHA).sum()))
    names = ["condition", "track", "mean", "low", "high", "least", "greatest", "error", "runs", "tested", "moved"]
    return pd.DataFrame(rows, columns=names)


def checkpoints(results: Iterable[tuple[str, int, int, dict]]) -> dict[str, int | str]:
    """Of the results of the stage `sigma` (`series.results`), each checkpoint counted once: dimension and live of the
    embeddings; blocks.least and blocks.most observed; aim, the number of blocks to aim for, and below, checkpoints with
    fewer; checkpoints, and warned, those with a message of the health checks. Where the number of blocks changed within
    runs, counts.{r2,drifts,significant,most} of `series.count_finding`."""
    found = {(owner if generation else None, seed, generation): r for owner, seed, generation, r in results}
    counts = [result["observed_blocks"] for result in found.values()]
    one = next(iter(found.values()))
    aim = AIM * one["live_dimensions"]
    pairs = [(found[None, seed, 0], result) for (owner, seed, _), result in found.items() if owner]
    changed = not all(series.constant_counts(last) for _, last in pairs)
    return {
        "dimension": one["dimension"],
        "live": one["live_dimensions"],
        "blocks.least": min(counts),
        "blocks.most": max(counts),
        "aim": aim,
        "below": sum(count < aim for count in counts),
        "checkpoints": len(found),
        "warned": sum(bool(result["health"]) for result in found.values()),
        **({f"counts.{name}": value for name, value in series.count_finding(pairs).items()} if changed else {}),
    }


def base_spectra(results: Iterable[tuple[str, int, int, dict]]) -> dict[int, dict]:
    """Curvature results of the base models by seed, with the published ratio of the exact eigenvalue of largest size
    (`exact_lambda`, `exact_ratio`)."""
    found = {}
    for _, seed, generation, result in results:
        if generation == 0:
            exact = series.exact_lambda(result)
            ratio = published_ratio(exact, result["published_iqr"])
            found[seed] = result | {"exact_lambda": exact, "exact_ratio": ratio}
    return found
