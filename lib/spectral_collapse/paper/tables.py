"""Tables and numbers of the paper: the only writer of `paper/generated/tables` and `numbers.tex`."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..analysis import detection, early_warning, slopes, statistics
from ..analysis.anova import repeated_measures_anova
from ..analysis.correlation import within_run_spearman
from ..analysis.statistics import CONTROL, TREATMENT, metric_names
from ..estimate import Interval
from ..record import paths, provenance
from .formatting import escape, format_generations, format_interval, format_number, format_p, format_percent

# LaTeX that is matplotlib text as well: words, and mathematics between dollars.
LABELS = {
    "held_out_perplexity": "Perplexity (held out)",
    "log_perplexity": "Log perplexity (held out)",
    "training_loss": "Training loss",
    "distinct_1": "Distinct-1",
    "distinct_2": "Distinct-2",
    "distinct_3": "Distinct-3",
    "distinct_4": "Distinct-4",
    "repetition_4": "Repetition-4",
    "type_token_ratio": "Type-token ratio",
    "ngram_entropy_2": "Entropy of word pairs",
    "self_bleu": "Self-BLEU",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
    "coherence": "Coherence",
    "prompt_similarity": "Prompt similarity",
    "mauve": "MAUVE",
    "predictive_entropy": "Anchor entropy",
    "representation_drift": "Representation drift",
    "rare_token_coverage": "Rare-token coverage",
    "tail_mass_ratio": "Tail mass ratio",
    "tail_coverage": "Tail coverage",
    "slot_kl": "Slot KL divergence",
    "slot_entropy": "Slot entropy",
    "lambda_max": r"$\lambda_{\max}$",
    "lambda_min": r"$\lambda_{\min}$",
    "bulk_sigma": r"$\sigma_{\mathrm{bulk}}$",
    "log_spectral_ratio": r"$\log(\lambda_{\max}/\sigma_{\mathrm{bulk}})$",
    "log_published_ratio": r"$\log(|\lambda|/\mathrm{IQR})$, published",
    "published_iqr": "IQR, published estimator",
    "published_iqr_pooled": "IQR, published, pooled",
    "spectral_sigma": r"$\sigma$ of the spectrum",
    "track_one_drift": "Track I drift",
    "track_one_sharp_drift": "Track I drift, sharp",
    "track_two_drift": "Track II drift",
    "logdet_drift": r"$\log\det\Sigma$ drift, corrected",
    "hashed_ngram_hhi": "Hashed n-gram HHI",
    "response_distinct_2": "Distinct-2, responses",
    "spectral_variance": "Spectral variance",
    "effective_rank": "Effective rank",
    "held_out_lambda_max": r"$\lambda_{\max}$, held out",
    "held_out_lambda_min": r"$\lambda_{\min}$, held out",
    "population_bulk_sigma": r"Population $\sigma_{\mathrm{bulk}}$",
    "population_log_ratio": "Population log ratio",
    "population_spectral_variance": "Population spectral variance",
    "population_effective_rank": "Population effective rank",
    "real_gradient_norm": "Gradient norm, real text",
    "own_gradient_norm": "Gradient norm, own text",
    "gradient_signal": r"Gradient signal $|G|^2/\mathrm{tr}\,\Sigma$",
    "real_own_cosine": "Gradient cosine, real to own",
    "gradient_cosine_start": "Gradient cosine, to generation 0",
    "gradient_cosine_before": "Gradient cosine, to the one before",
    "relative_drift_start": "Relative drift, from generation 0",
    "relative_drift_before": "Relative drift, from the one before",
    "drift_aligned": "Drift in leading eigenspace",
    "eigenspace_overlap": "Overlap of leading eigenspaces",
    "activation_rank": "Activation rank, participation",
    "activation_entropy_rank": "Activation rank, entropy",
    "anisotropy": "Anisotropy",
    "cka_start": "CKA to generation 0",
    "next_token_entropy": "Next-token entropy",
    "calibration_error": "Calibration error",
    "rare_mass_ratio": "Mass on rare tokens, relative",
}


class Raw(str):
    """Text that is LaTeX already and is written as it is.

    Only object columns keep it: build frames with `dtype=object`, since pandas' own string type turns it
    into plain text, which is then escaped.
    """


class Number(Raw):
    """A formatted number: LaTeX already, and set to the right of its column."""


def label(metric: str) -> Raw:
    """Name of a metric for readers; an unknown one keeps its own, with spaces for underscores."""
    return Raw(LABELS.get(metric) or escape(metric.replace("_", " ")))


def write_values(mapping: Mapping[str, str], path: Path) -> None:
    r"""Writes numbers.tex, a line `\setval{key}{text}` for each entry; the texts are LaTeX already.

    Mathematics in dollars is written with \ensuremath and the dash -- in a box, so that \val{key} works in
    running text and inside a formula alike.

    ValueError for a key with other characters than A-Z a-z 0-9 _ . - and for a text that would break the
    lines after it: unbalanced braces or dollars, a comment or parameter sign, a line break.
    """
    lines = []
    for key, text in mapping.items():
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
            raise ValueError(f"The key {key!r} of a value may hold letters, digits, '_', '.' and '-' only.")
        bare = re.sub(r"\\.", "", text)
        depths = [bare.count("{", 0, end) - bare.count("}", 0, end) for end in range(len(bare) + 1)]
        if min(depths) < 0 or depths[-1] or bare.count("$") % 2 or re.search(r"[%#\n\r]|\\$", bare):
            raise ValueError(f"The text {text!r} of the value {key!r} is not LaTeX of one line: escape it.")
        text = re.sub(r"(?<!\\)\$(.*?)(?<!\\)\$", r"\\ensuremath{\1}", text)
        text = re.sub(r"(?<!-)--(?!-)", r"\\mbox{--}", text)
        lines.append(f"\\setval{{{key}}}{{{text}}}\n")
    provenance.write_text(path, "".join(lines))


def _cell(value: Any) -> str:
    """LaTeX of one cell or heading: `Raw` as it is, other text escaped, numbers formatted, missing as --."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, str):
        return escape(value)
    if pd.isna(value):
        return "--"
    if pd.api.types.is_integer(value):
        return f"${value}$" if value < 0 else str(value)
    return format_number(value) if pd.api.types.is_float(value) else escape(str(value))


