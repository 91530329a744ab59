"""The packed studies: complete, consistent, and the source of the paper's tables and numbers."""

import json
import math
import re
import shutil

import faults
import numpy as np
import pandas as pd
import pytest
from spectral_collapse.analysis import (
    ablations,
    early_warning,
    estimators,
    mechanism,
    primary,
    series,
    sigma_settings,
    studies,
    trajectories,
)
from spectral_collapse.estimate import Estimate
from spectral_collapse.experiment import factors
from spectral_collapse.paper import ablations as ablations_report
from spectral_collapse.paper import figures, formatting, pdf
from spectral_collapse.paper import studies as report
from spectral_collapse.record import packfile, params, paths
from spectral_collapse.record.evidence import PACKS


@pytest.fixture
def packed(monkeypatch, tmp_path):
    """Where nothing was run: readers find the packed records alone."""
    monkeypatch.delenv("SPECTRAL_COLLAPSE_RESULTS")
    monkeypatch.setattr(paths, "RESULTS", tmp_path)


SHOWN = studies.shown()


def test_the_noise_study_has_every_probe_batch_and_number_of_steps():
    noise = studies.estimator_noise(SHOWN["estimators"])
    assert (noise["probe"].nunique(), noise["batch"].nunique()) == (20, 5)
    assert sorted(noise["steps"].unique()) == [20, 30, 60, 120]
    counts = noise.groupby("quantity", observed=True).size()
    assert (counts.drop("published_iqr_pooled") == 20 * 5 * 4).all() and counts["published_iqr_pooled"] == 5 * 5 * 4


def test_smollm2_has_its_spectrum_from_three_probes():
    (result,) = studies.packed(SHOWN["pretrained"], "curvature")
    assert (result["parameters"], result["blocks"], result["probes"]) == (134_515_008, 4, 3)
    assert result["steps"] == 12 and len(result["nodes"]) == 3
    low, high = result["log_spectral_ratio_interval"]
    assert low < result["log_spectral_ratio"] < high
    # Two estimators of the same eigenvalue.
    assert series.exact_lambda(result) == pytest.approx(result["published_lambda_max"], rel=0.01)
    table = report.pretrained_table(result).set_index("Quantity")["Value"]
    assert len(table["IQR, published, by probe"].split(", ")) == 3


def test_their_numbers_have_keys_for_the_text():
    (result,) = studies.packed(SHOWN["pretrained"], "curvature")
    noise = studies.estimator_noise(SHOWN["estimators"])
    values = report.noise_values(noise, estimators.noise_summary(noise)) | report.pretrained_values(result)
    used = {"noise.published_iqr.cv_probes", "noise.bulk_sigma.at_20", "pretrained.iqr.most", "noise.most"}
    assert used <= values.keys()


def test_power_iteration_was_stopped_early_and_no_ratio_rests_on_it():
    errors = studies.power_iteration_errors(SHOWN["power_iteration"])
    values = report.power_iteration_values(errors)
    found = {name: [values[f"power.{name}.{count}"] for count in ("models", "off", "far", "sign")] for name in errors}
    assert found["tinystories"] == ["245", "51", "15", "7"]
    assert (values["power.tinystories.worst.found"], values["power.tinystories.worst.exact"]) == ("0.142", "$-13.6$")
    assert found["small"] == ["48", "48", "48", "2"] and values["power.ablations.median"] == r"76\,\%"
    assert all((frame["share"] < 1 + 1e-3).all() for frame in errors.values())  # none finds more than there is
    # The worst of them: a ratio from power iteration would be 95 times too small.
    worst = errors["tinystories"].loc[errors["tinystories"]["share"].idxmin()]
    result = {"lambda_max": 1.0, "lambda_min": worst["exact"], "published_iqr": 0.5, "published_lambda_max": 0.1}
    assert series.log_published_ratio(result) == pytest.approx(math.log(abs(worst["exact"]) / 0.5))
    table = series.table(params.load("tinystories"), stages=("curvature",), source=PACKS)
    assert table["log_published_ratio"].min() > 2.5  # with power iteration's: −1.5


