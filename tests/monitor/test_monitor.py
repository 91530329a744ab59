"""The monitor on texts, embeddings, models and tables: what it sees, what it refuses, what it keeps."""

import copy
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from spectral_collapse.monitor import Monitor, Rule, core, models, of_embeddings, of_texts, readings, report
from spectral_collapse.record import paths
from spectral_collapse.text import storyworld
from transformers import LlamaConfig, LlamaForCausalLM
from word_encoder import WordEncoder

STORIES = storyworld.generate_stories(400, 1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).train()


def test_a_model_that_diverged_is_an_alarm_and_no_control(model):
    blocks = torch.randint(0, 64, (12, 10), generator=torch.Generator().manual_seed(1))
    broken = copy.deepcopy(model)
    broken.lm_head.weight.data.fill_(math.nan)
    monitor = Monitor(model, blocks=blocks, spectrum=4)
    sound, report = monitor.check(model=model, step=1), monitor.check(model=broken, step=2)
    assert sound.status == "sound" and report.status == "warning"
    assert list(report.alarms["signal"]) == ["held_out_loss"] and "Held-out loss not finite at step 2" in report.line()
    assert {"Entropy of predictions (not finite)", "Log spectral ratio (not in this check)"} == set(report.left_out)
    assert "Held-out loss not finite" in report.to_html() and report.plot()
    controls = [report.to_frame()] * 3
    assert Monitor(model, blocks=blocks, controls=controls).check(model=model).status == "sound"
    second = Monitor(model, blocks=blocks, controls=controls)
    second.check(model=model)
    assert second.check(model=model).status == "cannot judge"  # no control has a finite second check
    with pytest.raises(ValueError, match="Held-out loss is nan"):
        Monitor(broken, blocks=blocks)


