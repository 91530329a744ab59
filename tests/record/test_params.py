"""Profiles: what is wrong is refused before anything runs, with the key, the reason and the nearest name."""

import re

import pytest
from parameter_cells import TAGGED, injected, notebook
from spectral_collapse.record import params, paths, reference, schema

PROFILES = params.profiles()
SMOKE = params.load("smoke").model_dump()


def refusal(values) -> str:
    with pytest.raises(ValueError) as caught:
        params.check(values)
    message = str(caught.value)
    assert "\n" not in message and type(caught.value) is ValueError
    return message


# ---- values


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_loads_and_is_called_as_its_file(profile):
    assert params.load(profile).profile == profile


def test_profile_called_otherwise_than_its_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "copy.yaml").write_bytes((paths.PARAMS / "smoke.yaml").read_bytes())
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    with pytest.raises(ValueError, match=r"copy\.yaml: its key profile must be 'copy', the name of the file\."):
        params.load("copy")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("temprature", "temperature"),
        ("top-p", "top_p"),
        ("Layers", "layers"),
        ("learningrate", "learning_rate"),
    ],
)
def test_unknown_key_names_the_nearest(wrong, nearest):
    message = refusal({**SMOKE, wrong: 1})
    assert message == f"parameters: unknown parameter {wrong!r}; the nearest valid name is {nearest!r}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers", "2"), ("layers", 2.5), ("layers", True), ("seeds", 3), ("seeds", []), ("seeds", [-1]),
        ("seeds", ["1"]), ("profile", None), ("temperature", float("nan")), ("temperature", 0.0),
        ("perplexity_bound", float("inf")), ("top_p", 1.5), ("warmup_fraction", 1.0), ("data_path", 3),
        ("schedule", None), ("device", 0), ("generations", 0),
    ],
)  # fmt: skip
def test_wrong_type_or_range_names_key_and_value(key, value):
    message = refusal({**SMOKE, key: value})
    assert f"parameter '{key}" in message
    assert repr(value[0] if isinstance(value, list) and value else value) in message


def test_every_wrong_key_is_named_at_once():
    message = refusal({**SMOKE, "layers": "2", "epoch": 1, "top_k": -1})
    assert all(f"'{key}'" in message for key in ("layers", "epoch", "top_k"))


def test_missing_key_is_named():
    message = refusal({key: value for key, value in SMOKE.items() if key != "epochs"})
    assert message == "parameters: parameter 'epochs' is missing"


def test_exponent_without_a_point_is_text_to_yaml(tmp_path):
    (tmp_path / "rate.yaml").write_text("learning_rate: 1e-3\n")
    message = refusal({**SMOKE, **params.read_yaml(tmp_path / "rate.yaml")})
    assert "'learning_rate'" in message and "write 1.0e-3" in message


