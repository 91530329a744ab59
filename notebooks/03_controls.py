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
# A decline under recursion means nothing until continued training is ruled out as its cause. The controls have the same
# recipe, number of blocks and seeds, and other text:
#
# - `fresh`, a new slice of real text each generation: continued learning;
# - `static`, the same real slice each generation: overfitting without recursion;
# - `mixed`, part real text, part text of the generation before: the dose of synthetic text;
# - `accumulate`, a draw from all text so far, real and synthetic: accumulation at the same budget.
#
# *The outputs below are those of the profile `smoke`, a toy run of one minute that tests the code: they say nothing
# about collapse. The studies on TinyStories are shown in notebook 8 and at the end of notebook 7.*

# %%
from spectral_collapse.record import params

# %% tags=["parameters"]
profile = "smoke"  # a file of params/; papermill -p overrides any of its keys
seed = 1
condition = "fresh"

# %%
settings = params.collect(globals())

# %%
import pandas as pd
from IPython.display import display
from spectral_collapse.analysis import statistics
from spectral_collapse.experiment import rescue
from spectral_collapse.notebook import trajectory
from spectral_collapse.paper import figures

history = trajectory.trajectory(settings, condition, seed)
run, table = history.run, history.table

# %% tags=["nbval-check-output"]
print("generations:", len(history.generations))
print("synthetic blocks:", history.synthetic_blocks())

# %% [markdown]
# ## Does the control hold still?
#
# In a healthy control held-out perplexity falls or stays level, and diversity stays level. The spread of the `fresh`
# runs is what any warning has to exceed.

# %%
figures.series(table, trajectory.TEXT)

# %%
figures.series(table, trajectory.CURVATURE, columns=2)

# %%
if layers := history.layers():
    display(figures.layers(layers))

# %%
columns = ["generation", "held_out_perplexity", "distinct_2", "lambda_max", "log_spectral_ratio"]
pd.DataFrame(table[columns]).style.format(precision=3).hide()

# %% [markdown]
# The doses of real text that a rescue of the treated model takes (notebook 2), given to this one as well: what they do
# to a model that has not declined.

# %%
if settings.rescue_doses and run.source == statistics.CONTROL:
    display(pd.DataFrame(dict(rescue.doses(run, settings.generations))).style.format(precision=3).hide())