def test_the_injected_collapse_is_whole_and_seen_by_track_two_alone():
    drifts = studies.drifts(SHOWN["injection"])
    assert len(drifts) == 3 * 2 * 7 * 3 and drifts["low"].isna().all()  # of changing numbers of blocks: no bands
    assert drifts.loc[drifts["track"] != "logdet", "drift"].notna().all()  # which a collapse leaves without rank
    last = drifts[drifts["generation"] == 6].set_index(["condition", "track"])["drift"]
    assert last["recursive_carry", "track_two"].max() < 10 * last["fresh", "track_two"].min() < 0
    assert last["recursive_carry", "track_one"].abs().max() < 1
    values = report.injection_values(sigma_settings.last_drifts(drifts), params.load(SHOWN["injection"]))
    assert {"injection.track_two.recursive_carry", "injection.temperature"} <= values.keys()


def test_no_published_interval_of_the_coverage_study_covers_at_the_encoders_dimension():
    assert report.coverage_values(studies.sigma_coverage())["coverage.none.most"] == r"0.0\,\%"


def test_the_settings_of_sigma_are_whole_and_contract_on_all_prompts():
    runs = {"stories": 3, "finance": 1, "technology": 1}
    for bank, profile in SHOWN["settings"].items():
        drifts = studies.drifts(profile)
        assert len(drifts) == runs[bank] * 2 * 11 * 3 and drifts["drift"].notna().all()
        last = drifts[drifts["generation"] == 10].set_index(["condition", "seed", "track"])["drift"].unstack()
        assert (last["track_two"] < -50).all()
        # Two corrections for the number of blocks, which rest on different things, agree.
        assert (last["track_two"] - last["logdet"]).abs().max() < 0.02 * last["track_two"].abs().max()
        assert last["track_one"].abs().max() < 1
    by_bank = {bank: studies.settings_drifts(profile) for bank, profile in SHOWN["settings"].items()}
    table = report.settings_table(by_bank)
    assert list(table["Runs"]) == [3, 3, 1, 1, 1, 1] and list(table["Setting"]) == ["S1", "S2"] * 3
    values = report.settings_values(by_bank["stories"])
    gap = studies.sigma_differences(SHOWN["settings"]["stories"])["track_two"]
    assert values["settings.track_two.difference"] == formatting.format_interval(Estimate.mean(gap))


def test_the_study_of_the_mechanism_has_every_run_and_generation():
    study, settings = studies.mechanism_study(SHOWN["mechanism"]), params.load(SHOWN["mechanism"])
    runs = len(settings.conditions) * len(settings.seeds)
    assert len(study.quantities) == runs * (settings.generations + 1)
    assert study.quantities[list(mechanism.QUANTITIES)].drop(columns="drift_aligned").notna().all().all()
    assert study.quantities["parameters"].nunique() == 1


def test_the_study_of_the_mechanism_is_that_of_its_records():
    inside, settings = studies.mechanism_study(SHOWN["mechanism"]), params.load(SHOWN["mechanism"])
    found = {
        stage: {(c, s, g): result for c, s, g, result in series.results(settings, stage, source=PACKS)}
        for stage in ("evaluation", "mechanism", "landscape")
    }
    assert len(found["mechanism"]) == len(inside.quantities) == 8 * 2 * 6
    for row in inside.quantities.itertuples():
        at = (row.condition, row.seed, row.generation)
        assert row.held_out_perplexity == pytest.approx(found["evaluation"][at]["held_out_perplexity"], rel=1e-5)
        assert row.rare_mass_ratio == pytest.approx(found["mechanism"][at]["rare_mass_ratio"], rel=1e-5)
        assert row.cka_start == pytest.approx(found["mechanism"][at]["layers"][-1]["cka_start"], rel=1e-5)
    for (condition, seed, generation, since), line in inside.lines.groupby(
        ["condition", "seed", "generation", "since"]
    ):
        measured = found["landscape"][condition, seed, generation]["lines"][since]
        assert line["loss"].tolist() == pytest.approx(measured, rel=1e-5)


# ---- keys: what earlier code did not note did not hit any record