def test_whole_number_is_taken_for_a_fraction():
    checked = params.check({**SMOKE, "temperature": 1})
    assert checked.temperature == 1.0 and type(checked.temperature) is float


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [("conditions", ["recursiv"], "recursive"), ("conditions", ["fresh_cary"], "fresh_carry"),
     ("schedule", "cosin", "cosine"), ("corpus", "tinystory", "tinystories"), ("device", "gpu", "cpu"),
     ("precision", "bfloat", "bfloat16")],
)  # fmt: skip
def test_unknown_choice_names_the_nearest(key, value, nearest):
    assert f"(nearest: {nearest!r})" in refusal({**SMOKE, key: value})


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("seeds", {"seeds": [1, 2, 1]}),
        ("conditions", {"conditions": ["fresh", "fresh"]}),
        ("data_path", {"data_path": "stories.txt"}),
        ("data_path", {"held_out_path": "stories.txt"}),
        ("held_out_path", {"corpus": "tinystories", "held_out_path": "stories.txt"}),
        ("heads", {"hidden_size": 64, "heads": 3}),
        ("heads", {"hidden_size": 66, "heads": 22}),
        ("opening_tokens", {"prompting": "opening", "opening_tokens": 32, "block_tokens": 32}),
        ("curvature_blocks", {"curvature_blocks": 33, "held_out_blocks": 32}),
        ("architecture", {"checkpoint": "somewhere", "architecture": "opt"}),
        ("baseline_blocks", {"baseline_blocks": 0}),
        ("baseline_blocks", {"baseline_epochs": 0}),
        ("baseline_sequence_tokens", {"baseline_sequence_tokens": 63}),
        ("baseline_sequence_tokens", {"story_tokens": 65}),
    ],
)
def test_impossible_combination_is_refused(key, changes):
    assert refusal({**SMOKE, **changes}).startswith(f"parameters: {key}: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"prompting": "context", "opening_tokens": 32},
        {"curvature_blocks": 16},
        {
            "checkpoint": "somewhere",
            "baseline_blocks": 0,
            "baseline_epochs": 0,
            "baseline_sequence_tokens": 8,
        },
        {"corpus": "tinystories", "data_path": "a.txt", "held_out_path": "b.txt"},
    ],
)
def test_combinations_at_the_edge_are_accepted(changes):
    params.check({**SMOKE, **changes})


# ---- files


@pytest.mark.parametrize("name", ["../smoke", "..", "/etc/passwd", "a/b", "a\\b", "", ".hidden", "a b", "smoke\n"])
def test_names_that_leave_their_folder_are_refused(name):
    with pytest.raises(ValueError, match="cannot name a folder"):
        params.load(name)
    with pytest.raises(ValueError, match="cannot name a folder"):
        params.collect(notebook(f"profile = {name!r}"))
    for key in ("profile", "model", "prompt_bank"):
        assert "cannot name a folder" in refusal({**SMOKE, key: name})


def test_unknown_profile_lists_those_there_are():
    with pytest.raises(ValueError, match=r"smok\.yaml is not in .* are " + ", ".join(PROFILES)):
        params.load("smok")


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "just text", "a: [1\n", "a: b: c\n"])
def test_file_that_is_no_mapping_is_named(tmp_path, text):
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "broken.yaml"))) as caught:
        params.read_yaml(tmp_path / "broken.yaml")
    assert "\n" not in str(caught.value)


def test_key_that_stands_twice_is_refused(tmp_path, monkeypatch):
    text = (paths.PARAMS / "smoke.yaml").read_text()
    (tmp_path / "smoke.yaml").write_text(text + "layers: 2\n")
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    with pytest.raises(ValueError, match=r"smoke\.yaml: parameter 'layers' is written twice: delete one") as caught:
        params.load("smoke")
    assert "\n" not in str(caught.value)


# ---- notebooks


def test_notebook_without_overrides_takes_its_profile():
    assert params.collect(notebook("import math", TAGGED)) == params.load("smoke")


def test_injected_values_override_the_file():
    settings = params.collect(notebook(TAGGED, injected(temperature=0.5, seeds=[7, 8], condition="mixed_carry")))
    assert settings == params.load("smoke", temperature=0.5, seeds=[7, 8])
    assert params.collect(notebook(TAGGED, injected(profile="default"))) == params.load("default")


def test_whole_profile_may_be_injected():
    own = {**SMOKE, "profile": "mine", "layers": 3}
    assert params.collect(notebook(TAGGED, injected(**own))) == params.check(own)


def test_kernel_without_history_counts_what_is_assigned():
    """nbval runs cells so that `In` stays empty."""
    namespace = {**notebook("import math", TAGGED, injected(temperature=0.5)), "In": [""]}
    assert params.collect(namespace) == params.load("smoke", temperature=0.5)
    with pytest.raises(ValueError, match="unknown parameter 'temprature'"):
        params.collect({**namespace, "temprature": 0.5})


