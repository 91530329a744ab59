"""The recursion: what each condition trains on, what is found again, and what survives a kill."""

import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from spectral_collapse import estimate
from spectral_collapse.analysis import metrics, series, statistics
from spectral_collapse.experiment import loop, measure, runs
from spectral_collapse.model import build, generate
from spectral_collapse.record import params, provenance, schema
from spectral_collapse.text import tokenizers
from tiny import TINY, described, quiet
from transformers import AutoModelForCausalLM

CHANGES = {**TINY, "response_tokens": 16, "conditions": ["recursive", "fresh", "mixed"]}


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> schema.Params:
    monkeypatch.setenv("SPECTRAL_COLLAPSE_RESULTS", str(tmp_path / "results"))
    return params.load("smoke", **CHANGES)


def records(root: Path) -> dict[str, dict]:
    """All records below a folder, without what may differ between two runs of one computation."""
    found = {}
    for path in sorted(root.rglob("generation_*/*.json")):
        record = json.loads(path.read_text())
        for name in ("timing", "git", "sha256"):
            del record[name]
        found[str(path.relative_to(root))] = record
    return found


# ---- conditions


def test_sources_of_text(tiny):
    real = runs.Run(tiny, "fresh", 1, say=quiet).real

    def run(condition):
        return runs.Run(tiny, condition, 1, real=real, say=quiet)

    def blocks(condition, generation):
        return loop.blocks(run(condition), generation)

    slices = [real.slice(1, index) for index in range(3)]
    assert torch.equal(blocks("fresh", 1), slices[1]) and torch.equal(blocks("fresh", 2), slices[2])
    assert torch.equal(blocks("static", 1), slices[0]) and torch.equal(blocks("static", 2), slices[0])
    recursive = blocks("recursive", 1)
    assert recursive.shape == slices[0].shape and not torch.equal(recursive, slices[0])
    mixed, record = blocks("mixed", 1), loop.text(run("mixed"), 1)
    is_real = (mixed == slices[0]).all(1)
    assert record["synthetic_blocks"] == 12 and int(is_real.sum()) == 12
    # Equal models write equal texts: at generation 1 both conditions are told by the base model.
    assert torch.equal(mixed[~is_real], recursive[~is_real])


def test_every_source_has_a_rule_and_no_other_passes_for_one(tiny, monkeypatch):
    run = runs.Run(tiny, "static", 1, say=quiet)
    monkeypatch.setattr(loop, "synthetic_blocks", lambda run, writer: run.real.slice(run.seed, 1 + writer))
    shares = {}
    for source in schema.SOURCES:
        run.source = source
        composed = loop._compose(run, 1)
        assert composed["blocks"].shape == (tiny.blocks_per_generation, tiny.block_tokens)
        shares[source] = float(composed["synthetic"].double().mean())
    assert shares["recursive"] == 1 and shares["fresh"] == shares["static"] == 0
    assert shares["mixed"] == 0.5 and 0 < shares["accumulate"] < 1
    run.source = "sideways"
    with pytest.raises(ValueError, match=r"^no rule composes the text of source 'sideways': add one to loop\._compose"):
        loop._compose(run, 1)


def test_tokens_without_text_are_not_written(tiny, tmp_path):
    """Of a checkpoint whose vocabulary was rounded up to more than its tokenizer has."""
    real = runs.Run(tiny, "recursive", 1, say=quiet).real
    size = len(real.tokenizer)
    config = build._config(tiny, real.tokenizer)
    config.vocab_size = 2 * size
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    real.tokenizer.save_pretrained(tmp_path)
    changes = {"checkpoint": str(tmp_path), "baseline_epochs": 0, "baseline_blocks": 0, "profile": "padded"}
    run = runs.Run(params.check({**tiny.model_dump(), **changes}), "recursive", 1, say=quiet)
    assert loop.load(run, 0).config.vocab_size == 2 * size
    assert int(loop.synthetic_blocks(run, 0).max()) < size
    prompts = run.real.openings(1)
    assert max(map(max, loop.sample(run, 0, prompts, list(range(len(prompts))), 8, "test"))) < size


