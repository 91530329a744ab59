# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7 Statistics: what the runs say together
#
# The unit is the run, that is the seed. Conditions share their seeds, base models and frozen evaluation sets, so
# every comparison is paired: a two-way repeated-measures analysis of variance (condition by generation, with
# Greenhouse–Geisser's correction), paired t-tests against the `fresh` control of the same weights with Holm's
# adjustment, and Cohen's d with intervals from the noncentral t distribution. `report.analyse` computes all of it once;
# the cells below show it and write the figures, tables and values of the paper that are about the profile's runs.
# Notebook 8 writes those of the studies that come with the project.
#
# *In the repository the outputs below are those of the profile `smoke`, a toy run of a minute that tests the code: they
# say nothing about collapse. The last section shows the study on TinyStories, from its committed records.*

# %%
from spectral_collapse.record import params

# %% tags=["parameters"]
profile = "smoke"  # a file of params/; the runs of all its seeds and conditions must be there

# %%
settings = params.collect(globals())

# %%
import pandas as pd
from IPython.display import display
from spectral_collapse.analysis import claims as judged
from spectral_collapse.analysis import design, primary, report, rescue, series, warning
from spectral_collapse.paper import figures, findings, results
from spectral_collapse.paper import output as paper
from spectral_collapse.record import evidence, paths, schema

print(design.describe(settings))
drifts = series.drifts(settings)
analysis = report.analyse(series.table(settings), drifts)
table, metrics = analysis.table, analysis.metrics
output = paper.Output(settings)


def rows_of(frame, metric="held_out_perplexity"):
    """The rows of one metric, for the eye."""
    return frame[frame["metric"] == metric].drop(columns="metric").style.format(precision=3).hide()


# %% tags=["nbval-check-output"]
print("cells:", len(table), " runs:", len(table.groupby(["condition", "seed"])), " metrics:", len(metrics))

# %% [markdown]
# ## The four series that matter
#
# The ratio and Track II are the proposed warnings; perplexity is what they should precede; tail coverage is what is
# really being lost. Thin lines are runs, thick lines their mean, bands the 95 % t interval of the mean. A warning is
# worth its name where the recursive band leaves that of the fresh control before perplexity does.

# %%
headline = ["log_spectral_ratio", "track_two_drift", "held_out_perplexity", "tail_coverage"]
shown = table[table["condition"].isin(["recursive", "fresh", "mixed"])]
output.figure("headline_series", figures.series(shown, headline, columns=2))

# %%
curvature = ["lambda_max", "lambda_min", "bulk_sigma", "log_spectral_ratio", "spectral_variance", "effective_rank"]
curvature += ["held_out_lambda_max", "population_bulk_sigma", "population_log_ratio"]  # of the expected loss
output.figure("curvature_series", figures.series(table, curvature))

# %% [markdown]
# ## Published and converged estimator on the same models
#
# If both measured the same thing the points on the left would follow a line of slope one. On the right, the two
# widths they divide by.

# %%
output.figure("published_estimator", figures.published_estimator(table))

# %%
ends = series.ends(settings, "curvature")
output.figure("density", figures.density(ends, ["baseline", *settings.conditions]))

# %% [markdown]
# ## Where in the network, and is there an Icarus?
#
# The Hessian's diagonal block of each part of the network, for one seed. Then the Icarus pattern, a rise above the
# control at generation 1 and a fall below it at the end, counted in the runs: what the control's own runs show of it
# are false alarms.

# %%
if settings.layerwise_spectra:
    output.figure("layers", figures.layers(series.ends(settings, "layers")))

# %%
output.table("icarus", results.icarus(analysis))
rows_of(analysis.icarus, "log_spectral_ratio")

# %% [markdown]
# ## SIGMA, text and training
#
# Every run's track has its own band, from a bootstrap over prompts. Older records, whose number of blocks changed from
# one checkpoint to the next, have no bands, and their drifts are corrected for those changes. One-step forecasts of the
# tracks are scored against the naive forecast that nothing changes.

# %%
output.figure("sigma_tracks", figures.sigma_tracks(drifts))

# %%
points = pd.read_csv(paths.PUBLISHED / "sigma_fin_s1_points.csv")
treated = drifts[drifts["condition"] == settings.conditions[0]]
output.figure("sigma_published", figures.sigma_published(points, treated))

# %%
output.figure("sigma_buckets", figures.sigma_buckets(series.bucket_drifts(settings)))
output.table("sigma_drifts", results.sigma_drifts(analysis))
output.table("forecasts", results.forecasts(analysis))

