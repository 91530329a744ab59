"""`make faults`: a small run is killed, starved of disk, damaged and doubled; it must end with the same records.

What each fault did is printed and kept in results/faults/faults.json, from which the table of docs/records.md is made
(`python tests/system/faults.py --table`). As root on Linux, for the disk of limited size; ten minutes on one core.
"""

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

# Read when transformers, tokenizers and torch are imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import torch
from spectral_collapse.experiment import loop, measure, runs
from spectral_collapse.record import params, paths, provenance
from tiny import TINY

SEED = 1
KILLS, DAMAGES, STATE_DAMAGES, DISKS, TWINS, KERNELS = 40, 30, 12, 8, 6, 3
SETTINGS = TINY | {
    **{"documents": 200, "baseline_blocks": 128, "baseline_epochs": 4, "held_out_blocks": 8, "curvature_blocks": 2},
    **{"evaluation_stories": 4, "response_tokens": 16, "checkpoint_steps": 3, "mechanism_blocks": 4, "seeds": [1]},
    **{"epochs": 4, "batch_size": 8, "conditions": ["recursive"]},
}
GENERATIONS = 3
WITH_FILES = (loop.training, loop.text, measure.continuations, measure.responses, measure.anchors)
FULL = 3  # exit status of a worker that gave up with a sentence
PARTS: dict[str, Callable[[Path, random.Random], dict]] = {}


def part(function: Callable[[Path, random.Random], dict]) -> Callable:
    PARTS[function.__name__] = function
    return function


# ---- the worker: all generations as notebook 2 makes them, and every file held against its record


def work() -> None:
    run = runs.Run(params.load("smoke", **SETTINGS), "recursive", SEED)
    for generation in range(GENERATIONS):
        measure.generation(run, generation)
    for generation in range(GENERATIONS):
        for stage in WITH_FILES:
            if (stage.name, generation) != ("text", 0):
                stage.artefact(run, generation)