def write_table(frame: pd.DataFrame, path: Path, columns: Mapping[str, str] | None = None) -> None:
    """Writes a complete booktabs tabular, without float or caption.

    `columns` chooses and orders columns and gives their headings, {column: heading}; by default all, under
    their own names. The first column and every column of text are set left, numbers and `Number`s right.
    """
    columns = columns or {name: name for name in frame.columns}
    for name in columns:
        if name not in frame.columns:
            raise ValueError(f"The table has no column {name!r}; it has {', '.join(frame.columns)}.")
    cells = [list(frame[name]) for name in columns]
    is_text = [any(isinstance(x, str) and not isinstance(x, Number) for x in column) for column in cells]
    alignment = "l" + "".join("l" if text else "r" for text in is_text[1:])

    def line(row: Sequence[Any]) -> str:
        return " & ".join(map(_cell, row)) + r" \\"

    rows = [line(row) for row in zip(*cells, strict=True)]
    body = [r"\toprule", line(list(columns.values())), r"\midrule", *rows, r"\bottomrule"]
    text = "\n".join([rf"\begin{{tabular}}{{{alignment}}}", *body, r"\end{tabular}"])
    provenance.write_text(path, text + "\n")


def frame_of(rows: Sequence[Sequence[Any]], headings: Sequence[str]) -> pd.DataFrame:
    """Frame of display cells under display headings; objects throughout, so that `Raw` survives."""
    return pd.DataFrame(rows, columns=pd.Index(headings, dtype=object), dtype=object)


def _plus_minus(mean: float, half: float) -> Number:
    """Mean ± half-width to two digits of the half-width, with a common power of ten outside 1e-3 to 1e5."""
    if not np.isfinite(half) or half == 0:
        return Number(rf"{format_number(mean)} $\pm$ {format_number(half)}")
    power, place = (math.floor(math.log10(size)) for size in (max(abs(mean), half), half))
    power = 0 if -3 <= power < 5 else power
    decimals = min(max(0, 1 - place + power), 4)
    text = rf"{mean / 10.0**power:.{decimals}f}\pm{half / 10.0**power:.{decimals}f}"
    return Number(rf"$({text})\times10^{{{power}}}$" if power else f"${text}$")


