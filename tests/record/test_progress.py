"""The line on how far a study is: from records alone, in a process that no command notices."""

import json
import os
import re
import subprocess
import sys

import pytest
from spectral_collapse.record import evidence, params, paths, progress

SECONDS = {"text": 4.0, "training": 10.0, "evaluation": 6.0}


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """The smoke profile with two generations, its results elsewhere, and no committed times."""
    monkeypatch.setenv("SPECTRAL_COLLAPSE_RESULTS", str(tmp_path / "work"))
    monkeypatch.setattr(evidence.PACKS, "root", tmp_path / "evidence")
    monkeypatch.setattr(progress, "BENCH", tmp_path / "bench.json")
    return params.load("smoke").model_copy(
        update={"seeds": [1], "conditions": ["recursive", "fresh"], "generations": 2}
    )


def write(settings, condition, generation, stages=SECONDS):
    folder = paths.run_folder(settings.profile, settings.model, condition, 1) / f"generation_{generation}"
    folder.mkdir(parents=True, exist_ok=True)
    for stage, seconds in stages.items():
        record = {"condition": condition, "seed": 1, "generation": generation, "stage": stage}
        (folder / f"{stage}.json").write_text(json.dumps(record | {"timing": {"wall_seconds": seconds}}))


def left(text):
    (found,) = re.findall(r"about ([\d.]+) s", text)
    return float(found)


def test_nothing_is_known_without_times(settings):
    found = progress.Progress(settings, 2)
    assert found.first().startswith("5 models; no time is known")
    assert found.line().startswith("0 of 5 models trained; the workflow; no time is known")


def test_what_is_missing_takes_what_others_took(settings, monkeypatch):
    monkeypatch.setattr(progress, "NOTEBOOK", 1.0)
    monkeypatch.setattr(progress, "PAPER", 2.0)
    found = progress.Progress(settings, 2)
    write(settings, "baseline", 0, {"training": 30.0})
    write(settings, "recursive", 1)
    write(settings, "recursive", 2, {"text": 4.0})
    # Both of `fresh`, what the second generation lacks, four notebooks.
    missing = 2 * 20 + 16 + 4 * progress.NOTEBOOK + progress.PAPER
    assert left(found.line()) == pytest.approx(missing * progress.OVERHEAD / 2, abs=1)
    assert found.line().startswith(f"2 of 5 models trained, {100 * 54 / (54 + missing):.0f} %")
    assert "by the records that are there" in found.first()


def test_the_run_shows_its_own_pace(settings):
    clock = [0.0]
    found = progress.Progress(settings, 2, now=lambda: clock[0])
    slow = {stage: 10 * seconds for stage, seconds in SECONDS.items()}
    write(settings, "baseline", 0, slow)
    write(settings, "recursive", 1, slow)
    clock[0] = 400.0  # for 400 seconds of work: one core worked, or two at half their speed
    missing = 3 * 200 + 4 * progress.NOTEBOOK + progress.PAPER
    assert f"about {progress.span(missing)} left" in found.line()


def test_committed_times_are_the_first_estimate(settings):
    rows = {stage: {"seconds": seconds} for stage, seconds in SECONDS.items()}
    bench = {"stages": {"profile": "smoke", "stages": rows | {"all": {"seconds": 20.0}}}}
    progress.BENCH.write_text(json.dumps(bench))
    text = progress.Progress(settings, 1).first()
    assert text.endswith("on 1 cores, by the committed benchmark.")
    other = progress.Progress(params.load("default"), 1)
    assert "no time is known" in other.first()


def test_running_notebooks_are_named(settings):
    found = progress.Progress(settings, 2)
    write(settings, "recursive", 1)
    folder = paths.run_folder(settings.profile, settings.model, "recursive", 1)
    notebook, flag = folder / "02_treatment.ipynb", folder / "treatment.done"
    notebook.touch()
    os.utime(notebook, (found.started + 1, found.started + 1))
    (folder / "generation_1" / "curvature_state.json").write_text("[]")  # no record
    assert re.search(r"; recursive, seed 1 \(generation 1, \w+(?<!state) done\)", found.line())
    flag.touch()
    os.utime(flag, (found.started + 2, found.started + 2))
    assert "; the workflow; " in found.line()


def test_damaged_and_foreign_files_are_passed_over(settings):
    write(settings, "recursive", 1)
    folder = paths.run_folder(settings.profile, settings.model, "recursive", 1) / "generation_1"
    (folder / "curvature.json").write_text('{"condition": "recu')
    (folder / "study.json").write_text("[1, 2]")
    assert progress.Progress(settings, 1).line().startswith("1 of 5 models trained")


def command(*arguments):
    """A command behind the watcher, its output in pipes."""
    return subprocess.run(
        [sys.executable, "-m", "spectral_collapse.record.progress", *arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_the_command_keeps_its_output_and_its_exit_status(settings):
    done = command("smoke", "--", sys.executable, "-c", "import sys; print('made'); sys.exit(3)")
    assert done.returncode == 3
    assert done.stdout == "made\n"
    assert re.fullmatch(r"\d+ models[:;] .*\n", done.stderr)


def test_wrong_parameters_are_the_commands_to_refuse(settings):
    done = command("no_such_profile", "--", sys.executable, "-c", "print('made')")
    assert (done.returncode, done.stdout) == (0, "made\n")
    assert done.stderr.startswith("No progress is shown: ")


def test_the_watcher_writes_lines_and_ends_with_its_parent(settings, monkeypatch, capfd):
    monkeypatch.setattr(progress, "BETWEEN", 0.0)
    monkeypatch.setattr(progress.time, "sleep", lambda _: None)
    parents = iter([7, 7, 7, 1])
    monkeypatch.setattr(progress.os, "getppid", lambda: next(parents))
    progress.watch(progress.Progress(settings, 1), sys.stderr, 7)
    assert capfd.readouterr().err.count("0 of 5 models trained") == 1  # not again while nothing has changed