def test_unknown_injected_name_is_refused():
    with pytest.raises(ValueError, match=r"unknown parameter 'temprature'; .* is 'temperature'"):
        params.collect(notebook(TAGGED, injected(temprature=0.5)))
    with pytest.raises(ValueError, match=r"unknown parameter 'sed'; .* is 'seed'"):
        params.collect(notebook(TAGGED, injected(sed=2)))


def test_second_execution_sees_only_parameters():
    collect = "settings = params.collect(globals())"
    later = "temprature = 3\nlayers = 'many'\ntemperature = 9.0\nrows = [1]"
    namespace = notebook("from spectral_collapse.record import params", TAGGED, collect, later, TAGGED, collect)
    assert namespace["settings"] == params.load("smoke")


def test_cells_that_are_no_plain_python_are_passed_over():
    namespace = notebook(TAGGED)
    namespace["In"].insert(1, "get_ipython().run_line_magic('x', '') = %profile")
    assert params.collect(namespace) == params.load("smoke")


# What papermill's -p, Snakemake's --config and `launch` make of a value, and what the schema wants.
@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("conditions", "['recursive', 'fresh']", ["recursive", "fresh"]),
        ("conditions", "[recursive, fresh]", ["recursive", "fresh"]),
        ("seeds", "[11, 12]", [11, 12]),
        ("seeds", ["11", "12"], [11, 12]),
        ("steps", "null", None),
        ("steps", "7", 7),
        ("temperature", "1e-1", 0.1),
        ("layerwise_spectra", "false", False),
        ("data_path", "null", None),
        ("data_path", "7", "7"),
        ("schedule", "constant", "constant"),
    ],
)
def test_text_of_a_command_line_is_read_as_the_schema_wants_it(key, text, value):
    assert params.from_text(key, text) == params.from_text(key, value) == value
    changed = {"corpus": "tinystories", "held_out_path": None} if key == "data_path" else {}
    assert getattr(params.load("smoke", **changed, **{key: text}), key) == value
    assert getattr(params.collect(notebook(TAGGED, injected(**changed, **{key: text}))), key) == value


@pytest.mark.parametrize("text", ["recursive", "11", 11])
def test_what_should_be_a_list_says_how_one_is_written(text):
    with pytest.raises(ValueError, match=r"'seeds': input should be a valid list.*also as -y 'seeds: \[a, b\]'"):
        params.collect(notebook(TAGGED, injected(seeds=text)))


@pytest.mark.parametrize("text", ["[1, 2", "!!int x", "{"])
def test_what_is_no_yaml_is_named(text):
    with pytest.raises(ValueError, match=r"^seeds: .* is not readable as YAML\.$"):
        params.load("smoke", seeds=text)


def test_a_file_of_ones_own_may_extend_a_profile():
    own = params.collect(notebook(TAGGED, injected(profile="mine", extends="default", generations=2, seeds="[7]")))
    assert own == params.load("default", generations=2, seeds=[7]).model_copy(update={"profile": "mine"})
    with pytest.raises(ValueError, match=r"extends 'default' needs a name of its own: 'smoke' is smoke\.yaml"):
        params.collect(notebook(TAGGED, injected(extends="default", generations=2)))
    with pytest.raises(ValueError, match=r"defalt\.yaml is not in .* \(the nearest is 'default'\)"):
        params.collect(notebook(TAGGED, injected(profile="mine", extends="defalt")))


def test_a_wrong_profile_names_the_nearest():
    with pytest.raises(ValueError, match=r"'smok' is no profile in .*, the nearest is 'smoke'") as caught:
        params.collect(notebook(TAGGED, injected(profile="smok")))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


FACTOR = 'factor = "smoke"\ngrid = "ablations"\ndata_path = None'


def test_parameters_of_the_ablations_are_checked():
    assert params.collect_factor(notebook(FACTOR)) == {"name": "smoke", "grid": "ablations", "data_path": None}
    assert params.collect_factor(notebook(FACTOR, injected(factor="samples")))["name"] == "samples"
    with pytest.raises(ValueError, match="unknown parameter 'facto'; the nearest valid name is 'factor'"):
        params.collect_factor(notebook(FACTOR, injected(facto="samples")))
    with pytest.raises(ValueError, match=r"unknown factor of grid 'ablations' 'sample'; the nearest .* is 'samples'"):
        params.collect_factor(notebook(FACTOR, injected(factor="sample")))


