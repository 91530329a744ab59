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
# # 8 Studies: what comes with the project
#
# These studies are too slow to rerun for every build, or need weights or text that not every reader has. Their records
# are committed, and this notebook makes the paper's figures, tables and numbers from them: these parts are the same in
# the paper of every profile. `paper/studies.yaml` names the profile of each study; each heading, the command that
# computes it again.
#
# *Whatever the profile, all outputs below are results of the committed records.*

# %%
from spectral_collapse.record import params

# %% tags=["parameters"]
profile = "smoke"  # a file of params/; its paper gets the figures, tables and numbers below

# %%
settings = params.collect(globals())

# %%
import pandas as pd
from spectral_collapse.analysis import (
    ablations,
    estimators,
    mechanism,
    mediation,
    primary,
    sigma_settings,
    studies,
    theory,
)
from spectral_collapse.analysis import public_records as public
from spectral_collapse.paper import ablations as ablations_report
from spectral_collapse.paper import figures, results, tables
from spectral_collapse.paper import mechanism as mechanism_report
from spectral_collapse.paper import output as paper
from spectral_collapse.paper import studies as report
from spectral_collapse.record import paths

output, values, shown = paper.Output(settings), {}, studies.shown()

# %% [markdown]
# ## The Hessian study's own records
#
# Its widths, eigenvalues and text metrics, from notebook 0.

# %%
spectra, text = public.spectra(), public.text_metrics()
printed = public.claimed(spectra)
output.figure("public_records", figures.public_records(spectra, printed, text))
output.table("public_records", report.public_records_table(spectra))
values |= report.public_records_values(public.findings(spectra, printed, text))

# %% [markdown]
# ## The study that decides (`python -m spectral_collapse.experiment.seeds study`)
#
# Its profile named its hypotheses before it ran: what each needs to be decided, and what the runs say. Then who warned
# first, at what price.

# %%
confirmed = studies.confirmatory(shown["confirmation"])
output.table("confirmed", results.primary(confirmed.verdicts, primary.capabilities(confirmed.params)))
values |= report.confirmed_values("confirmed", confirmed)
confirmed.verdicts.style.format(precision=3).hide()

# %%
output.figure("confirmed_warnings", figures.warnings(confirmed.analysis, confirmed.warnings))
output.picture("confirmed_warnings", figures.warnings(confirmed.analysis, confirmed.warnings))
output.table("confirmed_warnings", results.warnings(figures.shown_warnings(confirmed.warnings)))

# %%
samples = studies.samples(shown["confirmation"])
output.table("samples", report.samples_table(samples))
samples.style.hide()

# %%
headline = ["log_spectral_ratio", "track_two_drift", "held_out_perplexity", "predictive_entropy"]
output.figure("confirmed_series", figures.series(confirmed.analysis.table, headline, columns=2))

# %% [markdown]
# ## The same with carried weights (`python -m spectral_collapse.experiment.seeds study_carry`)
#
# Every generation goes on from the weights of the one before, in recursion and control alike; all else is as above.

# %%
carried = studies.confirmatory(shown["carried"])
output.table("carried", results.primary(carried.verdicts, primary.capabilities(carried.params)))
output.figure("carried_warnings", figures.warnings(carried.analysis, carried.warnings))
values |= report.confirmed_values("carried", carried)
values["carried.agreement"] = report.agreement(confirmed.verdicts, carried.verdicts)
carried.verdicts.style.format(precision=3).hide()

# %% [markdown]
# ## The estimators' own noise (`make estimators`)
#
# Both estimators on one checkpoint, from notebook 0: what moves is the probe, the batch of text and the number of
# Lanczos steps. A quantity that scatters over decades here cannot carry a claim.

# %%
noise = studies.estimator_noise(shown["estimators"])
summary = estimators.noise_summary(noise)
output.table("estimators", tables.estimators(summary))
output.figure("estimators", figures.estimators(noise))
values |= report.noise_values(noise, summary)

# %% [markdown]
# ## A batch and the expected loss (`python -m spectral_collapse.experiment.batch_sizes smoke CHECKPOINT TEXT`)
#
# The width of the bulk and the largest eigenvalue of two models against the number of blocks: of the batch's own
# Hessian, and of the expected loss, estimated from the same blocks.

# %%
batches, study = studies.batch_sizes()
output.figure("batch_sizes", figures.batch_sizes(batches))
coverage = estimators.batch_coverage(batches)
values |= report.batch_sizes_values(batches, coverage, study)
coverage.style.format(precision=3)

# %% [markdown]
# ## Pretrained weights (`make results PROFILE=smollm2_offline`)
#
# The spectrum of SmolLM2-135M: the published estimator probe by probe, and what its probes say together.

# %%
(spectrum,) = studies.packed(shown["pretrained"], "curvature")
output.table("pretrained", report.pretrained_table(spectrum))
output.table("published_hessian", tables.published_hessian())
values |= report.pretrained_values(spectrum)
figures.density([("SmolLM2-135M", spectrum)])

# %% [markdown]
# Power iteration, with which the published estimator finds its eigenvalue, was stopped after 2 to 30 products in the
# committed records, where its source takes up to 100: a row a study, with the number of models whose $|\lambda|$ is off
# by more than 1 % or 20 %, or of the wrong sign. The paper takes the exact one. Then the same loop on these
# weights: two seeds, so every value is shown and none is tested.