def test_mixed_at_its_ends_is_static_and_recursive(tiny):
    all_real = params.check({**tiny.model_dump(), "real_fraction": 1.0, "profile": "real"})
    none_real = params.check({**tiny.model_dump(), "real_fraction": 0.0, "profile": "unreal"})
    real = runs.Run(tiny, "static", 1, say=quiet).real

    def blocks(settings, condition):
        return loop.blocks(runs.Run(settings, condition, 1, real=real, say=quiet), 1)

    assert torch.equal(blocks(all_real, "mixed"), blocks(all_real, "static"))
    assert torch.equal(blocks(none_real, "mixed"), blocks(none_real, "recursive"))


def test_accumulate_draws_from_everything_so_far(tiny):
    run = runs.Run(tiny, "accumulate", 1, say=quiet)
    count = tiny.blocks_per_generation
    for generation in (1, 2):
        everything = torch.cat(
            [run.real.slice(1, 0), *(loop.synthetic_blocks(run, writer) for writer in range(generation))]
        )
        kept = estimate.generator(1, "accumulate", generation).permutation(len(everything))[:count]
        assert torch.equal(loop.blocks(run, generation), everything[torch.from_numpy(kept)])
        assert loop.text(run, generation)["synthetic_blocks"] == (kept >= count).sum() > 0


def test_accumulate_samples_each_generation_once(tiny, monkeypatch):
    sampled = described(monkeypatch, generate, "sample")
    run = runs.Run(tiny, "accumulate", 1, say=quiet)
    loop.text(run, 3)
    assert sampled == [f"accumulate {writer}: writing" for writer in range(3)]
    # What is gone is sampled again, and nothing else is.
    before = loop.blocks(run, 3)
    for generation in (1, 3):
        run.path(generation, "text.safetensors").unlink()
    again = runs.Run(tiny, "accumulate", 1, real=run.real, say=quiet)
    assert torch.equal(loop.blocks(again, 3), before)
    assert sorted(sampled[3:]) == ["accumulate 0: writing", "accumulate 2: writing"]


def test_restart_starts_from_the_base_model_and_carry_from_the_one_before(tiny):
    real = runs.Run(tiny, "static", 1, say=quiet).real
    carry = runs.Run(tiny, "static_carry", 1, real=real, say=quiet)
    restart = runs.Run(tiny, "static_restart", 1, real=real, say=quiet)
    assert loop.training(carry, 1)["model_sha256"] == loop.training(restart, 1)["model_sha256"]
    # Restarted on the same slice, generation 2 differs from generation 1 only in the order of its blocks.
    assert loop.training(carry, 2)["training_loss"] < loop.training(restart, 2)["training_loss"]


def test_openings_start_the_blocks(tiny):
    settings = params.check({**tiny.model_dump(), "prompting": "opening", "profile": "opening"})
    run = runs.Run(settings, "recursive", 1, say=quiet)
    assert loop.blocks(run, 1)[:, : settings.opening_tokens].tolist() == run.real.openings(1)


def test_incoherent_baseline_is_refused_before_anything_is_measured_on_it(tiny):
    strict = params.check({**tiny.model_dump(), "perplexity_bound": 1.5})
    with pytest.raises(measure.IncoherentBaseline, match=r"held-out perplexity is .* above perplexity_bound 1\.5"):
        measure.generation(runs.Run(strict, params.BASELINE, 1, say=quiet), 0)
    assert not list(Path(os.environ["SPECTRAL_COLLAPSE_RESULTS"]).rglob("curvature.json"))


def test_divergence_stops_with_what_was_computed_kept(tiny):
    wild = params.check({**tiny.model_dump(), "learning_rate": 1e30})
    run = runs.Run(wild, "fresh", 1, say=quiet)
    with pytest.raises(ValueError, match="the loss is not finite; lower the learning rate"):
        measure.generation(run, 1)
    assert run.path(0, "training.json").exists()
    assert json.loads(run.path(1, "diverged.json").read_text())["losses"]


# ---- what the text and the anchors say


