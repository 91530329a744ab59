"""Keys that cannot lie: for every stage and every parameter, what is read is noted, and what is noted decides."""

import contextlib
import json
import sys
from pathlib import Path

import pytest
import yaml
from spectral_collapse.analysis import series
from spectral_collapse.experiment import encoded, estimators, loop, measure, rescue, runs
from spectral_collapse.experiment import mechanism as stages
from spectral_collapse.record import params, paths, schema
from spectral_collapse.text import corpora
from tiny import TINY

SETTINGS = TINY | {
    **{"documents": 200, "baseline_blocks": 96, "layers": 1, "held_out_blocks": 8, "curvature_blocks": 2, "seeds": [1]},
    **{"evaluation_stories": 4, "response_tokens": 16, "mechanism_blocks": 4, "landscape_points": 3, "generations": 1},
    **{"conditions": ["recursive", "fresh"], "estimator_probes": 2, "blocks_per_generation": 12, "sampling_batch": 50},
}
STAGES = {
    **{"training": loop.training, "text": loop.text, "evaluation": measure.evaluation, "anchors": measure.anchors},
    **{"continuations": measure.continuations, "responses": measure.responses, "curvature": measure.curvature},
    **{"layers": measure.layers, "embeddings": encoded.embeddings, "sigma": encoded.sigma, "rescue": rescue.rescue},
    **{"coherence": encoded.coherence, "mechanism": stages.mechanism, "eigenpairs": stages.eigenpairs},
    **{"landscape": stages.slices, "estimators_0": estimators.measured(0)},
}
DETERMINING = [name for name in schema.Params.model_fields if name not in (*schema.PLACES, *schema.DESIGN)]
# Where one value more is not another valid one.
OTHER = {
    **{"base": None, "heads": 1, "top_k": 5, "top_p": 0.5, "weights": "restart", "prompting": "opening"},
    **{"corpus": "tinystories", "schedule": "linear", "prompt_bank": "finance", "writing_contexts": "new"},
    **{"precision": "bfloat16", "architecture": "gpt2", "baseline_sequence_tokens": 128, "landscape_points": 5},
    **{"estimator_steps": [4, 6], "real_fraction": 0.25, "warmup_fraction": 0.5, "hidden_size": 48, "dropout": 0.1},
    **{"writing_top_p": 0.5, "trust_memory": 0.5, "sigma_delta": 0.01, "track_two_tolerance": 1.0, "documents": 150},
    **{"decay_fraction": 0.5, "rarity_exponent": 1.0, "block_tokens": 24, "held_out_blocks": 10, "story_tokens": 48},
    **{"rescue_doses": [2], "primary": ["ratio_falls"]},
}  # fmt: skip
# Values that take another profile than this one.
ELSEWHERE = {"checkpoint", "revision", "tuning_blocks", "corpus"}


class Reads:
    """Every read of a parameter, and every file of the project that is opened, while a stage computes."""

    def __init__(self):
        self.stack: list[tuple[set, set]] = []

    @contextlib.contextmanager
    def during(self):
        self.stack.append((set(), set()))
        yield self.stack[-1]
        self.stack.pop()


READS = Reads()


def _opened(event: str, arguments: tuple) -> None:
    if event == "open" and READS.stack and isinstance(arguments[0], str):
        path = Path(arguments[0])
        if path.is_absolute() and any(path.is_relative_to(folder) for folder in (paths.ROOT / "params", paths.RESULTS)):
            READS.stack[-1][1].add(str(path.relative_to(paths.ROOT)))


