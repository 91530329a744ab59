"""The Hessian study's own records, recomputed."""

import numpy as np
import pytest
import torch
from spectral_collapse.analysis import public_records
from spectral_collapse.curvature import lanczos


@pytest.fixture(scope="module")
def spectra():
    return public_records.spectra()


def test_recorded_widths_and_ratios_follow_from_the_recorded_nodes(spectra):
    known = spectra[~spectra["failed"]]
    assert len(known) == 28 and set(spectra.loc[spectra["failed"], "published_ratio"]) == {0.0}
    np.testing.assert_allclose(known["recomputed_iqr"], known["published_iqr"], rtol=1e-9)
    np.testing.assert_allclose(known["lambda_max"].abs() / known["published_iqr"], known["published_ratio"], rtol=1e-9)


def test_no_two_widths_of_smollm2_can_be_told_apart_and_its_controls_differ_by_the_width_alone(spectra):
    found = public_records.findings(spectra, public_records.claimed(spectra), public_records.text_metrics())
    assert found["unidentified"] == found["spectra"] and found["overlapping"] == found["pairs"] == 16 * 15 / 2
    for name, (least, most) in {"lambda": (1, 2), "sigma": (1, 2), "ratio": (100, 1000)}.items():
        assert least < found[f"controls.{name}.most"] / found[f"controls.{name}.least"] < most
    assert found["differing"] == found["cells"] == 5


def test_the_printed_table_is_that_of_the_files_but_for_the_recursive_run(spectra):
    printed = public_records.claimed(spectra)
    assert printed["recorded"].notna().all() and len(printed) == 18
    controls = printed[printed["condition"] != "recursive"]
    assert ((controls["recorded"] - controls["printed"]).between(0, 1)).all()  # cut to a whole number there


def test_text_metrics_are_those_of_smollm2_in_every_generation():
    text = public_records.text_metrics()
    generations = text.groupby("condition")["generation"].apply(list)
    assert set(generations.index) == {"fresh", "recursive", "static"} and all(g == list(range(6)) for g in generations)
    assert text["perplexity"].between(4, 8).all()  # GPT-2, under the same name in the file, begins at 12


def test_the_standard_deviation_without_the_largest_nodes_is_that_of_the_bulk():
    rng = np.random.default_rng(0)
    bulk = rng.normal(size=20_000)
    eigenvalues = torch.from_numpy(np.concatenate([bulk, 50 + 10 * np.arange(8)]))
    # Entries of size 1 give every eigenvalue the same weight, so that the one probe has no noise.
    start = torch.from_numpy(rng.choice([-1.0, 1.0], size=len(eigenvalues)))
    run = lanczos(lambda vector: eigenvalues * vector, start, 30)
    assert public_records.bulk_sigma(run.nodes, run.weights, removed=8) == pytest.approx(bulk.std(), rel=0.01)
