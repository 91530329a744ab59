# The graph of one profile: base models, runs of every condition, embeddings, statistics, PDF.
#   snakemake --workflow-profile params/cluster/default --config profile=tinystories data_path=stories.txt
# Any parameter of the profile may be set behind --config; it reaches every notebook.
import shlex
import sys
from pathlib import Path

import yaml

from spectral_collapse.paper import pdf
from spectral_collapse.record import evidence, params, paths, schema

try:
    overrides = {key: value for key, value in config.items() if key not in ("profile", "grid")}
    for key in overrides.keys() & {"data_path", "held_out_path", "checkpoint"}:
        # Notebooks run in their own folder; a file or folder that is named from here must be found from there.
        if Path(str(overrides[key])).expanduser().exists():
            overrides[key] = str(Path(overrides[key]).expanduser().resolve())
    P = params.load(config.get("profile", "default"), **overrides)
    NAME = params.name_of(P)  # the profile's, or that of the variant which the overrides make of it
    GRID = config.get("grid", params.GRID)
    FACTORS = params.studied_factors(GRID)
except ValueError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
if place_of_variant := params.where(P):
    print(place_of_variant, file=sys.stderr)


def given(*keys: str) -> str:
    """papermill's arguments for parameters that were set behind --config: as YAML, which keeps their types."""
    lines = (yaml.safe_dump({key: getattr(P, key)}, default_flow_style=None, width=2**16).strip() for key in keys)
    # Snakemake reads braces in a command as its own.
    return " ".join(f"-y {shlex.quote(line)}" for line in lines).replace("{", "{{").replace("}", "}}")


def place(folder: Path) -> Path:
    """Relative to the checkout what lies in it: only that can be found under the prefix of a storage provider."""
    return folder.relative_to(paths.ROOT) if folder.is_relative_to(paths.ROOT) else folder


MODEL = place(paths.model_folder(NAME, P.model))
GENERATED = place(paths.generated_folder(NAME))
STUDIES = place(paths.results_root()) / GRID
# What every notebook depends on: without these an edit would leave "nothing to be done".
SOURCES = [
    *(str(file.relative_to(paths.ROOT)) for file in params.profile_files(P.profile)),
    f"params/prompts/{P.prompt_bank}.jsonl",
    "paper/studies.yaml",
    *sorted(str(file.relative_to(paths.ROOT)) for file in (paths.ROOT / "lib" / "spectral_collapse").rglob("*.py")),
]
# Packed studies and published figures, which stand in every paper.
EVIDENCE = [*map(evidence.PACKS.file, evidence.PACKS.studies()), *paths.PUBLISHED.iterdir()]
EVIDENCE = sorted(str(file.relative_to(paths.ROOT)) for file in EVIDENCE)
PARAMETERS = given(*overrides)
# Outputs are flags: Snakemake deletes the outputs of a rule that fails, and records must outlive that.
PAPERMILL = (
    f"{shlex.quote(sys.executable)} -m papermill {{input.notebook:q}} {{log:q}} "
    "--cwd notebooks --no-progress-bar --log-level ERROR"
)
# The notebook reads the profile's file itself: papermill's -f would write the file's keys into the notebook as code.
EXECUTE = f"{PAPERMILL} -p profile {P.profile} {PARAMETERS}"


def treated(condition: str) -> bool:
    return schema.split_condition(condition, P.weights)[0] == "recursive"


def flags(phase: str, conditions: list[str]) -> list[str]:
    return expand(str(MODEL / "{condition}" / "seed_{seed}" / f"{phase}.done"), condition=conditions, seed=P.seeds)


RUNS = flags("treatment", [c for c in P.conditions if treated(c)])
RUNS += flags("controls", [c for c in P.conditions if not treated(c)])


wildcard_constraints:
    seed=r"\d+",
    condition="|".join(schema.CONDITIONS),


localrules:
    all,
    results,
    estimators,
    ablations,


rule all:
    input:
        f"paper/{NAME}.pdf",
    shell:
        "echo The paper is {input}."


rule results:
    input:
        [GENERATED / name for name in pdf.GENERATED],


rule baseline:
    input:
        SOURCES,
        notebook="notebooks/01_baseline.ipynb",
    output:
        touch(MODEL / "baseline" / "seed_{seed}" / "baseline.done"),
    log:
        MODEL / "baseline" / "seed_{seed}" / "01_baseline.ipynb",
    threads: P.threads
    priority: 1  # before the studies, which nothing waits for and which fill the last job's idle core
    resources:
        mem_mb=8000,
        runtime=240,
    shell:
        EXECUTE + " -p seed {wildcards.seed}"


# Not in the paper's graph: its record is packed in results/evidence.
rule estimators:
    input:
        flags("estimators", ["baseline"])[0],


rule estimator_noise:
    input:
        SOURCES,
        MODEL / "baseline" / "seed_{seed}" / "baseline.done",
        notebook="notebooks/00_estimators.ipynb",
    output:
        touch(MODEL / "baseline" / "seed_{seed}" / "estimators.done"),
    log:
        MODEL / "baseline" / "seed_{seed}" / "00_estimators.ipynb",
    threads: P.threads
    resources:
        mem_mb=8000,
        runtime=720,
    shell:
        EXECUTE + " -p seed {wildcards.seed}"


