# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
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
# Everything later is a change against this model, so it has to be worth changing: a language model that writes
# coherent text. A model trained from scratch must reach the profile's bound on held-out perplexity, otherwise the
# run stops here, because the decline of gibberish cannot be measured. The same base model, one for each seed, is
# the starting point of all conditions: differences between conditions at one seed are therefore paired.

# %%
import numpy as np
import pandas as pd
from spectral_collapse import figures, measure, params, runs

# %% tags=["parameters"]
profile = "smoke"  # a file of params/; every key in it can be overridden by papermill -p
seed = 1

# %%
settings = params.collect(globals())
run = runs.Run(settings, runs.BASELINE, seed)
baseline = measure.generation(run, 0)
print(f"{settings.model}: {baseline['training']['parameters']:,} parameters, corpus {settings.corpus}")

# %% [markdown]
# ## Is it coherent?
#
# The loss curve should flatten, the held-out perplexity must lie under the bound, and the stories below should read
# like stories. They are drawn without any prompt.

# %%
figures.training_curves([(runs.BASELINE, seed, 0, baseline["training"])])

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
# ## The spectrum of generation 0
#
# The Hessian of the loss on the frozen held-out blocks, by Lanczos quadrature. Eigenvalues at the edges converge in
# a few steps, each with a bound on its error; moments carry a standard error over probes. The interquartile range is
# given as a bracket: a quantile lies between two nodes of the quadrature, and where the bracket is wide the width of
# the bulk is *not identified*. The published estimator interpolates inside that bracket.

# %%
spectrum = baseline["curvature"]
figures.density([("generation 0", spectrum)])

# %%
rows = [
    ("λ_max", spectrum["lambda_max"], spectrum["lambda_max_residual"], "residual bound"),
    ("λ_min", spectrum["lambda_min"], spectrum["lambda_min_residual"], "residual bound"),
    ("tr H / n", spectrum["mean_eigenvalue"], spectrum["mean_eigenvalue_standard_error"], "standard error"),
    ("σ_bulk", spectrum["bulk_sigma"], spectrum["bulk_sigma_standard_error"], "standard error"),
    (
        "log(λ_max / σ_bulk)",
        spectrum["log_spectral_ratio"],
        spectrum["log_spectral_ratio_standard_error"],
        "standard error",
    ),
]
pd.DataFrame(rows, columns=["quantity", "estimate", "error", "kind of error"]).style.format(precision=5).hide()

# %%
low, high = spectrum["iqr_bracket"]
print(f"interquartile range: between {low:.3g} and {high if high is not None else np.inf:.3g}")
print(f"published estimator, one probe: {spectrum['published_iqr']:.3g}, ratio {spectrum['published_ratio']:.3g}")

# %% tags=["nbval-check-output"]
quadrature = [sum(weights) for weights in spectrum["weights"]]
print("probes:", len(quadrature), " weights sum to 1:", bool(np.allclose(quadrature, 1)))
