"""Records: the only writer of results. Each file says what it was made from, and carries a hash of its content."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError

from ..machine import processes
from . import paths

SCHEMA_VERSION = 3
LISTED = 2  # schema of packed records whose keys were lists kept by hand: evidence for readers, no records of runs
TABLE_HASH = "_csv_sha256"  # after a table's name, in the record of a study
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy")


def canonical(value: Any) -> str:
    """JSON text, the same for equal values: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def text_hash(text: str) -> str:
    """SHA-256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> Any:
    """A value as keys hold it: short texts and plain numbers as they are, everything else as its SHA-256."""
    if hasattr(value, "detach"):  # a tensor
        header = canonical([str(value.dtype), list(value.shape)])
        content = value.detach().contiguous().cpu().numpy().tobytes()
        return hashlib.sha256(header.encode() + content).hexdigest()
    if value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 64):
        return plain(value)
    return text_hash(canonical(plain(value)))


# A checkout whose results alone have changed still has clean code.
SOURCES = (".", ":!results", ":!paper/generated")
CODE = ("lib", "notebooks", "params", "Snakefile")  # where untracked files count too


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit hash, and whether tracked files other than results differ from it or there is untracked code; `unknown`
    outside a git checkout."""

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(paths.ROOT), *command], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno", "--", *SOURCES) or git(
            "status", "--porcelain", "-uall", "--", *CODE
        )
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": False}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def environment(device: str) -> dict[str, Any]:
    """Versions, machine and processes, for the record."""
    several = {"processes": processes.world(), "sharded": processes.sharding()}
    return {**versions(), "machine": platform.machine(), "device": device, **several}


NO_ROOM = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextlib.contextmanager
def room(folder: Path) -> Iterator[None]:
    """Turns the errors of a full disk or of a folder that cannot be written into a ValueError that says what to do.
    safetensors' errors have no code, only its text."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if reason := next((text for text in NO_ROOM if text in str(error)), None):
            raise ValueError(
                f"{folder} cannot be written ({reason.lower()}): make room and run this again; "
                "everything computed before is kept."
            ) from None
        if isinstance(error, OSError) and error.errno in NO_ACCESS:
            raise ValueError(
                f"{folder} cannot be written ({os.strerror(error.errno).lower()}: {error.filename}): make it a folder "
                "that you may write to, or set SPECTRAL_COLLAPSE_RESULTS to one."
            ) from None
        raise


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` on a temporary file beside `path`, then renames it: `path` is never half-written.

    Of several processes the first writes, and the others wait until `path` is there. ValueError as `room`.
    """
    processes.once(lambda: _write_and_rename(path, write))


def _write_and_rename(path: Path, write: Callable[[Path], None]) -> None:
    with room(path.parent), contextlib.ExitStack() as cleanup:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        cleanup.callback(temporary.unlink, missing_ok=True)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Atomic write of UTF-8 text."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def plain(value: Any) -> Any:
    """A value with Python's numbers for those of numpy and torch, and None for non-finite ones (JSON has no NaN)."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class StaleRecord(Exception):
    """A record that cannot be used; the message says why in one clause."""


def change(name: str, then: Any, now: Any) -> str:
    """`name old -> new`; the name alone for hashes, which tell a reader nothing."""
    hashed = any(isinstance(value, str) and len(value) == 64 for value in (then, now))
    return name if hashed else f"{name} {then!r} -> {now!r}"


def verified(record: Any) -> dict[str, Any]:
    """A record without its hash, once its content matches it. StaleRecord otherwise, and where it follows another
    schema or is no record."""
    try:
        version, content = record["schema_version"], {name: part for name, part in record.items() if name != "sha256"}
        if not all(isinstance(record[part], dict) for part in ("result", "key")):
            raise TypeError
        if not all(isinstance(record["key"].get(part, {}), dict) for part in ("parameters", "inputs")):
            raise TypeError
        found = text_hash(canonical(content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StaleRecord("it is truncated or not a record") from None
    if version not in (LISTED, SCHEMA_VERSION):
        raise StaleRecord(f"it follows schema {version}, this is schema {SCHEMA_VERSION}")
    if found != record.get("sha256"):
        raise StaleRecord("its content does not match its hash")
    return content


def read_record(path: Path) -> dict[str, Any]:
    """A record without its hash. FileNotFoundError where there is none; StaleRecord as `verified`."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StaleRecord(f"it cannot be read ({os.strerror(error.errno).lower()})") from None
    except (ValueError, RecursionError):
        raise StaleRecord("it is truncated or not a record") from None
    return verified(record)


def write_record(
    path: Path,
    result: dict[str, Any],
    *,
    key: dict[str, Any],
    about: dict[str, Any],
    seconds: float,
    device: str,
    speeds: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Writes one record; its result as readers will see it.

    `key` holds what the numbers depend on (parameters, code, inputs), `about` what they belong to (profile, seed,
    condition, generation, and the parameters behind them). Two records of the same computation differ only in `timing`
    (times and speeds) and in `sha256`, the hash of everything else in the record.
    """
    result = plain(result)
    record = {
        "schema_version": SCHEMA_VERSION,
        **plain(about),
        "key": plain(key),
        "git": git_state(),
        "environment": environment(device),
        "timing": {
            "wall_seconds": round(seconds, 3),
            **{name: round(value, 1) for name, value in (speeds or {}).items()},
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
        "result": result,
    }
    write_again(path, record)
    return result


def write_again(path: Path, record: dict[str, Any]) -> None:
    """Writes a record with the hash of its content."""
    write_text(path, as_text({**record, "sha256": text_hash(canonical(record))}))


def as_text(record: dict[str, Any]) -> str:
    """The content of a record's file."""
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def write_study(folder: Path, tables: Mapping[str, pd.DataFrame], result: dict[str, Any], **record: Any) -> None:
    """Writes tables as <name>.csv, to nine digits, then their record study.json: `result`, and each file's hash as
    <name>_csv_sha256. `record`: the other arguments of `write_record`. `evidence.read_study` reads it."""
    hashes = {}
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.9g"))
        hashes[f"{name}{TABLE_HASH}"] = file_hash(folder / f"{name}.csv")
    write_record(folder / "study.json", result | hashes, **record)


@contextlib.contextmanager
def locked(folder: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Locks the folder for this process; a second process waits, then finds the work done.

    The kernel holds the lock (flock) and releases it when the process ends, however it ends.
    """
    if not processes.first():  # the first process holds it for all; the others wait where they next meet
        yield
        return
    with room(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{folder.name}: another process works here; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