# Not in the paper's graph either: those of the profile `mechanism` are packed.
rule mechanism:
    input:
        SOURCES,
        RUNS,
        notebook="notebooks/06_mechanism.ipynb",
    output:
        touch(MODEL / "mechanism" / "mechanism.done"),
    log:
        MODEL / "mechanism" / "06_mechanism.ipynb",
    threads: P.threads
    resources:
        mem_mb=8000,
        runtime=240,
    shell:
        EXECUTE


# Not in the paper's graph either: one job a factor of the grid; the studies are packed.
rule ablations:
    input:
        expand(str(STUDIES / "{factor}" / "ablation.done"), factor=FACTORS),


rule ablation:
    input:
        SOURCES,
        [str(file.relative_to(paths.ROOT)) for file in params.grid_files(GRID)],
        notebook="notebooks/05_ablations.ipynb",
    output:
        touch(STUDIES / "{factor}" / "ablation.done"),
    log:
        STUDIES / "{factor}" / "05_ablations.ipynb",
    resources:
        mem_mb=4000,
        runtime=240,
    shell:
        f"{PAPERMILL} -p grid {GRID} -p factor {{wildcards.factor}} {given(*overrides.keys() & {'data_path'})}"


rule treatment:
    input:
        SOURCES,
        MODEL / "baseline" / "seed_{seed}" / "baseline.done",
        notebook="notebooks/02_treatment.ipynb",
    output:
        touch(MODEL / "{condition}" / "seed_{seed}" / "treatment.done"),
    log:
        MODEL / "{condition}" / "seed_{seed}" / "02_treatment.ipynb",
    threads: P.threads
    priority: 1
    resources:
        mem_mb=8000,
        runtime=720,
    shell:
        EXECUTE + " -p seed {wildcards.seed} -p condition {wildcards.condition}"


use rule treatment as controls with:
    input:
        SOURCES,
        MODEL / "baseline" / "seed_{seed}" / "baseline.done",
        notebook="notebooks/03_controls.ipynb",
    output:
        touch(MODEL / "{condition}" / "seed_{seed}" / "controls.done"),
    log:
        MODEL / "{condition}" / "seed_{seed}" / "03_controls.ipynb",


rule sigma:
    input:
        SOURCES,
        lambda wildcards: [flag for flag in RUNS if f"seed_{wildcards.seed}/" in flag],
        notebook="notebooks/04_sigma.ipynb",
    output:
        touch(MODEL / "sigma" / "seed_{seed}" / "sigma.done"),
    log:
        MODEL / "sigma" / "seed_{seed}" / "04_sigma.ipynb",
    threads: P.threads
    priority: 2  # as soon as a seed's runs are there, so that the last one does not run alone
    resources:
        mem_mb=8000,
        runtime=240,
    shell:
        EXECUTE + " -p seed {wildcards.seed}"


def judged(wildcards):
    """No file: what the statistics will need is checked, and what they will not judge said, before anything trains."""
    from spectral_collapse.analysis import design  # slow to import, and few graphs need it

    try:
        print(*design.limits(P), sep="\n", file=sys.stderr)
    except ValueError as error:
        raise WorkflowError(str(error)) from None
    return []


rule statistics:
    input:
        judged,
        SOURCES,
        EVIDENCE,
        RUNS,
        flags("sigma", ["sigma"]),
        notebook="notebooks/07_statistics.ipynb",
    output:
        GENERATED / "numbers.tex",
    log:
        MODEL / "07_statistics.ipynb",
    resources:
        mem_mb=4000,
        runtime=30,
    shell:
        EXECUTE


rule studies:
    input:
        SOURCES,
        EVIDENCE,
        notebook="notebooks/08_studies.ipynb",
    output:
        GENERATED / "studies.tex",
    log:
        MODEL / "08_studies.ipynb",
    resources:
        mem_mb=4000,
        runtime=30,
    shell:
        EXECUTE


rule pdf:
    input:
        [GENERATED / name for name in pdf.GENERATED],
        [f"paper/{name}" for name in pdf.SOURCES],
    output:
        f"paper/{NAME}.pdf",
    resources:
        mem_mb=2000,
        runtime=15,
    shell:
        f"{shlex.quote(sys.executable)} -m spectral_collapse.paper.pdf {NAME}"


# Apart from the paper's graph: SIGMA's reports, for profiles that have its settings S1 and S2, and its checks.
rule sigma_experiment:
    input:
        SOURCES,
        "paper/sigma_card.yaml",
        flags("sigma", ["sigma"]),
    output:
        touch(MODEL / "sigma" / "experiment.done"),
    resources:
        mem_mb=4000,
        runtime=30,
    shell:
        f"{shlex.quote(sys.executable)} -m spectral_collapse.paper.sigma_experiment {P.profile} {PARAMETERS}"
