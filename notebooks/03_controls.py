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
# # 3 Controls: what happens without recursion
#
# A decline under recursion means nothing until continued training as such is ruled out. The same recipe, the same
# number of blocks and the same seeds, with other text:
#
# - `fresh`: a new slice of real text each generation: continued learning;
# - `static`: the same real slice each generation: overfitting without recursion;
# - `mixed`: part real, part written by the generation before: the dose of synthetic text;
# - `accumulate`: all text so far, real and synthetic, in the same budget of blocks.
#
# *In the repository the outputs below are those of the profile `smoke`, a toy run of a minute that tests the code: they
# say nothing about collapse. The study on TinyStories is shown at the end of notebook 7.*

# %%
from spectral_collapse.record import params

# %% tags=["parameters"]
profile = "smoke"  # a file of params/; every key in it can be overridden by papermill -p
seed = 1
condition = "fresh"

# %%
settings = params.collect(globals())

# %%
import pandas as pd
from IPython.display import display
from spectral_collapse.analysis import series
from spectral_collapse.experiment import loop, measure, runs
from spectral_collapse.paper import figures

run = runs.Run(settings, condition, seed)
generations = [measure.generation(run, generation) for generation in range(settings.generations + 1)]
table = series.table(settings, [condition], [seed], ("training", "evaluation", "curvature"))

# %% tags=["nbval-check-output"]
print("generations:", len(generations))
print("synthetic blocks:", [loop.text(run, g)["synthetic_blocks"] for g in range(1, len(generations))])

# %% [markdown]
# ## Does the control hold still?
#
# Held-out perplexity of a healthy control falls or stays; its diversity stays. These series are the yardstick: the
# spread of the `fresh` runs is what any warning has to exceed.

# %%
figures.series(
    table, ["training_loss", "held_out_perplexity", "distinct_2", "tail_coverage", "slot_kl", "repetition_4"]
)

# %%
figures.series(table, ["lambda_max", "bulk_sigma", "log_spectral_ratio", "log_published_ratio"], columns=2)

# %%
if settings.layerwise_spectra and seed == settings.seeds[0]:  # one seed shows where in the network
    display(figures.layers([(f"generation {g}", measure.layers(run, g)) for g in (0, settings.generations)]))

# %%
columns = ["generation", "held_out_perplexity", "distinct_2", "lambda_max", "log_spectral_ratio"]
pd.DataFrame(table[columns]).style.format(precision=3).hide()
