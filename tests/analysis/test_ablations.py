"""Grids: cells are profiles, base models are shared, contrasts are what they say."""

import math
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from spectral_collapse.analysis import ablations, claims, series, statistics
from spectral_collapse.estimate import Estimate
from spectral_collapse.experiment import encoded, factors, loop, measure, runs
from spectral_collapse.model import build, train
from spectral_collapse.paper import ablations as report
from spectral_collapse.paper import figures
from spectral_collapse.record import evidence, params, paths
from spectral_collapse.text import tokenizers
from tiny import TINY, described

GRIDS = ("ablations", "ablations_hub")
CELLS = [
    f"{grid}.{factor}.{level}"
    for grid in GRIDS
    for factor in params.read_grid(grid)["factors"]
    for level in params.read_factor(grid, factor)["levels"]
]


# ---- grids


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_is_a_profile(cell):
    settings = params.load(cell)
    assert settings.profile == cell and params.base_params(settings).base is None
    assert all(file.exists() for file in params.profile_files(cell))
    assert params.collect({"In": [""], "profile": cell, "seed": 1}) == settings  # as papermill -p profile <cell>


@pytest.mark.parametrize("grid", GRIDS)
def test_every_factor_is_whole(grid):
    for name in params.read_grid(grid)["factors"]:
        factor = factors.read(name, grid)
        assert factor.reference in factor.levels and factor.question.rstrip(")").endswith(("?", "."))
        assert factor.hypothesis.endswith(".") and factor.region[0] < factor.region[1]
        seeds = {tuple(settings.seeds) for settings in factor.levels.values()}
        lengths = {settings.generations for settings in factor.levels.values()}
        assert len(seeds) == len(lengths) == 1


def test_the_scale_takes_the_grid_to_full_size():
    def sizes(grid, factor, key):
        levels = params.read_factor(grid, factor)["levels"]
        return [getattr(params.load(f"{grid}.{factor}.{level}"), key) for level in levels]

    assert sizes("ablations_hub", "samples", "blocks_per_generation") == [1000, 5000, 10_000, 50_000]
    assert sizes("ablations_hub", "steps", "steps") == [250, 1000, 5000]
    assert sizes("ablations", "samples", "blocks_per_generation") == [32, 160, 320, 1600]
    decodings = [(params.load(f"ablations.decoding.{level}")) for level in ("high", "medium", "low")]
    assert [(p.writing_temperature, p.writing_top_k) for p in decodings] == [(0.3, 10), (0.8, 50), (1.2, 100)]


def test_steps_of_the_reference_are_those_of_its_epochs():
    small = params.load("small")
    assert small.epochs * small.blocks_per_generation // small.batch_size == params.load("ablations.steps.x1").steps


def test_a_level_that_changes_nothing_is_what_it_extends():
    assert factors.read("samples").levels["x1"].profile == "small"
    assert factors.read("samples").levels["x5"].profile == "ablations.samples.x5"
    reference = factors.read("dropout").levels["0"]
    assert (reference.profile, reference.conditions) == ("small", ["recursive"])


