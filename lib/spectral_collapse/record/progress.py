"""How far a study is, in one line: `python -m spectral_collapse.record.progress PROFILE [key=value ...] -- COMMAND ...`

The command takes this process's place. A second process reads the records that the runs write, says what is done and
how long the rest will take, and ends with the command, on which it has no influence.
"""

import functools
import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from . import cli, evidence, params, paths
from .params import BASELINE
from .schema import Params

BENCH = paths.EVIDENCE / "bench.json"
EVERY, BETWEEN = 5.0, 60.0  # seconds between lines on a terminal, and in a file
NOTEBOOK, PAPER = 10.0, 60.0  # seconds of a run's kernel and imports, and of statistics, studies and typesetting
# Wall seconds of one core per second of work, until this study has shown its own.
OVERHEAD = 1.2
SETTLED = 120.0  # seconds of work, after which it has

Cell = tuple[str, int, int]  # condition, seed, generation
Seconds = dict[str, float]  # by stage


def cells(settings: Params) -> list[Cell]:
    """The models of a profile: of every seed the base model, then every generation of every condition."""
    later = range(1, settings.generations + 1)
    return [
        (condition, seed, generation)
        for seed in settings.seeds
        for condition, generations in ((BASELINE, [0]), *((name, later) for name in settings.conditions))
        for generation in generations
    ]


def _timed(record: Any) -> tuple[Cell, str, float] | None:
    """Model, stage and wall seconds of a record; None for anything else."""
    try:
        cell = (record["condition"], record["seed"], record["generation"])
        return cell, record["stage"], float(record["timing"]["wall_seconds"])
    except (KeyError, TypeError, ValueError):
        return None