def test_every_packed_record_fits_those_it_was_made_with():
    """Keys were once lists kept by hand, and `text` did not name what cuts the real text: a changed parameter could
    have left an old record among new ones. None is (`packfile.verify`), and keys agree with the profile's values."""
    checked = 0
    for study in PACKS.studies():
        content = PACKS.content(study)
        for folder, records in packfile.verify(content).items():
            for cell, record in records.items():
                key = record["key"]["parameters"]
                assert {name: record["parameters"].get(name, then) for name, then in key.items()} == key, (folder, cell)
                checked += 1
    assert checked > 4000


def test_the_table_of_trajectories_is_that_of_the_packs(packed):
    frame = pd.read_parquet(PACKS.root / "trajectories.parquet")
    pd.testing.assert_frame_equal(frame, trajectories.table())
    again = pd.read_csv(PACKS.root / "trajectories.csv.gz")
    pd.testing.assert_frame_equal(again, frame, check_dtype=False, rtol=1e-8)
    assert (PACKS.root / "README.md").read_text(encoding="utf-8") == trajectories.dictionary(frame)
    assert len(frame.drop_duplicates(list(trajectories.COLUMNS)[:8])) == len(frame)
    # Beside the wide table, which leaves out what some model lacks.
    own = frame[frame["study"] == "tinystories"].pivot(
        index=["condition", "seed", "generation"], columns="metric", values="value"
    )
    wide = series.table(params.load("tinystories"), source=PACKS).set_index(["condition", "seed", "generation"])
    wide = wide.drop(columns=["model", "weights"]).sort_index()
    pd.testing.assert_frame_equal(own[list(wide)], wide, check_names=False)


# ---- TinyStories: the records of its runs, and what its paper is typeset from


@pytest.fixture
def tinystories(monkeypatch):
    monkeypatch.delenv("SPECTRAL_COLLAPSE_GENERATED", raising=False)
    return params.load("tinystories")


def test_the_runs_on_tinystories_are_whole_and_the_summary_is_theirs(tinystories):
    table = series.table(tinystories, source=PACKS)
    design = len(tinystories.conditions) * len(tinystories.seeds) * (tinystories.generations + 1)
    assert len(table) == design == 6 * 5 * 9
    assert table.drop(columns="mauve", errors="ignore").notna().all().all()
    summary = pd.read_csv(paths.generated_folder("tinystories") / "metrics" / "series.csv")
    pd.testing.assert_frame_equal(table, summary[list(table)], check_dtype=False, rtol=1e-5)
    assert table.loc[table["generation"] == 0, "held_out_perplexity"].max() < tinystories.perplexity_bound


def test_the_records_on_tinystories_are_of_the_profile_and_quote_no_text(tinystories):
    own = tinystories.model_dump()
    for place, record in PACKS.content("tinystories").items():
        kept = {name: value for name, value in record["parameters"].items() if name in own}
        assert kept == {name: own[name] for name in kept}, place
        assert record["parameters"].keys() - own.keys() == {"published_power_iterations"}  # which there is no more
        assert not {"example", "examples"} & record["result"].keys(), place


@pytest.mark.skipif(not (shutil.which("latexmk") and shutil.which("pdflatex")), reason="latexmk is not installed")
def test_the_paper_on_tinystories_is_typeset_from_what_is_committed(tinystories):
    assert pdf.main(["tinystories"]) == 0
    log = (pdf.PAPER / "build" / "tinystories" / "main.log").read_text(errors="replace")
    assert "undefined" not in log
    assert "has been referenced but does not exist" not in log  # the sentences to which values are linked


def test_the_readme_says_what_the_paper_says():
    numbers = (paths.ROOT / "paper/generated/tinystories/studies.tex").read_text()
    readme = " ".join((paths.ROOT / "README.md").read_text().split())
    values = dict(re.findall(r"\\setval\{confirmed\.([^{}]*)\}\{(.*)\}", numbers))
    order = {side: values[f"lead.log_spectral_ratio.held_out_perplexity.{side}"] for side in ("earlier", "later")}
    assert f"certainly later than it in {order['later']} runs and earlier in {order['earlier']}" in readme
    possible = int(values["lead.held_out_perplexity.possible"])
    assert f"perplexity alarmed by generation {possible + 1}" in readme
    assert possible < 2 and "no metric could have led it by two" in readme
    assert f"a Llama of {values['parameters']} parameters on TinyStories" in readme and values["seeds"] == "10"
    assert (paths.ROOT / "paper/generated/tinystories/confirmed_warnings.svg").is_file()


