"""Records: trusted only while what made them still holds, and never half-written."""

import contextlib
import json
import math
import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from spectral_collapse.record import paths, provenance
from spectral_collapse.record.provenance import StaleRecord, read_record, write_atomically, write_record

KEY = {"parameters": {"layers": 2, "top_p": 0.95, "checkpoint": None}, "code": "c0de", "inputs": {"seed": 1}}
ABOUT = {"profile": "smoke", "seed": 1, "condition": "fresh", "generation": 2}
RESULT = {"loss": 0.1 + 0.2, "curve": [1.5, 2.5], "text": "größe 🦊", "none": None}


def write(path, result=RESULT, *, seconds=1.0, **changes):
    return write_record(path, result, key={**KEY, **changes}, about=ABOUT, seconds=seconds, device="cpu")


@pytest.fixture
def record(tmp_path):
    write(tmp_path / "record.json")
    return tmp_path / "record.json"


# ---- records


def test_result_comes_back_as_it_was_written(record):
    assert read_record(record)["result"] == RESULT
    assert stat.S_IMODE(record.stat().st_mode) == 0o644


def test_numbers_of_numpy_and_torch_and_what_json_lacks(tmp_path):
    result = {
        "array": np.arange(3), "float32": np.float32(0.5), "tensor": torch.tensor([[1.0, math.nan]]),
        "scalar": torch.tensor(2), "nan": math.nan, "infinities": (math.inf, -np.inf),
        "bool": np.bool_(True), 3: "key",
    }  # fmt: skip
    written = write(tmp_path / "record.json", result)
    assert written == read_record(tmp_path / "record.json")["result"]
    assert written == {
        "array": [0, 1, 2], "float32": 0.5, "tensor": [[1.0, None]], "scalar": 2, "nan": None,
        "infinities": [None, None], "bool": True, "3": "key",
    }  # fmt: skip
    json.loads((tmp_path / "record.json").read_text(), parse_constant=pytest.fail)


def test_records_of_one_computation_differ_in_timing_and_its_hash_alone(tmp_path):
    records = []
    for seconds in (1.0, 99.0):
        write(tmp_path / "record.json", seconds=seconds)
        records.append(json.loads((tmp_path / "record.json").read_text()))
    timings = [record.pop("timing") for record in records]
    assert len({record.pop("sha256") for record in records}) == 2 and records[0] == records[1]
    assert [timing["wall_seconds"] for timing in timings] == [1.0, 99.0]
    assert {"schema_version", "git", "environment", *ABOUT} <= set(records[0])


def test_key_survives_json(tmp_path):
    key = {"parameters": {"seeds": (1, 2), "rate": np.float64(1e-3), "none": None, "nan": math.nan}}
    write_record(tmp_path / "record.json", {}, key=key, about={}, seconds=0, device="cpu")
    parameters = {"seeds": [1, 2], "rate": 1e-3, "none": None, "nan": None}
    assert provenance.read_record(tmp_path / "record.json")["key"] == {"parameters": parameters}


def test_missing_record_is_not_a_stale_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "record.json")


def test_record_cut_anywhere_is_refused(record):
    content = record.read_bytes()
    for length in range(0, len(content.rstrip()), 7):
        record.write_bytes(content[:length])
        with pytest.raises(StaleRecord, match="truncated or not a record"):
            read_record(record)


def test_flipped_bit_is_noticed_or_harmless(record):
    """One bit in each byte: refused, or no number depends on it and the result is the one written."""
    content = record.read_bytes()
    refused = 0
    for place in range(len(content)):
        flipped = content[place] ^ 1 << place % 8
        record.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        try:
            assert read_record(record)["result"] == RESULT
        except StaleRecord:
            refused += 1
    assert refused > len(json.dumps(RESULT)) / 2


def test_altered_result_does_not_match_its_hash(record):
    record.write_text(record.read_text().replace("2.5", "2.6"))
    with pytest.raises(StaleRecord, match="its content does not match its hash"):
        read_record(record)


def test_any_change_of_what_a_record_says_is_noticed(record):
    """In its parameters, its commit or its times as well as in its result."""
    whole = json.loads(record.read_text())

    def changed(value):
        if isinstance(value, dict):
            for key in value:
                for other in changed(value[key]):
                    yield {**value, key: other}
                yield {name: kept for name, kept in value.items() if name != key}
        else:
            yield [value]

    variants = list(changed(whole))
    assert len(variants) > 30
    for variant in variants:
        record.write_text(json.dumps(variant))
        with pytest.raises(StaleRecord):
            read_record(record)


@pytest.mark.parametrize("content", ["", "null", "[]", "3", "{}", '{"result": {}}', "\x00"])
def test_file_that_is_no_record_is_refused(record, content):
    record.write_text(content)
    with pytest.raises(StaleRecord, match="truncated or not a record"):
        read_record(record)


@pytest.mark.parametrize("part", ["key", "result"])
@pytest.mark.parametrize("value", [None, [], "text"])
def test_record_with_an_empty_part_is_refused(record, part, value):
    content = {**json.loads(record.read_text()), part: value}
    del content["sha256"]
    content["sha256"] = provenance.text_hash(provenance.canonical(content))
    record.write_text(json.dumps(content))
    with pytest.raises(StaleRecord, match="truncated or not a record"):
        read_record(record)