def test_architectures_are_of_about_equal_size():
    tokenizer = tokenizers.train_tokenizer(["a story of a fox and a hen"] * 3, 300)
    sizes = []
    for level, settings in factors.read("architecture").levels.items():
        model = build.initial_model(settings, tokenizer, 1)
        assert model.config.model_type == level
        sizes.append(build.parameter_count(model) - model.get_input_embeddings().weight.numel())
    assert max(sizes) < 1.25 * min(sizes)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ablations.sampels.x1", "unknown factor of grid 'ablations' 'sampels'; the nearest valid name is 'samples'."),
        ("ablations.samples.x50", "unknown level of factor 'samples' 'x50'; the nearest valid name is 'x5'."),
        ("ablations", "'ablations' is a grid: name a cell of it, as ablations.<factor>.<level>."),
        ("ablations.samples", "'ablations.samples' is no cell of grid 'ablations': name one as ablations.<factor>"),
        ("ablations_hub.size.large", "unknown factor of grid 'ablations_hub' 'size'; the nearest valid name is"),
        ("smoke.samples.x1", "a grid needs 'factors'."),
        ("nothing.samples.x1", "nothing.yaml is not in"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, sentence):
    with pytest.raises(ValueError) as caught:
        params.load(name)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"documents": 4000}, "documents"),
        ({"vocabulary_size": 600}, "vocabulary_size"),
        ({"architecture": "opt"}, "architecture"),
        ({"block_tokens": 24}, "block_tokens"),
        ({"held_out_blocks": 30}, "held_out_blocks"),
        ({"temperature": 0.5}, "temperature"),
        ({"base": "ablations.smoke.restart"}, "ablations.smoke.restart starts from 'smoke' itself"),
    ],
)
def test_bases_that_cannot_be_shared_are_refused(changes, named):
    with pytest.raises(ValueError, match="base: ") as caught:
        params.load("ablations.smoke.restart", **changes)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_base_may_be_read_elsewhere_and_on_another_device():
    settings = params.load("ablations_hub.dropout.0.1", data_path="stories.txt", device="cpu")
    assert (params.base_params(settings).data_path, params.base_params(settings).device) == ("stories.txt", "cpu")


# ---- runs

