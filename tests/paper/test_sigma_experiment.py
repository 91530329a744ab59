"""SIGMA's own experiment: artefacts under their published names, scalars from the exported points, the checks."""

import re

import numpy as np
import pandas as pd
import pytest
from checkpoints import checkpoint
from margins import standard_errors
from spectral_collapse import estimate, sigma
from spectral_collapse.analysis import series, sigma_settings
from spectral_collapse.experiment import embedding, encoded, runs, sigma_checks
from spectral_collapse.paper import sigma_experiment
from spectral_collapse.record import params, paths
from spectral_collapse.sigma import Budget
from spectral_collapse.text import prompts
from tiny import TINY, quiet
from word_encoder import WordEncoder

pytestmark = pytest.mark.slow

BUDGET = Budget(unobserved=40, rho=1.0, delta=1e-3)
PROFILES = ["sigma_s1s2", "sigma_s1s2_finance", "sigma_s1s2_technology", "sigma_opt"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(tidy table, folder, names) of a tiny S1 and S2 experiment and its reports."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RESULTS", "GENERATED"):
            patch.setenv(f"SPECTRAL_COLLAPSE_{name}", str(tmp_path_factory.mktemp(name)))
        encoder = WordEncoder()
        patch.setattr(embedding, "sentence_encoder", lambda: encoder)
        patch.setattr(sigma_checks, "SIZES", (20, 50, 10**6))
        changes = {"conditions": ["recursive_restart", "recursive_carry"], "prompt_bank": "finance"}
        chosen = params.load("smoke", **TINY | changes)
        real = None
        for seed in chosen.seeds:
            for condition in chosen.conditions:
                run = runs.Run(chosen, condition, seed, real=real, say=quiet)
                real = run.real
                for generation in range(chosen.generations + 1):
                    encoded.sigma(run, generation)
        names = sigma_experiment.write(chosen)
        return series.table(chosen, stages=("sigma",)), paths.generated_folder(params.name_of(chosen)), names


def numbers(path) -> np.ndarray:
    """The numbers of a table's rows."""
    rows = path.read_text().split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    return np.array([[float(x) for x in re.findall(r"(?<![\w-])-?\d+(?:\.\d+)?", row)] for row in rows])


def test_artefacts_have_the_published_names(written):
    _, folder, names = written
    expected = [
        *("figures/fin_s1_two_tracks.pdf", "figures/fin_s2_two_tracks.pdf", "figures/fin_surface_proxies.pdf"),
        *("tables/fin_s1_two_tracks_points.tex", "tables/fin_s2_two_tracks_points.tex"),
        *("tables/tab_fin_s1s2_summary.tex", "tables/tab_fin_proxies.tex"),
        *("metrics/final/FIN/metrics_paper.csv", "metrics/true_recursion/FIN/metrics_paper_recursion.csv"),
        "metrics/final/FIN/metrics_buckets_paper.csv",
    ]
    assert set(expected) <= set(names) and all((folder / name).stat().st_size for name in names)
    assert len([name for name in names if "_card_" in name]) == 10


def test_summary_can_be_recomputed_from_the_exported_points(written):
    _, folder, _ = written
    summary = numbers(folder / "tables" / "tab_fin_s1s2_summary.tex")
    for row, setting in zip(summary, ("s1", "s2"), strict=True):
        points = numbers(folder / "tables" / f"fin_{setting}_two_tracks_points.tex")
        assert (points[0] == 0).all() and row[0] == points[-1, 0] == 2
        scalars = [value for track in points.T[1:3] for value in (track[-1], np.polyfit(points[:, 0], track, 1)[0])]
        np.testing.assert_allclose(row[1:5], scalars, atol=6e-4)
    csv = pd.read_csv(folder / "metrics/final/FIN/metrics_paper.csv")
    exported = numbers(folder / "tables" / "fin_s1_two_tracks_points.tex")
    np.testing.assert_allclose(csv[["track2_drift", "track1_drift"]], exported[:, 1:3], atol=1e-9)


def test_points_are_means_of_the_runs(written):
    table, folder, _ = written
    csv = pd.read_csv(folder / "metrics/true_recursion/FIN/metrics_paper_recursion.csv")
    carried = table[table["condition"] == "recursive_carry"]
    means = carried.groupby("generation")[["track_two_drift", "hashed_ngram_hhi"]].mean()
    np.testing.assert_allclose(csv[["track2_drift", "hhi"]], means, atol=1e-6)


