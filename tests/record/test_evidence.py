"""Packs: every record as it was, verified, and nothing packed that does not fit the rest."""

import gzip
import json
import shutil

import pandas as pd
import pytest
import yaml
from spectral_collapse.analysis import series
from spectral_collapse.record import evidence, packfile, params, paths, provenance

OWN = {"profile": "own", "seeds": [1, 2], "conditions": ["recursive", "fresh"], "generations": 2}
STAGES = ("training", "text", "curvature")
CELLS = [("baseline", seed, 0) for seed in (1, 2)]
CELLS += [(condition, seed, generation) for condition in OWN["conditions"] for seed in (1, 2) for generation in (1, 2)]


def inputs_of(stage, condition, seed, generation):
    model = provenance.digest(f"model of {condition} {seed} {generation}")
    return {
        "training": {"seed": seed, "weights": "restart"},
        "text": {"real held_out": "a" * 64, f"real slice {generation}": f"{seed}" * 64},
        "curvature": {"real held_out": "a" * 64, f"loop.training {generation} model_sha256": model},
    }[stage]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Records of a profile `own` and a study of its, below the folder that runs write to; the packs are elsewhere."""
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    monkeypatch.setattr(evidence.PACKS, "root", tmp_path / "evidence")
    monkeypatch.setenv("SPECTRAL_COLLAPSE_RESULTS", str(tmp_path / "work"))
    values = yaml.safe_load((paths.ROOT / "params" / "smoke.yaml").read_text()) | OWN
    (tmp_path / "own.yaml").write_text(json.dumps(values))
    settings = params.load("own")
    for condition, seed, generation in CELLS:
        for stage in STAGES:
            if (stage, generation) != ("text", 0):
                write(settings, condition, seed, generation, stage)
    folder = paths.model_folder("own", settings.model)
    table = pd.DataFrame({"level": ["0.1", "größer"], "value": [1 / 3, 2.0]})
    about = {
        "key": {"parameters": {}, "code": "", "inputs": {}},
        "about": {"stage": "x"},
        "seconds": 1,
        "device": "cpu",
    }
    provenance.write_study(folder / "tables", {"runs": table}, {"found": 3}, **about)
    (folder / "recursive" / "seed_1" / "treatment.done").touch()
    (folder / "recursive" / "seed_1" / "generation_1" / ".text.json.x").write_text("half")
    return settings


def write(settings, condition, seed, generation, stage, inputs=None, **changes):
    result = {"model_sha256": f"model of {condition} {seed} {generation}", "value": seed / 3, "none": None}
    result |= {"lambda_max": 2.0, "lambda_min": -1.0, "published_iqr": 0.1} if stage == "curvature" else {}
    values = {"layers": settings.layers, "estimator_steps": settings.estimator_steps} | changes
    provenance.write_record(
        paths.generation_folder(paths.run_folder("own", settings.model, condition, seed), generation) / f"{stage}.json",
        result,
        key={"parameters": values, "code": "c0de", "inputs": inputs or inputs_of(stage, condition, seed, generation)},
        about={
            **{"profile": "own", "model": settings.model, "condition": condition, "seed": seed},
            **{"generation": generation, "stage": stage, "parameters": values},
        },
        seconds=2.0,
        device="cpu",
    )


def lines_of(file):
    return [json.loads(line) for line in gzip.open(file, "rt", encoding="utf-8")]


def rewrite(file, lines):
    file.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))


def test_a_pack_holds_every_record_and_table_byte_by_byte(study, tmp_path):
    file = evidence.pack("own")
    assert evidence.unpack("own", tmp_path / "again") == 2 * 2 + 8 * 3 + 2
    written = sorted((tmp_path / "again").rglob("*.*"))
    assert len(written) == 30
    for path in written:
        assert path.read_bytes() == (tmp_path / "work" / path.relative_to(tmp_path / "again")).read_bytes()
    first = file.read_bytes()
    assert evidence.pack("own").read_bytes() == first  # of the same records the same bytes


def test_what_repeats_stands_once(study):
    header, *lines = lines_of(evidence.pack("own"))
    shared = [line["shared"] for line in lines if "shared" in line]
    assert header == {"study": "own", "format": 1, "shared": len(shared), "files": 30}
    assert len(shared) == 4  # parameters, those of the tables, versions, the commit
    assert all(isinstance(line["record"]["git"], int) for line in lines if "record" in line)


def test_readers_take_what_is_here_then_the_packs_and_only_the_folder_that_is_set(study, tmp_path, monkeypatch):
    evidence.pack("own")
    read = lambda **where: [result["value"] for *_, result in series.results(study, "curvature", **where)]  # noqa: E731
    here = read()
    assert len(here) == 2 * 2 * 3
    assert read(source=evidence.PACKS) == here
    (tmp_path / "work").rename(tmp_path / "aside")
    with pytest.raises(ValueError, match=r"work/own/.*curvature\.json is missing: run the notebook"):
        read()
    monkeypatch.delenv("SPECTRAL_COLLAPSE_RESULTS")
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    assert read() == here
    assert evidence.read_study(f"own/{study.model}/tables", ["runs"], {"level": str})[1]["runs"]["level"][1] == "größer"
    with pytest.raises(ValueError, match=r"sigma\.json of .*own\.jsonl\.gz is missing: run the notebook"):
        list(series.results(study, "sigma"))


def test_a_reader_that_asks_a_pack_for_other_parameters_is_told(study):
    evidence.pack("own")
    asked = params.check({**study.model_dump(), "layers": 3})
    with pytest.raises(ValueError, match=r"own\.jsonl\.gz was made with layers 2, not 3: run the notebook"):
        list(series.results(asked, "curvature", source=evidence.PACKS))


# ---- damage


def test_a_pack_that_is_cut_or_altered_is_one_sentence(study):
    file = evidence.pack("own")
    whole = file.read_bytes()
    lines = lines_of(file)
    damaged = [whole[:length] for length in range(0, len(whole), 97)]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(10, len(whole), 89)]
    for number, data in enumerate(
        [*damaged, b"", gzip.compress(b"{}\n"), gzip.compress(b"[1]\n"), gzip.compress(b"2")]
    ):
        file.write_bytes(data + b"\0" * (number % 2 and len(data) == len(whole)))
        with pytest.raises(ValueError, match=r"^\S*own\.jsonl\.gz cannot be used \(.*\): restore it .*\.$"):
            packfile.decode.__wrapped__(file, number, 0)
    rewrite(file, lines[:-1])
    with pytest.raises(ValueError, match="it is truncated, altered, or not of format 1"):
        evidence.PACKS.content("own")
    rewrite(file, [{**lines[0], "format": 9}, *lines[1:]])
    with pytest.raises(ValueError, match="not of format 1"):
        evidence.PACKS.content("own")


def test_an_altered_record_shared_part_or_table_fails_its_hash(study):
    file = evidence.pack("own")
    lines = lines_of(file)
    place = next(line["path"] for line in lines if line.get("path", "").endswith("curvature.json"))

    def altered(change):
        again = json.loads(json.dumps(lines))
        change(again)
        rewrite(file, again)
        return evidence.PACKS

    def value(again):
        next(line for line in again if line.get("path") == place)["record"]["result"]["value"] = 9

    def shared(again):
        again[1]["shared"]["layers"] = 9

    def table(again):
        next(line for line in again if "table" in line)["table"] += "x"

    assert evidence.PACKS.record(place)["result"]["value"] == 1 / 3
    for change in (value, shared):
        with pytest.raises(provenance.StaleRecord, match="does not match its hash"):
            altered(change).record(place)
        with pytest.raises(
            ValueError, match=r"curvature\.json of .*own\.jsonl\.gz cannot be used, .*: restore it from"
        ):
            list(series.results(study, "curvature", source=evidence.PACKS))
    packs = altered(table)
    with pytest.raises(ValueError, match=r"runs\.csv of .* does not match study\.json: restore it from the repository"):
        evidence.read_study(f"own/{study.model}/tables", ["runs"], source=packs)
    with pytest.raises(ValueError, match=r"runs\.csv is not the table that the study\.json beside it describes"):
        packfile.verify(packs.content("own"))


def test_a_pack_of_somebody_elses_does_not_write_outside_the_folder(study, tmp_path):
    file = evidence.pack("own")
    lines = lines_of(file)
    for place in ("../out.csv", str(tmp_path / "out.csv"), "own/../../out.csv"):
        rewrite(file, [*lines[:-1], {"path": place, "table": "x"}])
        with pytest.raises(ValueError, match="cannot name a folder"):
            evidence.unpack("own", tmp_path / "inside")
    assert not (tmp_path / "inside").exists() and not (tmp_path / "out.csv").exists()


# ---- what is not packed


def refused(match):
    with pytest.raises(ValueError, match=match):
        evidence.pack("own")
    assert not list(evidence.PACKS.root.glob("*"))


def file_of(study, condition, seed, generation, stage):
    return paths.generation_folder(paths.run_folder("own", study.model, condition, seed), generation) / f"{stage}.json"


@pytest.mark.parametrize(
    "cell", [("fresh", 2, 2, "curvature"), ("recursive", 1, 1, "text"), ("baseline", 2, 0, "training")]
)
def test_a_missing_cell_is_refused(study, cell):
    file_of(study, *cell).unlink()
    refused(rf"{cell[0]}/seed_{cell[1]}/generation_{cell[2]}/{cell[3]}\.json is missing: finish the runs of own")


def test_an_unfinished_run_is_refused(study):
    for cell in CELLS[2:]:
        if cell != ("fresh", 1, 1):
            shutil.rmtree(file_of(study, *cell, "training").parent)
    refused(r"recursive/seed_1/generation_1/\w+\.json is missing")


def test_stages_of_the_first_seed_or_the_last_generation_alone_are_no_gap(study):
    write(study, "recursive", 1, 2, "layers", {"seed": 1})
    evidence.pack("own")


def test_a_damaged_record_is_refused(study):
    file = file_of(study, "fresh", 1, 1, "training")
    file.write_text(file.read_text().replace('"none": null', '"none": 1'))
    refused(r"training\.json cannot be used: its content does not match its hash")
    file.write_text(file.read_text()[:-20])
    refused(r"training\.json cannot be packed: it is truncated or not a record")


def test_a_record_in_another_ones_place_is_refused(study):
    file_of(study, "fresh", 1, 1, "training").write_bytes(file_of(study, "fresh", 2, 1, "training").read_bytes())
    refused(r"fresh/seed_1/generation_1/training\.json is not where its record belongs, .*seed_2")


def test_records_of_two_parameters_texts_or_models_are_refused(study):
    cell = ("recursive", 2, 1, "curvature")
    write(study, *cell, layers=9)
    refused(r"has another parameter layers than the records beside it")
    write(study, *cell, {**inputs_of("curvature", *cell[:3]), "real held_out": "b" * 64})
    refused(r"has another real text \(held_out\) than the records beside it")
    write(study, *cell, {"loop.training 1 model_sha256": "b" * 64})
    refused(r"was made from another loop\.training 1 model_sha256 than the one beside it")
    write(study, *cell)
    evidence.pack("own")


def test_real_text_is_one_for_all_seeds_where_it_does_not_depend_on_them(study):
    for cell in CELLS:
        if cell[1] == 2:
            for stage in ("text", "curvature")[cell[2] == 0 :]:
                write(study, *cell, stage, {**inputs_of(stage, *cell), "real held_out": "b" * 64})
    refused(r"another real text \(held_out")


def test_a_pack_does_not_lose_a_cell_of_its_grid(study, tmp_path):
    content = evidence.collect("own", tmp_path / "work") | {"own.factor.level/x/study.json": {"key": {}}}
    evidence.PACKS.root.mkdir()
    evidence.PACKS.file("own").write_bytes(packfile.encode("own", content))
    before = evidence.PACKS.file("own").read_bytes()
    with pytest.raises(ValueError, match=r"own\.jsonl\.gz holds own\.factor\.level, which is not there to be packed"):
        evidence.pack("own")
    assert evidence.PACKS.file("own").read_bytes() == before


# ---- names and the command


def test_cells_of_a_grid_are_one_study_and_a_variant_is_its_own():
    names = {"ablations": "ablations", "ablations.size.large": "ablations", "own": "own", "own+a=0.7": "own+a=0.7"}
    assert {name: evidence.study_of(name) for name in names} == names


def test_the_command_says_what_a_changed_parameter_makes_again(study, capsys):
    write(study, "fresh", 1, 2, "training", block_tokens=8)
    assert evidence.main(["affected", "block_tokens", "own"]) == 0
    assert capsys.readouterr().out == "training        fresh 2\n"
    assert evidence.main(["affected", "layers", "own"]) == 0 and "text            " in capsys.readouterr().out
    assert evidence.main(["affected", "top_p", "own"]) == 0 and "No record of own" in capsys.readouterr().out
    assert evidence.main(["affected", "topp", "own"]) == 1 and "'top_p'" in capsys.readouterr().out
    assert evidence.main(["affected", "top_p", "none"]) == 1 and "holds no records" in capsys.readouterr().out


def test_the_command_packs_lists_and_unpacks(study, tmp_path, capsys):
    assert evidence.main(["pack", "own"]) == 0 and "commit it" in capsys.readouterr().out
    assert evidence.main(["list"]) == 0 and "own" in capsys.readouterr().out
    assert evidence.main(["unpack", "own", str(tmp_path / "out")]) == 0 and "30 files" in capsys.readouterr().out
    assert evidence.main(["pack", "owm"]) == 1 and "the nearest valid name is 'own'" in capsys.readouterr().out
    assert evidence.main(["unpack", "owm", str(tmp_path)]) == 1 and "nearest" in capsys.readouterr().out
