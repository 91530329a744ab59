"""SIGMA in the experiment: what is embedded, what the record says, and what a drift is taken of."""

import numpy as np
import pandas as pd
import pytest
from spectral_collapse import sigma
from spectral_collapse.analysis import report, series
from spectral_collapse.estimate import Estimate
from spectral_collapse.experiment import embedding, encoded, measure, runs
from spectral_collapse.paper import figures, findings, results, tables
from spectral_collapse.record import params, paths
from spectral_collapse.text import metrics as text_metrics
from spectral_collapse.text import prompts
from tiny import TINY, quiet
from word_encoder import WordEncoder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny profile, whose generations 0 and 1 of two conditions and seeds are there and measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRAL_COLLAPSE_RESULTS", str(tmp_path_factory.mktemp("results")))
        encoder = WordEncoder()
        patch.setattr(embedding, "sentence_encoder", lambda: encoder)
        chosen = params.load("smoke", **TINY | {"generations": 1, "conditions": ["recursive", "fresh"]})
        real = None
        for seed in chosen.seeds:
            for condition in chosen.conditions:
                run = runs.Run(chosen, condition, seed, real=real, say=quiet)
                real = run.real
                for generation in range(2):
                    measure.evaluation(run, generation)
                    encoded.sigma(run, generation)
        yield chosen, real


@pytest.fixture
def run(tiny):
    chosen, real = tiny
    return lambda condition="recursive", seed=1, **changes: runs.Run(
        chosen.model_copy(update=changes), condition, seed, real=real, say=quiet
    )


def test_tracks_are_those_of_the_file_in_the_live_dimensions(run):
    result, found = encoded.sigma(run(), 1), encoded.read_embeddings(run(), 1)
    assert (result["dimension"], result["live_dimensions"]) == (12, 11)
    assert encoded.embeddings(run(), 1)["dead_coordinates"] == [3]
    gram, count = found.rows.T @ found.rows, len(found.rows)
    assert result["observed_blocks"] == count and result["total_blocks"] == count + 24
    assert result["track_two"] == pytest.approx(sigma.track_two(gram, count, 1e-3), rel=1e-12)
    for name, envelope in (("track_one", "ky_fan"), ("track_one_sharp", "water_filling")):
        expected = sigma.track_one(gram, count, count + 24, 1.0, 1e-3, envelope)
        assert result[name] == pytest.approx(expected, rel=1e-12)
    assert result["track_two"] - result["track_one_sharp"] < 0 < result["track_one"] - result["track_one_sharp"]


def test_estimates_of_logdet_come_with_intervals_and_the_corrected_one_is_higher(run):
    result = encoded.sigma(run(), 1)
    for name in ("logdet_plug_in", "logdet_corrected"):
        estimate, low, high = result[name]
        assert low < estimate < high
    assert result["logdet_plug_in"][0] < result["logdet_corrected"][0]
    nothing = {"logdet_plug_in": None, "logdet_corrected": None}
    alike = np.tile(np.eye(4)[:2], (10, 1))  # collapsed: more blocks than dimensions, and two of them different
    for rows in (np.eye(4), alike):
        observed = sigma.Observed(rows, np.arange(len(rows)), np.zeros(len(rows), dtype=int))
        assert encoded._logdet(observed, 40) == nothing


def test_drift_is_the_difference_of_the_tracks_with_a_band(run):
    first, last = encoded.sigma(run(), 0), encoded.sigma(run(), 1)
    assert set(last["drifts"]) == set(sigma.TRACKS)
    first_blocks, last_blocks = sigma.common(*(encoded.read_embeddings(run(), generation) for generation in (0, 1)))
    budget = sigma.Budget(24, 1.0, 1e-3)
    for track, found in last["drifts"].items():
        moved = [sigma.track_value(each, track, budget) for each in (first_blocks, last_blocks)]
        assert found["drift"] == pytest.approx(moved[1] - moved[0], abs=1e-9)
        assert found["low"] < found["drift"] < found["high"] and 0 < found["p_value"] <= 1
        if track != "logdet":
            assert last[track] == pytest.approx(moved[1], rel=1e-10)
    assert {found["drift"] for found in first["drifts"].values()} == {0}
    assert set(last["bucket_drifts"]) == {line["bucket"] for line in prompts.prompt_bank("stories")}


