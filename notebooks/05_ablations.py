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
# # 5 Ablations: what drives the collapse, and what stops it?
#
# One factor of the grid in `params/ablations.yaml` at a time. Every level is a profile of the same loop: what the grid
# extends, with a few parameters changed. Levels that differ only in what happens after generation 0 start from the
# same base models and the same real contexts, so that they are paired by seed. What is there already is read, not
# computed again.
#
# *In the repository the outputs below are those of the factor `smoke`, a toy that tests the code: they say nothing
# about collapse. The studies of all other factors are shown in notebook 8.*

# %%
from spectral_collapse.record import params

# %% tags=["parameters"]
factor = "smoke"  # a factor of the grid; this one runs in seconds, and nothing is learned from it
grid = "ablations"  # a file of params/ with factors; ablations_hub: the same on pretrained weights, at full size
data_path = None  # a local text file, where the grid's profile reads one

# %%
given = params.collect_factor(globals())

# %%
import pandas as pd
from spectral_collapse.analysis import ablations
from spectral_collapse.experiment import factors
from spectral_collapse.paper import figures
from spectral_collapse.paper.ablations import described

factor = factors.read(**given)
print(factor.question)
levels = {level: described(changes) for level, changes in factor.changes.items()}
pd.DataFrame(levels.items(), columns=["level", "changes"]).style.hide()

# %%
factors.run(factor)
study = ablations.Study(factor, ablations.table(factor))
runs = study.runs

# %% tags=["nbval-check-output"]
print("levels:", list(levels), " reference:", factor.reference)
print("runs:", len(runs.groupby(["level", "condition", "seed"])), " generations:", runs["generation"].max())

# %% [markdown]
# ## What each level does
#
# Changes from the base model. Thin lines are runs, thick ones means over seeds; the reference is black, and dashed
# lines are the fresh control where a level has one.

# %%
figures.ablation(runs, factor.reference)

# %% [markdown]
# ## How much, against the reference?
#
# The change from generation 0 to the last generation at a level, less the same at the reference level, paired by seed:
# its mean with a 95 % t interval, and $d_z$, that mean over the standard deviation of the paired differences, with the
# interval that inverts the noncentral t distribution. Where the hypothesis names a control, each change is taken
# relative to that control's. With three seeds only very large effects are told from none.

# %%
study.effects.style.format(precision=3).hide()

# %% [markdown]
# ## The hypothesis
#
# Written down in the grid before the runs, with the contrast that tests it and the region in which it holds. It is
# supported if the whole interval lies there, contradicted if none of it does, inconclusive otherwise.

# %%
value, low, high = study.estimate
print(f"{factor.hypothesis} {study.verdict.capitalize()}: {value:.3g} [{low:.3g}, {high:.3g}].")

# %%
folder = ablations.write(study)

# %% tags=["nbval-check-output"]
print("written:", ", ".join(sorted(file.name for file in folder.glob("*.*"))))
