"""The coverage study in small, its record, and its table."""

import numpy as np
import pandas as pd
import pytest
from spectral_collapse import sigma
from spectral_collapse.experiment import sigma_coverage
from spectral_collapse.paper import studies, tables
from spectral_collapse.record import evidence, provenance


@pytest.fixture
def embeddings():
    """400 rows of 24 unit-norm coordinates, two of them dead."""
    rows = np.random.default_rng(0).normal(size=(400, 24)) * np.geomspace(1, 0.1, 24)
    rows[:, [3, 9]] = 0
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_populations_know_their_truth(embeddings):
    drawn = sigma_coverage.drawn("student_t", 3)
    rows = drawn.sample(np.random.default_rng(0), 400_000)
    found = sigma.cholesky_logdet(rows.T @ rows) + 3 * np.log(drawn.n_total / len(rows))
    assert found == pytest.approx(drawn.truth, abs=0.05)
    assert np.trace(rows.T @ rows) / len(rows) == pytest.approx(1, abs=0.05)
    real = sigma_coverage.finite(embeddings, 24)
    assert real.dim == 22 and real.n_total == 400
    whole = real.sample(np.random.default_rng(0), 400)
    assert sigma.cholesky_logdet(whole.T @ whole) == pytest.approx(real.truth)


def test_the_study_is_repeatable_and_complete(embeddings, tmp_path, monkeypatch):
    monkeypatch.setattr(sigma_coverage, "DIMENSIONS", (8, 24))
    monkeypatch.setattr(sigma.inference, "least_rows", lambda m: m + 1)  # or 8 dimensions would need 16 rows
    monkeypatch.setattr(sigma_coverage, "real_embeddings", lambda *_: embeddings)
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time.")
    sigma_coverage.write_study(tmp_path, text, blocks=400, replicates=20)
    first = (tmp_path / "coverage.csv").read_bytes()
    sigma_coverage.write_study(tmp_path, text, blocks=400, replicates=20)
    assert (tmp_path / "coverage.csv").read_bytes() == first
    covered = pd.read_csv(tmp_path / "coverage.csv")
    assert len(covered) == 2 * 3 * 4 * 3 and not covered.isna().any(axis=None)
    assert covered["coverage"].between(covered["coverage_low"], covered["coverage_high"]).all()
    assert len(pd.read_csv(tmp_path / "shrinkage.csv")) == 2 * 3 * 6
    result = provenance.read_record(tmp_path / "study.json")["result"]
    assert result["coverage_csv_sha256"] == provenance.file_hash(tmp_path / "coverage.csv")
    tables.write_table(studies.coverage_table(covered), tmp_path / "table.tex")
    assert (tmp_path / "table.tex").read_text().count(r"\\") == 1 + 18


def test_the_text_must_be_long_enough(tmp_path):
    (tmp_path / "short.txt").write_text("word " * 200)
    with pytest.raises(ValueError, match=r"short\.txt holds 3 blocks of 64 words; 10 are asked for"):
        sigma_coverage.real_embeddings(tmp_path / "short.txt", 10)


def test_the_committed_study_is_whole_and_says_what_the_paper_says():
    _, found = evidence.read_study("sigma_coverage", ["coverage", "shrinkage"], source=evidence.PACKS)
    covered = found["coverage"].set_index(["correction", "population", "m", "ratio"])["coverage"].sort_index()
    assert covered.size == 3 * 3 * 3 * 4
    assert covered["none"].max() < 0.6
    assert covered["wishart", "gaussian"].between(0.93, 0.97).all()
    assert covered["wishart", "student_t"].max() < 0.5
    assert covered["wishart", "minilm", 384].max() < 0.5
    assert covered["leverage"].between(0.88, 0.99).all()
    assert evidence.PACKS.record("sigma_coverage/study.json")["stage"] == "sigma_coverage"
