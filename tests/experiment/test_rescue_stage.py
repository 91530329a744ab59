"""The rescue stage: trained as it should be."""

import pytest
import torch
from spectral_collapse.experiment import loop, rescue, runs
from spectral_collapse.model import train
from spectral_collapse.record import params


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECTRAL_COLLAPSE_RESULTS", str(tmp_path))
    small = {"hidden_size": 16, "layers": 1, "heads": 2, "baseline_blocks": 64, "perplexity_bound": 1e9}
    small |= {"blocks_per_generation": 16, "held_out_blocks": 8, "generations": 1}
    return runs.Run(params.load("smoke", **small), "recursive", 1, say=lambda _: None)


def test_rescue_trains_on_the_fresh_slice_and_leaves_the_generation_as_it_was(run):
    before = {name: p.clone() for name, p in loop.load(run, 1).state_dict().items()}
    result = rescue.rescue(run, 1)
    model = loop.load(run, 1)
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    train.train(
        model,
        run.real.slice(run.seed, 1),
        loop.recipe_of(run),
        seed_parts=(run.seed, "rescue", 1),
        state=run.path(1, "other_state"),
        state_steps=10**6,
        identity="",
        say=lambda _: None,
    )
    expected = train.perplexity(model, run.real.held_out, run.params.batch_size)
    assert result["held_out_perplexity"] == pytest.approx(expected["held_out_perplexity"], rel=1e-6)
    assert not run.path(1, "rescue_state.safetensors").exists()
