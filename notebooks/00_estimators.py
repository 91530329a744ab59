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
# # 0 Estimators: how far do they move when nothing else does?
#
# Before a spectrum is compared between models, the estimator has to be compared with itself. One checkpoint, the base
# model; what changes is what ought not to matter: the random probe, the batch of real text, and the number of
# Lanczos steps. A width that jumps here cannot tell a collapse from a draw.
#
# - The **published** width is an interquartile range, interpolated between the nodes of one Lanczos run.
# - **Ours** is $\sigma_{\mathrm{bulk}}$, the standard deviation of the spectrum without its converged outliers: two
#   moments, which a quadrature has exactly after two steps, up to the noise of its probe.
#
# Both are of the Hessian of a batch, whose spectrum is wider than that of the expected loss: by how much, and what
# the same blocks say of the expected loss, is in notebook 8.
#
# *In the repository the outputs below are those of the profile `smoke`, a toy run of a minute that tests the code: they
# say nothing about collapse. The study of this question is shown in notebook 8.*

# %%
from spectral_collapse.record import params

# %% tags=["parameters"]
profile = "smoke"  # a file of params/; every key in it can be overridden by papermill -p
seed = 1

# %%
settings = params.collect(globals())

# %%
from spectral_collapse.analysis import estimators
from spectral_collapse.experiment import runs
from spectral_collapse.experiment.estimators import measured
from spectral_collapse.paper import figures
from spectral_collapse.record import params

run = runs.Run(settings, params.BASELINE, seed)
results = [measured(batch)(run, 0) for batch in range(settings.estimator_batches)]
frame = estimators.noise(results, settings.estimator_steps)

# %% tags=["nbval-check-output"]
print("batches:", len(results), " probes:", {len(result["alphas"]) for result in results})
print("steps:", settings.estimator_steps)

# %% [markdown]
# ## Each dot is one probe
#
# Relative to the quantity's median at the most steps, over all batches; one column of dots for each batch. All panels
# share one logarithmic axis: the scatter of the dots is the estimator's noise, a drift from panel group to panel group
# is its failure to converge.

# %%
figures.estimators(frame)

# %% [markdown]
# ## The same in numbers
#
# Coefficients of variation over probes and over batches at the fewest steps, and the median of each quantity at a
# number of steps relative to its value at the most.

# %%
estimators.noise_summary(frame).style.format(precision=3, na_rep="–")
