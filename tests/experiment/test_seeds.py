"""Whole seeds in one process: the records that notebooks find, and a limit of time that loses nothing."""

import time

import pytest
from spectral_collapse.analysis import series
from spectral_collapse.experiment import embedding, measure, runs, seeds
from spectral_collapse.record import params
from word_encoder import WordEncoder

SMALL = {
    **{"hidden_size": 16, "layers": 1, "heads": 2, "baseline_blocks": 64, "perplexity_bound": 1e9},
    **{"blocks_per_generation": 16, "held_out_blocks": 8, "generations": 1, "seeds": [1], "evaluation_stories": 4},
    **{"curvature_blocks": 2, "estimator_batches": 2, "lanczos_steps": 4, "layerwise_spectra": False},
}


@pytest.fixture
def settings(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECTRAL_COLLAPSE_RESULTS", str(tmp_path))
    encoder = WordEncoder()
    monkeypatch.setattr(embedding, "sentence_encoder", lambda: encoder)
    return params.load("smoke", **SMALL)


def test_all_records_of_the_statistics_are_there_and_a_second_call_makes_none(settings, monkeypatch):
    said = []
    assert seeds.make(settings, [1], float("inf"), said.append)
    assert said[-1].startswith("seed 1, fresh, generation 1") and said[-1].endswith("4 of 4 done.")
    for stage in ("training", "evaluation", "curvature", "sigma", "coherence"):
        assert len(list(series.results(settings, stage))) == 4
    monkeypatch.setattr(runs.Stage, "_record", lambda *_: pytest.fail("made again"))
    assert seeds.make(settings, [1], float("inf"), said.append)


def test_sigmas_stages_of_a_condition_alone(settings):
    said = []
    assert seeds.make(settings, [1], float("inf"), said.append, conditions=["fresh"], sigma=True)
    assert said[-1].endswith("2 of 2 done.")
    table = series.table(settings, ["fresh"], stages=("training", "evaluation", "anchors", "sigma"))
    assert list(table["generation"]) == [0, 1] and table["track_two_drift"].notna().all()
    for stage, condition in (("sigma", "recursive"), ("curvature", "fresh"), ("coherence", "fresh")):
        with pytest.raises(ValueError, match="is missing"):
            list(series.results(settings, stage, [condition]))


def test_nothing_starts_that_would_end_after_the_limit(settings, monkeypatch):
    said, made = [], []
    monkeypatch.setattr(measure, "generation", lambda run, generation: made.append(generation))
    monkeypatch.setattr(seeds, "stages", lambda *_: [])
    assert not seeds.make(settings, [1], time.monotonic() - 1, said.append)
    assert made == [] and said == ["The time is up after 0 of 4 generations; the same command goes on."]


def test_wrong_arguments_are_told_in_one_sentence(capsys):
    assert seeds.main(["smoke", "--seeds", "-1"]) == 1
    assert "'seed' must be a whole number" in capsys.readouterr().out
    assert seeds.main(["smoke", "--conditions", "recursiv"]) == 1
    assert "the nearest valid name is 'recursive'" in capsys.readouterr().out
    assert seeds.main(["smoke", "temperature"]) == 1
    assert capsys.readouterr().out == "'temperature': write key=value.\n"
    with pytest.raises(SystemExit):
        seeds.main(["smoke", "--seeds", "1;2"])
    assert "'1;2' is no list of seeds such as 1,2" in capsys.readouterr().err
