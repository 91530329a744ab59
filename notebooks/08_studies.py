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
# Some questions take longer than a reader should wait, or need what not every reader has. Their records are committed,
# and this notebook makes the paper's figures, tables and numbers from them: whatever profile a paper is of, these parts
# of it are the same. Each study can be computed again, by the command that its heading names.
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
from spectral_collapse.analysis import ablations, mediation
from spectral_collapse.analysis import mechanism as study
from spectral_collapse.experiment import batch_sizes, estimators, sigma_coverage
from spectral_collapse.paper import figures, studies, tables
from spectral_collapse.paper import mechanism as report
from spectral_collapse.paper import output as paper

output = paper.Output(settings)

# %% [markdown]
# ## The estimators' own noise (`make estimators`)
#
# Both estimators on one checkpoint, from notebook 0: what moves is the probe, the batch of text and the number of
# Lanczos steps. A quantity that scatters over decades here cannot carry a claim.

# %%
noise = studies.estimator_noise()
output.table("estimators", tables.estimators(estimators.summary(noise)))
output.figure("estimators", figures.estimators(noise))

# %% [markdown]
# ## A batch and the expected loss (`python -m spectral_collapse.experiment.batch_sizes CHECKPOINT TEXT`)
#
# The width of the bulk and the largest eigenvalue against the number of blocks, of two models: what a batch's own
# Hessian has, and what the same blocks say of the expected loss.

# %%
sizes, pool = studies.batch_sizes()
output.figure("batch_sizes", figures.batch_sizes(sizes))
batch_sizes.coverage(sizes).style.format(precision=3)

# %% [markdown]
# ## Pretrained weights (`make results PROFILE=smollm2_offline`)
#
# The spectrum of SmolLM2-135M: the published estimator probe by probe, and what its probes say together.

# %%
(spectrum,) = studies.committed(studies.PRETRAINED, "curvature")
pretrained = studies.pretrained_table(spectrum)
output.table("pretrained", pretrained)
output.table("published_hessian", tables.published_hessian())
figures.density([("SmolLM2-135M", spectrum)])

# %% [markdown]
# Power iteration, with which the published estimator finds its eigenvalue, was stopped after 2 to 30 products in the
# committed records, where its source takes up to 100. `share` is what it found of the exact $|\lambda|$; the ratios in
# the paper take the exact one.

# %%
stopped = studies.power_iteration_errors()
pd.concat(stopped, names=["study"]).groupby("study")[["share", "same_sign"]].describe().style.format(precision=3)

# %% [markdown]
# The same loop on these weights: two seeds, so every value is shown and none is tested.

# %%
tuned = studies.pretrained_runs()
output.table("pretrained_runs", studies.pretrained_runs_table(tuned))
output.figure("pretrained_runs", figures.series(tuned, studies.PRETRAINED_SERIES))

# %% [markdown]
# ## SIGMA's intervals (`python -m spectral_collapse.experiment.sigma_coverage`)
#
# How often the published interval of the log-determinant holds the truth, and how often the corrected ones do.

# %%
covered = studies.sigma_coverage()
output.table("sigma_coverage", sigma_coverage.coverage_table(covered))
covered.groupby(["correction", "population"])["coverage"].agg(["min", "max"]).style.format(precision=3)

# %% [markdown]
# ## What SIGMA's tracks are for (`make sigma PROFILE=sigma_injection`)
#
# Collapse injected by a low temperature, against fresh text: every track with its band, a bootstrap over prompts.

# %%
injected = studies.drifts("sigma_injection")
output.figure("sigma_injection", figures.sigma_tracks(injected))

# %% [markdown]
# ## SIGMA's settings S1 and S2 (`make sigma PROFILE=sigma_s1s2`)
#
# Weights that restart from the base model in every generation, and weights that are carried over: three seeds on the
# prompts of stories, one on those of finance and technology.

# %%
settled = {bank: studies.drifts(name) for bank, name in studies.BANKS.items()}
output.table("sigma_settings", studies.settings_table(settled))
output.figure("sigma_settings", figures.sigma_tracks(settled["stories"]))

# %% [markdown]
# ## What drives the decline, and what stops it (`make ablations`)
#
# Every factor of the grid, from notebook 5: its hypothesis with the verdict, and the effect of each of its levels.

# %%
factors = ablations.studies()
output.table("ablations", ablations.effects_table(factors.values()))
output.table("ablation_hypotheses", ablations.hypotheses_table(factors.values()))
output.figure("ablations", figures.ablation_effects(list(factors.values())))

# %% [markdown]
# ## What changes inside the model (`make mechanism`)
#
# Gradients, drift, activations, leading eigenvectors, the loss around the model and its outputs, from notebook 6. How
# much of the text's decline goes along with each is a correlation.

# %%
inside, studied = study.committed()
output.figure("mechanism_series", figures.series(inside.quantities, study.HEADLINE, height=1.6))

# %%
output.figure("mechanism_parts", figures.mechanism_parts(inside.parts))
output.figure("mechanism_layers", figures.mechanism_layers(inside.layers))
output.figure("outlier_tracks", figures.outlier_tracks(inside.outliers))
output.figure("landscape", figures.landscape(inside.planes, inside.lines, studied.seeds[0]))

# %%
along = mediation.mediation(inside.quantities, study.QUANTITIES, study.OUTCOMES)
output.table("mechanism_differences", report.differences_table(report.differences(inside.quantities)))
output.table("mechanism_fates", report.fates_table(inside.outliers))
output.table("mechanism_mediation", report.mediation_table(along))

# %% [markdown]
# ## Into the paper

# %%
output.values(
    studies.noise_values(noise)
    | studies.batch_sizes_values(sizes, pool)
    | studies.pretrained_values(spectrum)
    | studies.power_iteration_values(stopped)
    | studies.pretrained_runs_values(tuned)
    | studies.coverage_values(covered)
    | studies.injection_values(injected)
    | studies.settings_values(settled["stories"])
    | studies.counts_values()
    | ablations.values(factors)
    | report.values(inside, along, studied),
    "studies",
)

# %% tags=["nbval-check-output"]
print("\n".join(output.written))
