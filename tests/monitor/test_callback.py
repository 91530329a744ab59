"""The callback in a real Trainer: checks, logs, stops, resumes, and never harms a run."""

import json
import os
import subprocess
import sys

import peft
import pytest
import torch
import watched
from spectral_collapse.monitor import Monitor
from spectral_collapse.monitor.callback import MonitorCallback
from torch.distributed.fsdp import FSDPModule
from watched import HELD_OUT


@pytest.fixture
def trainer(tmp_path):
    return lambda adapt=None, **options: watched.trainer(tmp_path / "run", adapt, **options)


def test_a_model_that_forgets_most_tokens_raises_an_alarm_in_the_trainers_log(trainer):
    run = trainer(eval_strategy="steps", eval_steps=2, gradient_accumulation_steps=2)
    callback = MonitorCallback(Monitor(blocks=HELD_OUT)).attach(run)
    run.train()
    assert callback.report.status == "warning" and "held_out_loss" in set(callback.report.alarms["signal"])
    logged = [entry for entry in run.state.log_history if "collapse/held_out_loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    assert logged[-1]["collapse/alarms"] >= 1


def test_listed_callbacks_write_to_the_history_and_may_check_between_evaluations(trainer):
    run = trainer()
    callback = MonitorCallback(Monitor(blocks=HELD_OUT), every=3)
    run.add_callback(callback)
    run.train()
    assert [entry["step"] for entry in run.state.log_history if "collapse/alarms" in entry] == [3, 6]


@pytest.mark.parametrize("attached", [False, True])
def test_the_trainers_own_log_misses_nothing(trainer, attached):
    run = trainer(logging_steps=2)
    callback = MonitorCallback(Monitor(blocks=HELD_OUT), every=1)
    callback.attach(run) if attached else run.add_callback(callback)
    run.train()
    assert [entry["step"] for entry in run.state.log_history if "loss" in entry] == [2, 4, 6]


def test_it_stops_the_run_only_if_told_so(trainer):
    run = trainer(max_steps=40)
    callback = MonitorCallback(Monitor(blocks=HELD_OUT), every=2, stop=True).attach(run)
    run.train()
    assert run.state.global_step < 40 and callback.report.status == "warning"


def test_a_run_that_diverges_is_stopped_though_the_model_writes_nothing_any_more(trainer, caplog):
    def sample(model):
        if not all(each.isfinite().all() for each in model.parameters()):
            raise RuntimeError("probability tensor contains nan")
        return ["the cat sat on the mat"] * 20

    run = trainer(max_steps=40, learning_rate=1e30, max_grad_norm=0)
    callback = MonitorCallback(Monitor(blocks=HELD_OUT), sample=sample, every=2, stop=True).attach(run)
    run.train()
    assert run.state.global_step < 40 and "Held-out loss not finite" in callback.report.line()
    assert "is judged without texts" in caplog.text


def test_an_error_inside_is_logged_and_training_goes_on_unless_strict(trainer, caplog):
    def broken(model):
        raise RuntimeError("no samples today")

    run = trainer()
    MonitorCallback(Monitor(blocks=HELD_OUT), sample=broken, every=2).attach(run)
    run.train()
    assert run.state.global_step == 6 and "training goes on" in caplog.text
    run = trainer()
    MonitorCallback(Monitor(blocks=HELD_OUT), sample=broken, strict=True).attach(run)
    with pytest.raises(RuntimeError, match="no samples today"):
        run.train()
    with pytest.raises(ValueError, match="one step or more"):
        MonitorCallback(Monitor(blocks=HELD_OUT), every=0)


def test_a_report_is_there_whatever_happened(trainer, tmp_path, caplog):
    run = trainer()
    callback = MonitorCallback(Monitor(blocks=HELD_OUT), sample=lambda _: 1 / 0).attach(run)
    run.train()
    assert callback.report.status == "cannot judge" and "the reference is step" not in caplog.text
    samples = iter([1 / 3, *([["a b c d"] * 30] * 9)])
    late = trainer()
    MonitorCallback(Monitor(blocks=HELD_OUT), sample=lambda _: next(samples), every=2).attach(late)
    late.train()
    assert "the reference is step 2, not the start of training" in caplog.text
    assert callback.report.save(tmp_path / "report.html").stat().st_size > 0


def test_samples_are_checked_beside_the_model_and_a_resumed_run_goes_on(trainer, tmp_path):
    texts = iter([[f"a story of number {n} and {k}" for k in range(30)] for n in range(20)])
    log = tmp_path / "monitor.jsonl"
    run = trainer(save_strategy="steps", save_steps=4)
    callback = MonitorCallback(Monitor(blocks=HELD_OUT, log_file=log), sample=lambda _: next(texts), every=2).attach(
        run
    )
    run.train()
    assert {"distinct_2", "held_out_loss"} <= set(callback.report.frame["signal"])
    again = trainer(max_steps=8)
    resumed = MonitorCallback(Monitor(blocks=HELD_OUT, log_file=log), sample=lambda _: next(texts), every=2).attach(
        again
    )
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert resumed.report.frame["check"].max() == callback.report.frame["check"].max() + 1  # step 8, not 6 again
    assert resumed.report.frame["step"].drop_duplicates().is_monotonic_increasing


@pytest.mark.parametrize("sampling", [False, True])
def test_the_weights_are_those_of_a_run_without_a_monitor(trainer, sampling):
    """With dropout, whose masks are drawn after every check, and samples that draw too."""

    def sample(model):
        drawn = model.generate(torch.ones(30, 1, dtype=torch.long), do_sample=True, max_new_tokens=4, pad_token_id=0)
        return [" ".join(map(str, row)) for row in drawn.tolist()]

    plain, watched = trainer(), trainer()
    for run in (plain, watched):
        run.model.config.attention_dropout = run.model.model.layers[0].self_attn.attention_dropout = 0.5
    MonitorCallback(Monitor(blocks=HELD_OUT), every=1, sample=sample if sampling else None, strict=True).attach(watched)
    for run in (plain, watched):
        torch.manual_seed(3)
        run.train()
    for one, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_adapters_of_peft_are_judged_as_they_are_trained(trainer):
    adapters = peft.LoraConfig(r=2, target_modules="all-linear")
    run = trainer(lambda model: peft.get_peft_model(model, adapters), max_steps=20)
    callback = MonitorCallback(Monitor(blocks=HELD_OUT, spectrum=8), every=10, strict=True).attach(run)
    run.train()
    assert callback.report.status == "warning" and callback.report.frame["check"].max() == 2
    assert callback.report.frame["value"].notna().all()


def test_a_shard_of_a_model_is_left_alone(trainer, caplog):
    """Its layers would wait for processes that do not check."""

    class Shard(type(trainer().model), FSDPModule):
        pass

    run = trainer()
    run.model.__class__ = Shard
    MonitorCallback(Monitor(blocks=HELD_OUT)).attach(run)
    run.train()
    assert run.state.global_step == 6 and "sharded over processes" in caplog.text


@pytest.mark.slow
def test_of_two_processes_the_first_checks_and_both_stop_at_its_alarm(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", watched.__file__]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([*launch, str(tmp_path)], env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert first["status"] == "warning" and second["status"] == "cannot judge"
    assert first["step"] == second["step"] < 40