@pytest.mark.parametrize("name", ["confirmation", "carried"])
def test_a_confirmatory_study_is_whole_can_answer_and_names_its_commit(name):
    study = studies.confirmatory(SHOWN[name])
    settings = study.params
    primary.require_answerable(settings)
    cells = len(settings.conditions) * len(settings.seeds) * (settings.generations + 1)
    assert len(study.analysis.table) == cells and len(study.training) == cells
    assert study.verdicts["hypothesis"].tolist() == settings.primary
    assert study.recovered.groupby("dose").size().to_dict() == dict.fromkeys(settings.rescue_doses, len(settings.seeds))
    assert study.commits and all(re.fullmatch("[0-9a-f]{40}", commit) for commit in study.commits)


def test_carried_weights_give_the_verdicts_that_the_readme_says():
    restarted, carried = (studies.confirmatory(SHOWN[name]) for name in ("confirmation", "carried"))
    assert carried.verdicts["verdict"].tolist() == restarted.verdicts["verdict"].tolist()
    alarms = carried.analysis.alarms.pivot(index=["condition", "seed"], columns="metric", values="alarm")
    warned = alarms["predictive_entropy"] < alarms["held_out_perplexity"]
    assert warned["recursive"].sum() == 8 and np.isinf(alarms.loc["fresh", "predictive_entropy"]).all()
    p = carried.verdicts.set_index("hypothesis").loc["entropy_warns", "p_holm"]
    readme = " ".join((paths.ROOT / "README.md").read_text().split())
    assert f"before perplexity in all 8 runs (p = {p:.2g}), without a false alarm" in readme


