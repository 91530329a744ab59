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
# # 2 Treatment: a model trained on its own text
#
# Each generation learns only from what the generation before it wrote: one continuation for every real context, as
# many blocks as every other condition gets. Temperature and nucleus are the profile's. With `weights: carry` a
# generation starts from the weights of the one before, with `restart` from the base model; a condition named
# `recursive_carry` or `recursive_restart` fixes that for itself. Every generation is recorded as soon as it is
# finished, and a run that was interrupted goes on where it stopped.
#
# *In the repository the outputs below are those of the profile `smoke`, a toy run of a minute that tests the code: they
# say nothing about collapse. The study on TinyStories is shown at the end of notebook 7.*

# %%
from spectral_collapse.record import params

# %% tags=["parameters"]
profile = "smoke"  # a file of params/; every key in it can be overridden by papermill -p
seed = 1
condition = "recursive"

# %%
settings = params.collect(globals())

# %%
import pandas as pd
from IPython.display import display
from spectral_collapse.analysis import series
from spectral_collapse.experiment import loop, measure, rescue, runs
from spectral_collapse.paper import figures

run = runs.Run(settings, condition, seed)
generations = [measure.generation(run, generation) for generation in range(settings.generations + 1)]
table = series.table(settings, [condition], [seed], ("training", "evaluation", "curvature"))

# %% tags=["nbval-check-output"]
print("generations:", len(generations))
print("synthetic blocks:", [loop.text(run, g)["synthetic_blocks"] for g in range(1, len(generations))])

# %% [markdown]
# ## What the text loses
#
# The training loss measures how well the model fits its own text and may fall while the held-out perplexity, on real
# text, rises. Diversity and, on storyworld, the tails of the slots show what disappears: *tail coverage* is the number
# of rare fillers the model still produces, over the number that as many true stories would contain.

# %%
figures.series(
    table, ["training_loss", "held_out_perplexity", "distinct_2", "tail_coverage", "slot_kl", "repetition_4"]
)

# %% [markdown]
# ## A story before and after
#
# Drawn from the same random numbers.

# %%
for generation in (0, settings.generations):
    print(f"generation {generation}: {generations[generation]['evaluation']['stories'][0]}\n")

# %% [markdown]
# ## What curvature does meanwhile
#
# Same frozen batch of real text, same probes. One run shows no more than where to look; whether a movement exceeds
# what the controls do is decided over seeds in notebook 7.

# %%
figures.series(table, ["lambda_max", "bulk_sigma", "log_spectral_ratio", "log_published_ratio"], columns=2)

# %%
spectra = [(f"generation {g}", generations[g]["curvature"]) for g in (0, 1, settings.generations)]
figures.density(spectra)

# %% [markdown]
# ## Where in the network?
#
# The same estimates for the Hessian's diagonal block of each part: the embedding, every layer's attention and MLP, the
# head. Bars are standard errors over probes and blocks together. Generations share both, so that a difference between
# them can be clearer than the bars.

# %%
if settings.layerwise_spectra and seed == settings.seeds[0]:  # one seed shows where in the network
    display(figures.layers([(f"generation {g}", measure.layers(run, g)) for g in (0, settings.generations)]))

# %% [markdown]
# ## Can it be undone?
#
# From the weights of each generation, one generation of the real text that the fresh control had: held-out perplexity
# before and after. Whether that is a return is judged in notebook 7, against the band of the control's runs.

# %%
rescued = [rescue.rescue(run, g)["held_out_perplexity"] for g in range(1, settings.generations + 1)]
before = table.set_index("generation")["held_out_perplexity"]
columns = {"generation": before.index[1:], "before": before[1:].array, "after": rescued}
pd.DataFrame(columns).style.format(precision=3).hide()
