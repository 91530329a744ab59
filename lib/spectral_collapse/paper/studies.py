"""The committed studies in LaTeX: tables, and the numbers that every paper cites."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from ..analysis import estimators, series
from ..analysis.metrics import condition_label
from ..analysis.public_records import RUNS
from ..analysis.statistics import CONTROL, TREATMENT, matched_controls
from ..analysis.studies import Confirmatory, common_sign
from ..analysis.theory import EXAMPLES
from ..experiment.sigma_coverage import FREEDOM
from ..record.schema import Params
from ..text.prompts import prompt_bank
from . import findings
from .formatting import bracket_of, escape, format_percent, interval_of, number_of, pair_of
from .output import context
from .tables import Number, Raw, filled, frame_of, interval, label, number, paragraph, table_of, values_of

PRETRAINED_METRICS = (
    *("held_out_perplexity", "distinct_2", "distinct_4", "rare_token_coverage", "predictive_entropy"),
    *("lambda_max", "bulk_sigma", "log_spectral_ratio", "log_published_ratio"),
    *("track_two_drift", "logdet_drift", "track_one_drift"),
)
PRETRAINED_SERIES = (
    *("held_out_perplexity", "distinct_2", "predictive_entropy"),
    *("log_spectral_ratio", "log_published_ratio", "track_two_drift"),
)
POPULATIONS = {"gaussian": "Gaussian", "student_t": f"Student-t, {FREEDOM} d.f.", "minilm": "MiniLM, real text"}
CORRECTIONS = {"none": "plug-in", "wishart": "Wishart", "leverage": "leverage"}


# ---- the Hessian study's own records


def public_records_table(spectra: pd.DataFrame) -> pd.DataFrame:
    """Spectra of SmolLM2 (`public_records.spectra`): the published width and ratio, and what the nodes determine."""
    own = spectra[spectra["run"].isin(RUNS)].sort_values(["run", "generation"])
    columns = {
        "Run": lambda row: RUNS[row.run],
        "Generation": "generation",
        Raw(r"$\lambda_{\max}$"): number("lambda_max"),
        "Width": number("published_iqr"),
        "Its bracket": lambda row: Number(f"{number_of(row.iqr_low)} to {number_of(row.iqr_high)}"),
        "Ratio": number("published_ratio"),
        Raw(r"$\sigma$"): number("sigma"),
        Raw(r"$\log(\lambda_{\max}/\sigma)$"): number("log_ratio"),
    }
    return table_of(own, columns)


def public_records_values(findings: Mapping[str, float]) -> dict[str, str]:
    """public.<name> of `public_records.findings`."""
    return {
        f"public.{name}": f"{value:,}" if isinstance(value, int) else number_of(value)
        for name, value in findings.items()
    }


# ---- the study that decides


def confirmed_values(name: str, study: Confirmatory) -> dict[str, str]:
    """name.K for every key K that notebook 7 writes of a profile's own runs, statistics and set-up; name.finding; and
    name.commit, at which the runs were made."""
    found = findings.values(study.analysis) | findings.primary_values(study.verdicts)
    found |= context(study.params, study.training) | findings.dose_values(study.recovered)
    found |= {"finding": findings.finding(study.analysis), "commit": ", ".join(each[:10] for each in study.commits)}
    return {f"{name}.{key}": text for key, text in found.items()}


def agreement(first: pd.DataFrame, second: pd.DataFrame) -> str:
    """Hypotheses of the first of two `primary.verdicts` with the same verdict in the second, "3 of 4"."""
    both = first.merge(second, on="hypothesis", suffixes=("", "_again"))
    return f"{(both['verdict'] == both['verdict_again']).sum()} of {len(first)}"


def samples_table(samples: pd.DataFrame) -> pd.DataFrame:
    """Stories of `studies.samples`, each beside its model."""

    def story(row: Any) -> Raw:
        return paragraph(re.sub(r'(?<!\S)"', "``", escape(" ".join(row.story.split()))), 125)  # opening quotes

    columns = {
        "Model": lambda row: f"{row.condition}, generation {row.generation}" if row.condition else "base model",
        "Story, cut where the limit of tokens cut it": story,
    }
    return table_of(samples, columns)


# ---- a recursion that can be solved


def theory_values(examples: Mapping[str, Mapping[int, pd.DataFrame]], implied: Mapping[str, float]) -> dict[str, str]:
    """theory.<recursion>.{loss,other}.<N>, d′ at generation 2 of the held-out loss and of the other signal
    (`theory.examples`); theory.{types,dimensions}; theory.lm.<name> of `studies.implied_recursion`, and
    theory.lm.<draws>.share, relative to the tokens."""
    text = {f"theory.{name}": f"{EXAMPLES[name]:,}" for name in ("types", "dimensions")}
    for recursion, by_draws in examples.items():
        for draws, frame in by_draws.items():
            for row in frame[frame["generation"] == 2].itertuples():
                which = "loss" if row.signal == "excess_loss" else "other"
                text[f"theory.{recursion.lower()}.{which}.{draws}"] = number_of(row.d_prime)
    counts = ("draws_slope", "draws_concentration", "tokens", "blocks", "generations")
    shown = {name: f"{value:,.0f}" if name in counts else number_of(value) for name, value in implied.items()}
    for name in ("draws_slope", "draws_concentration"):
        shown[f"{name}.share"] = number_of(implied[name] / implied["tokens"])
    return text | {f"theory.lm.{name}": value for name, value in shown.items()}


# ---- estimators of curvature


def noise_values(noise: pd.DataFrame, summary: pd.DataFrame) -> dict[str, str]:
    """noise.<quantity>.<column of `estimators.noise_summary`>; noise.{probes,batches,fewest,most}, of probes, batches
    and steps."""
    text = {}
    for name, column in summary.items():
        show = format_percent if name.startswith("cv") else number_of
        text |= {f"noise.{quantity}.{name}": show(value) for quantity, value in column.items()}
    return text | {
        "noise.probes": str(noise["probe"].nunique()),
        "noise.batches": str(noise["batch"].nunique()),
        "noise.fewest": str(noise["steps"].min()),
        "noise.most": str(noise["steps"].max()),
    }


def batch_sizes_values(batches: pd.DataFrame, coverage: pd.DataFrame, study: Mapping) -> dict[str, str]:
    """sizes.{pool,tokens}, of the study; sizes.<model>.parameters; sizes.<model>.<quantity>.{batch,expected}, "2 of 24"
    batches of `estimators.batch_coverage`; sizes.<model>.{batch,expected}.<blocks>, mean σ_bulk over batches of so many
    blocks."""
    text = {"sizes.pool": str(study["pool"]), "sizes.tokens": str(study["block_tokens"])}
    covered = {
        "sizes.{model}.{quantity}.batch": filled("{batch} of {batches}"),
        "sizes.{model}.{quantity}.expected": filled("{expected} of {defined}"),
    }
    widths = {
        "sizes.{model}.batch.{blocks}": number("bulk_sigma"),
        "sizes.{model}.expected.{blocks}": number("population_bulk_sigma"),
        "sizes.{model}.parameters": lambda row: f"{study[f'{row.model}_parameters']:,}",
    }
    text |= values_of(coverage.reset_index(), covered)
    return text | values_of(estimators.mean_widths(batches).reset_index(), widths)


def power_iteration_values(errors: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """power.<study>.<name of `estimators.power_iteration_summary`>."""
    text = {}
    for study, frame in errors.items():
        for name, value in estimators.power_iteration_summary(frame).items():
            show = str if isinstance(value, int) else format_percent if name == "median" else number_of
            text[f"power.{study}.{name}"] = show(value)
    return text


# ---- pretrained weights


def _listed(values: pd.Series) -> str:
    return ", ".join(map(number_of, values))


def pretrained_table(result: dict) -> pd.DataFrame:
    """Both estimators on a pretrained model, from its curvature result: the published one probe by probe."""
    probes = estimators.published_by_probe(result)
    rows = [
        ("IQR, published, by probe", _listed(probes["iqr"])),
        (r"$\lambda/$IQR, published, by probe", _listed(probes["ratio"])),
        (r"$\lambda$ of largest $|\lambda|$", number_of(series.exact_lambda(result))),
        (r"\quad by power iteration", number_of(result["published_lambda_max"])),
        ("IQR, bracket", bracket_of(result, "iqr_bracket")),
        (r"$\lambda_{\max}$ $\pm$ residual", pair_of(result, "lambda_max", "residual")),
        (r"$\lambda_{\max}$ $\pm$ s.e.\ over blocks", pair_of(result, "lambda_max", "batch_error")),
        (r"$\lambda_{\min}$ $\pm$ residual", pair_of(result, "lambda_min", "residual")),
        (r"$\mathrm{tr}(H)/n$", interval_of(result, "mean_eigenvalue")),
        (r"$\sigma_{\mathrm{bulk}}$", interval_of(result, "bulk_sigma")),
        (r"$\log(\lambda_{\max}/\sigma_{\mathrm{bulk}})$", interval_of(result, "log_spectral_ratio")),
    ]
    return frame_of([[Raw(name), Number(value)] for name, value in rows], ["Quantity", "Value"])


def pretrained_values(result: dict) -> dict[str, str]:
    """pretrained.{parameters,probes,steps,blocks}, pretrained.iqr.{least,most,bracket} and
    pretrained.log_spectral_ratio, of a curvature result."""
    widths = estimators.published_by_probe(result)["iqr"]
    return {
        "pretrained.parameters": f"{result['parameters'] / 1e6:.0f} million",
        "pretrained.probes": str(result["probes"]),
        "pretrained.steps": str(result["steps"]),
        "pretrained.blocks": str(result["blocks"]),
        "pretrained.iqr.least": number_of(widths.min()),
        "pretrained.iqr.most": number_of(widths.max()),
        "pretrained.iqr.bracket": bracket_of(result, "iqr_bracket"),
        "pretrained.log_spectral_ratio": interval_of(result, "log_spectral_ratio"),
    }


def pretrained_runs_table(found: pd.DataFrame) -> pd.DataFrame:
    """`studies.before_and_after`, the values of all seeds in a cell: of few seeds no interval is given."""
    rows = [
        [label(metric), *(Number(_listed(values)) for _, values in seeds.items())]
        for metric, seeds in found.groupby("metric", sort=False)
    ]
    return frame_of(rows, ["Metric", "Generation 0", "Recursive", "Fresh", "Recursive less fresh"])


def _of_all(values: pd.Series, above: str, below: str, neither: str) -> str:
    """The word for differences, one a seed, that are all positive, all negative, or neither."""
    sign = common_sign(values)
    return f"{above if sign > 0 else below} for every seed" if sign else neither


def pretrained_runs_values(found: pd.DataFrame) -> dict[str, str]:
    """pretrained.M.{start,recursive,fresh}, a metric by seed (`studies.before_and_after`);
    pretrained.M.{recursive,fresh}.moved, whether it rose or fell from generation 0 for every seed; pretrained.M.word,
    whether recursion ends above the control for every seed."""
    text = {}
    for metric, seeds in found.groupby("metric", sort=False):
        text |= {f"pretrained.{metric}.{name}": _listed(seeds[name]) for name in ("start", TREATMENT, CONTROL)}
        for condition in (TREATMENT, CONTROL):
            moved = _of_all(seeds[condition] - seeds["start"], "rose", "fell", "did not move to one side")
            text[f"pretrained.{metric}.{condition}.moved"] = moved
        text[f"pretrained.{metric}.word"] = _of_all(
            seeds["difference"], "higher", "lower", "higher for some seeds and lower for others"
        )
    return text


def pretrained_design_values(params: Params, hessian: Params, waiting: list[str]) -> dict[str, str]:
    """pretrained.runs.{profile,seeds,generations,blocks,tokens}, of the runs; pretrained.study.{blocks,tokens}, of the
    Hessian study; pretrained.waiting, profiles of pretrained weights without records."""
    return {
        "pretrained.study.blocks": f"{hessian.blocks_per_generation:,}",
        "pretrained.study.tokens": str(hessian.block_tokens),
        "pretrained.runs.seeds": str(len(params.seeds)),
        "pretrained.runs.generations": str(params.generations),
        "pretrained.runs.blocks": str(params.blocks_per_generation),
        "pretrained.runs.tokens": str(params.block_tokens),
        "pretrained.runs.profile": escape(params.profile),
        "pretrained.waiting": ", ".join(rf"\texttt{{{escape(name)}}}" for name in waiting),
    }


# ---- SIGMA


def coverage_table(covered: pd.DataFrame) -> pd.DataFrame:
    """Columns, dimensions and interval by n_A/m: coverage of nominal 95 % intervals in per cent."""
    ratios = covered["ratio"].unique()
    rows = []
    for (population, m, correction), group in covered.groupby(["population", "m", "correction"], sort=False):
        by_ratio = group.set_index("ratio")["coverage"]
        cells = [Number(f"{100 * by_ratio[ratio]:.0f}") for ratio in ratios]
        rows.append([POPULATIONS[population], Number(str(m)), CORRECTIONS[correction], *cells])
    return frame_of(rows, ["Columns", Raw("$m$"), "Interval", *(Raw(rf"$n_A/m={ratio:g}$") for ratio in ratios)])


def coverage_values(covered: pd.DataFrame) -> dict[str, str]:
    """coverage.<correction>.{least,most} over columns and n_A/m at the study's largest m, the encoder's."""
    ranges = covered[covered["m"] == covered["m"].max()].groupby("correction")["coverage"].agg(least="min", most="max")
    return {f"coverage.{at}.{end}": format_percent(share) for (at, end), share in ranges.stack().items()}


def injection_values(last: pd.DataFrame, params: Params) -> dict[str, str]:
    """injection.<track>.<condition>, of `sigma_settings.last_drifts`; injection.{temperature,seeds,generations}."""
    return values_of(last, {"injection.{track}.{condition}": interval("drift")}) | {
        "injection.temperature": f"{params.temperature:g}",
        "injection.seeds": str(len(params.seeds)),
        "injection.generations": str(params.generations),
    }


def settings_table(by_bank: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Prompt bank and setting: number of runs, and the last drift of every track, of `sigma_settings.compared`."""
    drift, rows = interval("drift"), []
    for bank, found in by_bank.items():
        for setting, own in found.dropna(subset="condition").groupby("setting"):
            rows.append([bank, setting, int(own["runs"].iloc[0]), *map(drift, own.itertuples())])
    tracks = next(iter(by_bank.values()))["track"].unique()
    return frame_of(rows, ["Prompts", "Setting", "Runs", *(label(f"{track}_drift") for track in tracks)])