def test_continuations_are_of_held_out_blocks_and_compared_with_their_ends(tiny):
    run = runs.Run(tiny, "fresh", 1, say=quiet)
    found = measure.continuations(run, 0)
    lines = [json.loads(line) for line in run.path(0, "continuations.jsonl").read_text().splitlines()]
    assert len(lines) == tiny.held_out_blocks
    decode = functools.partial(run.real.tokenizer.batch_decode, skip_special_tokens=True)
    half = tiny.block_tokens // 2
    assert [line["context"] for line in lines] == decode(run.real.held_out[:, :half])
    assert [line["reference"] for line in lines] == decode(run.real.held_out[:, half:])
    for name in ("bleu", "rouge_l"):
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high


def test_a_generation_that_learns_nothing_says_the_same_and_stands_still(tiny):
    still = params.check({**tiny.model_dump(), "learning_rate": 1e-30, "profile": "still"})
    run = runs.Run(still, "fresh", 1, say=quiet)
    measure.generation(run, 0)
    before, after = (measure.anchors(run, generation) for generation in (0, 1))
    assert before["representation_drift"] == 0 and after["representation_drift"] == pytest.approx(0, abs=1e-12)
    assert before["predictive_entropy"] == pytest.approx(after["predictive_entropy"])
    assert 0 < before["predictive_entropy"] < math.log(len(run.real.tokenizer))
    assert measure.continuations(run, 0)["bleu"] == measure.continuations(run, 1)["bleu"]


def test_anchors_move_from_one_generation_to_the_next(tiny):
    run = runs.Run(tiny, "fresh", 1, say=quiet)
    states = [load_file(measure.anchors.artefact(run, generation))["representations"] for generation in range(3)]
    assert states[0].shape == (tiny.held_out_blocks, tiny.hidden_size)
    for generation in (1, 2):
        moved = (states[generation] - states[generation - 1]).norm(dim=1) / states[generation - 1].norm(dim=1)
        assert measure.anchors(run, generation)["representation_drift"] == pytest.approx(moved.mean().item(), rel=1e-5)


def test_every_metric_has_an_interval_and_a_name_for_readers(tiny):
    run = runs.Run(tiny, "fresh", 1, say=quiet)
    measure.generation(run, 0)
    table = series.table(tiny.model_copy(update={"generations": 0}), ["fresh"], [1], ("evaluation", "continuations"))
    found = measure.evaluation(run, 0) | measure.continuations(run, 0)
    names = statistics.metric_names(table)
    assert {"held_out_perplexity", "self_bleu", "rare_token_coverage", "bleu", "tail_coverage"} <= set(names)
    for name in names:
        low, high = found[f"{name}_interval"]
        assert low <= found[name] <= high
        assert name in metrics.METRICS


# ---- records


def test_second_run_computes_nothing(tiny, monkeypatch):
    first = runs.Run(tiny, "fresh", 1, say=quiet)
    before = [measure.generation(first, generation) for generation in range(2)]
    monkeypatch.setattr(runs.Stage, "_record", lambda *_: pytest.fail("computed again"))
    second = runs.Run(tiny, "fresh", 1, real=first.real, say=quiet)
    assert [measure.generation(second, generation) for generation in range(2)] == before


@pytest.mark.parametrize("damage", ["truncate", "flip", "lose the weights"])
def test_damage_is_mended_with_a_message_and_the_same_numbers(tiny, damage):
    run = runs.Run(tiny, "recursive", 1, say=quiet)
    before = [measure.generation(run, generation) for generation in range(2)]
    victim = run.path(1, "training.json")
    if damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:200])
    elif damage == "flip":
        victim.write_text(victim.read_text().replace('"training_loss": ', '"training_loss": 1'))
    for name in ("model.safetensors", "text.safetensors"):
        run.path(1, name).unlink()
    run.path(1, "evaluation.json").unlink()
    said: list[str] = []
    again = runs.Run(tiny, "recursive", 1, real=run.real, say=said.append)
    assert [measure.generation(again, generation) for generation in range(2)] == before
    reasons = {"truncate": "truncated or not a record", "flip": "does not match its hash"}
    assert (damage not in reasons and not said) or any(reasons.get(damage, "") in line for line in said)