# %%
stopped = studies.power_iteration_errors(shown["power_iteration"])
values |= report.power_iteration_values(stopped)
pd.DataFrame({name: estimators.power_iteration_summary(errors) for name, errors in stopped.items()}).T

# %%
tuned = studies.runs(shown["pretrained"])
moved = studies.before_and_after(tuned, report.PRETRAINED_METRICS)
designs = [params.load(shown[name]) for name in ("pretrained", "hessian")]
output.table("pretrained_runs", report.pretrained_runs_table(moved))
output.figure("pretrained_runs", figures.series(tuned, report.PRETRAINED_SERIES))
values |= report.pretrained_runs_values(moved) | report.pretrained_design_values(*designs, studies.waiting())

# %% [markdown]
# ## SIGMA's intervals (`python -m spectral_collapse.experiment.sigma_coverage TEXT`)
#
# How often the published interval of the log-determinant covers the truth, and how often the corrected ones do.

# %%
covered = studies.sigma_coverage()
output.table("sigma_coverage", report.coverage_table(covered))
values |= report.coverage_values(covered)
covered.groupby(["correction", "population"])["coverage"].agg(["min", "max"]).style.format(precision=3)

# %% [markdown]
# ## What SIGMA's tracks are for (`make sigma PROFILE=sigma_injection`)
#
# Collapse injected by a low temperature, against fresh text: every track with its band, a bootstrap over prompts.

# %%
injected = studies.drifts(shown["injection"])
output.figure("sigma_injection", figures.sigma_tracks(injected))
values |= report.injection_values(sigma_settings.last_drifts(injected), params.load(shown["injection"]))

# %% [markdown]
# ## SIGMA's settings S1 and S2 (`make sigma PROFILE=sigma_s1s2`)
#
# Weights that restart from the base model in every generation, and weights that are carried over: three seeds on the
# prompts of stories, one on those of finance and technology. The published series, below, is one of whole numbers of
# blocks.

# %%
settled = {bank: studies.settings_drifts(name) for bank, name in shown["settings"].items()}
output.table("sigma_settings", report.settings_table(settled))
output.figure("sigma_settings", figures.sigma_tracks(studies.drifts(shown["settings"]["stories"])))
published = sigma_settings.published_counts(pd.read_csv(paths.PUBLISHED / "sigma_fin_s1_points.csv"))
values |= report.settings_values(settled["stories"]) | report.counts_values(published)

# %% [markdown]
# The protocol over fifty generations, on a checkpoint that others trained (`experiment.seeds stories260k --sigma`),
# beside the published series: last values, and when S1 and S2 left what their control ever did.

# %%
fifty = params.load(shown["fifty"])
long = studies.long_runs(shown["fifty"], shown["fifty_control"])
left = sigma_settings.first_beyond(long, report.FIFTY_METRICS)
output.figure("sigma_fifty", figures.sigma_fifty(long, pd.read_csv(paths.PUBLISHED / "sigma_fin_s1_points.csv")))
output.table("sigma_fifty", report.fifty_table(long, left, sigma_settings.settings(fifty)))
drifts = pd.concat([studies.drifts(shown[name]) for name in ("fifty", "fifty_control")])
values |= report.fifty_values(fifty, long, drifts, left)
left.pivot_table("generation", "metric", ["condition", "seed"])

# %% [markdown]
# ## Recursions that can be solved
#
# What each signal can detect there (notebook 9), and the sample size that the runs on TinyStories would have, were they
# such recursions.

# %%
solved = theory.examples()
output.figure("detectability", figures.detectability(solved))
values |= report.theory_values(solved, studies.implied_recursion(shown["runs"]))

# %% [markdown]
# ## What drives the decline, and what stops it (`make ablations`)
#
# Every factor of the grid, from notebook 5: its hypothesis with the verdict, and the effect of each of its levels.

# %%
factors = ablations.studies().values()
output.table("ablations", ablations_report.effects_table(factors))
output.table("ablation_hypotheses", ablations_report.hypotheses_table(factors))
output.figure("ablations", figures.ablation_effects(list(factors)))
values |= ablations_report.values(factors)

# %% [markdown]
# ## What changes inside the model (`make mechanism`)
#
# Gradients, drift, activations, leading eigenvectors, the loss around the model and its outputs, from notebook 6. How
# much of the text's decline goes along with each is a correlation.

# %%
inside, design = studies.mechanism_study(shown["mechanism"]), params.load(shown["mechanism"])
output.figure("mechanism_series", figures.series(inside.quantities, mechanism.HEADLINE, height=1.6))
output.figure("mechanism_parts", figures.mechanism_parts(inside.parts))
output.figure("mechanism_layers", figures.mechanism_layers(inside.layers))
output.figure("outlier_tracks", figures.outlier_tracks(inside.outliers))
output.figure("landscape", figures.landscape(inside.planes, inside.lines, design.seeds[0]))
differences, fates = mechanism.differences(inside.quantities), mechanism.fate_counts(inside.outliers)
mediated = mediation.mediation(inside.quantities, mechanism.QUANTITIES, mechanism.OUTCOMES)
output.table("mechanism_differences", mechanism_report.differences_table(differences))
output.table("mechanism_fates", mechanism_report.fates_table(fates))
output.table("mechanism_mediation", mechanism_report.mediation_table(mediated))
values |= mechanism_report.values(inside, differences, mediated, fates, design)

# %% tags=["nbval-check-output"]
output.values(values, "studies")
print("\n".join(output.written))