def test_the_confirmatory_study_decides_as_the_readme_says():
    settings = params.load(SHOWN["confirmation"])
    table = studies.runs(SHOWN["confirmation"])
    chosen = [primary.HYPOTHESES[name] for name in settings.primary]
    metrics = {name for each in chosen for name in (each.metric, *getattr(each, "outcomes", ()))}
    alarms = early_warning.alarms(table, sorted(metrics))
    decided = primary.verdicts(settings, table, alarms).set_index("hypothesis")
    assert decided["verdict"].isin(["supported", "contradicted"]).all()
    # Counted anew from the rows.
    last = table[table["generation"] == settings.generations]
    ratios = last.pivot(index="seed", columns="condition", values="log_spectral_ratio")
    assert decided.loc["ratio_falls", "held"] == (ratios["recursive"] < ratios["fresh"]).sum()
    first = alarms[alarms["condition"] == "recursive"].pivot(index="seed", columns="metric", values="alarm")
    earlier = (first["predictive_entropy"] < first["held_out_perplexity"]).sum()
    assert decided.loc["entropy_warns", "held"] == earlier
    told = re.findall(r"^- .*?\*\*(\w+)\*\*", (paths.ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    names = ["entropy_warns", "ratio_warns", "ratio_falls", "track_two_warns"]
    assert told == decided.loc[names, "verdict"].tolist()
    readme = " ".join((paths.ROOT / "README.md").read_text().split())
    fresh = alarms[(alarms["condition"] == "fresh") & (alarms["metric"] == "predictive_entropy")]["alarm"]
    warns = decided.loc["entropy_warns"]
    assert f"in {earlier} of 10 runs (p = {warns['p_holm']:.2g})" in readme
    assert f"false alarms in {np.isfinite(fresh).sum()} of 10 control runs; perplexity in none" in readme
    assert decided.loc["track_two_warns", "failed"] == 10 and decided.loc["ratio_falls", "value"] > 0
    samples = studies.samples(SHOWN["confirmation"])
    assert samples["condition"].tolist() == ["", "", "recursive", "recursive", "fresh", "fresh"]
    assert samples["story"].nunique() == 6 and samples["story"].str.len().min() > 50


def test_a_missing_record_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(PACKS, "root", tmp_path)
    with pytest.raises(
        ValueError, match=r"curvature\.json of .*smollm2_offline\.jsonl\.gz is missing: run the notebook"
    ):
        studies.packed("smollm2_offline", "curvature")


def test_the_docs_show_how_to_read_a_record(monkeypatch, capsys):
    monkeypatch.chdir(paths.ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (paths.ROOT / "docs" / "records.md").read_text(), re.DOTALL)
    for block in blocks:
        names: dict = {}
        exec(block, names)
    perplexity = float(capsys.readouterr().out.split()[0])
    place = "tinystories/llama-1.6m/recursive/seed_1/generation_8/evaluation.json"
    assert len(blocks) == 2 and names["results"][place]["held_out_perplexity"] == perplexity


def test_the_docs_tell_of_the_faults_what_was_measured():
    measured = json.loads((PACKS.root / "faults.json").read_text(encoding="utf-8"))
    assert measured.keys() == faults.PARTS.keys()
    text = (paths.ROOT / "docs" / "records.md").read_text(encoding="utf-8")
    assert text.split("<!-- faults -->\n")[1].split("<!-- /faults -->")[0] == faults.table(measured)
    # Whatever happened, the run ended with the same records; a disk that was full was explained.
    killed, disk, twins = (measured[name] for name in ("killed", "disk_full", "twins"))
    assert killed["kills"] >= 30 and killed["equal"] == killed["runs"]
    assert disk["explained"] == disk["full"] and disk["equal"] == disk["disks"] and twins["equal"] == twins["pairs"]
    assert all(measured[name]["equal"] == measured[name]["damages"] for name in ("damaged", "damaged_states"))
    assert measured["kernel_dies"]["equal"] == 1


# ---- the ablations: studies of every factor, and the records they are made from


@pytest.fixture(scope="module")
def studied():
    return ablations.studies()


def test_every_factor_of_the_ablations_has_its_study_of_three_seeds_and_a_verdict(studied):
    assert list(studied) == params.studied_factors(params.GRID)
    for study in studied.values():
        assert study.runs.groupby(["level", "condition"])["seed"].nunique().min() >= 3
        assert set(study.runs["level"]) == {study.factor.reference, *study.factor.changes}
        assert study.verdict in ("supported", "contradicted", "inconclusive")
    assert len(ablations_report.hypotheses_table(studied.values())) == len(studied)


def test_the_studies_of_the_ablations_are_those_of_their_records(studied, packed):
    for name, study in studied.items():
        found = ablations.table(factors.read(name))
        pd.testing.assert_frame_equal(found, study.runs, check_dtype=False, check_like=True, rtol=1e-5)


def test_the_number_of_blocks_explains_the_published_track_one():
    """What the paper says of both: the records on TinyStories, and the published series."""
    pairs, start = [], {}
    for _, _, generation, result in series.results(params.load("tinystories"), "sigma", source=PACKS):
        start = result if generation == 0 else start
        pairs += [(start, result)] if generation else []
    found = series.count_finding(pairs)
    assert found["drifts"] == "240" and float(found["r2"]) > 0.999 and int(found["significant"]) == 33
    published = sigma_settings.published_counts(pd.read_csv(paths.PUBLISHED / "sigma_fin_s1_points.csv"))
    assert (published["base"], published["series"]) == (977, 25)
    assert (published["least"], published["most"]) == (998, 1000)


def test_the_ends_of_runs_are_the_first_seed_before_and_after(packed):
    settings = params.load(SHOWN["pretrained"])
    ends = series.ends(settings, "curvature")
    assert [label for label, _ in ends] == ["generation 0", "recursive, generation 2", "fresh, generation 2"]
    runs = studies.runs(SHOWN["pretrained"]).query("seed == 1").set_index(["condition", "generation"])["lambda_max"]
    wanted = [runs["recursive", 0], runs["recursive", 2], runs["fresh", 2]]
    assert [result["lambda_max"] for _, result in ends] == wanted


# ---- pretrained weights


def test_values_on_pretrained_weights_are_listed_by_seed_and_compared_by_sign():
    perplexity = {("recursive", 1): (8, 12), ("recursive", 2): (9, 14), ("fresh", 1): (8, 11), ("fresh", 2): (9, 10)}
    rows = [
        (condition, seed, generation, value, 0.5 * seed)
        for (condition, seed), values in perplexity.items()
        for generation, value in enumerate(values)
    ]
    runs = pd.DataFrame(rows, columns=["condition", "seed", "generation", "held_out_perplexity", "distinct_2"])
    runs = runs.assign(**dict.fromkeys(set(report.PRETRAINED_METRICS) - set(runs), 1.0))
    found = studies.before_and_after(runs, report.PRETRAINED_METRICS)
    values = report.pretrained_runs_values(found)
    assert values["pretrained.held_out_perplexity.start"] == "8.00, 9.00"
    assert values["pretrained.held_out_perplexity.recursive"] == "12.0, 14.0"
    assert values["pretrained.held_out_perplexity.recursive.moved"] == "rose for every seed"
    assert values["pretrained.held_out_perplexity.word"] == "higher for every seed"
    assert values["pretrained.distinct_2.recursive.moved"] == "did not move to one side"
    assert values["pretrained.distinct_2.word"] == "higher for some seeds and lower for others"
    assert "smollm2" in studies.waiting() and "smollm2_offline" not in studies.waiting()
    table = report.pretrained_runs_table(found)
    assert list(table.iloc[0]) == ["Perplexity (held out)", "8.00, 9.00", "12.0, 14.0", "11.0, 10.0", "1.00, 4.00"]


def test_the_runs_on_pretrained_weights_are_whole():
    settings, runs = params.load(SHOWN["pretrained"]), studies.runs(SHOWN["pretrained"])
    cells = len(settings.seeds) * len(settings.conditions) * (settings.generations + 1)
    assert len(settings.seeds) >= 2 and settings.generations >= 2 and {"recursive", "fresh"} <= set(settings.conditions)
    assert len(runs) == cells and runs[list(report.PRETRAINED_METRICS)].notna().all(axis=None)
    base = runs[runs["generation"] == 0].groupby("seed")["held_out_perplexity"]
    assert (base.nunique() == 1).all() and runs["held_out_perplexity"].max() < settings.perplexity_bound


def test_sigmas_protocol_over_fifty_generations_is_whole_and_its_track_one_silent():
    settings, long = params.load(SHOWN["fifty"]), studies.long_runs(SHOWN["fifty"], SHOWN["fifty_control"])
    assert len(long) == 4 * len(settings.seeds) * (settings.generations + 1)
    apart = params.load(SHOWN["fifty_control"]).model_dump() | {"profile": settings.profile}
    assert apart | {"conditions": settings.conditions} == settings.model_dump()
    last = long[long["generation"] == settings.generations].set_index("condition")
    start = long.loc[long["generation"] == 0, "held_out_perplexity"].max()
    for weights in ("restart", "carry"):
        held = last.loc[f"fresh_{weights}", "track_two_drift"].abs().max()
        assert (last.loc[f"recursive_{weights}", "track_two_drift"] < -10 * held).all()
    assert last.loc["recursive_carry", "held_out_perplexity"].min() > 100 * start
    assert last.loc[["fresh_carry", "fresh_restart"], "held_out_perplexity"].max() < 1.1 * start
    assert long["track_one_drift"].abs().max() < 1
    first = sigma_settings.first_beyond(long, report.FIFTY_METRICS)
    left = first[first["metric"].isin(["track_two_drift", "held_out_perplexity"])].set_index("metric")["generation"]
    assert left["track_two_drift"].max() <= left["held_out_perplexity"].min() <= 3
    table = report.fifty_table(long, first, sigma_settings.settings(settings))
    assert list(table.columns) == [
        *("Metric", "Base", "fresh, restarted", "recursive, restarted", "fresh, carried", "recursive, carried"),
        *("S1 beyond at", "S2 beyond at"),
    ]
    axes = figures.sigma_fifty(long, pd.read_csv(paths.PUBLISHED / "sigma_fin_s1_points.csv")).axes
    (line,) = (each for each in axes[2].lines if each.get_label() == "recursive, carried")
    means = long[long["condition"] == "recursive_carry"].groupby("generation")["held_out_perplexity"].mean()
    assert list(line.get_ydata()) == pytest.approx(list(means))
