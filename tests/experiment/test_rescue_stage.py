"""The rescue stage: trained as it should be."""

import pytest
import torch
from spectral_collapse.experiment import loop, rescue, runs
from spectral_collapse.model import train
from spectral_collapse.record import params, provenance


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


def test_doses_train_so_many_times_the_steps_on_text_that_nothing_has_seen(run):
    run.params = run.params.model_copy(update={"rescue_doses": [1, 3]})
    found = rescue.doses(run, 1)
    steps = rescue.rescue(run, 1)["steps"]
    assert found["doses"] == [1, 3] and found["steps"] == [steps, 3 * steps]
    assert found["held_out_perplexity"][0] != found["held_out_perplexity"][1]
    read = {name for name in found_inputs(run) if name.startswith("real slice")}
    assert read == {"real slice 2", "real slice 3", "real slice 4"}


def found_inputs(run):
    return provenance.read_record(run.path(1, "doses.json"))["key"]["inputs"]
