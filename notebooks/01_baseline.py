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
# # 1 Baseline: generation 0
#
# All later generations are compared with this model, so it must write coherent text. A model trained from scratch must
# reach the profile's bound on held-out perplexity; otherwise the run stops here, because the decline of gibberish
# cannot be measured. All conditions of a seed start from the same base model, so their differences are paired.
#
# *The outputs below are those of the profile `smoke`, a toy run of one minute that tests the code: they say nothing
# about collapse. The studies on TinyStories are shown in notebook 8 and at the end of notebook 7.*

# %%
from spectral_collapse.record import params

# %% tags=["parameters"]
profile = "smoke"  # a file of params/; papermill -p overrides any of its keys
seed = 1

# %%
settings = params.collect(globals())

# %%
import numpy as np
import pandas as pd
from spectral_collapse.experiment import measure, runs
from spectral_collapse.paper import figures
from spectral_collapse.record import params

run = runs.Run(settings, params.BASELINE, seed)
baseline = measure.generation(run, 0)
print(f"{settings.model}: {baseline['training']['parameters']:,} parameters, corpus {settings.corpus}")

# %% [markdown]
# ## Is it coherent?
#
# The loss curve should flatten, held-out perplexity must lie below the bound, and the stories below, drawn without a
# prompt, should read like stories.

# %%
figures.training_curves([(params.BASELINE, seed, 0, baseline["training"])])

# %%
evaluation = baseline["evaluation"]
bound = settings.perplexity_bound
perplexity, error = (evaluation[f"held_out_perplexity{part}"] for part in ("", "_standard_error"))
print(f"held-out perplexity {perplexity:.3f} ± {error:.3f}, bound {bound:g}")
for story in evaluation["stories"][:3]:
    print("\n" + story)

# %% tags=["nbval-check-output"]
print("coherent:", perplexity <= bound)
print("prompts answered:", baseline["responses"]["prompts"])

# %% [markdown]
# ## What its text is like
#
# Metrics of stories drawn without a prompt, of continuations of held-out text against the true ones (BLEU, ROUGE-L),
# and of predictions on the held-out blocks (entropy). Intervals are over texts, for this one model.

# %%
measured = evaluation | baseline["continuations"] | baseline["anchors"]
names = [name.removesuffix("_interval") for name in measured if name.endswith("_interval")]
rows = [[measured[name], *measured[f"{name}_interval"]] for name in names]
pd.DataFrame(rows, index=names, columns=["value", "95 %, low", "high"]).style.format(precision=4, na_rep="–")

# %% [markdown]
# ## The spectrum of generation 0
#
# The Hessian of the loss on the frozen held-out blocks, by Lanczos quadrature. Each quantity comes with its own kind of
# error: an eigenvalue with a residual bound, a moment with standard errors over probes and over blocks of text, a share
# or a quantile with a bracket. All describe this batch: the errors say how much another batch of as many blocks would
# differ, not how far the expected loss is.

# %%
spectrum = baseline["curvature"]
figures.density([("generation 0", spectrum)])

# %%
moments = ["mean_eigenvalue", "bulk_center", "bulk_sigma", "log_spectral_ratio", "effective_rank", "spectral_entropy"]
errors = ["", "_probe_error", "_batch_error"]
rows = [[*(spectrum[name + error] for error in errors), *spectrum[f"{name}_interval"]] for name in moments]
columns = ["estimate", "s.e. over probes", "s.e. over blocks", "95 %, low", "high"]
pd.DataFrame(rows, index=moments, columns=columns).style.format(precision=5, na_rep="–")

# %%
for name in ("lambda_max", "lambda_min"):
    print(f"{name}: an eigenvalue lies within {spectrum[f'{name}_residual']:.2g} of {spectrum[name]:.5g}")
count = spectrum["outlier_count_bracket"]
print(f"outliers: {count[0]:.0f} to {count[1]:.0f}, {spectrum['outlier_separation']:.2g} bulk widths from the rest")

# %% [markdown]
# ## The expected loss
#
# The Hessian of few blocks has a wider spectrum than that of the expected loss, because it contains the blocks' noise.
# Products of different blocks are free of this noise; the largest eigenvalue lies between a quotient on held-out blocks
# and the batch's own. If there are too few blocks, a sentence replaces the number.

# %%
names = ["mean_eigenvalue", "bulk_sigma", "log_ratio", "effective_rank"]
rows = [[spectrum[f"population_{name}"], *spectrum[f"population_{name}_interval"]] for name in names]
expected = pd.DataFrame(rows, index=names, columns=["expected loss", "95 %, low", "high"], dtype=float)
expected.style.format(precision=5, na_rep="–")

# %%
low, high = (np.nan if end is None else end for end in spectrum["lambda_max_bracket"])
print(f"lambda_max: {low:.4g} on held-out blocks, {high:.4g} of the batch")
print(spectrum["population_note"] or f"from {spectrum['population_blocks']} blocks")

# %% [markdown]
# ## What is not identified
#
# The nodes bound the distribution function from both sides. Each quartile lies somewhere within its red bracket. Where
# the brackets are wide, the interquartile range is *not identified*: the published estimator interpolates within them.

# %%
figures.distribution(spectrum)

# %%
low, high = (np.inf if end is None else end for end in spectrum["iqr_bracket"])
print(f"interquartile range: between {low:.3g} and {high:.3g}")
print(f"published estimator, one probe: {spectrum['published_iqr']:.3g}, ratio {spectrum['published_ratio']:.3g}")

# %% tags=["nbval-check-output"]
quadrature = [sum(weights) for weights in spectrum["weights"]]
print("probes:", len(quadrature), " weights sum to 1:", bool(np.allclose(quadrature, 1)))