def test_summary_of_the_published_points_is_what_they_say():
    points = pd.read_csv(paths.PUBLISHED / "sigma_fin_s1_points.csv")
    found = sigma_settings.summary({"S1": points}).iloc[0]
    assert found["final_generation"] == 25
    assert found["track2_final_drift"] == -108.036399 and found["track1_final_drift"] == -99.101246
    assert found["track2_slope"] == pytest.approx(sigma.ols_slope(points["track2_drift"]))
    assert not found["agree"] or found["track2_slope"] < 0


def test_proxies_correlate_by_rank_and_by_value():
    points = pd.DataFrame(
        {"track2_drift": [0.0, -1, -4, -9], "distinct2": [0.9, 0.8, 0.7, 0.1], "hhi": [1.0, 2, 5, 10]}
    )
    row = sigma_settings.proxies({"S1": points}).iloc[0]
    assert (row["rho_distinct2"], row["rho_hhi"]) == (pytest.approx(1), pytest.approx(-1))
    assert row["r_hhi"] == pytest.approx(-1) and (row["hhi_first"], row["hhi_last"]) == (1, 10)
    constant = sigma_settings.proxies({"S1": points.assign(hhi=1.0)}).iloc[0]
    assert np.isnan(constant["rho_hhi"]) and np.isnan(constant["r_hhi"])


@pytest.mark.parametrize("profile", PROFILES)
def test_card_is_made_from_the_profile(profile):
    chosen = params.load(profile)
    names = sigma_settings.settings(chosen)
    assert names == {"S1": "recursive_restart", "S2": "recursive_carry"}
    cards = sigma_experiment.card(chosen, names)
    assert len(cards) == 10 and sum(map(len, cards.values())) > 40
    assert cards["decoding"].set_index("Item").loc["Temperature", "Value"] == f"{chosen.temperature:g}"
    counts = cards["buckets"]["Value"].str.extract(r"(\d+)")[0].astype(int)
    assert len(counts) == 5 and counts.sum() == len(prompts.prompt_bank(chosen.prompt_bank))


def test_settings_follow_the_real_fraction():
    mixed = params.load("sigma_s1s2", conditions=["mixed_restart", "mixed_carry"], real_fraction=0.25)
    names = sigma_settings.settings(mixed)
    assert names == {"S1": "mixed_restart", "S2": "mixed_carry"}
    card = sigma_experiment.card(mixed, names)["synthesis"].set_index("Item")
    assert card.loc["Real fraction", "Value"] == "0.25"
    assert sigma_settings.settings(params.load("default")) == {}
    split = params.load("sigma_s1s2", conditions=["mixed_restart", "recursive_carry"])
    assert sigma_settings.settings(split) == {}


def test_domains_share_no_seed():
    """The prompt's id names its domain, so that no two banks draw from the same random numbers."""
    banks = ("stories", "finance", "technology")
    seeds = {
        estimate.stable_seed(42, "response", prompt["id"]) for bank in banks for prompt in prompts.prompt_bank(bank)
    }
    assert len(seeds) == sum(len(prompts.prompt_bank(bank)) for bank in banks)


def test_two_observed_sets_of_one_model_drift_by_noise_alone():
    whole = checkpoint(0, prompts=60)
    noise = sigma_checks.noise_floor(whole, BUDGET, splits=40)
    error = standard_errors(40) * noise["sd"] / np.sqrt(40)
    assert (noise["mean"].abs() < error).all() and (noise["q95"] > noise["sd"]).all()
    assert sigma_checks.size_ablation(whole, whole, BUDGET).empty  # 180 blocks are fewer than 500


def test_sizes_take_the_same_blocks_of_both_checkpoints(monkeypatch):
    monkeypatch.setattr(sigma_checks, "SIZES", (30, 60, 10**6))
    first, last = checkpoint(0), checkpoint(1).select(slice(3, None))
    one, other = sigma_checks.sized(first, last, 40)
    assert (one.ids == other.ids).all() and len(one.rows) == 40
    assert (one.blocks[:29] == 0).all() and one.prompts[0] == 1
    found = sigma_checks.size_ablation(first, last, BUDGET).set_index(["track", "n_observed"])
    assert set(found.index.get_level_values("n_observed")) == {30, 60}
    errors = found["standard_error"]
    assert errors["track_two", 60] < errors["track_two", 30]


def test_missing_runs_are_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRAL_COLLAPSE_RESULTS", str(tmp_path))
    assert sigma_experiment.main(["sigma_s1s2", "-y", "generations: 3"]) == 1
    said = capsys.readouterr().out.strip()
    assert "generation_0/sigma.json is missing: run the notebook" in said and "\n" not in said