GRID = {
    "extends": "tiny",
    "factors": {
        "epochs": {
            "question": "Does it matter?",
            "reference": "two",
            "levels": {"two": {}, "one": {"epochs": 1}, "blocks": {"blocks_per_generation": 16}},
            "hypothesis": "It does.",
            "test": {
                "metric": "log_perplexity",
                "level": "one",
                "against": "two",
                "control": "fresh",
                "region": [0, None],
            },
        }
    },
}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A grid over the smoke profile made smaller still, measured without the encoder."""
    folder = tmp_path / "params"
    folder.mkdir()
    smoke = {**params.read_yaml(paths.PARAMS / "smoke.yaml"), **TINY, "profile": "tiny"}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(smoke))
    (folder / "grid.yaml").write_text(yaml.safe_dump(GRID))
    monkeypatch.setattr(paths, "PARAMS", folder)
    monkeypatch.setenv("SPECTRAL_COLLAPSE_RESULTS", str(tmp_path / "results"))
    names = ("training", "evaluation", "anchors")
    monkeypatch.setattr(encoded, "LIGHT", {name: measure.STAGES[name] for name in names})
    monkeypatch.setattr(ablations, "STAGES", names)
    return factors.read("epochs", "grid")


@pytest.mark.slow
def test_generation_zero_is_computed_once_and_a_second_run_computes_nothing(tiny, monkeypatch):
    trained = described(monkeypatch, train, "train")
    factors.run(tiny)
    assert trained.count("baseline 0: training") == 2  # one a seed
    assert len(trained) == 2 + 3 * 2 * 2 * 2  # levels, conditions, seeds, generations
    found = sorted(path.parent.name for path in paths.results_root().rglob("baseline"))
    assert found == ["llama-tiny"] and (paths.results_root() / "tiny" / "llama-tiny" / "baseline").exists()
    factors.run(tiny)
    assert len(trained) == 26

    # The runs of every level start from the same models, texts and contexts.
    table = ablations.table(tiny)
    assert len(table) == 3 * 2 * 2 * 3 and set(table["role"]) == {"treated", "control"}
    first = table[table["generation"] == 0]
    assert first.groupby("seed")["log_perplexity"].nunique().eq(1).all()
    one, two = (runs.Run(tiny.levels[level], "recursive", 1, say=print) for level in ("one", "two"))
    assert loop.text(one, 1)["text_sha256"] == loop.text(two, 1)["text_sha256"]
    assert loop.training(one, 1)["model_sha256"] != loop.training(two, 1)["model_sha256"]

    # The study is what its files say, and is refused once they disagree.
    study = ablations.Study(tiny, table)
    folder, held = ablations.write(study), evidence.Folder(paths.results_root())
    place = folder.relative_to(held.root)
    record, tables = evidence.read_study(place, ["runs"], {"level": str}, held)
    pd.testing.assert_frame_equal(tables["runs"], table, check_dtype=False, rtol=1e-7)
    assert record["verdict"] == study.verdict and record["control"] == "fresh"
    assert (record["reference"], record["changes"]["one"]) == ("two", {"epochs": 1})
    with (folder / "runs.csv").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"runs\.csv does not match study\.json"):
        evidence.read_study(place, ["runs"], source=held)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="or make the study again"):
        evidence.read_study(place, ["runs"], source=held)


@pytest.mark.slow
def test_a_profiles_table_takes_generation_zero_from_its_base(tiny):
    factors.run(tiny)
    own = series.table(tiny.levels["one"], stages=("evaluation",))
    base = series.table(tiny.levels["two"], stages=("evaluation",))
    same = ["condition", "seed", "held_out_perplexity"]
    pd.testing.assert_frame_equal(own.query("generation == 0")[same], base.query("generation == 0")[same])


# ---- contrasts


def table(**levels) -> pd.DataFrame:
    """Runs whose metrics x change by the numbers given, seed by seed; `<level>__fresh` are controls."""
    rows = []
    for name, changes in levels.items():
        level, _, control = name.partition("__")
        for seed, change in enumerate(changes):
            for generation in (0, 1, 2):
                value = 10 * seed + (change * generation / 2)
                role = ("treated", "recursive") if not control else ("control", control)
                rows.append((level, *role, seed, generation, value))
    return pd.DataFrame(rows, columns=["level", "role", "condition", "seed", "generation", "x"])


def test_contrasts_are_paired_differences_of_changes():
    seen = table(a=[1, 2, 4], b=[3, 5, 8], a__fresh=[0, 1, 1], b__fresh=[1, 1, 3])
    assert ablations.contrast(seen, "x", "b") == pytest.approx(Estimate.mean([3, 5, 8]))
    assert ablations.contrast(seen, "x", "b", "a") == pytest.approx(Estimate.mean([2, 3, 4]))
    assert ablations.contrast(seen, "x", "b", control="fresh") == pytest.approx(Estimate.mean([2, 4, 5]))
    expected = Estimate.mean([2 - 1, 4 - 1, 5 - 3])
    assert ablations.contrast(seen, "x", "b", "a", "fresh") == pytest.approx(expected)


def test_what_holds_of_all_levels_holds_of_each():
    seen = table(a=[1, 2, 3], b=[4, 5, 6], c=[2, 2.1, 2.2])
    low, high = (Estimate.mean(x) for x in ([1, 2, 3], [4, 5, 6]))
    assert ablations.contrast(seen, "x", "all") == pytest.approx(Estimate(2.1, low.low, high.high))
    assert statistics.verdict(ablations.contrast(seen, "x", "all"), (0, math.inf)) == "inconclusive"
    assert statistics.verdict(ablations.contrast(seen, "x", "c"), (0, math.inf)) == "supported"


def test_unknown_levels_and_controls_are_named():
    seen = table(a=[1, 2], b=[1, 2])
    with pytest.raises(ValueError, match="there is no level 'c': the levels are a, b"):
        ablations.contrast(seen, "x", "c")
    with pytest.raises(ValueError, match="level 'a' has no control 'fresh'"):
        ablations.contrast(seen, "x", "a", control="fresh")


def test_effects_are_paired_with_the_reference():
    seen = table(a=[1, 2, 4], b=[3, 5, 8])
    (row,) = ablations.effects(seen, "a", metrics=["x", "absent"]).to_dict("records")
    differences = np.array([2.0, 3.0, 4.0])
    assert (row["level"], row["metric"], row["change"]) == ("b", "x", pytest.approx(16 / 3))
    assert row["difference"] == pytest.approx(3) and row["d_z"] == pytest.approx(3 / differences.std(ddof=1))
    assert row["d_low"] < row["d_z"] < row["d_high"]


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((1, 0.5, 2), "supported"), ((-1, -2, -0.1), "contradicted"), ((1, -1, 3), "inconclusive"),
     ((1, math.nan, math.nan), "not tested")],
)  # fmt: skip
def test_verdicts_follow_the_rule_of_the_claims(interval, verdict):
    assert statistics.verdict(Estimate(*interval), (0, math.inf)) == verdict


# ---- for the paper


@pytest.fixture
def studies() -> dict[str, ablations.Study]:
    seen = table(a=[1, 2, 4], b_c=[3, 5, 8]).rename(columns={"x": "log_perplexity"})
    seen["distinct_2"] = -(seen["log_perplexity"] ** 2)
    changes = {"a": {}, "b_c": {"dropout": 0.1, "conditions": ["recursive", "fresh"], "base": None}}
    test = {"metric": "log_perplexity", "level": "b_c", "against": "a"}
    rest = "Is it?", "a", {}, changes, "It is 100 %.", test, (0.0, math.inf)
    return {name: ablations.Study(factors.Factor("grid", name, *rest), seen) for name in ("one", "two_s")}


def test_tables_values_and_pictures_of_studies(studies):
    shown = report.effects_table(studies.values())
    assert list(shown.iloc[:, 0]) == ["one", "two s"] and list(shown.iloc[:, 1]) == ["b c", "b c"]
    assert shown.iloc[0, 2].startswith("dropout 0.1") and shown.iloc[0, 3].startswith("3.00 [")
    assert shown.iloc[0, 4] == "--"
    assert list(report.hypotheses_table(studies.values()).iloc[:, 3]) == ["supported"] * 2
    values = report.values(studies.values())
    assert values["ablation.one.verdict"] == "supported" and values["ablations.supported"] == "2"
    assert values["ablation.two_s.b_c.log_perplexity"] == shown.iloc[0, 3] and values["ablations.generations"] == "2"
    assert report.values([]) == {}
    assert report.described(studies["one"].factor.changes["b_c"]) == "dropout 0.1; conditions recursive, fresh"
    assert report.described({}) == "–"
    runs = studies["one"].runs
    assert len(figures.ablation(runs, "a").axes) == 3  # two panels and an empty one
    assert len(figures.ablation_effects(list(studies.values())).axes) == len(ablations.METRICS)


def test_claims_about_ablations_read_the_studies(studies):
    region = (0.0, math.inf)
    claim = claims.Claim("one", "A claim.", "a source", "1", "ablation", region, {
        "factor": "one", "metric": "log_perplexity", "level": "b_c", "against": "a",
    })  # fmt: skip
    evidence = claims.Evidence(studies["one"].runs, pd.DataFrame(), pd.DataFrame(), studies)
    verdict, _, found = claims.judge(claim, evidence)
    assert verdict == "supported" and found.estimate == pytest.approx(Estimate.mean([2, 3, 4]))
    without = claims.judge(claim, claims.Evidence(studies["one"].runs, pd.DataFrame(), pd.DataFrame()))
    assert without == ("not tested", "no study of one", None)


def test_claims_of_the_plan_name_factors_and_levels_of_the_grid():
    named = [claim for claim in claims.read() if claim.quantity == "ablation"]
    assert len(named) == 5
    for claim in named:
        factor = factors.read(claim.arguments["factor"])
        for key in ("level", "against"):
            assert claim.arguments.get(key, "all") in (*factor.levels, "all")
        if control := claim.arguments.get("control"):
            assert all(control in settings.conditions[1:] for settings in factor.levels.values())