def test_every_prompt_has_the_same_number_of_blocks_or_none(run, monkeypatch):
    lines, found = measure.read_responses(run(), 1), encoded.read_embeddings(run(), 1)
    assert run().params.response_blocks == 2
    words = run().params.response_block_words
    long = [index for index, line in enumerate(lines) if len(text_metrics.split_blocks(line["response"], words)) >= 2]
    assert found.prompts.tolist() == np.repeat(long, 2).tolist() and found.blocks.tolist() == [0, 1] * len(long)
    assert encoded.embeddings(run(), 1)["short_responses"] == len(lines) - len(long)
    result = encoded.sigma(run(), 1)
    assert result["blocks_per_prompt"] == 2
    assert result["observed_blocks"] == 2 * (200 - result["prompts_left_out"])


def test_a_prompt_with_a_short_response_is_left_out_of_both_checkpoints_and_said(run, monkeypatch):
    whole = encoded.read_embeddings

    def shorter(one, generation):
        found = whole(one, generation)
        return found if generation == 0 else found.select(found.prompts >= 3)

    before = encoded.sigma(run(), 1)
    monkeypatch.setattr(encoded, "read_embeddings", shorter)
    result = encoded.sigma.compute(run(), 1)
    left_out = result["prompts_left_out"] - before["prompts_left_out"]
    assert 1 <= left_out <= 3 and result["observed_blocks"] == before["observed_blocks"] - 2 * left_out
    assert any("prompts are left out of generations 0 and 1" in message for message in result["health"])
    # as many blocks at both: not the m log(n/n0) of the prompts that are missing
    assert abs(result["drifts"]["track_one"]["drift"] - before["drifts"]["track_one"]["drift"]) < 0.05
    monkeypatch.setattr(encoded, "read_embeddings", lambda *which: whole(*which).select(slice(0)))
    with pytest.raises(ValueError, match="no prompt has a long enough response at generations 0 and 1"):
        encoded.sigma.compute(run(), 1)


def test_responses_are_drawn_until_they_have_all_blocks(run, monkeypatch):
    drawn = []

    def draw(one, generation, prompts, seeds, new_tokens, what):
        drawn.append((len(prompts), len(set(seeds))))
        return [[one.real.separator] * new_tokens for _ in prompts]  # no words: short for ever

    monkeypatch.setattr(measure.loop, "sample", draw)
    monkeypatch.setattr(measure, "_write_lines", lambda path, lines: str(len(lines)))
    measure.responses.compute(runs.View(run(), ""), 1)
    assert drawn == [(200, 200)] * measure.ROUNDS
    lines = measure.read_responses(run(), 1)
    blocks = [len(text_metrics.split_blocks(line["response"], run().params.response_block_words)) for line in lines]
    assert np.mean(np.array(blocks) >= 2) > 0.95  # exclusions are rare


