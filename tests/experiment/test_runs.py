"""Stages: computed once, made again for a reason, and their files with them."""

import importlib
import json
import time

import pytest
import yaml
from spectral_collapse.analysis import series
from spectral_collapse.experiment import loop, measure, runs
from spectral_collapse.machine import speed
from spectral_collapse.record import evidence, packfile, params, paths, provenance
from spectral_collapse.text import corpora

SMOKE = yaml.safe_load((paths.PARAMS / "smoke.yaml").read_text()) | {"documents": 200, "profile": "own"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes runs of a profile `own` whose messages are kept in `run.said`."""
    monkeypatch.setenv("SPECTRAL_COLLAPSE_RESULTS", str(tmp_path / "results"))
    (tmp_path / "own.yaml").write_text(json.dumps(SMOKE))
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    texts = {}

    def build(condition="fresh", **changes):
        settings = params.load("own", **changes)
        real = texts.setdefault(settings.documents, None) or corpora.RealText(settings)
        texts[settings.documents] = real
        return runs.Run(settings, condition, 1, real=real, say=build.said.append)

    build.said = []
    return build


@pytest.fixture
def declared():
    """A stage that counts what it computes: (stage, computed, a word that a file of its own holds)."""
    computed, word = [], ["none"]

    def compute(run, generation):
        """Doc."""
        computed.append((run.condition, generation))
        provenance.write_text(run.path(generation, "words.txt"), word[0])
        return {"words_sha256": provenance.file_hash(run.path(generation, "words.txt")), "layers": run.params.layers}

    return runs.stage(name="counted", file="words.txt")(compute), computed, word


PLACE = "llama-tiny/fresh/seed_1/generation_1"


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


def test_stage_is_made_again_by_other_code_and_says_so(run, declared):
    stage, computed, _ = declared
    stage(run(), 1)
    stage.code_hash = "other"
    stage(run(), 1)
    assert run.said == [f"own/{PLACE}/counted.json is made again: its code changed."] and len(computed) == 2


# ---- what people change makes a variant, and what is finished is kept


def test_changed_parameters_make_a_variant_that_shares_what_they_do_not_touch(run, declared):
    stage, computed, _ = declared
    first = stage(run(), 1)
    written = {path: path.read_bytes() for path in run().folder.rglob("*") if path.is_file()}
    same = run(heads=1)  # no parameter of this stage
    assert stage(same, 1) == first and len(computed) == 1
    assert stage.artefact(same, 1) == run().path(1, "words.txt")  # read where it is
    other = run(layers=3)
    assert stage(other, 1)["layers"] == 3 and len(computed) == 2
    assert [run(**changes).folder.parts[-4] for changes in ({"heads": 1}, {"layers": 3})] == [
        "own+heads=1",
        "own+layers=3",
    ]
    assert {path: path.read_bytes() for path in run().folder.rglob("*") if path.is_file()} == written
    assert run.said == []
    # What a reader compares: the parameters that are behind the result, as they were.
    record = json.loads(other.path(1, "counted.json").read_text())
    assert record["profile"] == "own+layers=3" and record["parameters"]["layers"] == 3


def test_a_file_of_the_parents_that_is_gone_is_made_again_in_the_variant(run, declared):
    stage, computed, _ = declared
    stage(run(), 1)
    run().path(1, "words.txt").unlink()
    variant = run(heads=1)
    assert stage.artefact(variant, 1) == variant.path(1, "words.txt") and len(computed) == 2
    assert not run().path(1, "words.txt").exists()


def test_a_named_variant_and_one_whose_name_would_be_too_long(run):
    assert run(variant="hot", temperature=0.7).folder.parts[-4] == "own+hot"
    many = {"temperature": 0.7, "top_k": 10, "learning_rate": 1e-3, "weight_decay": 0.1, "evaluation_stories": 7}
    name = run(**many).folder.parts[-4]
    assert name.startswith("own+weight_decay=0.1") is False and len(name) <= 64 and paths.path_name(name)
    assert name != run(**many, batch_size=8).folder.parts[-4]
    assert run(seeds=[3], generations=7, device="auto", micro_batch=2, perplexity_bound=9.0).folder.parts[-4] == "own"
    with pytest.raises(ValueError, match="cannot name a folder"):
        params.load("own", variant="../up")


def test_finished_records_are_not_overwritten_by_other_settings(run, declared, tmp_path):
    """An edited profile, an edited text: refused in a sentence, with what to do; nothing is touched."""
    stage, computed, _ = declared
    stage(run(), 1)
    (tmp_path / "own.yaml").write_text(json.dumps(SMOKE | {"layers": 3}))
    told = rf"own/{PLACE}/counted\.json was made with other settings: its parameters changed \(layers 2 -> 3\)\. "
    told += r"Finished records are not overwritten: set `variant` to a name .* or delete .*seed_1\."
    with pytest.raises(ValueError, match=told):
        stage(run(), 1)
    assert stage(run(variant="deep"), 1)["layers"] == 3
    (tmp_path / "own.yaml").write_text(json.dumps(SMOKE))
    assert stage(run(), 1)["layers"] == 2 and len(computed) == 2

    reading = runs.stage(name="reading")(lambda run, generation: {"sum": int(run.real.held_out.sum())})
    reading(run(), 1)
    with pytest.raises(
        ValueError, match=r"reading\.json was made with other settings: its inputs changed \(real held_out\)"
    ):
        other = run()
        other._real = corpora.RealText(params.load("own", documents=300))
        reading(other, 1)


def test_packed_records_are_for_readers_and_runs_neither_read_nor_touch_them(run, declared, tmp_path, monkeypatch):
    stage, computed, _ = declared
    stage(run(), 1)
    packs = evidence.PACKS
    monkeypatch.setattr(packs, "root", tmp_path)
    content = evidence.collect("own", tmp_path / "results")
    packs.file("own").write_bytes(packfile.encode("own", content))
    before = packs.file("own").read_bytes()
    monkeypatch.delenv("SPECTRAL_COLLAPSE_RESULTS")
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "new")
    here = run()
    assert here.folder == tmp_path / "new" / "work" / "own" / "llama-tiny" / "fresh" / "seed_1"
    (packed,) = [result for *_, result in series.results(here.params, "counted", ["fresh"], [1], [1])]
    assert stage(here, 1) == packed and len(computed) == 2 and run.said == []
    assert here.path(1, "counted.json").exists() and packs.file("own").read_bytes() == before


def test_a_variant_makes_again_what_its_profile_has_by_other_code(run, declared):
    stage, _, _ = declared
    stage(run(), 1)
    before = run().path(1, "counted.json").read_bytes()
    stage.code_hash = "other"
    stage(run(heads=1), 1)
    assert run.said == [f"own/{PLACE}/counted.json is made again in own+heads=1/{PLACE}: its code changed."]
    assert run().path(1, "counted.json").read_bytes() == before


def test_code_is_hashed_at_the_first_use_of_any_stage_and_not_at_import(monkeypatch):
    hashed = []
    monkeypatch.setattr(runs, "_STAGES", {})
    monkeypatch.setattr(runs.closure, "code_hash", lambda compute: hashed.append(compute.__name__) or "hash")
    first, second = (runs.stage(name=name)(lambda run, generation: {}) for name in ("first", "second"))
    assert hashed == []
    assert first.code_hash == "hash" and len(hashed) == 2
    assert second.code_hash == "hash" and len(hashed) == 2  # what is edited from now on is not what runs


def test_records_of_an_earlier_kind_of_key_are_read_and_made_again(run, declared):
    """What keys had not noted, and parameters that are none any more."""
    stage, computed, _ = declared
    stage(run(), 1)
    path = run().path(1, "counted.json")
    record = json.loads(path.read_text())
    record["key"] = {"parameters": {"layers": 2, "published_steps": 3}, "code": "c0de", "inputs": {"real_text": "1"}}
    record["schema_version"] = provenance.LISTED
    record["parameters"] |= {"published_steps": 3, "seeds": [9], "lanczos_steps": 99}
    del record["sha256"]
    provenance.write_again(path, record)
    assert list(series.results(run().params, "counted", ["fresh"], [1], [1]))
    stage(run(), 1)
    assert len(computed) == 2
    assert run.said == [f"own/{PLACE}/counted.json is made again: its code changed."]


def test_a_result_that_comes_out_the_same_leaves_what_was_made_of_it(run):
    """Upstream code changed, its result did not."""
    computed = []

    def inner(run, generation):
        computed.append("inner")
        return {"value": 1, "other": len(computed)}

    def outer(run, generation):
        computed.append("outer")
        return {"twice": 2 * stages["inner"](run, generation)["value"]}

    stages = {compute.__name__: runs.stage()(compute) for compute in (inner, outer)}
    stages["outer"](run(), 1)
    stages["inner"].code_hash = "other"
    assert stages["outer"](run(), 1) == {"twice": 2}
    assert computed == ["outer", "inner", "inner"]


def test_time_is_that_of_the_record_itself_with_what_an_interrupted_process_spent(run):
    def inner(run, generation):
        time.sleep(0.2)
        return {}

    def outer(run, generation):
        speed.count_earlier(100.0)
        return dict(stages["inner"](run, generation))

    stages = {compute.__name__: runs.stage()(compute) for compute in (inner, outer)}
    here = run()
    stages["outer"](here, 1)
    took = {name: json.loads(here.path(1, f"{name}.json").read_text())["timing"]["wall_seconds"] for name in stages}
    assert took["inner"] >= 0.2 and took["outer"] >= 100
    assert series.seconds([here.params.model_copy(update={"conditions": ["fresh"], "seeds": [1]})], []) == 0


def test_code_edited_while_a_process_runs_is_not_what_made_its_records(run, tmp_path, monkeypatch):
    file = tmp_path / "edited.py"
    monkeypatch.syspath_prepend(tmp_path)
    file.write_text("def answer(run, generation):\n    return {'answer': 1}\n")
    import edited

    declare = runs.stage(name="answer")
    stage = declare(edited.answer)
    runs.stage(name="first")(lambda run, generation: {})(run(), 1)
    file.write_text("def answer(run, generation):\n    return {'answer': 22}\n")
    assert stage(run(), 1) == {"answer": 1}
    importlib.reload(edited)  # as a later process does; of another size, or Python may take its compiled file
    assert declare(edited.answer)(run(), 1) == {"answer": 22}
    assert run.said == [f"own/{PLACE}/answer.json is made again: its code changed."]


def test_file_is_made_again_if_it_is_gone_or_altered(run, declared):
    stage, computed, _ = declared
    path = stage.artefact(run(), 1)
    assert stage.artefact(run(), 1) == path and len(computed) == 1
    path.unlink()
    assert stage.artefact(run(), 1).read_text() == "none" and len(computed) == 2 and run.said == []
    path.write_text("other")
    assert stage.artefact(run(), 1).read_text() == "none" and len(computed) == 3
    assert run.said == [f"own/{PLACE}/words.txt does not match its record and is made again."]


def test_file_that_comes_out_otherwise_is_refused(run, declared):
    stage, _, word = declared
    here = run()
    path = stage.artefact(here, 1)
    path.unlink()
    word[0] = "other"
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
        return dict(stages["inner"](run, generation)) | {"outer": 1}

    stages = {compute.__name__: runs.stage()(compute) for compute in (inner, outer)}
    here = run()
    assert stages["outer"](here, 1) == {"inner": 1, "outer": 1}
    timing = {name: json.loads(here.path(1, f"{name}.json").read_text())["timing"] for name in stages}
    speeds = {name: {key: found[key] for key in found if "tokens" in key} for name, found in timing.items()}
    assert speeds == {"inner": {"training_tokens_per_second": 100.0}, "outer": {"sampling_tokens_per_second": 20.0}}
    speed.count("training", 1, 1.0)  # outside of any record: nothing happens
