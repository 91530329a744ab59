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
# # 0 The public records: what do the Hessian study's own files say?
#
# The study reports a spectral ratio, $\lambda_{\max}$ over the width of the bulk, that explodes at generation 1 of
# recursive training and then collapses. Its repository holds what the ratio was computed from: the eigenvalues of its
# power iteration, and the nodes and weights of each Lanczos run. That is evidence at 124 to 500 million parameters
# that costs no computing. Everything below is recomputed from those files; one run each, so nothing is tested.
#
# *The numbers are the study's (github.com/Thaman-N/hessian-analysis at commit 19bd2d97, 11 February 2026), copied to
# `results/published`; they are not results of this project, and no profile, `smoke` included, changes them. The paper's
# figure and table of them are shown in notebook 8.*

# %%
from spectral_collapse.record import params

# %% tags=["parameters"]
profile = "smoke"  # nothing below depends on it

# %%
settings = params.collect(globals())

# %%
from spectral_collapse.analysis import public_records
from spectral_collapse.paper import figures

spectra, text = public_records.spectra(), public_records.text_metrics()
printed = public_records.claimed(spectra)
figures.public_records(spectra, printed, text)

# %% [markdown]
# The recorded widths follow from the recorded nodes to the last digit. But one node near zero carries almost all the
# weight, and the nodes beside it lie units apart: any quartile between them agrees with the run. The bars are those
# ranges. All of them begin at zero and overlap, so no two widths of SmolLM2 can be told apart, and the ratio's spikes
# are spikes of this width.

# %%
columns = ["description", "generation", "lambda_max", "published_iqr", "iqr_low", "iqr_high", "published_ratio"]
spectra[[*columns, "sigma", "log_ratio"]].style.format(precision=3, na_rep="–").hide()

# %% [markdown]
# ## What the same nodes do determine
#
# The standard deviation $\sigma$ of the spectrum without the ten largest nodes, and with it a ratio that converges:
# $\log(\lambda_{\max}/\sigma)$. It does not explode at generation 1, and ends where the controls are.

# %%
small = spectra.assign(condition=spectra["run"].map(public_records.RUNS)).dropna(subset="condition")
small.pivot(index="generation", columns="condition", values="log_ratio").style.format(precision=2, na_rep="–")

# %% [markdown]
# ## The printed table and the files
#
# The table of the study's README, beside the ratio that its files hold for the same condition and generation. The files
# of the recursive run come from a run of 30 nodes, and are not those of the table.

# %%
printed.pivot(index="generation", columns="condition", values=["printed", "recorded"]).style.format(precision=0)

# %% [markdown]
# ## Plain signals
#
# Perplexity and Shannon entropy of the same study, in its own metrics.

# %%
text.pivot(index="generation", columns="condition", values=["perplexity", "entropy"]).style.format(precision=2)

# %% tags=["nbval-check-output"]
found = public_records.findings(spectra, printed, text)
print("widths recomputed:", found["spectra"], " bracket reaches zero:", found["unidentified"])
print("pairs of SmolLM2's brackets that overlap:", found["overlapping"], "of", found["pairs"])
print("cells of the recursive run's table that differ from the files:", found["differing"], "of", found["cells"])
print("runs without a spectrum, recorded as ratio 0:", found["failed"])