def test_drifts_of_older_records_are_put_right():
    """Two results of Gaussian blocks of one covariance, 430 and 414 of them in 381 dimensions, and no band."""
    m, found, recorded = 381, {}, []
    for seed in range(6):
        results = []
        for count in (430, 414):
            rows = np.random.default_rng([seed, count]).normal(size=(count, m)) / np.sqrt(m)
            gram, total = rows.T @ rows, count + 384
            corrected = sigma.logdet_estimate(gram, count, total, "wishart").value
            results.append(
                {
                    "observed_blocks": count,
                    "total_blocks": total,
                    "live_dimensions": m,
                    "track_two": sigma.track_two(gram, count, 1e-9),
                    "track_one": sigma.track_one(gram, count, total, 1.0, 1e-9),
                    "logdet_corrected": [corrected, 0, 0],
                    "drifts": {"track_one": {"p_value": 0.01}},
                }
            )
        for track, drift in series.track_drifts(*results).items():
            assert np.isnan([drift[name] for name in ("low", "high", "standard_error", "p_value")]).all()
            found.setdefault(track, []).append(drift["drift"])
        recorded.append(results[1]["track_two"] - results[0]["track_two"])
    # One has a standard deviation of 3.0 nats, √(2·2 log(n/(n − m))), the mean of six 1.25: within 7 of its expectation
    # but for a chance of 3e-8. That of what is recorded is −20, of the number of blocks alone.
    assert np.mean(recorded) < -10
    assert set(found) == {"track_two", "logdet", "track_one"}
    assert abs(np.mean(found["track_two"])) < 7 and abs(np.mean(found["logdet"])) < 7
    assert np.abs(found["track_one"]).max() < 0.1
    finding = series.count_finding([tuple(results)] * 2)
    assert finding["drifts"] == finding["significant"] == "2" and finding["r2"] == "--"  # two that are equal


def test_generation_0_freezes_the_observed_set_and_every_checkpoint_is_checked(run):
    ids = encoded.embeddings(run(), 0)["observed_ids"]
    assert ids == [prompt["id"] for prompt in prompts.prompt_bank("stories")]
    assert "observed_ids" not in encoded.embeddings(run(), 1)
    other = run()
    found = encoded.embeddings.found(other, 1)
    other.found["encoded.embeddings", 1] = found._replace(result=found.result | {"observed_sha256": "0" * 64})
    with pytest.raises(ValueError, match="the observed set changed between checkpoints"):
        encoded.read_embeddings(other, 1)


def test_health_messages_are_in_the_record(run, monkeypatch):
    assert encoded.sigma(run(), 1)["health"] == []
    whole = encoded.read_embeddings
    monkeypatch.setattr(encoded, "read_embeddings", lambda *which: whole(*which).select(slice(8)))
    result = encoded.sigma.compute(run(), 1)
    assert result["health"][0].startswith("8 embeddings span at most 8 of 11 dimensions: 3 log delta = -20.7")
    assert result["logdet_corrected"] is None and np.isfinite(result["drifts"]["track_two"]["drift"])


def test_energy_beyond_the_cap_is_refused(run, monkeypatch):
    monkeypatch.setattr(embedding, "sentence_encoder", lambda: WordEncoder(1.1))
    with pytest.raises(ValueError, match="above the energy budget rho"):
        encoded.embeddings.compute(runs.View(run(), ""), 1)


def test_lost_embeddings_are_made_again(run):
    path = encoded.embeddings.artefact(run(), 1)
    before = path.read_bytes()
    path.unlink()
    assert len(encoded.read_embeddings(run(), 1).rows) and path.read_bytes() == before


@pytest.fixture
def without_mauve(monkeypatch):
    installed = runs.importlib.metadata.version

    def version(name):
        if name == "mauve-text":
            raise runs.importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(runs.importlib.metadata, "version", version)


def test_coherence_is_that_of_the_responses(run, without_mauve):
    found, lines = encoded.coherence(run(), 1), measure.read_responses(run(), 1)
    embed = WordEncoder()
    assert len(lines) == 200  # every fourth of them is read
    by_hand = []
    for line in lines[::4]:
        rows = [embed([sentence])[0].numpy() for sentence in text_metrics.sentences(line["response"])]
        if len(rows) > 1:
            by_hand.append(np.mean([a @ b for a, b in zip(rows[1:], rows[:-1], strict=True)]))
    assert found["coherence"] == pytest.approx(np.mean(by_hand))
    assert found["coherence_interval"][0] < found["coherence"] < found["coherence_interval"][1]
    assert "mauve" not in found