# %%
text = [
    "distinct_2", "distinct_4", "repetition_4", "type_token_ratio", "hashed_ngram_hhi", "tail_mass_ratio",
    "tail_coverage", "slot_kl", "slot_entropy",
]
output.figure("text_metrics", figures.series(table, text))

# %%
quality = ["bleu", "rouge_l", "mauve", "self_bleu", "ngram_entropy_2", "coherence", "prompt_similarity"]
precursors = ["predictive_entropy", "representation_drift", "rare_token_coverage"]  # of silent collapse
output.figure("text_quality", figures.series(table, quality + precursors))

# %%
output.figure("training_curves", figures.training_curves(list(series.results(settings, "training"))))

# %% [markdown]
# ## Do conditions differ, and by how much?
#
# The interaction is the effect of interest: conditions that move apart over the generations. Few seeds see large
# effects only; the smallest paired d that this design detects in four of five cases is printed below. A test that
# does not reject shows no equality; that takes two one-sided tests against a margin, 5 % of the base model's value.

# %%
output.table("anova", results.anova(analysis))
display(rows_of(analysis.anova))

# %%
reported = [
    *headline, "lambda_max", "bulk_sigma", "log_published_ratio", "distinct_2", "repetition_4",
    "hashed_ngram_hhi",
]
reported = [name for name in reported if name in metrics]
output.table("posthoc", results.posthoc(analysis, reported))
output.table("effect_sizes", results.effect_sizes(analysis, reported))
output.table("last_generation", results.last_generation(analysis))
output.table("equivalence", results.equivalence(analysis, reported))
output.table("slopes", results.slope_tests(analysis, reported))
display(rows_of(analysis.paired))

# %%
seeds, tests, single, first = (analysis.design[name] for name in ("seeds", "tests", "single", "detectable"))
print(f"detectable d_z with {seeds} seeds: {single:.2f}, or {first:.2f} as the first of {tests} by Holm")

# %% [markdown]
# ## Does any metric warn?
#
# A run raises an alarm at the first generation at which its change from the base model leaves the prediction band of
# the fresh control, on either side. The band comes from the control's runs of the other seeds, and is set so wide that
# five per cent of runs without an effect raise an alarm at any generation. A lead is the generation at which
# perplexity, or training loss, raises its alarm, less that of the metric; what never fires is censored. Every metric of
# the table is tried, and the corrected columns pay for that. With three seeds the bands are very wide.

# %%
signals = ["log_spectral_ratio", "log_published_ratio", "lambda_max", "bulk_sigma"]
signals += [name for name in report.DRIFTS if name in metrics]
output.figure("alarms", figures.alarms(analysis))

# %%
output.table("early_warning", results.early_warnings(analysis))
output.table("leads", results.leads(analysis))
leads = analysis.leads[analysis.leads["outcome"] == "held_out_perplexity"].drop(columns="outcome")
leads[leads["metric"].isin(signals)].style.format(precision=2).hide()  # corrected over all metrics, as in the table

# %% [markdown]
# How far a metric stands out does not depend on the number of control runs: d′ is the distance between the treated and
# the control runs' mean changes in standard deviations of the control's. And a warning has its price: the time of one
# check, in forward passes over the held-out text.

# %%
curve = warning.detection_curve(table, analysis.outcomes[:1] + analysis.candidates)
prices = warning.costs(settings)
if len(analysis.leads):
    warned = warning.warnings(analysis, curve, prices)
    output.figure("warnings", figures.warnings(analysis, warned))
    output.picture("warnings", figures.warnings(analysis, warned))
    output.table("warnings", results.warnings(figures.shown_warnings(warned)))
curve[curve["metric"] == "held_out_perplexity"].style.format(precision=2).hide()

# %% [markdown]
# ## The primary hypotheses
#
# What the profile said beforehand that its runs are to decide, at most four, with Holm's correction over them. All else
# in this notebook is exploratory. A profile that names none is a demonstration.

# %%
decided = primary.verdicts(settings, table, analysis.alarms)
output.table("primary", results.primary(decided, primary.capabilities(settings)))
decided.style.format(precision=3).hide()

# %% [markdown]
# ## Which signals move together?
#
# Spearman's rho over the generations of each recursive run, averaged over runs. Everything that drifts in one
# direction correlates with everything else that does; a correlation here is neither a warning nor a cause. At a lag of
# k the signal of the row is read k generations before the metric of the panel.