def settings_values(found: pd.DataFrame) -> dict[str, str]:
    """settings.<track>.{S1,S2,difference} of `sigma_settings.compared`; settings.{seeds,generations}."""
    text = values_of(found, {"settings.{track}.{setting}": interval("drift")})
    runs, generations = (str(int(found[name].max())) for name in ("runs", "generation"))
    return text | {"settings.seeds": runs, "settings.generations": generations}


FIFTY_METRICS = (
    *("held_out_perplexity", "predictive_entropy", "distinct_2", "response_distinct_2", "hashed_ngram_hhi"),
    *("track_two_drift", "logdet_drift", "track_one_sharp_drift", "track_one_drift"),
)


def span(values: pd.Series, show: Callable[[float], str] = number_of) -> str:
    """The least and the greatest of a few values, `3.1 to 4.2`."""
    return " to ".join(dict.fromkeys(show(value) for value in (values.min(), values.max())))


def _generation(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else "never"


def fifty_table(table: pd.DataFrame, first: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Metric by metric the base model's values, the last ones of each setting and its control, and when the runs of a
    setting left what its control ever did (`sigma_settings.first_beyond`), as spans over seeds. `names`: the
    conditions by setting."""
    treated, last, rows = list(names.values()), table["generation"].max(), []
    controls = matched_controls(table)
    shown = [each for condition in treated for each in (controls[condition], condition)]
    for metric in first["metric"].unique():
        own = table.set_index(["generation", "condition"])[metric].sort_index()
        left = first[first["metric"] == metric].set_index("condition")["generation"]
        ends = [span(own.loc[0]), *(span(own.loc[last, name]) for name in shown)]
        rows.append([label(metric), *map(Number, ends), *(Number(span(left[[name]], _generation)) for name in treated)])
    labels = [condition_label(name) for name in shown]
    return frame_of(rows, ["Metric", "Base", *labels, *(f"{setting} beyond at" for setting in names)])


def fifty_values(params: Params, table: pd.DataFrame, drifts: pd.DataFrame, first: pd.DataFrame) -> dict[str, str]:
    """fifty.<metric>.{base,<condition>}, spans over seeds, the latter of the last generation; fifty.<metric>.first,
    of the generation at which runs left what their control ever did; fifty.track_one.most, its largest absolute drift;
    fifty.{seeds,generations,contexts,tokens,epochs,rate,blocks}."""
    last, found = table["generation"].max(), {}
    for metric in first["metric"].unique():
        found[f"fifty.{metric}.base"] = span(table.loc[table["generation"] == 0, metric])
        found[f"fifty.{metric}.first"] = span(first.loc[first["metric"] == metric, "generation"], _generation)
        for condition, own in table[table["generation"] == last].groupby("condition"):
            found[f"fifty.{metric}.{condition}"] = span(own[metric])
    return found | {
        "fifty.track_one.most": number_of(drifts.loc[drifts["track"] == "track_one", "drift"].abs().max()),
        "fifty.seeds": str(table["seed"].nunique()),
        "fifty.generations": str(last),
        "fifty.contexts": f"{params.blocks_per_generation:,}",
        "fifty.tokens": str(params.block_tokens),
        "fifty.epochs": str(params.epochs),
        "fifty.rate": number_of(params.learning_rate),
        "fifty.blocks": f"{len(prompt_bank(params.prompt_bank)) * params.response_blocks:,}",
    }


def counts_values(counts: Mapping[str, float]) -> dict[str, str]:
    """published.counts.{base,least,most,series,error} of `sigma_settings.published_counts`."""
    shown = {name: str(value) if isinstance(value, int) else number_of(value) for name, value in counts.items()}
    return {f"published.counts.{name}": text for name, text in shown.items()}
