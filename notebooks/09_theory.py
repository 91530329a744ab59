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
# # 9 Two recursions that can be solved
#
# A language model that learns from its own text is too complicated to say what *must* happen. Two simpler recursions
# can be solved exactly, and they have every signal that this project measures.
#
# * **Categorical**: a distribution over $K$ types is fitted to $N$ draws of the one before (Wright and Fisher's model
#   of a population without mutation). The Hessian of its loss in the logits is $\mathrm{diag}(p) - pp^\top$, whose
#   trace is $1 - \sum p^2$, the chance that two draws differ. *Curvature and diversity are one number here*.
# * **Gaussian**: mean and covariance are fitted to $N$ draws of the one before. Its $\log\det\Sigma$ is what SIGMA's
#   Track II estimates, and it falls by a constant a generation.
#
# The control is fitted to $N$ draws of the truth in each generation.
#
# *Nothing below depends on a run; the seed of the draws is the first one of the profile `smoke`. What language models
# do instead is shown in notebook 7.*

# %%
from spectral_collapse.record import params

# %% tags=["parameters"]
profile = "smoke"  # the seed of the draws is its first one

# %%
settings = params.collect(globals())

# %%
import numpy as np
import pandas as pd
from spectral_collapse.analysis import theory
from spectral_collapse.paper import figures

types, dimensions, draws, generations = theory.EXAMPLES.values()  # K, of a Zipf law; m; N
p = theory.zipf(types)
moments = {
    "categorical": theory.categorical(p, draws, generations),
    "Gaussian": theory.gaussian(dimensions, draws, generations),
}

# %% [markdown]
# ## Theory and simulation
#
# The line is the exact mean, the band two standard deviations around it, the grey lines are ten simulated runs.

# %%
rng = np.random.default_rng(settings.seeds[0])
shares = theory.categorical_runs(p, draws, generations, 10, rng)[:, 1:]
fits = [theory.gaussian_run(dimensions, draws, generations, rng)[1:] for _ in range(10)]
runs = {"categorical": theory.categorical_signals(p, shares), "Gaussian": theory.gaussian_signals(fits)}
figures.recursion(moments, runs)

# %% [markdown]
# ## Which signal tells first?
#
# $d'$ is the distance between recursion and control in standard deviations: what a single look at one generation can
# tell. In both recursions the held-out loss leads, and the lead grows with the sample: $d'$ of the loss does not depend
# on $N$, while that of diversity, of curvature and of $\log\det\Sigma$ falls like $1/\sqrt N$. The reason is the number
# of directions that are watched. The excess loss adds up the squared errors of all $K - 1$ (or $m(m + 3)/2$)
# parameters, each of which drifts; diversity and the log-determinant project them on one direction. The loss is
# exact here; a held-out text adds an error of its own, which runs that share the text have in common.

# %%
found = theory.examples()
figures.detectability(found)

# %%
second = {
    (name, f"N = {n:,}"): frame[frame["generation"] == 2].set_index("signal")["d_prime"]
    for name, by_draws in found.items()
    for n, frame in by_draws.items()
}
pd.DataFrame(second).T.style.format(precision=2, na_rep="").set_caption("d′ at generation 2")

# %% tags=["nbval-check-output"]
for (name, size), values in second.items():
    print(f"{name}, {size}: the signal of largest d′ at generation 2 is {values.idxmax()}")

# %% [markdown]
# Language models differ in what matters here: they are not refitted from nothing but trained on from a base model, with
# few steps, and their synthetic text is drawn at a temperature and cut at a nucleus, which biases every generation the
# same way. A signal that leads perplexity there owes its lead to that bias, or to what the loss does not see, and not
# to the loss of tails by sampling alone.