@functools.cache
def _read(file: Path, _modified: int) -> tuple[Cell, str, float] | None:
    try:
        return _timed(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # damaged, or not there any more
        return None


def _by_model(times: Iterable[tuple[Cell, str, float] | None]) -> dict[Cell, Seconds]:
    found: dict[Cell, Seconds] = defaultdict(dict)
    for cell, stage, seconds in filter(None, times):
        found[cell][stage] = seconds
    return found


def _mean(found: Mapping[Cell, Seconds], base: bool) -> Seconds:
    """Mean seconds of each stage that at least half of the base models, or of the others, have."""
    models = [stages for (_, _, generation), stages in found.items() if (generation == 0) == base]
    stages = defaultdict(list)
    for model in models:
        for name, seconds in model.items():
            stages[name].append(seconds)
    return {name: sum(each) / len(each) for name, each in stages.items() if 2 * len(each) >= len(models)}


def committed(settings: Params) -> tuple[dict[Cell, Seconds], str]:
    """Times of this profile in its packed study, or of its stages in `make bench`; and where they are from. Nothing
    where there are none."""
    if found := _by_model(map(_timed, evidence.PACKS.content(settings.profile).values())):
        return found, "the committed records"
    bench = json.loads(BENCH.read_text(encoding="utf-8")).get("stages", {}) if BENCH.exists() else {}
    if bench.get("profile") != settings.profile:
        return {}, ""
    later = {name: row["seconds"] for name, row in bench["stages"].items() if name != "all"}
    p = settings
    tokens = p.blocks_per_generation * p.block_tokens * p.epochs
    longer = p.baseline_blocks * p.baseline_sequence_tokens * p.baseline_epochs / tokens
    base = {name: seconds for name, seconds in later.items() if name != "text"}
    base["training"] *= longer
    return {(BASELINE, 0, 0): base, ("recursive", 0, 1): later}, "the committed benchmark"


def span(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """What is done of a profile's runs, and how long the rest will take on some cores."""

    def __init__(self, settings: Params, cores: int, now: Callable[[], float] = time.time):
        self.cells, self.cores, self.now, self.started = cells(settings), cores, now, now()
        self.folder = paths.model_folder(params.name_of(settings), settings.model)
        self.notebooks = len(settings.seeds) * (len(settings.conditions) + 2)  # with baseline and SIGMA
        self.other, self.origin = committed(settings)
        self.before = self._work(self._found())

    def _found(self) -> dict[Cell, Seconds]:
        """Seconds of the records that are there; a file is read again when it has changed."""
        files = self.folder.glob("*/seed_*/generation_*/*.json")
        return _by_model([_read(file, file.stat().st_mtime_ns) for file in files])

    def _flags(self) -> int:
        return len(list(self.folder.glob("*/seed_*/*.done")))

    def _work(self, found: Mapping[Cell, Seconds]) -> float:
        """Seconds of work that is done."""
        return sum(sum(found.get(cell, {}).values()) for cell in self.cells) + NOTEBOOK * self._flags()

    def _left(self, found: Mapping[Cell, Seconds]) -> float | None:
        """Seconds of work that is missing; None where nothing says how long it takes."""
        mean = {}
        for base in (True, False):
            own = _mean({cell: stages for cell, stages in found.items() if cell in self.cells}, base)
            # Until a seed is finished there may be stages that no model has yet: they take what they took elsewhere.
            mean[base] = own if any(self.folder.glob("sigma/seed_*/*.done")) else _mean(self.other, base) | own
        if not mean[False]:
            return None
        missing = sum(
            seconds
            for cell in self.cells
            for stage, seconds in mean[cell[2] == 0].items()
            if stage not in found.get(cell, {})
        )
        return missing + NOTEBOOK * max(0, self.notebooks - self._flags()) + PAPER

    def _running(self) -> str:
        """What is computed: the newest notebooks without a flag that is newer, and the last record of each."""
        texts = []
        for notebook in sorted(self.folder.rglob("*.ipynb"), key=lambda file: file.stat().st_mtime, reverse=True):
            born = notebook.stat().st_mtime
            flags = [flag.stat().st_mtime for flag in notebook.parent.glob("*.done")]
            if born < self.started or any(flag >= born for flag in flags):
                continue
            place = notebook.parent.relative_to(self.folder).as_posix().replace("/seed_", ", seed ")
            text = notebook.stem.split("_", 1)[-1] if place == "." else place
            if made := [
                file for file in notebook.parent.glob("generation_*/*.json") if _read(file, file.stat().st_mtime_ns)
            ]:
                last = max(made, key=lambda file: file.stat().st_mtime)
                text += f" (generation {last.parent.name.rpartition('_')[2]}, {last.stem} done)"
            texts.append(text)
        return "; ".join(texts[: self.cores]) or "the workflow"

    def line(self) -> str:
        """Models trained, share of the work, what is running, time left."""
        found = self._found()
        left, work = self._left(found), self._work(found)
        text = f"{sum('training' in found.get(cell, {}) for cell in self.cells)} of {len(self.cells)} models trained"
        if left is None:
            return f"{text}; {self._running()}; no time is known before the first generation is recorded"
        made, factor = work - self.before, OVERHEAD
        if made > SETTLED:
            factor = (self.now() - self.started) * self.cores / made
        share, rest = f"{100 * work / (work + left):.0f} %", span(left * factor / self.cores)
        return f"{text}, {share}; {self._running()}; about {rest} left"

    def first(self) -> str:
        """The estimate before anything runs."""
        found = self._found()
        left = self._left(found)
        if left is None:
            return f"{len(self.cells)} models; no time is known before the first generation is recorded."
        source = "the records that are there" if found else self.origin
        return (
            f"{len(self.cells)} models: about {span(left * OVERHEAD / self.cores)} on {self.cores} cores, by {source}."
        )


def watch(progress: Progress, out: TextIO, parent: int) -> None:
    """Says `line` until the parent process is another: in place on a terminal, otherwise on a line of its own each
    minute if it has changed."""
    terminal, said, when = out.isatty(), "", time.monotonic()
    while os.getppid() == parent:
        time.sleep(0.5)
        if time.monotonic() - when < (EVERY if terminal else BETWEEN):
            continue
        when = time.monotonic()
        try:
            text = progress.line()
        except OSError:  # a file that has just gone
            continue
        if terminal:
            width = shutil.get_terminal_size().columns - 1
            out.write(f"\r\x1b[K{text[:width]}\r")
        elif text != said:
            out.write(f"{text}\n")
        out.flush()
        said = text
    if terminal:
        out.write("\x1b[K")


def main(arguments: list[str]) -> None:
    """Says the first estimate, starts the watcher, and becomes the command."""
    own, command = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    profile, *overrides = own
    cores = int(command[command.index("--cores") + 1]) if "--cores" in command else 1
    parent = os.getpid()
    try:
        settings = params.load(profile, **cli.assignments(overrides))
        progress = Progress(settings, cores)
        print(progress.first(), file=sys.stderr, flush=True)
        if os.fork() == 0:
            try:
                watch(progress, sys.stderr, parent)
            finally:
                os._exit(0)
    except Exception as error:  # whatever is wrong with it, the command tells or does not mind
        print(f"No progress is shown: {error}", file=sys.stderr, flush=True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