# %%
outcomes = ["held_out_perplexity", "distinct_2", "repetition_4", "tail_coverage"]
outcomes = [name for name in outcomes if name in metrics]
output.figure("correlations", figures.correlations(analysis, signals + outcomes))
output.figure("lagged_correlations", figures.lagged_correlations(analysis, signals))
output.table("correlations", results.correlations(analysis, outcomes, signals))

# %% [markdown]
# ## Can it be undone?
#
# One generation of real text from each generation of the recursive runs. A model is reversible if its perplexity then
# lies in the band that the other seeds' fresh runs predict, or below it. The table shows how well each metric, read
# before the rescue and in a direction fixed beforehand, tells the irreversible from the reversible.

# %%
treated = [name for name in settings.conditions if schema.split_condition(name, settings.weights)[0] == "recursive"]
later = range(1, settings.generations + 1)
after = rescue.rescued(series.results(settings, "rescue", treated, generations=later))
found = rescue.reversibility(table, after)
output.figure("rescue", figures.rescue(found))

# %%
separation = pd.concat([rescue.separation(table, found, reported, condition) for condition in treated])
output.table("rescue", results.separation(separation))
separation.style.format(precision=3).hide()

# %% [markdown]
# Not whether, but how much: the share of the gap to the matched control that is closed after 1, 4, 16 times the steps
# of real text, where the control has had the same.

# %%
closed = pd.DataFrame()
if settings.rescue_doses:
    last = [settings.generations]
    dosed = [name for name in settings.conditions if schema.split_condition(name, "")[0] in ("recursive", "fresh")]
    closed = rescue.recovered(table, series.results(settings, "doses", dosed, generations=last))
    output.figure("doses", figures.doses(closed))

# %% [markdown]
# ## Claim by claim
#
# Every checkable claim of the two studies and the validation plan, from `results/published/claims.yaml`, with the
# quantity that tests it. A claim is supported if the whole interval, whose kind the table names, lies where the claim
# puts it, contradicted if none of it does, and inconclusive otherwise or where the interval covers with less than 95 %.
# Where the profile lacks a condition, the claim is not tested.

# %%
verdicts = judged.verdicts(judged.gather(analysis))
output.table("claims", results.claims(verdicts))
verdicts[["claim", "verdict"]].style.hide()

# %% [markdown]
# ## Into the paper

# %%
output.csv("series.csv", table)
output.table("design", paper.design(settings))
spectra = report.base_spectra(series.results(settings, "curvature", settings.conditions[:1]))
output.table("spectrum_baseline", paper.spectrum_baseline(spectra))
output.values(
    findings.values(analysis)
    | findings.sigma_values(report.checkpoints(series.results(settings, "sigma")), analysis)
    | findings.rescue_values(rescue.reversibility_counts(found))
    | findings.dose_values(closed)
    | findings.claims_values(verdicts)
    | findings.primary_values(decided)
    | {"finding": findings.finding(analysis)}
    | paper.context(settings, series.results(settings, "training"))
)

# %% tags=["nbval-check-output"]
print("\n".join(output.written))

# %% [markdown]
# ## The study on TinyStories
#
# Whatever the profile above, this is the exploratory study that comes with the project (profile `tinystories`), from
# its committed records. Its figures and tables are in `paper/generated/tinystories`.

# %%
study = series.table(params.load("tinystories"), source=evidence.PACKS)
figures.series(study, [*headline[:3], "distinct_2", "lambda_max", "bulk_sigma"])

# %% [markdown]
# ## A warning of your own
#
# All trajectories of all packed studies stand in one table (`results/evidence/README.md` explains its columns), so that
# a warning can be tried without running anything: here, whether two cheap signals together would have told recursive
# runs from fresh ones at generation 1. Replace the sum by your own rule.

# %%
everything = pd.read_parquet(evidence.PACKS.root / "trajectories.parquet")
everything = everything[(everything["profile"] == "tinystories") & everything["condition"].isin(["recursive", "fresh"])]
wide = everything.pivot_table(index=["condition", "seed", "generation"], columns="metric", values="value")
moved = wide.groupby(["condition", "seed"]).transform(lambda runs: runs - runs.iloc[0])
scaled = moved / moved.loc["fresh"].std()
own = scaled["held_out_perplexity"] - scaled["predictive_entropy"]
own.unstack("generation").round(1)