def test_a_changed_parameter_remakes_what_depends_on_it_and_no_more(tiny, tmp_path, monkeypatch):
    folders = params.folders
    run = runs.Run(tiny, "fresh", 1, say=quiet)
    measure.generation(run, 1)
    stamps = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.json")}
    said: list[str] = []
    changed = params.check({**tiny.model_dump(), "variant": "four", "lanczos_probes": 4})
    monkeypatch.setattr(runs, "folders", lambda settings: [tmp_path / "four", *folders(tiny)])
    computed, record = [], runs.Stage._record
    monkeypatch.setattr(runs.Stage, "_record", lambda self, *where: computed.append(self.name) or record(self, *where))
    again = runs.Run(changed, "fresh", 1, real=run.real, say=said.append)
    measure.generation(again, 1)
    assert computed == ["curvature"] and said == []
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_table_names_a_missing_file(tiny):
    with pytest.raises(ValueError, match=r"training\.json is missing: run the notebook of condition 'baseline'"):
        series.table(tiny)


def test_table_has_a_row_for_every_cell(tiny):
    for name in ("recursive", "fresh"):
        run = runs.Run(tiny, name, 1, say=quiet)
        for generation in range(3):
            measure.generation(run, generation)
    table = series.table(tiny, ["recursive", "fresh"], [1], ("training", "evaluation", "curvature"))
    assert len(table) == 6 and table["held_out_perplexity"].notna().all()
    base = table[table["generation"] == 0]
    assert base["held_out_perplexity"].nunique() == 1  # one base model for all conditions


def test_any_checkpoint_goes_through_the_whole_loop(architecture, tiny_model, tiny, tmp_path, monkeypatch):
    """A local checkpoint of each architecture: trained, sampled, measured, and its weights found again."""
    monkeypatch.setattr(measure, "prompt_bank", lambda _: [{"id": "a", "bucket": "neutral", "text": "Tom ran"}])
    texts = [f"Once upon a time, {name} ran home. {name} was glad." for name in ("Tom", "Mia", "Ben")] * 40
    tokenizer = tokenizers.train_tokenizer(texts, 290)
    tiny_model(architecture, len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "stories.txt").write_text("<|endoftext|>".join(texts))
    settings = {
        **{"corpus": "tinystories", "data_path": str(tmp_path / "stories.txt"), "checkpoint": str(tmp_path / "model")},
        **{"model": architecture, "baseline_epochs": 0, "baseline_blocks": 0, "block_tokens": 16, "story_tokens": 16},
        **{"held_out_blocks": 4, "curvature_blocks": 2, "mechanism_blocks": 4, "blocks_per_generation": 12},
        **{"sampling_batch": 50},
    }
    run = runs.Run(params.check({**tiny.model_dump(), **settings}), "recursive", 1, say=quiet)
    before = [measure.generation(run, generation) for generation in range(2)]
    assert before[0]["training"]["steps"] == 0 and before[1]["training"]["steps"] == 2
    assert before[1]["curvature"]["lambda_max"] > 0
    # Another process: the weights on disk are the model that was trained.
    again = runs.Run(run.params, "recursive", 1, real=run.real, say=quiet)
    for name, tensor in loop.load(again, 1).state_dict().items():
        assert torch.equal(tensor, loop.load(run, 1).state_dict()[name])