def last_generation(table: pd.DataFrame, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Metrics by conditions: mean at the last generation ± half its 95 % t interval."""
    conditions = list(table["condition"].unique())
    rows = []
    for metric in metric_names(table) if metrics is None else metrics:
        means = statistics.summary(table, metric)
        last = means[means["generation"] == means["generation"].max()].set_index("condition")
        halves = (last["high"] - last["low"]) / 2
        cells = [_plus_minus(last.loc[condition, "mean"], halves[condition]) for condition in conditions]
        rows.append([label(metric), *cells])
    return frame_of(rows, ["Metric", *conditions])


def anova(table: pd.DataFrame, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """A row per metric: F and Greenhouse–Geisser p of each effect; η², ε and permutation p of the interaction.

    Subscripts c, g and cg stand for condition, generation and interaction, with uncorrected degrees of
    freedom, which all metrics share.
    """
    rows, headings = [], []
    for metric in metric_names(table) if metrics is None else metrics:
        effects = repeated_measures_anova(table, metric)
        rows.append([label(metric)])
        headings = ["Metric"]
        for short, effect in zip(("c", "g", "cg"), effects.itertuples(), strict=True):
            degrees = f"({effect.df1:.0f}, {effect.df2:.0f})" if effect.df1 == effect.df1 else ""
            headings += [Raw(rf"$F_{{{short}}}{degrees}$"), Raw(rf"$p_{{{short}}}$")]
            rows[-1] += [effect.F, Number(format_p(effect.p))]
        headings += [Raw(r"$\eta^2_{cg}$"), Raw(r"$\varepsilon_{cg}$"), Raw(r"$p_{cg}$, perm.")]
        rows[-1] += [effect.eta, effect.epsilon, Number(format_p(effect.p_permutation))]
    return frame_of(rows, headings)


def posthoc(table: pd.DataFrame, metrics: Sequence[str] | None = None, control: str = CONTROL) -> pd.DataFrame:
    """Metric and condition: `paired_tests` against the matched control at the last generation; dashes without one."""
    rows = []
    for metric in metric_names(table) if metrics is None else metrics:
        for row in statistics.paired_tests(table, metric, control=control).itertuples():
            rows.append(
                [
                    label(metric),
                    row.condition,
                    Number(format_interval(Interval(row.difference, row.low, row.high))),
                    row.t,
                    Number(format_p(row.p_holm)),
                    Number(format_p(row.p_permutation)),
                ]
            )
    freedom = table["seed"].nunique() - 1
    headings = ["Metric", "Condition", f"Difference from {control}"]
    names = [rf"$t({freedom})$", r"$p_{\mathrm{Holm}}$", r"$p_{\mathrm{flip}}$"]
    return frame_of(rows, headings + [Raw(name) for name in names])


def effect_sizes(table: pd.DataFrame, metrics: Sequence[str] | None = None, control: str = CONTROL) -> pd.DataFrame:
    """Metric and condition: `cohen_d` against the matched control at the last generation, d_z with its interval."""
    rows = []
    for metric in metric_names(table) if metrics is None else metrics:
        for condition, size in statistics.effect_sizes(table, metric, control).items():
            rows.append([label(metric), condition, Number(format_interval(size.d_z)), size.g_z, size.d_av])
    headings = [Raw(r"$d_{\mathrm{z}}$"), Raw(r"$g_{\mathrm{z}}$"), Raw(r"$d_{\mathrm{av}}$")]
    return frame_of(rows, ["Metric", "Condition", *headings])


def equivalence(table: pd.DataFrame, metrics: Sequence[str] | None = None, control: str = CONTROL) -> pd.DataFrame:
    """Metric and condition: two one-sided tests at the last generation; metrics without a margin are left out."""
    rows = []
    for metric in metric_names(table) if metrics is None else metrics:
        margin = statistics.margin_of(table, metric)
        for row in statistics.equivalence(table, metric, margin, control=control).itertuples() if margin > 0 else ():
            interval = Number(format_interval(Interval(row.difference, row.low, row.high)))
            numbers = [Number(rf"$\pm$ {format_number(margin)}"), Number(format_p(row.p_holm))]
            word = "not tested" if np.isnan(row.p) else "yes" if row.equivalent else "not shown"
            rows.append([label(metric), row.condition, interval, *numbers, word])
    headings = [f"Less {control}", "Margin", Raw(r"$p_{\mathrm{Holm}}$"), "Equal"]
    return frame_of(rows, ["Metric", "Condition", *headings])


def slope_tests(table: pd.DataFrame, metrics: Sequence[str] | None = None, control: str = CONTROL) -> pd.DataFrame:
    """Metric and condition: slope over generations, its paired difference from the control's, the mixed model's p."""
    rows = []
    for metric in metric_names(table) if metrics is None else metrics:
        models = slopes.mixed_model(table, metric, control).set_index("condition")
        for row in slopes.slope_tests(table, metric, control).itertuples():
            slope = Number(format_interval(Interval(row.slope, row.slope_low, row.slope_high)))
            rows.append([label(metric), row.condition, slope, *[Number("--")] * 4])
            if row.condition in models.index:
                difference = Number(format_interval(Interval(row.difference, row.low, row.high)))
                ps = row.p_holm, row.p_permutation, models.loc[row.condition, "p"]
                rows[-1][3:] = [difference, *(Number(format_p(p)) for p in ps)]
    headings = [Raw(rf"$p_{{\mathrm{{{name}}}}}$") for name in ("Holm", "flip", "mixed")]
    return frame_of(rows, ["Metric", "Condition", "Slope per generation", f"Less {control}", *headings])


def _ends(interval: Interval) -> str:
    """The interval of a probability, to two decimals."""
    return f"[{interval.low:.2f}, {interval.high:.2f}]" if np.isfinite(interval.low) else "[--, --]"


def early_warnings(table: pd.DataFrame, metrics: Sequence[str] | None = None, control: str = CONTROL) -> pd.DataFrame:
    """Metric by metric: runs with an alarm, treated and control, uncorrected and at the family's rate; AUC.

    The outcomes come first, in a family of their own.
    """
    outcomes = [name for name in early_warning.OUTCOMES if name in table]
    families = (outcomes, list(metrics or early_warning.candidates(table)))
    rows = []
    for row in pd.concat([detection.detection(table, names, control=control) for names in families]).itertuples():
        cells = [
            Number(f"{count} of {runs} {_ends(detection.exact_interval(count, runs))}")
            for count, runs in ((row.detected, row.runs), (row.false_alarms, row.control_runs))
        ]
        area = Interval(row.auc, row.auc_low, row.auc_high)
        auc = Number(f"{area.estimate:.2f} {_ends(area)}" if np.isfinite(area.estimate) else "--")
        ps = [Number(format_p(p)) for p in (row.p, row.p_holm)]
        rows.append([label(row.metric), *cells, Number(f"{row.detected_family} of {row.runs}"), auc, *ps])
    headings = ["Metric", "Detected", "False alarms", "Family-wise", "AUC"]
    return frame_of(rows, [*headings, Raw("$p$"), Raw(r"$p_{\mathrm{Holm}}$")])


def leads(table: pd.DataFrame, metrics: Sequence[str] | None = None, control: str = CONTROL) -> pd.DataFrame:
    """Metric by metric, for every outcome: runs in which both / the metric alone / the outcome alone / neither fired,
    lead in generations with its bounds, sign test."""
    outcomes = [name for name in early_warning.OUTCOMES if name in table]
    metrics = list(metrics or early_warning.candidates(table))
    rows = []
    for outcome in outcomes:
        for row in early_warning.lead_summary(table, metrics, outcome, control=control).itertuples():
            fired = Number(f"{row.both} / {row.metric_only} / {row.outcome_only} / {row.neither}")
            median, low, high = map(format_generations, (row.median, row.low, row.high))
            lead = [Number(median), Number(f"[{low}, {high}]"), Number(f"{row.earlier} : {row.later}")]
            ps = [Number(format_p(p)) for p in (row.p, row.p_holm)]
            rows.append([label(outcome), label(row.metric), fired, *lead, *ps])
    headings = ["Outcome", "Metric", "Fired", "Median", "Bounds"]
    return frame_of(rows, [*headings, "Earlier : later", Raw("$p$"), Raw(r"$p_{\mathrm{Holm}}$")])


def icarus(table: pd.DataFrame, metrics: Sequence[str], control: str = CONTROL) -> pd.DataFrame:
    """Metric and condition: runs that could be judged, and how many rise, fall, and do both."""
    rows = []
    for metric in metrics:
        for row in early_warning.icarus_counts(table, metric, control).itertuples():
            name = f"{row.condition} (false alarms)" if row.condition == control else row.condition
            rows.append([label(metric), name, *(Number(str(n)) for n in (row.runs, row.rise, row.fall, row.icarus))])
    return frame_of(rows, ["Metric", "Condition", "Runs", "Rise", "Fall", "Both"])


def estimators(summary: pd.DataFrame) -> pd.DataFrame:
    """`estimators.summary`, a row a quantity: variation over probes and batches, and ratios to the most steps."""
    steps = [name for name in summary.columns if name.startswith("at_")]
    rows = [
        [
            label(row.Index),
            *(Number(format_percent(getattr(row, name))) for name in ("cv_probes", "cv_batches")),
            *(Number(format_number(getattr(row, name))) for name in steps),
        ]
        for row in summary.itertuples()
    ]
    headings = [f"{name.removeprefix('at_')} steps" for name in steps]
    return frame_of(rows, ["Quantity", "CV, probes", "CV, batches", *headings])


def correlations(
    table: pd.DataFrame,
    against: Sequence[str],
    metrics: Sequence[str] | None = None,
    condition: str = TREATMENT,
) -> pd.DataFrame:
    """Metrics by a few others (`against`): mean Spearman ρ within the condition's runs with its interval."""
    metrics = list(metrics or metric_names(table))
    rhos = within_run_spearman(table, list(dict.fromkeys([*metrics, *against])), condition)
    cells = {
        pair: Number(format_interval(Interval(row.rho, row.low, row.high)))
        for row in rhos.itertuples()
        for pair in [(row.metric_a, row.metric_b), (row.metric_b, row.metric_a)]
    }
    rows = [[label(row), *(cells.get((row, column), Number("--")) for column in against)] for row in metrics]
    return frame_of(rows, ["Metric", *map(label, against)])


def sigma_drifts(drifts: pd.DataFrame) -> pd.DataFrame:
    """Condition and track at the last generation: mean drift over runs with its t interval, least and greatest run,
    median standard error of a run (bootstrap over prompts), and in how many runs the drift is not 0.

    A run counts where its bootstrap's p is below 0.05, without correction for the number of runs; where the number of
    blocks changed (`series.track_drifts`) there is neither error nor p.
    """
    last = drifts[drifts["generation"] == drifts["generation"].max()]
    rows = []
    for (condition, track), runs in last.groupby(["condition", "track"], sort=False):
        values = runs["drift"].min(), runs["drift"].max(), runs["standard_error"].median()
        tested = runs["p_value"].notna().any()
        found = Number(f"{(runs['p_value'] < 0.05).sum()} of {len(runs)}" if tested else "--")
        cells = [format_interval(statistics.mean_interval(runs["drift"])), *map(format_number, values)]
        rows.append([condition, label(f"{track}_drift"), *map(Number, cells), found])
    return frame_of(rows, ["Condition", "Track", "Mean over runs", "Least", "Greatest", "s.e.", Raw("$p<0.05$")])


def forecasts(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Metric and condition: rate, fixed point and skill of `statistics.forecasts`, means over the runs that have them.

    The skill is that of all runs' held-out generations together.
    """
    rows = []
    for metric in metrics:
        for condition, runs in statistics.forecasts(table, metric).groupby("condition", sort=False):
            model, naive = (float(np.sqrt((runs[name] ** 2).mean())) for name in ("model_rmse", "naive_rmse"))
            skill = 1 - (model / naive) ** 2 if naive > 0 else np.nan
            limits = Number(f"{runs['fixed_point'].notna().sum()} of {len(runs)}")
            numbers = (runs["rate"].mean(), runs["fixed_point"].mean(), model, naive, skill)
            rows.append([label(metric), condition, *(Number(format_number(x)) for x in numbers[:1]), limits])
            rows[-1] += [Number(format_number(x)) for x in numbers[1:]]
    headings = ["Metric", "Condition", "Rate", "With a limit", "Limit", "RMSE", "RMSE, naive", "Skill"]
    return frame_of(rows, headings)


def published_hessian(folder: Path = paths.PUBLISHED) -> pd.DataFrame:
    """The published spectral ratios and training losses, digit for digit and labelled as published."""
    large = pd.read_csv(folder / "hessian_smollm2_135m.csv", dtype=str)
    small = pd.read_csv(folder / "hessian_llama_100m.csv", dtype=str)
    merged = large.merge(small, on="generation", how="outer", validate="one_to_one")
    stacks = [("SmolLM2-135M", f"ratio, {condition}") for condition in ("recursive", "fresh", "static")]
    stacks += [("Llama 100M", "training loss"), ("Llama 100M", "ratio")]
    headings = [Raw(rf"\shortstack[r]{{{model}\\{name}\\(published)}}") for model, name in stacks]
    columns = ["generation", "recursive", "fresh", "static", "training_loss", "spectral_ratio"]
    rows = [[Number(figure) for figure in row] for row in merged[columns].to_numpy()]
    return frame_of(rows, ["Generation", *headings])