@pytest.mark.parametrize("seed", ["1", 1.0, True, -1, None])
def test_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match=f"parameter 'seed' must be a whole number from 0 on, not {seed!r}"):
        params.collect(notebook(TAGGED, injected(seed=seed)))


@pytest.mark.parametrize(("condition", "nearest"), [("recursve", "recursive"), ("mixed_cary", "mixed_carry"), (3, "")])
def test_bad_condition_names_the_nearest(condition, nearest):
    with pytest.raises(ValueError, match=f"unknown condition {condition!r}; the nearest .* is '{nearest}"):
        params.collect(notebook(TAGGED, injected(condition=condition)))


@pytest.mark.parametrize("cells", [("seed = 1",), ("profile = 3",), ("profile = None",)])
def test_notebook_without_a_profile_name_is_refused(cells):
    with pytest.raises(ValueError, match="parameter 'profile' must be a name"):
        params.collect(notebook(*cells))


@pytest.mark.parametrize("weights", ["carry", "restart"])
def test_suffix_of_a_condition_fixes_its_weights(weights):
    assert schema.split_condition("recursive", weights) == ("recursive", weights)
    assert schema.split_condition("mixed_carry", weights) == ("mixed", "carry")
    assert schema.split_condition("mixed_restart", weights) == ("mixed", "restart")


def test_a_profile_takes_the_rest_from_the_one_it_extends():
    parent, child = params.load("default"), params.load("estimators")
    own = {"profile", "seeds", "curvature_blocks"}
    assert child.model_dump(exclude=own) == parent.model_dump(exclude=own)
    assert (child.profile, child.seeds, child.curvature_blocks) == ("estimators", [1], 8)
    assert [file.stem for file in params.profile_files("estimators")] == ["default", "estimators"]
    namespace = {"In": ["profile = 'x'"], **params.read_yaml(paths.PARAMS / "estimators.yaml")}
    assert params.collect(namespace | {"profile": "estimators"}) == child


def test_a_profile_may_extend_one_that_extends_another():
    study, carried = params.load("study"), params.load("study_carry")
    own = {"profile": "study_carry", "weights": "carry", "seeds": list(range(1, 9))}
    assert carried.model_dump() == study.model_dump() | own
    assert [file.stem for file in params.profile_files("study_carry")] == ["tinystories", "study", "study_carry"]


def test_extending_itself_or_no_profile_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    for name, parent in {"a": "b", "b": "a", "c": "7", "d": "grid"}.items():
        (tmp_path / f"{name}.yaml").write_text(f"profile: {name}\nextends: {parent}\n")
    (tmp_path / "grid.yaml").write_text("factors: {}\nextends: a\n")
    for profile in "abc":
        with pytest.raises(ValueError, match="extends must name a profile that does not extend it too"):
            params.load(profile)
    with pytest.raises(ValueError, match="extends must name a profile, and 'grid' is a grid"):
        params.load("d")


def test_batches_of_the_study_must_fit_into_the_held_out_text():
    with pytest.raises(ValueError, match="estimator_batches"):
        params.load("default", estimator_batches=25)


# ---- profiles of the studies