def test_a_checkpoint_is_taken_as_it_is_unless_the_profile_tunes_it(tiny, tiny_model, tmp_path):
    """Whatever `baseline_blocks` says, which is for models from scratch."""
    texts = [f"Once upon a time, {name} ran home. {name} was glad." for name in ("Tom", "Mia", "Ben")] * 40
    tokenizer = tokenizers.train_tokenizer(texts, 290)
    model = tiny_model("llama", len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    as_it_is = params.check({**tiny.model_dump(), "checkpoint": str(tmp_path / "model"), "blocks_per_generation": 8})
    assert as_it_is.baseline_blocks > 0 and "checkpoint" in params.changes(as_it_is)
    run = runs.Run(as_it_is, "fresh", 1, say=quiet)
    found = loop.training(run, 0)
    assert found["steps"] == 0 and math.isfinite(found["training_loss"])
    for name, tensor in loop.load(run, 0).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    shuffled = run.real._shuffled(1)[0]
    assert run.real.slice(1, 0).flatten().tolist() == shuffled[: 8 * as_it_is.block_tokens].tolist()

    tuned = params.check({**as_it_is.model_dump(), "tuning_blocks": 16, "tuning_learning_rate": 0.01})
    run = runs.Run(tuned, "fresh", 1, real=None, say=quiet)
    assert loop.training(run, 0)["steps"] == 1
    assert run.real.slice(1, 0).flatten().tolist() == shuffled[16 * 32 : 24 * 32].tolist()
    with pytest.raises(ValueError, match="tuning_blocks: without a checkpoint there is none to tune"):
        params.check({**tiny.model_dump(), "tuning_blocks": 16})

    # Other weights in the same folder are another checkpoint: what was made of the old ones is not overwritten.
    tiny_model("llama", len(tokenizer), seed=1).save_pretrained(tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"training\.json was made with other settings: its inputs changed \(checkpoint\)"
    ):
        loop.training(runs.Run(as_it_is, "fresh", 1, say=quiet), 0)


# ---- kill -9

WORKER = """
import sys
from spectral_collapse.experiment import measure, runs
from spectral_collapse.record import params
run = runs.Run(params.load("smoke", **{overrides!r}), "recursive", 1)
for generation in range(3):
    measure.generation(run, generation)
"""


def start(root: Path, overrides: dict) -> subprocess.Popen:
    environment = {**os.environ, "SPECTRAL_COLLAPSE_RESULTS": str(root), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER.format(overrides=overrides)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_when(process: subprocess.Popen, root: Path, pattern: str) -> str:
    """kill -9 as soon as a file of the pattern exists; what the process had said."""
    deadline = time.monotonic() + 600
    while not list(root.rglob(pattern)):
        assert process.poll() is None, f"ended before {pattern} was there"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    return process.communicate()[0]


@pytest.mark.slow
def test_killed_runs_go_on_and_end_with_the_same_records(tmp_path):
    overrides = {**CHANGES, "checkpoint_steps": 3, "baseline_epochs": 4}
    whole = start(tmp_path / "whole", overrides)
    broken = tmp_path / "broken"
    kill_when(start(broken, overrides), broken, "baseline/*/generation_0/training_state.safetensors")
    kill_when(start(broken, overrides), broken, "recursive/*/generation_1/text.json")
    kill_when(start(broken, overrides), broken, "recursive/*/generation_2/model.safetensors")
    last = start(broken, overrides)
    said = last.communicate(timeout=300)[0]
    assert last.returncode == 0, said
    whole.communicate(timeout=300)
    assert whole.returncode == 0
    assert records(broken) == records(tmp_path / "whole")
    assert len(records(broken)) == 6 + 2 * 7
    assert not list(broken.rglob("training_state.safetensors"))


def test_resumed_training_goes_on_from_its_saved_state(tmp_path):
    overrides = {**CHANGES, "checkpoint_steps": 3, "baseline_epochs": 4}
    kill_when(start(tmp_path, overrides), tmp_path, "baseline/*/generation_0/training_state.safetensors")
    said = kill_when(start(tmp_path, overrides), tmp_path, "baseline/*/generation_0/training.json")
    assert "resuming at step" in said


def test_record_holds_what_made_it(tiny):
    run = runs.Run(tiny, "fresh", 1, say=quiet)
    loop.training(run, 0)
    record = json.loads(run.path(0, "training.json").read_text())
    assert record["seed"] == 1 and record["generation"] == 0 and record["condition"] == "baseline"
    assert record["schema_version"] == provenance.SCHEMA_VERSION
    assert set(record["git"]) == {"commit", "dirty"} and record["environment"]["torch"]
    assert record["timing"]["wall_seconds"] > 0 and record["timing"]["training_tokens_per_second"] > 0
    assert record["key"]["parameters"]["precision"] == "float32"
    assert record["parameters"]["hidden_size"] == 32 and "data_path" not in record["parameters"]
