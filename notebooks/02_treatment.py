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
# Each generation learns only from text of the generation before: one continuation for every real context, as many
# blocks as in every other condition. Temperature and nucleus are the profile's. With `weights: carry` a generation
# starts from the weights of the one before, with `restart` from the base model; the names `recursive_carry` and
# `recursive_restart` fix this for one condition. Every finished generation is recorded, and interrupted runs resume.
#
# *The outputs below are those of the profile `smoke`, a toy run of one minute that tests the code: they say nothing
# about collapse. The studies on TinyStories are shown in notebook 8 and at the end of notebook 7.*

# %%
from spectral_collapse.record import params

# %% tags=["parameters"]
profile = "smoke"  # a file of params/; papermill -p overrides any of its keys
seed = 1
condition = "recursive"

# %%
settings = params.collect(globals())

# %%
import pandas as pd
from IPython.display import display
from spectral_collapse.experiment import rescue
from spectral_collapse.notebook import trajectory
from spectral_collapse.paper import figures

history = trajectory.trajectory(settings, condition, seed)
run, generations, table = history

# %% tags=["nbval-check-output"]
print("generations:", len(generations))
print("synthetic blocks:", history.synthetic_blocks())

# %% [markdown]
# ## What the text loses
#
# The training loss measures the fit to the model's own text; it may fall while held-out perplexity, on real text,
# rises. Diversity and, on storyworld, the tails of the slots show what disappears: *tail coverage* is the number of
# rare fillers that the model still produces, over the number in as many true stories.

# %%
figures.series(table, trajectory.TEXT)

# %% [markdown]
# ## A story before and after
#
# Both are drawn from the same random numbers.

# %%
for generation in (0, settings.generations):
    print(f"generation {generation}: {generations[generation]['evaluation']['stories'][0]}\n")

# %% [markdown]
# ## What happens to curvature
#
# The batch of real text and the probes are the same for all generations. One run shows only where to look; notebook 7
# decides over seeds whether a movement exceeds that of the controls.

# %%
figures.series(table, trajectory.CURVATURE, columns=2)

# %%
figures.density(history.spectra(0, 1, -1))

# %% [markdown]
# ## Where in the network?
#
# The same estimates for the Hessian's diagonal block of each part: the embedding, every layer's attention and MLP, the
# head; for one seed. Bars are standard errors over probes and blocks together. Generations share both, so a difference
# between them can be clearer than the bars suggest.

# %%
if layers := history.layers():
    display(figures.layers(layers))

# %% [markdown]
# ## Can it be undone?
#
# Each generation's model is trained for one generation on the real text of the fresh control: held-out perplexity
# before and after. Notebook 7 judges, against the band of the control's runs, whether this is a recovery.

# %%
rescued = [rescue.rescue(run, g)["held_out_perplexity"] for g in range(1, settings.generations + 1)]
before = table.set_index("generation")["held_out_perplexity"]
columns = {"generation": before.index[1:], "before": before[1:].array, "after": rescued}
pd.DataFrame(columns).style.format(precision=3).hide()

# %% [markdown]
# How much real text does it take? Where the profile names doses (`rescue_doses`), the last generation is trained on so
# many generations' worth of it, and its matched control too.

# %%
if settings.rescue_doses:
    display(pd.DataFrame(dict(rescue.doses(run, settings.generations))).style.format(precision=3).hide())