# What the documents state; the rest of those profiles is this project's choice, and said to be.
STATED = {
    "smollm2": {
        "conditions": ["recursive", "fresh", "static"], "generations": 5, "corpus": "tinystories",
        "checkpoint": "HuggingFaceTB/SmolLM2-135M", "blocks_per_generation": 50_000, "block_tokens": 256,
        "batch_size": 8, "learning_rate": 5e-5, "temperature": 0.8, "top_k": 50, "baseline_blocks": 0,
        "curvature_blocks": 32, "lanczos_steps": 30, "prompting": "opening",
    },
    "qwen": {
        "conditions": ["recursive", "fresh", "mixed"], "generations": 5, "real_fraction": 0.5, "corpus": "tinystories",
        "checkpoint": "Qwen/Qwen2.5-0.5B", "blocks_per_generation": 10_000, "steps": 2000, "temperature": 0.8,
        "top_k": 50,
    },
    "llama100m": {
        "checkpoint": None, "architecture": "llama", "generations": 5, "blocks_per_generation": 1000,
        "temperature": 0.8, "top_k": 50,
    },
    "gpt2": {"checkpoint": "openai-community/gpt2", "generations": 5, "blocks_per_generation": 10_000, "steps": 2000},
    "sigma_opt": {
        "checkpoint": "facebook/opt-125m", "generations": 50, "block_tokens": 64, "epochs": 5, "batch_size": 16,
        "learning_rate": 2e-5, "schedule": "constant", "temperature": 1.0, "top_p": 0.95, "response_tokens": 256,
        "seeds": [42], "prompting": "context", "conditions": ["recursive_restart", "recursive_carry"],
    },
}  # fmt: skip


def steps_of(profile: schema.Params) -> int:
    return profile.steps or profile.epochs * -(-profile.blocks_per_generation // profile.batch_size)


@pytest.mark.parametrize("profile", STATED)
def test_profiles_of_the_studies_have_the_studies_numbers(profile):
    found = params.load(profile)
    assert {key: getattr(found, key) for key in STATED[profile]} == STATED[profile]
    assert found.precision == "auto" and found.device == "auto"
    if found.checkpoint:
        assert re.fullmatch("[0-9a-f]{40}", found.revision)


def test_steps_and_seeds_of_the_studies():
    loaded = {name: params.load(name) for name in (*STATED, "smollm2_ablations")}
    assert all(len(loaded[name].seeds) == 5 for name in ("smollm2", "qwen", "gpt2", "llama100m"))
    assert steps_of(loaded["llama100m"]) == 250 and steps_of(loaded["smollm2_ablations"]) == 1000
    phase_1 = loaded["llama100m"]
    assert phase_1.baseline_epochs * phase_1.baseline_blocks // phase_1.batch_size == 1000
    assert params.read_yaml(paths.PARAMS / "qwen.yaml")["tuning_blocks"] // loaded["qwen"].batch_size == 2000


@pytest.mark.parametrize("profile", ["smollm2", "qwen", "gpt2", "llama100m", "smollm2_ablations"])
def test_the_files_of_the_studies_are_all_that_papermill_needs(profile):
    """papermill notebooks/02_treatment.ipynb out.ipynb -f params/<profile>.yaml -p seed 1"""
    given = {**params.read_yaml(paths.PARAMS / f"{profile}.yaml"), "seed": 1}
    assert params.collect(notebook(TAGGED, injected(**given))) == params.load(profile)


@pytest.mark.parametrize("profile", ["smollm2", "qwen", "gpt2", "llama100m", "smollm2_ablations"])
def test_tinystories_has_text_enough_for_every_slice(profile):
    """At 200 tokens a story, fewer than its 220 or so by any of these vocabularies; there are 2.1 million stories."""
    found = params.load(profile)
    slices = 1 + (found.generations if "fresh" in found.conditions else 0)
    blocks = found.baseline_blocks + slices * found.blocks_per_generation
    assert blocks * found.block_tokens < 200 * found.documents and found.documents < 2_119_719
    assert found.held_out_blocks * found.block_tokens < 200 * found.documents / 10


def test_the_reference_of_the_parameters_is_that_of_the_schema_and_every_one_is_explained():
    assert (paths.ROOT / "docs" / "parameters.md").read_text(encoding="utf-8") == reference.reference() + "\n"
    fields = [name for group in schema.GROUPS for name in group.model_fields]
    assert fields == list(schema.Params.model_fields)
    assert all(field.description for field in schema.Params.model_fields.values())
