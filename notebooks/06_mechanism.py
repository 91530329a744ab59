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
# # 6 Mechanism: what changes inside the model
#
# Text declines under recursion; this notebook looks at the model that writes it. Six views of every generation of
# every run, all on the same frozen real text and along the same directions, so that generations can be compared:
# gradients, drift of the parameters, activations, the leading Hessian eigenvectors, the loss around the model, and the
# distribution of the next token. At the end, how much of the text's decline goes along with each of them. That is
# correlation: no quantity below was changed by itself.
#
# *In the repository the outputs below are those of the profile `smoke`, a toy run of a minute that tests the code: they
# say nothing about collapse. The study of this question is shown in notebook 8.*

# %%
from spectral_collapse.record import params

# %% tags=["parameters"]
profile = "smoke"  # a file of params/; all its seeds and conditions are measured, or read where they have been

# %%
settings = params.collect(globals())

# %%
from spectral_collapse.analysis import mechanism, mediation
from spectral_collapse.experiment.mechanism import measured
from spectral_collapse.paper import figures

study = mechanism.tables(measured(settings), settings)
mechanism.write(study, settings)
cells = study.quantities[["condition", "seed", "generation"]]

# %% tags=["nbval-check-output"]
print("models:", len(cells), " quantities:", len(mechanism.QUANTITIES))
print("runs:", len(cells.drop_duplicates(["condition", "seed"])), " parts:", study.parts["part"].nunique() - 1)

# %% [markdown]
# ## The story in twelve series
#
# If recursion were ordinary training, both conditions would run together. Where they part tells what recursion adds:
#
# - the **gradient on real text** grows where the model leaves its minimum for real text, and its *signal*
#   $|G|^2/\mathrm{tr}\,\Sigma$, the inverse of the gradient noise scale in blocks, where all blocks pull the same way;
# - the **drift** is how far the parameters went, and which share of it lies along the leading eigenvectors of
#   generation 0, where a random direction would have $k/n$;
# - **activations** lose dimensions if the representation collapses, and CKA falls as it moves;
# - the **output** loses mass on rare tokens before it loses anything else: here tails vanish.

# %%
figures.series(study.quantities, mechanism.HEADLINE, height=1.6)

# %% [markdown]
# ## Where in the network
#
# Drift and gradients part by part: embedding, each layer's attention and MLP, the final norm. The cosine of the
# gradients on real text and on the generation's own training text says whether the two ask for the same change; at
# generation 0 the "own" text is other real text, so that its cosine is what two batches of one distribution have.

# %%
figures.mechanism_parts(study.parts)

# %% [markdown]
# ## What the layers do with real text
#
# The effective rank of the activations' covariance by two definitions, the mean cosine of pairs of tokens, and debiased
# linear CKA to generation 0.

# %%
figures.mechanism_layers(study.layers)

# %% [markdown]
# ## Do outliers merge, rotate or rescale?
#
# The leading eigenvectors of generation 0 are handed from generation to generation by the assignment with the greatest
# squared overlaps. One *merges* when most of it has left the leading eigenspace and the curvature along it has sunk
# below all of that; it *rotates* when less than half of it is the old direction; it *rescales* when its eigenvalue
# changed by more than a quarter. Those of the `fresh` control say how much of this is ordinary training.

# %%
figures.outlier_tracks(study.outliers)

# %%
mechanism.fate_counts(study.outliers)

# %% [markdown]
# ## The loss around the model
#
# One plane, spanned by two random directions whose filters have the lengths of generation 0's, moved to every
# generation, on one colour scale; and the straight lines from generation 0 to the last and from each generation to the
# next. A bump on such a line would separate two valleys.

# %%
figures.landscape(study.planes, study.lines, settings.seeds[0])

# %%
barriers = study.lines.groupby(["since", "condition", "seed"])["barrier"].max().unstack()
barriers.style.format(precision=4).set_caption("largest excess over the chord (nats); at most 0: one valley")

# %% [markdown]
# ## Do conditions differ at the end?
#
# Paired by seed, Holm's correction over all quantities. Few seeds show large differences only.

# %%
mechanism.differences(study.quantities).style.format(precision=4).hide()

# %% [markdown]
# ## How much goes along with what?
#
# The gap between conditions in held-out perplexity, and in distinct-2, against the gap in each quantity, over seeds and
# generations: the share is one less what remains of the gap where the quantity's own gap is zero. Intervals resample
# seeds and are too short for few of them. **A share is a correlation**: entropy and perplexity are read from the same
# predictions, and whatever grows with the generations accounts for whatever else does.

# %%
mediated = mediation.mediation(study.quantities, mechanism.QUANTITIES, mechanism.OUTCOMES)
shown = mediated[["quantity", "outcome", "gap", "total", "share", "low", "high"]]
shown.style.format(precision=3, na_rep="–").hide()
