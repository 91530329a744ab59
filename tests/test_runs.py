"""Stages: computed once, made again for a reason, and their files with them."""

import importlib
import json

import pytest
from spectral_collapse import loop, measure, params, provenance, runs, speed


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes runs of the smoke profile whose messages are kept in `run.said`."""
    monkeypatch.setenv("SPECTRAL_COLLAPSE_RESULTS", str(tmp_path))

    def build(condition="fresh", **changes):
        return runs.Run(params.load("smoke", documents=200, **changes), condition, 1, say=build.said.append)

    build.said = []
    return build


@pytest.fixture
def declared():
    """A stage that counts what it computes: (stage, computed, inputs)."""
    computed, inputs = [], {"seed": 1}

    def compute(run, generation):
        """Doc."""
        computed.append((run.condition, generation))
        provenance.write_text(run.path(generation, "words.txt"), inputs.get("word", "none"))
        return {"words_sha256": provenance.file_hash(run.path(generation, "words.txt")), "layers": run.params.layers}

    stage = runs.stage(
        name="counted", parameters=("layers",), code=(provenance,), inputs=lambda *_: dict(inputs), file="words.txt"
    )(compute)
    return stage, computed, inputs


def test_declaration_is_named_and_documented_as_its_function():
    assert (measure.evaluation.name, loop.text.name) == ("evaluation", "text")
    assert measure.evaluation.__doc__.startswith("Held-out perplexity")


def test_stage_is_computed_once_by_all_processes(run, declared):
    stage, computed, _ = declared
    first = run()
    result = stage(first, 1)
    assert result["layers"] == 2
    assert result is stage(first, 1) and result == stage(run(), 1)
    assert computed == [("fresh", 1)] and run.said == []


def test_generation_0_belongs_to_the_base_run(run, declared):
    stage, computed, _ = declared
    assert stage(run("fresh"), 0) == stage(run("static"), 0)
    assert computed == [("baseline", 0)]


def test_stage_is_made_again_when_what_it_depends_on_changes_and_says_so(run, declared):
    stage, computed, inputs = declared
    stage(run(), 1)
    stage(run(heads=1), 1)  # no parameter of this stage
    assert len(computed) == 1 and run.said == []
    name = "smoke/llama-tiny/fresh/seed_1/generation_1/counted.json"
    stage(run(layers=3), 1)
    inputs["seed"] = 2
    stage(run(layers=3), 1)
    stage.code_hash = "other"
    stage(run(layers=3), 1)
    assert run.said == [
        f"{name} is made again: its parameters changed (layers 2 -> 3).",
        f"{name} is made again: its inputs changed (seed 1 -> 2).",
        f"{name} is made again: its code changed.",
    ]
    assert len(computed) == 4


def test_code_edited_while_a_process_runs_is_not_what_made_its_records(run, tmp_path, monkeypatch):
    file = tmp_path / "edited.py"
    monkeypatch.syspath_prepend(tmp_path)
    file.write_text("def answer(run, generation):\n    return {'answer': 1}\n")
    import edited

    declare = runs.stage(name="answer", parameters=(), code=(edited,), inputs=lambda *_: {})
    stage = declare(edited.answer)
    file.write_text("def answer(run, generation):\n    return {'answer': 22}\n")
    assert stage(run(), 1) == {"answer": 1}
    importlib.reload(edited)  # as a later process does; of another size, or Python may take its compiled file
    assert declare(edited.answer)(run(), 1) == {"answer": 22}
    assert run.said == ["smoke/llama-tiny/fresh/seed_1/generation_1/answer.json is made again: its code changed."]


def test_file_is_made_again_if_it_is_gone_or_altered(run, declared):
    stage, computed, _ = declared
    path = stage.artefact(run(), 1)
    assert stage.artefact(run(), 1) == path and len(computed) == 1
    path.unlink()
    assert stage.artefact(run(), 1).read_text() == "none" and len(computed) == 2 and run.said == []
    path.write_text("other")
    assert stage.artefact(run(), 1).read_text() == "none" and len(computed) == 3
    assert run.said == [
        "smoke/llama-tiny/fresh/seed_1/generation_1/words.txt does not match its record and is made again."
    ]


def test_file_that_comes_out_otherwise_is_refused(run, declared):
    stage, _, inputs = declared
    here = run()
    path = stage.artefact(here, 1)
    path.unlink()
    inputs["word"] = "other"
    with pytest.raises(ValueError, match=r"words\.txt: made again, it is not what its record says .*: delete .*seed_1"):
        stage.artefact(here, 1)


def test_speeds_stand_beside_the_time_of_their_own_record(run):
    """Of the stage that did the work, not of the one that asked for it, and not in the result."""

    def inner(run, generation):
        speed.count("training", 300, 2.0)
        speed.count("training", 100, 2.0)
        return {"inner": 1}

    def outer(run, generation):
        speed.count("sampling", 10, 0.5)
        return stages["inner"](run, generation) | {"outer": 1}

    stages = {
        compute.__name__: runs.stage(parameters=(), code=(), inputs=lambda *_: {})(compute)
        for compute in (inner, outer)
    }
    here = run()
    assert stages["outer"](here, 1) == {"inner": 1, "outer": 1}
    timing = {name: json.loads(here.path(1, f"{name}.json").read_text())["timing"] for name in stages}
    speeds = {name: {key: found[key] for key in found if "tokens" in key} for name, found in timing.items()}
    assert speeds == {"inner": {"training_tokens_per_second": 100.0}, "outer": {"sampling_tokens_per_second": 20.0}}
    speed.count("training", 1, 1.0)  # outside of any record: nothing happens
