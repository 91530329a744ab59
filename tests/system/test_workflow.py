"""The frame: pinned environment, workflow graph on one machine and on Slurm, and the PDF."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from spectral_collapse.paper import pdf
from spectral_collapse.record import params, paths


def pins(lines) -> dict[str, str]:
    return {
        re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (line.strip().split("==") for line in lines)
    }


# tests/run.sh has run the smoke profile there; the fixtures look elsewhere.
SMOKE = paths.generated_folder("smoke")
LOCK = (paths.ROOT / "requirements.lock").read_text().splitlines()
SITE = (paths.ROOT / "docs" / "requirements.lock").read_text().splitlines()


def test_lock_is_nothing_but_exact_versions():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in LOCK)
    assert len(pins(LOCK)) == len(LOCK)


def test_project_and_conda_environment_agree_with_the_lock():
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    direct = pins([*project["dependencies"], *project["optional-dependencies"]["dev"]])
    assert direct.items() <= pins(LOCK).items()
    environment = yaml.safe_load((paths.ROOT / "environment.yml").read_text())["dependencies"]
    assert "python=3.11" in environment and "tectonic" in environment
    assert project["requires-python"] == ">=3.11,<3.12"
    (pip,) = [entry["pip"] for entry in environment if isinstance(entry, dict)]
    assert "-r requirements.lock" in pip


def test_the_sites_lock_adds_to_the_other_and_changes_nothing_in_it():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in SITE)
    assert not pins(SITE).keys() & pins(LOCK).keys()
    extra = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["site"]
    assert pins(extra).items() <= pins(SITE).items()


def test_installed_versions_are_the_locked_ones():
    import importlib.metadata

    wrong = {
        name: importlib.metadata.version(name)
        for name, version in pins(LOCK).items()
        if importlib.metadata.version(name).split("+")[0] != version
    }
    assert not wrong


def snakemake(*arguments: str, cluster: str = "default") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--workflow-profile", f"params/cluster/{cluster}", *arguments],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def empty_results(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRAL_COLLAPSE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("SPECTRAL_COLLAPSE_GENERATED", str(tmp_path / "generated"))


def job_counts(text: str) -> dict[str, int]:
    table = text.split("count\n")[1].split("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}


@pytest.mark.parametrize("cluster", ["slurm", "default"])
def test_graph_of_the_default_profile(empty_results, cluster):
    done = snakemake("-n", "--quiet", "rules", "--config", "profile=default", "--", "results", cluster=cluster)
    assert done.returncode == 0, done.stderr
    expected = {"baseline": 3, "treatment": 3, "controls": 9, "sigma": 3, "statistics": 1, "studies": 1, "results": 1}
    assert job_counts(done.stdout + done.stderr) == expected


SNAKEFILE = (paths.ROOT / "Snakefile").read_text()
LOCAL = re.search(r"localrules:\n((?:    \w+,\n)+)", SNAKEFILE)[1].replace(",", "").split()
JOBS = set(re.findall(r"^(?:rule|use rule \w+ as) (\w+)", SNAKEFILE, re.MULTILINE)) - set(LOCAL)


@pytest.mark.parametrize(
    ("cluster", "elsewhere", "keys"),
    [
        ("slurm", set(), {"mem_mb", "runtime"}),
        # Their outputs are made where Snakemake runs.
        ("kubernetes", {"statistics", "studies", "pdf", "sigma_experiment"}, {"mem_mb"}),
    ],
)
def test_cluster_has_resources_for_every_job(cluster, elsewhere, keys):
    settings = yaml.safe_load((paths.PARAMS / "cluster" / cluster / "config.yaml").read_text())
    assert settings["executor"] == cluster and settings["set-resources"].keys() == JOBS - elsewhere
    assert all(keys <= resources.keys() for resources in settings["set-resources"].values())


def test_graph_of_the_estimators_study(empty_results):
    done = snakemake("-n", "--config", "profile=estimators", "--", "estimators")
    assert done.returncode == 0, done.stderr
    assert job_counts(done.stdout + done.stderr) == {"baseline": 1, "estimator_noise": 1, "estimators": 1}


def test_a_design_that_statistics_cannot_judge_is_refused_before_anything_trains(empty_results):
    """One seed; and what two seeds leave unjudged is said when the graph is made."""
    refused = snakemake("-n", "--config", "profile=estimators", "--", "results")
    assert (
        refused.returncode != 0
        and "statistics over runs need at least two, and there is 1" in refused.stdout + refused.stderr
    )
    said = snakemake("-n", "--quiet", "rules", "--config", "profile=smoke", "generations=3", "--", "results")
    assert said.returncode == 0 and "no alarm, lead or rescue is judged" in said.stderr


def test_graph_of_the_mechanism_study(empty_results):
    done = snakemake("-n", "--config", "profile=mechanism", "--", "mechanism")
    assert done.returncode == 0, done.stderr
    expected = {"baseline": 8, "treatment": 8, "controls": 8, "mechanism": 1}
    assert job_counts(done.stdout + done.stderr) == expected
    assert "params/default.yaml" in done.stdout + done.stderr  # the profile that it extends


@pytest.mark.parametrize("grid", ["ablations", "ablations_hub"])
def test_graph_of_the_ablations(empty_results, grid):
    factors = params.studied_factors(grid)
    done = snakemake("-n", "--quiet", "rules", "--config", f"grid={grid}", "--", "ablations")
    assert done.returncode == 0, done.stderr
    assert job_counts(done.stdout + done.stderr) == {"ablation": len(factors), "ablations": 1}


def test_wrong_parameter_stops_the_workflow_before_anything_runs(empty_results):
    done = snakemake("-n", "--config", "profile=smoke", "generatons=3")
    assert done.returncode != 0
    assert "unknown parameter 'generatons'; the nearest valid name is 'generations'" in done.stdout + done.stderr


def test_overrides_make_runs_and_a_paper_of_their_own(empty_results):
    done = snakemake("-n", "--config", "profile=default", "temperature=0.7", "--", "all")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    name = "default+temperature=0.7"
    assert f"paper/{name}.pdf" in said and f"generated/{name}/numbers.tex" in said and "paper/default.pdf" not in said
    assert f"Variant of default (temperature 1.0 -> 0.7): its records are in {paths.results_root() / name}" in said


def test_a_wrong_profile_is_one_sentence():
    done = snakemake("-n", "--quiet", "all", "--config", "profile=smok")
    (sentence,) = [line for line in done.stderr.splitlines() if not line.startswith("Using workflow")]
    assert done.returncode == 1 and "(the nearest is 'smoke')" in sentence


def test_lists_and_numbers_behind_config_reach_the_notebooks_as_such(empty_results):
    changes = ["seeds=[11, 12]", "conditions=[fresh, recursive]", "learning_rate=1e-05"]
    done = snakemake("-n", "-p", "--config", "profile=smoke", *changes, "--", "results")
    assert done.returncode == 0, done.stderr
    commands = re.findall("-m papermill (notebooks/01_baseline.*)", done.stdout + done.stderr)
    words = shlex.split(commands[0])
    given = [yaml.safe_load(value) for option, value in itertools.pairwise(words) if option == "-y"]
    assert given == [{"seeds": [11, 12]}, {"conditions": ["fresh", "recursive"]}, {"learning_rate": 1e-05}]


# ---- make


def make(*arguments: str, folder=paths.ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Never with the set-up, which would rebuild the environment that the tests run in."""
    return subprocess.run(
        ["make", "-o", "setup", "-o", "latex", *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_alone_lists_what_there_is_and_does_nothing():
    bare, asked = make(), make("help")
    assert bare.returncode == 0 and bare.stdout == asked.stdout
    targets = re.findall(r"^([a-z-]+):(?!=)", (paths.ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {line.split()[0] for line in bare.stdout.splitlines()[1:-1]} == set(targets) - {"known", "latex"}
    assert all(f" {profile}" in bare.stdout for profile in params.profiles())
    assert "ablations_hub" not in bare.stdout.splitlines()[-1]


def test_make_results_runs_the_graph_without_the_pdf():
    said = make("-n", "results", "PROFILE=small", "CONFIG=seeds=[11,12]").stdout
    assert "--config profile=small seeds=[11,12] -- results" in said and "pdf" not in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["PROFILE=smok"], "params/smok.yaml is not there, the nearest name is smoke."),
        (["GRID=ablation"], "params/ablation.yaml is not there, the nearest name is ablations."),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_installed(arguments, sentence):
    done = make("known", *arguments)
    assert done.returncode != 0 and done.stdout == sentence + "\n"


def test_set_up_begins_with_the_name():
    asked = ["make", "-n", "--what-if=requirements.lock", "setup", "PROFILE=ablations.samples.x0.5"]
    said = subprocess.run(asked, cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout
    assert said.index("is not there") < said.index("-m venv")
    assert make("known", "PROFILE=ablations.samples.x0.5").returncode == 0


def test_make_graph_without_graphviz_says_how_to_get_it(tmp_path):
    for name in ("sh", "make", "id"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = make("graph", PATH=str(tmp_path), PYTHON=sys.executable)
    assert done.returncode != 0 and "apt-get install graphviz" in done.stdout and done.stdout.count("\n") == 1


def test_make_clean_works_outside_git_and_keeps_what_is_committed(tmp_path):
    shutil.copy(paths.ROOT / "Makefile", tmp_path)
    (tmp_path / "params").mkdir()
    gone = ["paper/build/smoke/main.tex", "paper/smoke.pdf", "paper/generated/smoke/numbers.tex", ".snakemake/log"]
    kept = ["paper/generated/tinystories/numbers.tex", "paper/main.tex", "results/smoke/record.json"]
    for name in gone + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    done = make("clean", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not any((tmp_path / name).exists() for name in gone) and all((tmp_path / name).exists() for name in kept)


def test_every_source_is_an_input():
    """An edit of a module, a parameter file, the prompts or a notebook must not leave nothing to be done."""
    listed = snakemake("-n", "-F", "--config", "profile=smoke", "--", "results")
    text = listed.stdout + listed.stderr
    for name in ("lib/spectral_collapse/model/train.py", "params/smoke.yaml", "params/prompts/stories.jsonl"):
        assert name in text


# ---- PDF


def test_without_latex_one_sentence_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pdf.main(["smoke"]) == 1
    said = capsys.readouterr().out.strip()
    assert said.startswith("LaTeX was not found: install latexmk") and "\n" not in said


def test_without_numbers_one_sentence_says_what_to_run(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("SPECTRAL_COLLAPSE_GENERATED", str(tmp_path))
    monkeypatch.setattr(pdf, "engine", lambda: "latexmk")
    assert pdf.main(["smoke"]) == 1
    assert "numbers.tex is missing: run notebook 07_statistics" in capsys.readouterr().out


def latex_and_smoke() -> bool:
    try:
        pdf.engine()
    except pdf.NoLatex:
        return False
    return (SMOKE / "numbers.tex").exists()


@pytest.mark.skipif(not latex_and_smoke(), reason="needs LaTeX and the smoke profile's generated files")
class TestPaper:
    @pytest.fixture
    def numbers(self, tmp_path, monkeypatch):
        """numbers.tex of a copy of the smoke profile's generated files, which the paper is built from."""
        shutil.copytree(SMOKE, tmp_path / "smoke")
        monkeypatch.setenv("SPECTRAL_COLLAPSE_GENERATED", str(tmp_path))
        return tmp_path / "smoke" / "numbers.tex"

    def test_builds_cleanly(self, numbers):
        assert pdf.build("smoke").read_bytes().startswith(b"%PDF")
        log = (pdf.PAPER / "build" / "smoke" / "main.log").read_text(errors="replace")
        assert "undefined" not in log and "Overfull" not in log and "write18 enabled" not in log

    def test_builds_without_the_figure_that_a_profile_leaves_out(self, numbers):
        text = numbers.read_text()
        assert "{param.layerwise_spectra}{True}" in text
        numbers.write_text(text.replace("{param.layerwise_spectra}{True}", "{param.layerwise_spectra}{False}"))
        (numbers.parent / "figures" / "layers.pdf").unlink()
        pdf.build("smoke")
        log = (pdf.PAPER / "build" / "smoke" / "main.log").read_text(errors="replace")
        assert "undefined" not in log and "fig:layers" not in log

    def test_missing_number_stops_it(self, numbers):
        numbers.write_text(re.sub(r"\\setval\{detectable\.d\}.*\n", "", numbers.read_text()))
        with pytest.raises(ValueError, match=r"No value for key 'detectable\.d'"):
            pdf.build("smoke")


def test_prompt_bank_and_profiles_are_named_by_what_exists():
    with pytest.raises(ValueError, match=r"the profiles there are .*default.*smoke"):
        params.load("defalt")
    assert os.path.exists(paths.PROMPTS / "stories.jsonl")
