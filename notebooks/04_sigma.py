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
# # 4 SIGMA: the Gram matrix of the responses
#
# Every generation answered the same frozen bank of prompts. The same number of blocks of words is cut from every
# answer, each block is embedded by a frozen sentence encoder (unit vectors in 384 dimensions), and the Gram matrix
# $A = \sum v v^\top$ of the $n_A$ observed blocks is summed up. Two numbers follow, read as drifts from generation 0:
#
# - **Track II**, $\log\det(A + \delta I) - m \log n_A$: the log-volume the answers span, corrected for their number;
# - **Track I**, an upper envelope of the same for all $n$ blocks, observed or not, from the energy budget
#   $\tau = \rho\,(n - n_A)$ of the others. As published it adds $\tau$ to every eigenvalue of $A$; the sharp one
#   spreads the budget once, as water fills a vessel, and no valid envelope lies below it.
#
# *In the repository the outputs below are those of the profile `smoke`, a toy run of a minute that tests the code: they
# say nothing about collapse. SIGMA's experiments are shown in notebook 8.*

# %%
from spectral_collapse.record import params

# %% tags=["parameters"]
profile = "smoke"  # a file of params/; every key in it can be overridden by papermill -p
seed = 1

# %%
settings = params.collect(globals())

# %%
import math

import pandas as pd
from IPython.display import display
from spectral_collapse.analysis import forecast, series
from spectral_collapse.experiment import encoded, runs
from spectral_collapse.paper import figures
from spectral_collapse.record import paths
from spectral_collapse.text import corpora

real, generations = corpora.RealText(settings), range(settings.generations + 1)
measured = {}
for name in settings.conditions:
    run = runs.Run(settings, name, seed, real=real)
    measured[name] = [encoded.sigma(run, generation) for generation in generations]
    for generation in generations:
        encoded.coherence(run, generation)
space = encoded.embeddings(run, 0)

# %% tags=["nbval-check-output"]
print("conditions:", list(measured), " checkpoints:", {len(values) for values in measured.values()})
print("prompts:", len(space["observed_ids"]), " dimension:", space["dimension"])
print("live dimensions:", space["live_dimensions"], " dead coordinates:", space["dead_coordinates"])

# %% [markdown]
# ## Is the input sound?
#
# The observed set is the prompt bank: generation 0 records its ids, and each checkpoint is checked against them. The
# encoder never writes to some of its own coordinates, which would make every Gram matrix singular; they are found once,
# on all prompt banks and storyworld, and left out. A prompt whose answer is too short at generation 0 or at a later one
# is left out of both, since a drift with another number of blocks is a drift of that number. Other problems are listed
# below, a sentence each.

# %%
counts = {name: [value["observed_blocks"] for value in values] for name, values in measured.items()}
display(pd.DataFrame(counts).rename_axis("generation").T.rename_axis("observed blocks"))
dead, start = len(space["dead_coordinates"]), measured[settings.conditions[0]][0]["observed_blocks"]
print(f"Kept, {dead} dead coordinates would add {dead * math.log(settings.sigma_delta / start):.1f} to Track II.")
messages = {message for values in measured.values() for value in values for message in value["health"]}
print("\n".join(sorted(messages)) or "Nothing to report.")

# %% [markdown]
# ## How large is log det G?
#
# The published estimate is $\log\det A + m\log(n/n_A)$ with an interval from a central limit theorem. It is low by
# about $(\sigma^2 + m^2 - m)/2$ times $1/n_A - 1/n$, far outside that interval unless $n_A \gg m^3$, and takes blocks
# for independent; the corrected one takes the bias from the leverages of prompts and its interval from a jackknife over
# them. Both are given from $1.2\,m$ blocks on.

# %%
rows = [
    (name, generation, kind, *measured[name][generation][f"logdet_{kind}"])
    for name in measured
    for generation in (0, settings.generations)
    for kind in ("plug_in", "corrected")
    if measured[name][generation][f"logdet_{kind}"]
]
estimates = pd.DataFrame(rows, columns=["condition", "generation", "kind", "log det G", "low", "high"])
display("No checkpoint has blocks enough for its live dimensions: no estimate." if estimates.empty else estimates)

# %% [markdown]
# ## Reading the tracks
#
# A sustained negative drift is contraction. Bands are 95 %, by a bootstrap over prompts, paired with generation 0: they
# hold the noise of prompts and answers, not that of training, for which notebook 7 compares seeds. Beside Track II
# stands the log-determinant without its bias, where there are blocks enough for it. Track I as published can hardly
# move, whatever the model writes; where it stays near zero it is silent, not reassuring.

# %%
drifts = series.drifts(settings, seeds=[seed])
display(figures.sigma_tracks(drifts))
drifts[drifts["generation"] == settings.generations].style.format(precision=3).hide()

# %% [markdown]
# ## The published series beside ours
#
# The two published tracks differ by $m\log(n_A(t)/977)$ and nothing else, with $n_A$ between 977 and 1000: in the
# middle, the gap solved for $n_A$ falls on whole numbers. There was no unobserved text in it, so Track I was Track II
# with another count.

# %%
points = pd.read_csv(paths.PUBLISHED / "sigma_fin_s1_points.csv")
figures.sigma_published(points, drifts[drifts["condition"] == settings.conditions[0]])

# %% [markdown]
# ## Which prompts, and which words?
#
# First Track II within each bucket of the bank. A bucket has fewer blocks than dimensions: its drift is of the volume
# its own answers span, and is not a part of the whole's. Then proxies: concentration of word triples (hashed HHI) rises
# and the share of distinct pairs falls when answers repeat each other; coherence is the mean cosine of consecutive
# sentences, prompt similarity that of a prompt with its answer. They are context, not a definition of collapse.

# %%
display(figures.sigma_buckets(series.bucket_drifts(settings, seeds=[seed])))
table = series.table(settings, seeds=[seed], stages=("evaluation", "sigma", "coherence"))
figures.series(table, ["hashed_ngram_hhi", "response_distinct_2", "coherence", "prompt_similarity"], columns=4)

# %% [markdown]
# ## Does the series forecast itself?
#
# If a generation acts on the track as a fixed map, $x_{t+1} = K x_t + b$ (a Koopman operator on the observables 1 and
# $x$), then the rate $K$ and the fixed point $b/(1-K)$ say how fast it goes where. The fit to the past is scored on the
# generations after it, against the naive forecast that nothing changes. It takes five generations.

# %%
forecast.forecasts(table, "track_two_drift").style.format(precision=3).hide()
