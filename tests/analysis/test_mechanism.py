"""The stages and the study on runs of a tiny model: repeatable, consistent, and whole on the way into the paper."""

import re

import numpy as np
import pytest
from spectral_collapse.analysis import mechanism, mediation
from spectral_collapse.experiment import loop, runs
from spectral_collapse.experiment import mechanism as stages
from spectral_collapse.paper import figures, tables
from spectral_collapse.paper import mechanism as report
from spectral_collapse.record import params, paths

SMALL = {
    "hidden_size": 16, "layers": 1, "heads": 2, "baseline_blocks": 512, "perplexity_bound": 1e9, "generations": 2,
    "blocks_per_generation": 16, "held_out_blocks": 8, "curvature_blocks": 2, "estimator_batches": 2,
    "evaluation_stories": 4, "mechanism_blocks": 6, "eigenvectors": 2, "landscape_points": 3, "learning_rate": 5.0e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def settings():
    return params.load("smoke", **SMALL)


@pytest.fixture(scope="module")
def measured(settings, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRAL_COLLAPSE_RESULTS", str(tmp_path_factory.mktemp("mechanism")))
        yield mechanism.tables(stages.measured(settings, say=pytest.fail), settings)


def test_generation_0_is_compared_with_itself(measured):
    start = measured.quantities.query("generation == 0")
    for name in ("gradient_cosine_start", "gradient_cosine_before", "cka_start", "eigenspace_overlap"):
        np.testing.assert_allclose(start[name], 1, atol=1e-5)
    for name in ("relative_drift_start", "relative_drift_before"):
        assert (start[name] == 0).all()
    assert start["drift_aligned"].isna().all()


def test_later_generations_have_moved_and_first_ones_move_alike(measured):
    later = measured.quantities.query("generation > 0")
    assert (later["relative_drift_start"] > 0).all() and (later["gradient_cosine_start"] < 1).all()
    first = later.query("generation == 1")
    np.testing.assert_allclose(first["relative_drift_start"], first["relative_drift_before"])
    assert later["drift_aligned"].between(0, 1).all()
    assert (later["drift_aligned_by_chance"] == later["drift_aligned_by_chance"].iloc[0]).all()


def test_parts_add_up_to_the_network(measured):
    parts = measured.parts.set_index("part")
    for name in ("real_gradient_norm", "drift_start", "drift_before"):
        whole = parts.loc["all", name].to_numpy()
        rest = measured.parts.query("part != 'all'").groupby(["condition", "seed", "generation"], sort=False)[name]
        np.testing.assert_allclose(np.sqrt(rest.apply(lambda values: (values**2).sum())), whole, rtol=1e-5, atol=1e-9)


def test_tables_have_every_cell(measured, settings):
    cells = 2 * 2 * 3
    assert len(measured.quantities) == cells and len(measured.layers) == 2 * cells
    assert set(measured.parts["part"]) == {"embedding", "layer 0 attention", "layer 0 mlp", "head", "all"}
    assert len(measured.outliers) == 2 * 2 * settings.eigenvectors * 3
    assert len(measured.planes) == cells * 9 and len(measured.lines) == 2 * 2 * (3 - 1) * 2 * len(stages.LINE)


def test_the_landscape_agrees_with_itself_and_with_generation_0(measured):
    centre = measured.planes.query("a == 0 and b == 0").set_index(["condition", "seed", "generation"])["loss"]
    for row in measured.lines[measured.lines["t"].isin([0, 1])].itertuples():
        start = 0 if row.since == "start" else row.generation - 1
        end = row.generation if row.t == 1 else start
        assert row.loss == pytest.approx(centre[row.condition, row.seed, end], rel=1e-5)


def test_records_are_found_again_and_models_are_left_as_they_were(measured, settings, monkeypatch):
    run = runs.Run(settings, "recursive", 1, say=pytest.fail)
    before = {name: tensor.clone() for name, tensor in loop.load(run, 2).state_dict().items()}
    stages.slices.compute(run, 2)
    stages.mechanism.compute(run, 2)
    assert all((before[name] == tensor).all() for name, tensor in loop.load(run, 2).state_dict().items())
    monkeypatch.setattr(runs.Stage, "_record", lambda *_: pytest.fail("computed again"))
    again = mechanism.tables(stages.measured(settings, say=pytest.fail), settings)
    assert again.quantities.equals(measured.quantities) and again.outliers.equals(measured.outliers)


def test_a_study_is_written_and_read_and_an_altered_table_is_named(measured, settings):
    folder = mechanism.write(measured, settings)
    found = mechanism.read(settings)
    np.testing.assert_allclose(found.quantities["cka_start"], measured.quantities["cka_start"], rtol=1e-5)
    (folder / "parts.csv").write_text("condition\n")
    with pytest.raises(ValueError, match=r"parts\.csv does not match study\.json"):
        mechanism.read(settings)
    (folder / "study.json").unlink()
    with pytest.raises(ValueError, match="or make the study again"):
        mechanism.read(settings)


def test_it_becomes_figures_tables_and_numbers(measured, settings, tmp_path):
    assert len(figures.mechanism_parts(measured.parts).axes) == 4
    assert len(figures.mechanism_layers(measured.layers).axes) == 4
    slices = figures.landscape(measured.planes, measured.lines, 1)
    scales = {axes.collections[0].norm.vmax for axes in slices.axes[: 2 * 3]}
    assert len(scales) == 1  # one colour scale
    assert len(figures.outlier_tracks(measured.outliers).axes) == 2
    mediated = mediation.mediation(measured.quantities, mechanism.QUANTITIES[:2], mechanism.OUTCOMES)
    differences, counts = mechanism.differences(measured.quantities), mechanism.fate_counts(measured.outliers)
    for index, frame in enumerate(
        (
            report.mediation_table(mediated),
            report.differences_table(differences),
            report.fates_table(counts),
        )
    ):
        tables.write_table(frame, tmp_path / f"{index}.tex")
    values = report.values(measured, differences, mediated, counts, settings)
    tables.write_values(values, tmp_path / "numbers.tex")
    assert values["mechanism.seeds"] == "2" and values["mechanism.quantities"] == str(len(mechanism.QUANTITIES))
    assert set(differences["word"]) <= {"higher", "lower", "not distinguishable"}
    assert (counts["all"] == 2 * settings.eigenvectors).all()


def test_the_section_uses_no_key_that_there_is_not(measured, settings):
    mediated = mediation.mediation(measured.quantities, mechanism.QUANTITIES, mechanism.OUTCOMES)
    differences, counts = mechanism.differences(measured.quantities), mechanism.fate_counts(measured.outliers)
    section = (paths.ROOT / "paper" / "sections" / "mechanism.tex").read_text()
    section = re.sub(r"\\ifval{[^}]*}", "", section)  # what only some studies have
    used = set(re.findall(r"\\val{([^}]*)}", section))
    assert len(used) > 50 and used <= report.values(measured, differences, mediated, counts, settings).keys()


def test_a_profile_without_both_conditions_is_told_so(measured):
    only = measured.quantities[measured.quantities["condition"] == "fresh"]
    with pytest.raises(ValueError, match="the table has no condition 'recursive'"):
        mechanism.differences(only)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="landscape_points: must"):
        params.load("smoke", **{**SMALL, "landscape_points": 4})
    with pytest.raises(ValueError, match="mechanism_blocks is 9 and there are only 8 held_out_blocks"):
        next(stages.measured(params.load("smoke", **{**SMALL, "mechanism_blocks": 9})))
