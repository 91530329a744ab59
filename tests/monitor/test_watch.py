"""The command on folders, tables, checkpoints and embeddings; its exit status; and one sentence for bad input."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from spectral_collapse.monitor import inputs, watch
from spectral_collapse.text import storyworld, tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

STORIES = storyworld.generate_stories(240, 1)


def folder_of(path, generations, suffix=".txt"):
    path.mkdir(exist_ok=True)
    for number, texts in enumerate(generations):
        file = path / f"generation_{number}{suffix}"
        if suffix == ".txt":
            file.write_text("\n\n".join(texts))
        elif suffix == ".jsonl":
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        else:
            pd.DataFrame({"text": texts}).to_parquet(file)
    return path


def with_prompts(path):
    """Two generations whose texts answer different prompts."""
    path.mkdir()
    for number in range(2):
        rows = [{"prompt": f"{number} {place}", "text": text} for place, text in enumerate(STORIES[:60])]
        (path / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SOUND = [STORIES[:60], STORIES[60:120], STORIES[120:180]]
POOR = [STORIES[:60], (STORIES[60:70] * 6)]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_texts_are_judged_generation_by_generation(tmp_path, capsys, suffix):
    assert watch.main(["watch", str(folder_of(tmp_path / "sound", SOUND, suffix))]) == 0
    assert "step 2: sound" in capsys.readouterr().out
    report = tmp_path / "report.html"
    assert watch.main(["watch", str(folder_of(tmp_path / "poor", POOR, suffix)), "--report", str(report)]) == 1
    assert "Distinct word pairs at step 1" in capsys.readouterr().out and "<title>" in report.read_text()


def test_folders_of_files_natural_order_and_json(tmp_path, capsys):
    for number in (0, 2, 10):
        folder_of(tmp_path / f"round {number}", [STORIES[:60]])
    assert [path.name for path in inputs.checkpoints_or_texts(tmp_path)[1]] == ["round 0", "round 2", "round 10"]
    assert watch.main(["watch", str(tmp_path), "--json"]) == 0
    assert {row["step"] for row in json.loads(capsys.readouterr().out)} == {2, 10}


def test_tables_of_metrics_are_judged_against_their_first_rows(tmp_path, capsys):
    losses = [2.0, 2.01, 1.99, 2.0, 3.5]
    pd.DataFrame({"step": range(0, 500, 100), "val_loss": losses}).to_csv(tmp_path / "log.csv", index=False)
    assert watch.main(["watch", str(tmp_path / "log.csv")]) == 1
    assert "val loss at step 400" in capsys.readouterr().out
    lines = "".join(json.dumps({"generation": g, "perplexity": p}) + "\n" for g, p in enumerate([9, 9.1, 8.9, 9.0]))
    (tmp_path / "log.jsonl").write_text(lines)
    assert watch.main(["watch", str(tmp_path / "log.jsonl"), "--rate", "0.01", "--checks", "1"]) == 0


def test_steps_and_times_of_trackers_are_no_metrics(tmp_path):
    rows = [f"{1e9 + 60 * step},{step}, {2 + 0.01 * (step % 3)}" for step in range(40)]
    for head in ("Wall time,Step,Value", " wall_time , step , loss "):
        found = inputs.table_of(write(tmp_path / "tracker.csv", "\n".join([head, *rows])))
        assert [step for step, _ in found] == list(range(40)) and {len(row) for _, row in found} == {1}


def test_an_interrupted_watch_goes_on_with_its_log(tmp_path, capsys):
    folder, log = folder_of(tmp_path / "runs", SOUND[:2]), tmp_path / "log.jsonl"
    assert watch.main(["watch", str(folder), "--log", str(log)]) == 0
    folder_of(folder, SOUND)
    assert watch.main(["watch", str(folder), "--log", str(log)]) == 0
    checks = [json.loads(line).get("check") for line in log.read_text().splitlines()]
    assert checks == [None, 1, 2]
    other = folder_of(tmp_path / "others", [STORIES[180:240], *POOR])
    assert watch.main(["watch", str(other), "--log", str(log)]) == 2
    assert "belongs to another run" in capsys.readouterr().err


def test_what_arrives_is_followed_until_an_alarm(tmp_path, monkeypatch):
    """And not before it rests: a file that is cut off at one look and whole at the next is no bad input."""
    folder, last = folder_of(tmp_path / "runs", SOUND[:1]), tmp_path / "runs" / "generation_2.txt"
    whole = "\n\n".join(STORIES[60:70] * 6)
    steps = iter(
        [
            lambda: None,  # generation 0 rests
            lambda: (folder / "generation_1.txt").write_text("\n\n".join(SOUND[1])),
            lambda: last.write_text(whole[:100]),
            lambda: last.write_text(whole),
            lambda: None,
        ]
    )
    monkeypatch.setattr(watch.time, "sleep", lambda _: next(steps)())
    assert watch.main(["watch", str(folder), "--follow"]) == 1


def test_checkpoints_that_are_deleted_meanwhile_hide_none_that_come_later(tmp_path, monkeypatch):
    """As a trainer with a limit of saved checkpoints deletes them; also over a second call with the same log."""
    folder, log = folder_of(tmp_path / "runs", SOUND[:2]), tmp_path / "log.jsonl"
    assert watch.main(["watch", str(folder), "--log", str(log)]) == 0

    def replaced(old, new, texts):
        (folder / f"generation_{old}.txt").unlink()
        (folder / f"generation_{new}.txt").write_text("\n\n".join(texts))

    steps = iter([lambda: replaced(0, 2, SOUND[2]), lambda: replaced(1, 3, STORIES[60:70] * 6), *[lambda: None] * 2])
    monkeypatch.setattr(watch.time, "sleep", lambda _: next(steps)())
    assert watch.main(["watch", str(folder), "--log", str(log), "--follow"]) == 1
    seen = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert seen == [0, 1, 2, 3]


def test_following_ends_at_a_key_and_a_report_outlives_bad_input(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    folder, report = folder_of(tmp_path / "runs", SOUND), tmp_path / "report.csv"
    monkeypatch.setattr(watch.time, "sleep", interrupt)
    assert watch.main(["watch", str(folder), "--follow"]) == 2  # at the first look nothing rests yet
    folder_of(folder, [*SOUND, STORIES[:3]])
    assert watch.main(["watch", str(folder), "--report", str(report)]) == 2
    assert set(pd.read_csv(report)["step"]) == {1, 2}


def test_texts_need_no_torch(tmp_path):
    folder = folder_of(tmp_path / "runs", SOUND[:2])
    program = (
        "import sys; from spectral_collapse.monitor import watch\n"
        f"status = watch.main(['watch', {str(folder)!r}])\n"
        "assert status == 0 and not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_embeddings_and_their_log_determinant(tmp_path, capsys):
    rows = np.random.default_rng(0).normal(size=(400, 6))
    np.save(tmp_path / "rows.npy", rows)
    assert watch.main(["sigma", str(tmp_path / "rows.npy"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["embeddings"] == 400 and found["dimension"] == 6
    assert found["low"] < 0 < found["high"]  # log det of the identity
    assert watch.main(["sigma", str(tmp_path / "rows.npy")]) == 0
    assert f"[{found['low']:.6g}, {found['high']:.6g}]" in capsys.readouterr().out
    heavy = rows / np.sqrt(np.random.default_rng(1).chisquare(3, size=(400, 1)) / 3)  # Student's t
    np.save(tmp_path / "heavy.npy", heavy)
    assert watch.main(["sigma", str(tmp_path / "heavy.npy"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["low"] < 6 * np.log(3) < found["high"]  # E vvᵀ = 3 I, which an interval for Gaussian rows misses
    np.save(tmp_path / "dead.npy", rows * [1, 1, 1, 1, 1, 0])
    assert watch.main(["sigma", str(tmp_path / "dead.npy")]) == 0
    assert "not identified, the Gram matrix has rank 5 in 6 dimensions" in capsys.readouterr().out
    for name, wrong, told in (("none", rows[:0], "no embeddings"), ("nan", rows * np.nan, "embedding 0 is not finite")):
        np.save(tmp_path / f"{name}.npy", wrong)
        assert watch.main(["sigma", str(tmp_path / f"{name}.npy")]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_is_an_alarm_and_in_the_reference_bad_input(tmp_path, capsys, value):
    rows = ["1,2,5", "2,2.1,6", "3,1.9,4", f"4,{value},{value}"]
    table, report = write(tmp_path / "log.csv", "step,loss,bleu\n" + "\n".join(rows)), tmp_path / "report.html"
    assert watch.main(["watch", str(table), "--report", str(report)]) == 1
    told = capsys.readouterr().out
    assert "loss not finite at step 4" in told and "bleu (not finite)" in told and report.is_file()
    write(table, "step,loss,bleu\n" + "\n".join(rows[::-1]))
    assert watch.main(["watch", str(table)]) == 2
    assert f"is {value}, with which nothing can be compared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arrange", "sentence"),
    [
        (lambda path: path / "absent", "does not exist"),
        (lambda path: path, "neither checkpoints"),
        (lambda path: folder_of(path / "one", SOUND[:1]), "holds 1 generation"),
        (lambda path: folder_of(path / "few", [["a b c"] * 5, ["a b c"] * 5]), "generation_0.txt: 5 texts are too few"),
        (lambda path: folder_of(path / "unequal", [STORIES[:60], STORIES[:40]]), "as many"),
        (lambda path: with_prompts(path / "asked"), "prompts: not the same as for the reference"),
        (lambda path: write(path / "cut.jsonl", '{"text": "a"}\n{"te'), "line 2 is cut off"),
        (lambda path: write(path / "empty.csv", "step,loss\n"), "no rows"),
        (lambda path: write(path / "twice.csv", "step,loss,loss\n1,2,3\n"), "there twice: step, loss, loss"),
        (lambda path: write(path / "longer.csv", "step,loss\n1,2\n2,2,1\n"), "row 2 has more cells than the header"),
        (lambda path: write(path / "typo.csv", "step,loss\n1,2\n2,2.1\n3,abc\n4,2\n"), "row 3, column loss: 'abc' is"),
        (
            lambda path: write(path / "step.csv", "step,loss\n1,2\nnan,2\n3,1\n4,2\n"),
            "row 2, column step: 'nan' is no step",
        ),
        (lambda path: write(path / "words.csv", "step,name\n1,a\n2,b\n"), "no column of numbers"),
        (lambda path: write(path / "one.txt", "a\n\nb"), "give a folder"),
        (
            lambda path: write(path / "config.json", "{}") and write(path / "a.safetensors", "").parent,
            "is one checkpoint",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_status_two(tmp_path, capsys, arrange, sentence):
    assert watch.main(["watch", str(arrange(tmp_path))]) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1 and "Traceback" not in told


def test_a_trainers_log_of_alternating_rows_is_read_step_by_step(tmp_path, capsys):
    rows = [{"step": step, "loss": 2.0 + 0.01 * (step % 3)} for step in range(1, 9)]
    rows += [{"step": step, "eval_loss": 2.1 + 0.01 * (step // 2 % 2)} for step in range(2, 9, 2)]
    rows += [{"step": 10, "eval_loss": 5.0, "note": "end"}]
    rows = [{**row, "learning_rate": 0.1 / row["step"], "eval_runtime": row["step"] ** 2} for row in rows]
    lines = "".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["step"]))
    assert watch.main(["watch", str(write(tmp_path / "log.jsonl", lines))]) == 2  # no eval_loss at step 1
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    rows = [row for row in rows if row["step"] % 2 == 0]
    lines = "".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["step"]))
    assert watch.main(["watch", str(write(tmp_path / "log.jsonl", lines))]) == 1
    told = capsys.readouterr().out
    assert "eval loss at step 10" in told and "rate" not in told and "runtime" not in told


def test_checkpoints_are_judged_on_held_out_text_and_a_half_written_one_is_bad_input(tmp_path, capsys):
    tokenizer = tokenizers.train_tokenizer(STORIES, 300)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    folder, text = tmp_path / "runs", write(tmp_path / "held_out.txt", "\n\n".join(STORIES))
    for step in (0, 1):
        model.save_pretrained(folder / f"checkpoint-{step}"), tokenizer.save_pretrained(folder / f"checkpoint-{step}")
    assert watch.main(["watch", str(folder), "--text", str(text)]) == 0
    assert watch.main(["watch", str(folder)]) == 2
    assert "--text FILE" in capsys.readouterr().err
    assert watch.main(["signature", str(tmp_path), str(text)]) == 2
    assert capsys.readouterr().err == f"{tmp_path}: there is no tokenizer; save it beside the model.\n"
    assert watch.main(["signature", str(tmp_path / "absent"), str(text)]) == 2
    assert "is no folder with a model" in capsys.readouterr().err
    assert watch.main(["signature", str(folder / "checkpoint-1"), str(text), "--blocks", "4"]) == 0
    assert "λ_max" in capsys.readouterr().out
    assert watch.main(["signature", str(folder / "checkpoint-1"), str(text), "--blocks", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lambda_max"] > 0
    weights = folder / "checkpoint-1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert watch.main(["watch", str(folder), "--text", str(text)]) == 2
    assert "cannot be loaded as a causal language model" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_an_adapter_is_judged_on_its_base_whose_tokenizer_serves(tmp_path, capsys):
    tokenizer = tokenizers.train_tokenizer(STORIES, 300)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    base, folder = tmp_path / "base", tmp_path / "runs"
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(base)
    text = write(tmp_path / "held_out.txt", "\n\n".join(STORIES))
    for step in (0, 1):
        adapted = peft.get_peft_model(
            LlamaForCausalLM.from_pretrained(base), peft.LoraConfig(r=2, target_modules="all-linear")
        )
        for name, weights in adapted.named_parameters():
            if "lora_B" in name:  # zero at first: the base itself
                weights.data += 3.0 * step
        adapted.save_pretrained(folder / f"checkpoint-{step}")
    assert watch.main(["watch", str(folder), "--text", str(text)]) == 2
    assert "there is no tokenizer" in capsys.readouterr().err
    tokenizer.save_pretrained(base)
    assert watch.main(["watch", str(folder), "--text", str(text), "--json"]) == 1
    loss = json.loads(capsys.readouterr().out)[0]
    blocks = torch.as_tensor(inputs.held_out_blocks(tokenizer, text))
    for place, name in enumerate(("reference", "value")):
        model = peft.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), folder / f"checkpoint-{place}")
        with torch.no_grad():
            assert loss[name] == pytest.approx(model(input_ids=blocks, labels=blocks).loss.item(), rel=1e-4)
    config = folder / "checkpoint-1" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "absent/model"}))
    assert watch.main(["watch", str(folder), "--text", str(text)]) == 2
    assert "names the base 'absent/model', which is no folder here" in capsys.readouterr().err


def test_options_that_do_not_apply_are_refused(tmp_path, capsys):
    folder = str(folder_of(tmp_path / "runs", SOUND))
    table = str(write(tmp_path / "log.csv", "step,loss\n1,2\n2,2.1\n3,1.9\n4,2\n"))
    for arguments in ([folder, "--text", table], [folder, "--reference", "2"], [table, "--embed"]):
        assert watch.main(["watch", *arguments]) == 2
        assert f"{arguments[1]} is for" in capsys.readouterr().err


def test_an_unforeseen_error_is_no_warning(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(watch, "watch", lambda chosen: 1 / 0)
    assert watch.main(["watch", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "ZeroDivisionError: division by zero\n"


def write(path, text):
    path.write_text(text)
    return path