def start(root: Path) -> int:
    """A worker of its own process group on a folder of records; what it says is in <root>.log."""
    if pid := os.fork():
        return pid
    os.setsid()
    status = 1
    with open(f"{root}.log", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os.environ["SPECTRAL_COLLAPSE_RESULTS"] = str(root)
        try:
            work()
            status = 0
        except ValueError as sentence:
            print(f"refused: {sentence}", flush=True)
            status = FULL
        finally:
            sys.stdout.flush()
            os._exit(status)


def finish(pid: int) -> int:
    """Exit status of a worker, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def complete(root: Path) -> None:
    """Works until all is done; a worker that fails ends the script."""
    status = finish(start(root))
    if status != 0:
        raise SystemExit(f"a worker ended with {status}:\n{said(root)[-2000:]}")


def kill(pid: int) -> int:
    """kill -9 of the worker's process group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # not a group yet, or gone
        os.kill(pid, signal.SIGKILL)
    return finish(pid)


def said(root: Path) -> str:
    log = Path(f"{root}.log")
    return log.read_text() if log.exists() else ""


def contents(root: Path) -> dict[str, str]:
    """Every record without its times and their hash, and every other file's hash, by path; temporary files apart."""
    found = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")):
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            found[str(path.relative_to(root))] = provenance.canonical(
                {name: value for name, value in record.items() if name not in ("timing", "git", "sha256")}
            )
        else:
            found[str(path.relative_to(root))] = provenance.file_hash(path)
    return found


def same(root: Path, whole: Path) -> bool:
    """Whether two folders hold the same files; what differs is printed."""
    ours, theirs = contents(root), contents(whole)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            print(f"  differs: {root.name}/{name}")
    return ours == theirs


def leftovers(root: Path) -> int:
    """Temporary files that killed workers left."""
    return sum(path.is_file() and path.name != ".lock" for path in root.rglob(".*"))


def copy(whole: Path, root: Path) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    return Path(shutil.copytree(whole, root))


# ---- faults


def seconds_of(pid: int) -> float:
    """Processor time of a worker so far: a moment of its work, however busy the machine is."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return math.inf
    return math.inf if fields[0] == "Z" else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@part
def killed(work_folder: Path, dice: random.Random) -> dict:
    """kill -9 at random times, until there were KILLS of them; each run starts again until it is whole."""
    whole, kills, finished, equal, left = work_folder / "whole", 0, 0, 0, 0
    points = set()  # how much there was at each kill
    while kills < KILLS:
        root = work_folder / f"killed_{finished}"
        while kills < KILLS:
            pid, moment = start(root), dice.uniform(0.1, 2)
            while seconds_of(pid) < moment:
                time.sleep(0.002)
            if kill(pid) == 0:
                break
            kills += 1
            points.add((finished, len(list(root.rglob("*.*")))))
        complete(root)
        finished, left = finished + 1, left + leftovers(root)
        equal += same(root, whole)
    resumed = sum(said(work_folder / f"killed_{index}").count("resuming at step") for index in range(finished))
    return {
        **{"kills": kills, "points": len(points), "runs": finished, "equal": equal},
        **{"resumed_trainings": resumed, "leftovers": left},
    }


def damages(path: Path, dice: random.Random) -> str:
    """Cuts a file short, or flips a bit of it."""
    content = path.read_bytes()
    place = dice.randrange(len(content))
    if dice.random() < 0.5:
        path.write_bytes(content[:place])
        return "truncated"
    path.write_bytes(content[:place] + bytes([content[place] ^ 1 << dice.randrange(8)]) + content[place + 1 :])
    return "flipped"


@part
def damaged(work_folder: Path, dice: random.Random) -> dict:
    """One file of a whole run truncated or with one bit flipped; read again, it must be noticed or be harmless."""
    whole, root = work_folder / "whole", work_folder / "damaged"
    files = sorted(name for name in contents(whole))
    counts: Counter = Counter()
    for trial in range(DAMAGES):
        copy(whole, root)
        name = files[trial % len(files)]
        how = damages(root / name, dice)
        before = len(said(root))
        complete(root)
        noticed = "made again" in said(root)[before:]
        counts[how] += 1
        counts["noticed"] += noticed
        counts["equal"] += same(root, whole) or (not noticed and harmless(root / name, whole / name))
    return {"damages": DAMAGES, **counts}


def harmless(path: Path, whole: Path) -> bool:
    """Whether a record with a flipped bit that no one noticed says what it said: white space may differ."""
    return json.loads(path.read_text()) == json.loads(whole.read_text())


def interrupted(root: Path, pattern: str) -> Path:
    """The folder of a worker that was killed as soon as a file of the pattern stood there; that file."""
    pid = start(root)
    while not (found := [path for path in root.rglob(pattern) if not path.name.startswith(".")]):
        time.sleep(0.001)
    kill(pid)
    return found[0]


@part
def damaged_states(work_folder: Path, dice: random.Random) -> dict:
    """What an interrupted training or Lanczos run left behind, truncated or flipped, before the run goes on."""
    whole, equal, done = work_folder / "whole", 0, 0
    for pattern in ("training_state.safetensors", "curvature_state.json"):
        snapshot = work_folder / f"state_of_{pattern}"
        name = interrupted(snapshot, pattern).relative_to(snapshot)
        if not (snapshot / name).exists():
            raise SystemExit(f"{name} was gone before the worker was killed: run this again.")
        for _ in range(STATE_DAMAGES):
            root = copy(snapshot, work_folder / "states")
            damages(root / name, dice)
            complete(root)
            equal, done = equal + same(root, whole), done + 1
    return {"damages": done, "equal": equal}


@contextlib.contextmanager
def mounted(folder: Path, kilobytes: int) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@part
def disk_full(work_folder: Path, dice: random.Random) -> dict:
    """A disk with room for a part of the run; then there is room, and the run goes on."""
    whole = work_folder / "whole"
    needed = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) // 1024
    full = explained = equal = 0
    for trial in range(DISKS):
        root = work_folder / f"disk_{trial}"
        with mounted(root, 8 + (needed - 8) * trial // DISKS):
            status = finish(start(root))
            full += status != 0
            explained += status == FULL and "make room and run this again" in said(root)
            subprocess.run(["mount", "-o", f"remount,size={4 * needed}k", str(root)], check=True)
            complete(root)
            equal += same(root, whole)
    return {"disks": DISKS, "full": full, "explained": explained, "equal": equal}


@part
def twins(work_folder: Path, dice: random.Random) -> dict:
    """Two workers on one folder at once; in every second trial one of them is killed on the way."""
    equal = waited = 0
    for trial in range(TWINS):
        root = work_folder / f"twins_{trial}"
        first = start(root)
        time.sleep(dice.uniform(0, 1))
        second = start(root)
        if trial % 2:
            time.sleep(dice.uniform(0, 2))
            kill(first)
            good = finish(second) == 0
        else:
            good = [finish(first), finish(second)] == [0, 0]
        equal += good and same(root, whole=work_folder / "whole")
        waited += "another process works here; waiting for it" in said(root)
    return {"pairs": TWINS, "equal": equal, "waited": waited}


# ---- a notebook, its kernel, and papermill


def notebook(root: Path) -> subprocess.Popen:
    """papermill on notebook 2, in a process group of its own."""
    settings = root.parent / "settings.yaml"
    settings.write_text(json.dumps(SETTINGS | {"generations": GENERATIONS - 1}))
    command = [sys.executable, "-m", "papermill", "notebooks/02_treatment.ipynb", str(root.parent / "out.ipynb")]
    with open(f"{root}.log", "a") as log:
        return subprocess.Popen(
            [*command, "-f", str(settings), "--cwd", "notebooks", "--no-progress-bar", "--log-level", "ERROR"],
            cwd=paths.ROOT,
            env=os.environ | {"SPECTRAL_COLLAPSE_RESULTS": str(root)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def kernels(papermill: subprocess.Popen) -> list[int]:
    """Process numbers of the kernels that papermill has started."""
    children = Path(f"/proc/{papermill.pid}/task/{papermill.pid}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


@part
def kernel_dies(work_folder: Path, dice: random.Random) -> dict:
    """The kernel of a notebook is killed, papermill fails; papermill itself is killed; then the notebook runs through.

    The notebook makes more records than the worker: what it ends with is held against one that nothing disturbed.
    """
    quiet, root = work_folder / "quiet_notebook", work_folder / "notebook"
    if notebook(quiet).wait() != 0:
        raise SystemExit(f"the undisturbed notebook failed:\n{said(quiet)[-2000:]}")
    failed = 0
    for trial in range(KERNELS + 1):
        running = notebook(root)
        pattern = ("baseline/*/*/training.json", "recursive/*/*_1/responses.json", "recursive/*/*_2/text.json")
        while not list(root.rglob(pattern[min(trial, 2)])) or not kernels(running):
            if running.poll() is not None:
                raise SystemExit(f"papermill ended by itself:\n{said(root)[-2000:]}")
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.3))
        if trial < KERNELS:
            for pid in kernels(running):
                os.kill(pid, signal.SIGKILL)
            failed += running.wait() != 0
        else:  # the kernel outlives papermill for a moment, and the next one meets it on the folder
            kill_group(running)
    again = notebook(root).wait()
    return {
        "kernels": KERNELS,
        "papermills": 1,
        "failed_with_a_message": min(failed, said(root).count("DeadKernelError: Kernel died")),
        "equal": int(again == 0 and same(root, quiet)),
    }


def kill_group(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# ---- the file, and the table in docs/records.md

ROWS = {
    "killed": (
        "`kill -9` of the process group at random times",
        "{kills} kills at {points} points of {runs} runs",
        "{equal} of {runs} runs",
    ),
    "kernel_dies": (
        "notebook: kernel killed, then papermill itself",
        "{kernels} kernels, {papermills} papermill",
        "{equal} of 1 run",
    ),
    "disk_full": ("disk full, then room made", "{full} disks full", "{equal} of {disks} runs"),
    "damaged": (
        "a file truncated or one bit flipped",
        "{damages} files, {noticed} made again",
        "{equal} of {damages} runs",
    ),
    "damaged_states": ("the same of what an interrupted run left", "{damages} files", "{equal} of {damages} runs"),
    "twins": ("two runs on one folder, every second pair with one killed", "{pairs} pairs", "{equal} of {pairs} runs"),
}


def table(measured: dict[str, dict]) -> str:
    """The table in docs/records.md."""
    lines = ["| fault | how often | ended with the same numbers |", "|---|---|---|"]
    lines += ["| " + " | ".join(text.format(**measured[name]) for text in row) + " |" for name, row in ROWS.items()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """All parts, or those that are named; a part that is done is kept before the next begins."""
    path = paths.EVIDENCE / "faults.json"
    if arguments == ["--table"]:
        print(table(json.loads(path.read_text(encoding="utf-8"))), end="")
        return
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="faults_"))
    started = time.perf_counter()
    complete(folder / "whole")
    print(f"undisturbed: {time.perf_counter() - started:.1f} s")
    for name in arguments or PARTS:
        started = time.perf_counter()
        found = PARTS[name](folder, random.Random(f"{SEED} {name}"))
        found["seconds"] = round(time.perf_counter() - started, 1)
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in found.items()), flush=True)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        provenance.write_text(path, json.dumps(kept | {name: found}, indent=1) + "\n")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