def test_other_schema_is_refused(record, monkeypatch):
    now = provenance.SCHEMA_VERSION + 1
    monkeypatch.setattr(provenance, "SCHEMA_VERSION", now)
    with pytest.raises(StaleRecord, match=rf"it follows schema {now - 1}, this is schema {now}"):
        read_record(record)


def test_canonical_text_is_equal_for_equal_values():
    one, other = {"b": [1, 2.5], "a": "ö"}, {"a": "ö", "b": (1, 2.5)}
    assert provenance.canonical(one) == provenance.canonical(other) == '{"a":"ö","b":[1,2.5]}'


def test_hashes_are_sha256(tmp_path):
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / "empty").write_bytes(b"")
    assert provenance.text_hash("") == provenance.file_hash(tmp_path / "empty") == empty


# ---- atomic writing


@pytest.mark.parametrize("old", [None, "old"])
def test_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, old):
    path = tmp_path / "deep" / "file.txt"
    if old is not None:
        provenance.write_text(path, old)

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert [file.read_text() for file in path.parent.iterdir()] == ([] if old is None else [old])


LIMITED = """
import resource, sys, torch; from pathlib import Path; from safetensors.torch import save_file
from spectral_collapse.record import provenance
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (lambda file: file.write_text("x" * 2000), lambda file: save_file({"a": torch.zeros(2000)}, file)):
    try:
        provenance.write_atomically(Path(sys.argv[1]) / "file.txt", write)
    except ValueError as error:
        print(error)
"""


def test_no_room_is_one_sentence_that_says_what_to_do(tmp_path):
    """A limit of file sizes, which anyone may set; `make faults` fills disks."""
    provenance.write_text(tmp_path / "file.txt", "old")
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, check=True)
    sentence = f"{tmp_path} cannot be written (file too large): make room and run this again; "
    assert done.stdout == 2 * (sentence + "everything computed before is kept.\n")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_other_failures_of_the_disk_are_not_called_full(tmp_path):
    def fail(_):
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        write_atomically(tmp_path / "file.txt", fail)


@pytest.mark.parametrize("code", provenance.NO_ACCESS)
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code), str(tmp_path / "results"))

    monkeypatch.setattr(provenance.tempfile, "mkstemp", refuse)
    told = (
        rf"results cannot be written \({os.strerror(code).lower()}: .*results\): make it a folder .* or set SPECTRAL_"
    )
    with pytest.raises(ValueError, match=told):
        provenance.write_text(tmp_path / "results" / "file.txt", "new")


def test_a_file_in_place_of_the_results_is_one_sentence(tmp_path):
    (tmp_path / "results").write_text("mine")
    for use in (
        lambda: provenance.write_text(tmp_path / "results" / "deep" / "file.txt", "new"),
        lambda: provenance.write_text(tmp_path / "results" / "file.txt", "new"),
        lambda: provenance.locked(tmp_path / "results" / "run").__enter__(),
    ):
        with pytest.raises(ValueError, match=r"cannot be written .* set SPECTRAL_COLLAPSE_RESULTS to one\."):
            use()
    with pytest.raises(StaleRecord, match="cannot be read"):
        read_record(tmp_path / "results" / "record.json")
    assert (tmp_path / "results").read_text() == "mine"


def test_writer_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    provenance.write_text(path, "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from spectral_collapse.record import provenance\n"
        "def die(temporary): temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "provenance.write_atomically(Path(sys.argv[1]), die)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


# ---- locks

HOLD = (
    "import sys, time; from pathlib import Path; from spectral_collapse.record.provenance import locked\n"
    "with locked(Path(sys.argv[1]), lambda text: print(text, flush=True)):\n"
    "    print('held', flush=True); time.sleep(float(sys.argv[2]))"
)


def test_second_process_waits_and_a_kill_frees_the_lock(tmp_path):
    with contextlib.ExitStack() as processes:

        def hold(seconds):
            command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), str(seconds)]
            process = processes.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            processes.callback(process.kill)
            return process

        holder = hold(3600)  # until it is killed
        assert holder.stdout.readline() == "held\n"
        waiter = hold(0)
        assert waiter.stdout.readline() == "run: another process works here; waiting for it.\n"
        with pytest.raises(subprocess.TimeoutExpired):
            waiter.wait(0.5)
        os.kill(holder.pid, signal.SIGKILL)
        assert waiter.stdout.readline() == "held\n"
        assert waiter.wait(30) == 0


def test_lock_is_free_again_after_use(tmp_path):
    said = []
    for _ in range(2):
        with pytest.raises(KeyError), provenance.locked(tmp_path / "run", said.append):
            raise KeyError
    assert said == []


def test_changed_results_leave_a_checkout_clean_and_changed_sources_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    state = provenance.git_state.__wrapped__  # it is asked once a process
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    files = [tmp_path / name for name in ("lib/code.py", "results/r.json", "paper/generated/p/numbers.tex")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("before")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    for file in files[1:]:
        file.write_text("after")
    assert not state()["dirty"]
    files[0].write_text("after")
    assert state()["dirty"]
    files[0].write_text("before")
    for name, dirty in (
        ("notes.txt", False),
        ("lib/new.py", True),
        ("params/own.yaml", True),
        ("notebooks/a.py", True),
    ):
        new = tmp_path / name
        new.parent.mkdir(exist_ok=True)
        new.write_text("new")  # and git does not follow it
        assert state()["dirty"] == dirty
        new.unlink()