def poorer(stories, kept):
    """As many stories, of which only so many differ."""
    return (stories[:kept] * (len(stories) // kept + 1))[: len(stories)]


def test_fresh_text_is_sound_and_repeated_text_is_not():
    monitor = Monitor(STORIES[:100])
    sound = monitor.check(texts=STORIES[100:200], step=1)
    assert sound.status == "sound" and list(sound.to_frame()["check"].unique()) == [1]
    report = monitor.check(texts=poorer(STORIES[200:300], 20), step=2)
    assert report.status == "warning" and "distinct_2" in set(report.alarms["signal"])
    assert "step 2: warning (Distinct word pairs at step 2" in report.line()
    assert report.line() in repr(report) and "sampling error" in str(report)
    assert monitor.check(texts=STORIES[300:400], step=3).status == "warning"  # an alarm stays


def test_track_two_without_a_row_is_that_of_the_other_rows():
    rows = np.random.default_rng(0).normal(size=(30, 5))
    found = of_embeddings(rows)["track_two"]
    for left in (0, 17, 29):
        kept = np.delete(rows, left, axis=0)
        expected = np.linalg.slogdet(kept.T @ kept + readings.DELTA * np.eye(5)).logabsdet - 5 * math.log(29)
        assert found.left_out[left] == pytest.approx(expected, rel=1e-9)
    monitor = Monitor(STORIES[:100], encoder=WordEncoder())
    assert "track_two" in set(monitor.check(texts=STORIES[100:200]).frame["signal"])


def test_a_model_is_judged_by_its_loss_and_entropy_and_left_as_it_was(model):
    blocks = torch.randint(0, 64, (12, 10), generator=torch.Generator().manual_seed(1))
    monitor = Monitor(model, blocks=blocks, spectrum=4)
    frame = monitor.check(model=model, step=5).frame.set_index("signal")
    assert set(frame.index) >= {"held_out_loss", "predictive_entropy"} and not frame["alarm"].any()
    assert frame.loc["held_out_loss", "change"] == 0 and model.training
    with torch.no_grad():
        logits = model(input_ids=blocks, labels=blocks)
    assert frame.loc["held_out_loss", "value"] == pytest.approx(float(logits.loss), rel=1e-5)
    with torch.no_grad():
        model.lm_head.weight.mul_(50)
    try:
        report = monitor.check(model=model, step=6)
        assert report.status == "warning" and "held_out_loss" in set(report.alarms["signal"])
    finally:
        with torch.no_grad():
            model.lm_head.weight.div_(50)


def test_rows_of_metrics_need_a_spread_or_controls():
    rows = [{"val_loss": 2.0 + 0.01 * k, "bleu": 10.0 + k % 2} for k in range(5)]
    monitor = Monitor(rows, rule=Rule(0.05, checks=3))
    assert monitor.check(metrics={"val_loss": 2.02, "bleu": 10.5}).status == "sound"
    assert monitor.check(metrics={"val_loss": 4.0, "bleu": 10.5}).alarms["signal"].tolist() == ["val_loss"]
    assert Monitor({"val_loss": 2.0}).check(metrics={"val_loss": 9.0}).status == "cannot judge"
    controls = []
    for run in range(4):
        control = Monitor({"val_loss": 2.0})
        control.check(metrics={"val_loss": 2.0 + 0.01 * run})
        controls.append(control.report().to_frame())
    judged = Monitor({"val_loss": 2.0}, controls=controls)
    assert judged.check(metrics={"val_loss": 2.3}).status == "warning" and "4 control runs" in judged.report().compared


def test_a_log_is_taken_up_after_a_kill_with_the_same_numbers(tmp_path):
    file = tmp_path / "log" / "run.jsonl"
    first = Monitor(STORIES[:60], log_file=file)
    first.check(texts=STORIES[60:120], step=1)
    cut = '{"step": 2, "chec'
    with file.open("a") as log:
        log.write(cut)  # the line that was being written
    again = Monitor(STORIES[:60], log_file=file)
    assert again.checks == 1 and again.referenced and cut not in file.read_text()
    found = again.check(texts=poorer(STORIES[120:180], 10), step=2)
    unlogged = Monitor(STORIES[:60])
    for step, texts in ((1, STORIES[60:120]), (2, poorer(STORIES[120:180], 10))):
        whole = unlogged.check(texts=texts, step=step)
    pd.testing.assert_frame_equal(found.frame, whole.frame)
    # What was seen after the cut is not lost by the next one.
    assert Monitor(STORIES[:60], log_file=file).report().status == "warning"
    file.write_text('{"step": 0, "refer')  # the reference itself was cut off: the one that is given is taken
    assert Monitor(STORIES[:60], log_file=file).check(texts=poorer(STORIES[:60], 10)).status == "warning"
    (tmp_path / "other.jsonl").write_text(json.dumps({"a": 1}) + "\n")
    with pytest.raises(ValueError, match="is no monitor's log"):
        Monitor(log_file=tmp_path / "other.jsonl")


def test_what_does_not_fit_into_the_budget_is_left_out_by_name(monkeypatch):
    clock = iter(np.arange(0.0, 1000.0, 1.0))
    monkeypatch.setattr(core.time, "monotonic", lambda: next(clock))
    monitor = Monitor(STORIES[:40], budget=0.01)
    report = monitor.check(texts=STORIES[40:80])
    assert report.left_out == ("text (budget)",) and report.status == "cannot judge"
    assert "check: text (budget)" in report.to_html() and report.line().startswith("step 1: cannot judge, left")


def test_a_check_that_judges_nothing_is_not_told_by_the_numbers_of_the_one_before(monkeypatch, tmp_path):
    monitor = Monitor(STORIES[:40], log_file=tmp_path / "log.jsonl")
    before = monitor.check(texts=STORIES[40:80], step=100)
    monitor.budget = 1e-12
    after = monitor.check(texts=STORIES[80:120], step=200)
    assert before.step == 100 and len(before.last) == 4 and after.step == monitor.last_step == 200
    assert after.last.empty and after.line() == "step 200: cannot judge, left out: text (budget)."
    assert "step 200" in str(after) and "It judged nothing" in after.to_html()
    assert Monitor(log_file=tmp_path / "log.jsonl").last_step == 200


def test_texts_too_short_for_a_signal_are_no_other_number_of_texts():
    monitor = Monitor(STORIES[:60])
    report = monitor.check(texts=[*STORIES[60:118], "the end", "a"])
    assert report.status == "sound" and "repetition_4" in set(report.frame["signal"])


def test_a_change_is_the_values_less_what_controls_have_moved():
    controls = [Monitor({"val_loss": 2.0}) for _ in range(3)]
    frames = [run.check(metrics={"val_loss": 2.0 + 0.1 * place}).to_frame() for place, run in enumerate(controls)]
    report = Monitor({"val_loss": 1.0}, controls=frames).check(metrics={"val_loss": 1.7})
    row = report.frame.iloc[0]
    assert row.expected == pytest.approx(0.1)
    assert row.change == pytest.approx(row.value - row.reference - row.expected) == pytest.approx(0.6)
    assert (
        "controls moved" in report.to_html()
        and "expected" in str(report)
        and "expected" not in str(controls[0].report())
    )
    with pytest.raises(ValueError, match="run 1 was held against controls itself"):
        Monitor(controls=[report.to_frame()] * 2)


def test_a_refused_check_leaves_no_prompts_behind(tmp_path):
    log = tmp_path / "log.jsonl"
    monitor = Monitor(STORIES[:40], log_file=log)
    with pytest.raises(ValueError, match="too few"):
        monitor.check(texts=STORIES[:3], prompts=["a"] * 3)
    monitor.check(texts=STORIES[40:80], prompts=["b"] * 40)
    for again in (monitor, Monitor(log_file=log)):
        with pytest.raises(ValueError, match="prompts: not the same"):
            again.check(texts=STORIES[40:80], prompts=["c"] * 40)


def test_the_advice_has_the_sizes_of_the_guide():
    guide = (paths.ROOT / "docs" / "monitor.md").read_text(encoding="utf-8")
    for condition, share in report.AVOIDED.items():
        assert f"| {condition} | {share} |" in guide and share in report.ADVICE


def test_a_signal_that_controls_lack_is_named_and_not_judged():
    rows = {"val_loss": 2.0, "accuracy": 0.5}
    frames = []
    for seed in range(3):
        control = Monitor(rows if seed == 0 else {"val_loss": 2.0})
        found = control.check(metrics={name: value + 0.01 * seed for name, value in rows.items()})
        frames.append(found.to_frame())
    report = Monitor(rows, controls=frames).check(metrics={"val_loss": 2.01, "accuracy": 0.1})
    assert report.left_out == ("accuracy (in fewer than two control runs)",) and report.status == "sound"


def test_what_is_not_judged_is_said_with_the_reason(tmp_path):
    rows = [{"loss": loss, "rate": 0.1, "bleu": 3 * loss} for loss in (2.0, 2.1, 1.9)]
    report = Monitor(rows).check(metrics={"loss": 2.0, "rate": 0.09, "extra": 1.0})
    assert report.left_out == (
        "bleu (not in this check)", "extra (not in the reference)", "rate (does not vary in the reference)"
    )  # fmt: skip
    assert report.status == "sound" and "rate (does not vary in the reference)" in str(report)


def test_a_log_of_another_run_is_refused(tmp_path):
    log = tmp_path / "log.jsonl"
    Monitor(STORIES[:60], log_file=log).check(texts=STORIES[60:120])
    assert Monitor(STORIES[:60], log_file=log).checks == 1
    with pytest.raises(ValueError, match=r"belongs to another run, .* name another log, or delete it"):
        Monitor(STORIES[60:120], log_file=log)


@pytest.mark.parametrize("share, read", [(2.0, 16), (0.75, 12), (0.5, 8), (0.45, 0)])
def test_a_model_is_read_on_as_many_blocks_as_fit_into_the_budget(monkeypatch, model, share, read):
    """As a monitor of these blocks alone reads it; a pass over all takes four seconds, and the budget has a share."""
    later, blocks = copy.deepcopy(model), torch.randint(0, 64, (16, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        later.lm_head.weight *= 1.2
    clock = iter([0.0, 0.0, 0.0, 4.0, 400.0 * (1 + share), 0.0, 1.0])
    monkeypatch.setattr(core.time, "monotonic", lambda: next(clock))
    monitor = Monitor(budget=0.01, blocks=blocks)
    for each in (model, later):
        report = monitor.check(model=each)
    assert report.left_out == {16: (), 0: ("model (budget)",)}.get(
        read, (f"{16 - read} of 16 held-out blocks (budget)",)
    )
    monkeypatch.undo()
    fewer = Monitor(model, blocks=blocks[: read or 3])
    expected = fewer.check(model=later).frame[: 2 * (read > 0)]
    pd.testing.assert_frame_equal(report.frame, expected, rtol=1e-4, check_dtype=False)


def test_reports_are_saved_in_four_forms_and_escape_what_models_write(tmp_path):
    evil = ["<script>alert(1)</script> word"] * 30
    monitor = Monitor(evil)
    report = monitor.check(texts=evil, step=1)
    for suffix in ("html", "csv", "parquet", "jsonl"):
        assert report.save(tmp_path / f"report.{suffix}").stat().st_size > 0
    page = (tmp_path / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page
    assert "src=" not in page.split("<body>")[1].split("plotly")[0]
    assert pd.read_csv(tmp_path / "report.csv")["check"].tolist() == report.frame["check"].tolist()
    with pytest.raises(ValueError, match=r"\.html, \.csv, \.parquet, \.jsonl"):
        report.save(tmp_path / "report.pdf")
    assert len(report.plot().axes) >= 3


@pytest.mark.parametrize(
    ("attempt", "sentence"),
    [
        (lambda: Monitor(["one"] * 3), "too few"),
        (lambda: Monitor([1] * 30), "text 1 is int"),
        (lambda: Monitor(["..."] * 30), "no words"),
        (lambda: Monitor(STORIES[:30]).check(texts=STORIES[:40]), "as many"),
        (lambda: Monitor(STORIES[:30]).check(), "nothing to check"),
        (lambda: Monitor({"loss": float("nan")}), "loss is nan, with which nothing can be compared"),
        (lambda: Monitor({"loss": "high"}), "no number"),
        (lambda: Monitor([{"loss": 1.0}] * 2), "no spread"),
        (lambda: Monitor(object()), "held-out blocks"),
        (lambda: Monitor(budget=2), "budget"),
        (lambda: Monitor(controls=[pd.DataFrame()]), "one control run"),
        (lambda: Monitor(controls=[pd.DataFrame()] * 2), "no column 'change'"),
        (lambda: Monitor([{"a": 1.0}, {"b": 1.0}, {"a": 2.0}]), "no metric is in all"),
        (
            lambda: Monitor(STORIES[:30]).check(texts=STORIES[:30], metrics={"distinct_2": 0.1}),
            "distinct_2 is given twice",
        ),
        (lambda: models.as_blocks([[1, 2]]), "held-out token ids"),
        (lambda: Monitor(blocks=[{"input_ids": [1, 2]}] * 3), "held-out token ids .*not list of object"),
        (lambda: Monitor(blocks=["a text"] * 3), "held-out token ids"),
        (lambda: Monitor(blocks=[[1, 2], [1, 2, 3], [1, 2]]), "unequal length: cut them to one length"),
        (lambda: Monitor(blocks={"input_ids": [[1, 2]] * 3}), "not dict of object"),
        (lambda: Monitor(blocks=[[0.5, 1.5]] * 3), "not list of float64"),
        (lambda: Monitor(budget="2%"), "between 0 and 1, and '2%' does not"),
        (lambda: of_embeddings(np.zeros(3)), "rows .number, dimension. are expected"),
        (lambda: of_embeddings(np.full((30, 2), np.nan)), "not finite|NaN|finite"),
        (lambda: of_texts(["a b c"] * 19), "too few"),
    ],
)
def test_bad_input_is_told_in_one_sentence(attempt, sentence):
    with pytest.raises(ValueError, match=sentence):
        attempt()


def test_what_no_check_could_have_seen_is_not_called_sound():
    """After the controls' last check, and after the last planned one."""
    controls = []
    for start in (100, 160, 220):
        control = Monitor(STORIES[:60])
        control.check(texts=STORIES[start : start + 60])
        controls.append(control.report().to_frame())
    monitor = Monitor(STORIES[:60], controls=controls)
    assert monitor.check(texts=STORIES[300:360]).status == "sound"
    report = monitor.check(texts=poorer(STORIES[:60], 5))
    assert report.status == "cannot judge" and "Fewer than two control runs have a check 2" in report.compared
    planned = Monitor(STORIES[:60], rule=Rule(checks=1))
    assert planned.check(texts=STORIES[60:120]).status == "sound"
    report = planned.check(texts=poorer(STORIES[:60], 5))
    assert report.status == "cannot judge" and "All 1 planned checks are used up" in report.compared
    assert not report.frame["alarm"].any()


def test_a_refused_check_is_not_counted():
    monitor = Monitor(STORIES[:60])
    with pytest.raises(ValueError, match="as many"):
        monitor.check(texts=STORIES[:40])
    assert monitor.checks == 0 and monitor.check(texts=STORIES[60:120]).frame["check"].tolist() == [1] * 4


def test_other_prompts_blocks_or_encoders_than_the_references_are_noticed(tmp_path, model):
    log = tmp_path / "log.jsonl"
    prompts = [f"tell me of {word}" for word in "abc"] * 20
    monitor = Monitor(encoder=WordEncoder(), log_file=log)
    monitor.check(texts=STORIES[:60], prompts=prompts)
    assert monitor.check(texts=STORIES[60:120], prompts=prompts).status == "sound"
    for again in (monitor, Monitor(encoder=WordEncoder(), log_file=log)):
        with pytest.raises(ValueError, match="prompts: not the same as for the reference"):
            again.check(texts=STORIES[60:120], prompts=prompts[::-1])
    other = Monitor(encoder=lambda texts: -WordEncoder()(texts), log_file=log)
    with pytest.raises(ValueError, match="encoder: not the same"):
        other.check(texts=STORIES[60:120], prompts=prompts)
    shorter = Monitor(encoder=lambda texts: WordEncoder()(texts)[:, :4], log_file=log)
    with pytest.raises(ValueError, match="encoder: not the same"):
        shorter.check(texts=STORIES[60:120])
    blocks = torch.randint(0, 64, (6, 8), generator=torch.Generator().manual_seed(0))
    Monitor(model, blocks=blocks, log_file=tmp_path / "model.jsonl")
    same = Monitor(blocks=blocks.numpy(), log_file=tmp_path / "model.jsonl")
    same.check(model=model)
    assert same.checks == 1
    with pytest.raises(ValueError, match="held-out blocks: not the same"):
        Monitor(blocks=blocks.flip(0), log_file=tmp_path / "model.jsonl").check(model=model)