sys.addaudithook(_opened)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A profile `own` whose stages were all computed once, and what each of them read: (settings, real, reads)."""
    folder = tmp_path_factory.mktemp("keys")
    reads: dict[tuple[str, int], tuple[set, set, runs.View]] = {}
    compute, get = runs.Stage._record, schema.Params.__getattribute__

    def record(stage, run, generation):
        views = []
        original = stage.compute

        def watched(view, generation):
            views.append(view)
            with READS.during() as (names, files):
                reads[stage.name, generation] = (names, files, view)
                return original(view, generation)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "compute", watched)
            return compute(stage, run, generation)

    def aside(function):
        def apart(*arguments):
            with READS.during():
                return function(*arguments)

        return apart

    def spy(self, name):
        if READS.stack and name in schema.Params.model_fields:
            READS.stack[-1][0].add(name)
        return get(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRAL_COLLAPSE_RESULTS", str(folder / "results"))
        values = yaml.safe_load((paths.PARAMS / "smoke.yaml").read_text()) | SETTINGS | {"profile": "own"}
        (folder / "own.yaml").write_text(json.dumps(values))
        patch.setattr(paths, "PARAMS", folder)
        settings = params.load("own")
        with pytest.MonkeyPatch.context() as spying:
            spying.setattr(schema.Params, "__getattribute__", spy)
            spying.setattr(runs.Stage, "_record", record)
            for name in ("name_of", "base_params", "folders"):  # where records are, which is not what they say
                spying.setattr(runs, name, aside(getattr(runs, name)))
            real = corpora.RealText(settings)
            run = runs.Run(settings, "recursive", 1, real=real, say=pytest.fail)
            for name, stage in STAGES.items():
                for generation in (0, 1):
                    if (name, generation) not in (("text", 0), ("rescue", 0), ("estimators_0", 1)):
                        stage(run, generation)
            loop.training(runs.Run(settings, "fresh", 1, real=real, say=pytest.fail), 1)
        yield settings, real, reads


def record_of(settings, name, condition="recursive", generation=1) -> dict:
    owner = condition if generation else params.BASELINE
    folder = paths.run_folder(params.name_of(settings), settings.model, owner, 1)
    return json.loads((paths.generation_folder(folder, generation) / f"{name}.json").read_text())


def test_every_parameter_and_file_that_a_computation_reads_is_in_its_record(made):
    """Read by whatever code, past the view as well: in the key, or in those of the stages that it builds on."""
    _, _, reads = made
    assert {name for name, _ in reads} == set(STAGES)
    for (name, generation), (parameters, files, view) in reads.items():
        assert parameters - {*schema.PLACES} <= view.depends.keys(), (name, generation)
        noted = {place.removeprefix("file ") for place in view.inputs if place.startswith("file ")}
        assert files <= noted, (name, generation)
        assert view.parameters.keys() <= view.depends.keys()
    assert any(files for _, files, _ in reads.values()) and all(names for names, _, _ in reads.values())


def other_value(settings, name):
    """Another valid value of a parameter."""
    if name in OTHER:
        return OTHER[name]
    value = getattr(settings, name)
    return 1 if value is None else value + 1 if isinstance(value, int) else value / 2 or 0.25


class Computes(Exception):
    pass


@pytest.mark.parametrize("name", [name for name in DETERMINING if name not in ELSEWHERE])
def test_a_changed_parameter_leaves_a_record_that_did_not_read_it_and_makes_the_others_again(made, monkeypatch, name):
    settings, real, _ = made
    changed = params.check({**settings.model_dump(), name: other_value(settings, name)})
    assert list(params.changes(changed)) == [name]
    decides_text = name in {*real.part("held_out", 1)[2], *real.part("openings", 1)[2], *real.part("slice 0", 1)[2]}
    run = runs.Run(changed, "recursive", 1, real=None if decides_text else real, say=pytest.fail)

    def record(self, run, generation):
        raise Computes

    monkeypatch.setattr(runs.Stage, "_record", record)
    again = set()
    for stage_name, stage in STAGES.items():
        generation = 0 if stage_name == "estimators_0" else 1
        before = record_of(settings, stage_name, generation=generation)
        try:
            assert stage(run, generation) == before["result"]
            assert name not in before["key"]["parameters"], stage_name
            # Taken over, with the parameters that are now behind it.
            assert record_of(changed, stage_name, generation=generation)["parameters"].get(name) != before[
                "parameters"
            ].get(name, ...)
        except Computes:
            again.add(stage_name)
            assert name in before["parameters"], stage_name
    assert record_of(settings, "text")["parameters"].get("profile") is None


@pytest.mark.parametrize(("name", "value"), [("baseline_blocks", 192), ("block_tokens", 16)])
def test_what_cuts_the_real_text_makes_the_controls_text_again(made, name, value):
    """The control had kept blocks inside the new base model's text, and blocks of the old length."""
    settings, _, _ = made
    changed = params.check({**settings.model_dump(), name: value})
    run = runs.Run(changed, "fresh", 1, say=pytest.fail)
    before = loop.blocks(runs.Run(settings, "fresh", 1, say=pytest.fail), 1)
    after = loop.blocks(run, 1)
    assert after.tolist() == run.real.slice(1, 1).tolist() and after.tolist() != before.tolist()
    assert record_of(changed, "text", "fresh")["result"] != record_of(settings, "text", "fresh")["result"]


def test_what_is_not_noted_is_refused(made, monkeypatch):
    settings, real, _ = made
    run = runs.Run(settings, "fresh", 1, real=real, say=pytest.fail)
    for number, read in enumerate(
        (
            lambda view: view.folder,
            lambda view: view.base,
            lambda view: view.real.sha256,
            lambda view: view.real.slice(2, 0),
            lambda view: view.params.model_dump(),
            lambda view: getattr(view, "found", None),
        )
    ):
        stage = runs.stage(name=f"reads_{number}")(lambda view, generation, read=read: {"read": str(read(view))})
        with pytest.raises(schema.Unnoted, match=r"does not note|is not that of this run's seed"):
            stage(run, 1)


def test_a_property_of_the_parameters_is_noted_by_what_it_reads(made):
    settings, real, _ = made
    view = runs.View(runs.Run(settings, "fresh", 1, real=real), "")
    assert view.params.base_training == settings.base_training
    assert {"checkpoint", "baseline_blocks", "baseline_epochs"} <= view.parameters.keys()


def test_a_reader_that_is_asked_for_other_values_says_so(made):
    settings, _, _ = made
    assert len(list(series.results(settings, "curvature", ["recursive"]))) == 2
    others = {"curvature": {"lanczos_steps": 9}, "anchors": {"learning_rate": 1e-3}, "evaluation": {"temperature": 0.7}}
    for stage, changes in others.items():
        asked = params.check({**settings.model_dump(), **changes})
        (name,) = changes
        then, now = getattr(settings, name), getattr(asked, name)
        told = rf"{stage}\.json was made with {name} {then}, not {now}: run the notebook"
        with pytest.raises(ValueError, match=told):
            list(series.results(asked, stage, ["recursive"]))
    more = settings.model_copy(update={"lanczos_steps": 10})
    assert len(list(series.results(more, "anchors", ["recursive"]))) == 2  # which no Lanczos step is behind


def test_an_empty_selection_is_empty(made):
    settings, _, _ = made
    for nothing in ({"conditions": []}, {"seeds": []}, {"generations": []}):
        assert list(series.results(settings, "evaluation", **nothing)) == []
