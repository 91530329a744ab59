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
# # 4 SIGMA: the Gram matrix of the responses
#
# Every generation answered the same frozen bank of prompts. The answers are cut into blocks of words, each block is
# embedded by a frozen sentence encoder (unit vectors in 384 dimensions), and the Gram matrix $A = \sum v v^\top$ of
# the observed blocks is summed up. Two numbers follow:
#
# - **Track II**, $\log\det(A + \delta I) - m \log n_A$: the log-volume the answers span, corrected for their number;
# - **Track I**, $\log\det(A + (\delta + \tau) I) - m \log n$ with $\tau = \rho\,(n - n_A)$: an upper envelope that
#   holds whatever the unobserved text looks like.
#
# Both are read as drifts from generation 0.

# %%
import functools

from spectral_collapse import corpora, figures, measure, models, params, runs, series

# %% tags=["parameters"]
profile = "smoke"  # a file of params/; every key in it can be overridden by papermill -p
seed = 1

# %%
settings = params.collect(globals())
encoder = functools.cache(models.Encoder)  # loaded only if something is left to embed
real = corpora.RealText(settings)
measured = {}
for name in settings.conditions:
    run = runs.Run(settings, name, seed, real=real)
    measured[name] = [measure.sigma(run, generation, encoder) for generation in range(settings.generations + 1)]

# %% tags=["nbval-check-output"]
print("conditions:", list(measured), " checkpoints:", {len(values) for values in measured.values()})
print("dimension:", {value["dimension"] for values in measured.values() for value in values})

# %% [markdown]
# ## Reading the tracks
#
# A sustained negative drift is contraction. Track I adds the budget $\tau$ to every eigenvalue, so it moves only if
# contraction shows against that budget; where it stays near zero while Track II falls, it is silent, not reassuring.

# %%
table = series.table(settings, seeds=[seed], stages=("evaluation", "sigma"))
figures.sigma_tracks(table)

# %% [markdown]
# ## Surface proxies of the same responses
#
# Concentration of word triples (hashed HHI) rises and the share of distinct pairs falls when answers repeat each
# other. They are context for the tracks, not a definition of collapse.

# %%
figures.series(table, ["track_two_drift", "hashed_ngram_hhi", "distinct_2"])

# %%
last = table[table["generation"] == settings.generations]
last[["condition", "track_two_drift", "track_one_drift", "hashed_ngram_hhi"]].style.format(precision=4).hide()