def test_similarity_is_that_of_a_prompt_and_the_blocks_of_its_response(run, without_mauve):
    embed, by_hand = WordEncoder(), []
    for line in measure.read_responses(run(), 1):
        blocks = text_metrics.split_blocks(line["response"], run().params.response_block_words)[:2]
        if len(blocks) == 2:
            mean, prompt = embed(blocks).sum(0).numpy(), embed([line["text"]])[0].numpy()
            by_hand.append(mean @ prompt / np.linalg.norm(mean) / np.linalg.norm(prompt))
    assert encoded.coherence(run(), 1)["prompt_similarity"] == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_mauve_is_a_column_where_its_package_is_installed(run, monkeypatch):
    given = {}

    def mauve(texts, references, seed):
        given.update(texts=texts, references=references)
        return Estimate(0.7, 0.6, 0.8)

    monkeypatch.setattr(text_metrics, "mauve", mauve)
    monkeypatch.setattr(runs.importlib.metadata, "version", lambda name: "1")
    found = encoded.coherence(run(seed=2), 1)
    assert found["mauve"] == 0.7 and found["mauve_interval"] == [0.6, 0.8]
    assert given["texts"].shape == given["references"].shape == (run().params.held_out_blocks, 12)


def test_series_have_drifts_bands_and_no_other_columns_of_the_tracks(tiny):
    table = series.table(tiny[0], stages=("evaluation", "sigma"))
    names = {name for name in table if "track" in name}
    assert names == {"track_one_drift", "track_two_drift", "track_one_sharp_drift"} and "logdet_drift" in table
    drifts = series.drifts(tiny[0])
    assert len(drifts) == 4 * len(table) and np.isfinite(drifts[["drift", "low", "high"]]).all(None)
    wide = drifts[drifts["track"] == "track_one_sharp"].set_index(["condition", "seed", "generation"])["drift"]
    expected = table.set_index(["condition", "seed", "generation"])["track_one_sharp_drift"]
    assert (wide.sort_index() == expected.sort_index()).all()
    buckets = series.bucket_drifts(tiny[0])
    assert set(buckets["bucket"]) == {line["bucket"] for line in prompts.prompt_bank("stories")}


def test_pictures_tables_and_values(tiny, tmp_path):
    drifts = series.drifts(tiny[0])
    analysis = report.analyse(series.table(tiny[0], stages=("evaluation", "sigma")), drifts)
    points = pd.read_csv(paths.PUBLISHED / "sigma_fin_s1_points.csv")
    figures.save(figures.sigma_tracks(drifts), tmp_path / "tracks.pdf")
    figures.save(figures.sigma_buckets(series.bucket_drifts(tiny[0])), tmp_path / "buckets.pdf")
    shown = figures.sigma_published(points, drifts[drifts["condition"] == "recursive"])
    # The gap between the published tracks falls on whole numbers of blocks (design, section 5).
    counts = shown.axes[1].lines[0].get_ydata()
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-4)
    assert set(np.round(counts[1:])) == {998, 999, 1000} and counts[0] == 977
    assert list(results.sigma_drifts(analysis).iloc[0])[:2] == ["recursive", tables.label("track_two_drift")]
    frame = results.forecasts(analysis)  # too short for a fit, and said so
    assert set(frame["Rate"]) == {"--"}
    values = findings.sigma_values(report.checkpoints(series.results(tiny[0], "sigma")), analysis)
    assert values["sigma.live"] == "11" and values["sigma.checkpoints"] == "6"
    assert values["moved.track_two.recursive"].endswith(" of 2")


def test_embeddings_of_shared_texts_are_computed_once_for_a_folder_of_results(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRAL_COLLAPSE_RESULTS", str(tmp_path))
    texts, rows = ("a fox", "a hen"), WordEncoder()(["a fox", "a hen"]).numpy()
    calls = []

    class Counting(WordEncoder):
        def __call__(self, texts):
            calls.append(texts)
            return super().__call__(texts)

    for _ in range(2):
        assert (embedding.shared_embeddings(Counting(), texts) == rows).all()
    assert len(calls) == 1
    (kept,) = (tmp_path / "encoder").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1] + b"\0")  # a damaged file is replaced
    for _ in range(2):
        assert (embedding.shared_embeddings(Counting(), texts) == rows).all()
    assert len(calls) == 2
    embedding.shared_embeddings(Counting(), texts[:1])
    assert len(calls) == 3
