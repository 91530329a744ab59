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
# adjustment, and Cohen's d with intervals from the noncentral t distribution. This notebook also writes the paper's
# figures, tables and numbers of the profile's runs; those of the studies that come with the project are notebook 8's.
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
from spectral_collapse.analysis import anova, early_warning, series, statistics
from spectral_collapse.experiment import rescue
from spectral_collapse.paper import claims, figures, findings, tables
from spectral_collapse.paper import output as paper
from spectral_collapse.record import evidence, paths, schema

print("Not judged here:", *statistics.limits(settings), sep="\n- ")
table = series.table(settings)
metrics = statistics.metric_names(table)
output = paper.Output(settings)

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
output.figure("headline_series", figures.series(table, headline, columns=2))

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
output.figure("density", figures.density(series.ends(settings, "curvature")))

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
output.table("icarus", tables.icarus(table, ["log_spectral_ratio", "log_published_ratio"]))
early_warning.icarus_counts(table, "log_spectral_ratio")

# %% [markdown]
# ## SIGMA, text and training
#
# Every run's track has its own band, from a bootstrap over prompts; records from before the number of blocks was fixed
# have none, and their drifts are corrected for it. One-step forecasts of the tracks are scored against the naive one,
# that nothing changes.

# %%
drifts = series.drifts(settings)
output.figure("sigma_tracks", figures.sigma_tracks(drifts))

# %%
points = pd.read_csv(paths.PUBLISHED / "sigma_fin_s1_points.csv")
treated = drifts[drifts["condition"] == settings.conditions[0]]
output.figure("sigma_published", figures.sigma_published(points, treated))

# %%
output.figure("sigma_buckets", figures.sigma_buckets(series.bucket_drifts(settings)))
output.table("sigma_drifts", tables.sigma_drifts(drifts))
tracks = ["track_two_drift", "logdet_drift", "track_one_sharp_drift", "track_one_drift"]
tracks = [name for name in tracks if name in metrics]
output.table("forecasts", tables.forecasts(table, tracks))

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
# does not reject shows no equality: that takes two one-sided tests against a margin, 5 % of the base model's value.

# %%
output.table("anova", tables.anova(table))
display(anova.repeated_measures_anova(table, "held_out_perplexity").style.format(precision=3).hide())

# %%
reported = [
    *headline, "lambda_max", "bulk_sigma", "log_published_ratio", "distinct_2", "repetition_4",
    "hashed_ngram_hhi",
]
reported = [name for name in reported if name in metrics]
output.table("posthoc", tables.posthoc(table, reported))
output.table("effect_sizes", tables.effect_sizes(table, reported))
output.table("last_generation", tables.last_generation(table))
output.table("equivalence", tables.equivalence(table, reported))
output.table("slopes", tables.slope_tests(table, reported))
display(statistics.paired_tests(table, "held_out_perplexity").style.format(precision=3).hide())

# %%
tests = statistics.paired_tests(table, "held_out_perplexity")["p"].count()
single, first = (statistics.detectable_effect(len(settings.seeds), number) for number in (1, tests))
print(f"detectable d_z with {len(settings.seeds)} seeds: {single:.2f}, or {first:.2f} as the first of {tests} by Holm")

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
signals += tracks
output.figure("alarms", figures.alarms(table, early_warning.candidates(table)))

# %%
output.table("early_warning", tables.early_warnings(table))
output.table("leads", tables.leads(table))
leads = early_warning.lead_summary(table, early_warning.candidates(table), "held_out_perplexity")
leads[leads["metric"].isin(signals)].style.format(precision=2).hide()  # corrected over all metrics, as in the table

# %% [markdown]
# ## Which signals move together?
#
# Spearman's rho over the generations of each recursive run, averaged over runs. Everything that drifts in one
# direction correlates with everything else that does; a correlation here is no warning and no cause. With a lag of k
# the signal of the row is read k generations before the metric of the panel.

# %%
outcomes = ["held_out_perplexity", "distinct_2", "repetition_4", "tail_coverage"]
outcomes = [name for name in outcomes if name in metrics]
output.figure("correlations", figures.correlations(table, signals + outcomes))
followed = ["held_out_perplexity", "distinct_2", "track_two_drift"]
output.figure("lagged_correlations", figures.lagged_correlations(table, signals, followed))
output.table("correlations", tables.correlations(table, outcomes, signals))

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
output.table("rescue", rescue.table(separation))
separation.style.format(precision=3).hide()

# %% [markdown]
# ## Claim by claim
#
# Every checkable sentence of the two studies and the validation plan, from `results/published/claims.yaml`, with the
# quantity that tests it. A claim is supported if the whole interval, whose kind the table names, lies where the claim
# puts it, contradicted if none of it does, inconclusive otherwise or where the interval covers with less than 95 %;
# where the profile lacks a condition it is not tested.

# %%
verdicts = claims.verdicts(claims.gather(table))
output.table("claims", claims.table(verdicts))
pd.DataFrame([(one.claim.claim, one.verdict) for one in verdicts], columns=["claim", "verdict"]).style.hide()

# %% [markdown]
# ## Into the paper

# %%
output.csv("series.csv", table)
output.table("design", paper.design(settings))
output.table(
    "spectrum_baseline", paper.spectrum_baseline(series.results(settings, "curvature", settings.conditions[:1]))
)
output.values(
    findings.values(table)
    | paper.sigma_values(series.results(settings, "sigma"), drifts)
    | rescue.values(found)
    | claims.values(verdicts)
    | paper.context(settings, series.results(settings, "training"))
)

# %% tags=["nbval-check-output"]
print("\n".join(output.written))

# %% [markdown]
# ## The study on TinyStories
#
# Whatever the profile above, this is the study that comes with the project (`make paper PROFILE=tinystories`), from
# its committed records. Its figures and tables are in `paper/generated/tinystories`.

# %%
study = series.table(params.load("tinystories"), source=evidence.PACKS)
figures.series(study, [*headline[:3], "distinct_2", "lambda_max", "bulk_sigma"])
