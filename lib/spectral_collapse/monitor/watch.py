"""The command: watches a folder of texts or checkpoints, or a table of metrics; and both instruments from the shell.

spectral-collapse watch FOLDER [--text FILE] [--reference 3] [--rate 0.05] [--follow] [--report out.html] [--json]
spectral-collapse signature MODEL TEXT      the Hessian spectrum of a model on a text
spectral-collapse sigma FILE                log-determinant tracks of embeddings (.npy, .parquet, .arrow) or texts
"""

import argparse
import csv
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import sigma
from .core import Monitor
from .decision import Rule
from .readings import DELTA
from .report import SOUND, SUFFIXES, UNJUDGED, WARNING, Report

STATUS = {SOUND: 0, WARNING: 1, UNJUDGED: 2}
BAD_INPUT = 2
TEXTS, TABLES, ROWS = (".txt", ".jsonl", ".parquet"), (".csv", ".jsonl"), (".npy", ".parquet", ".arrow", ".feather")
TOKENIZERS = ("tokenizer*", "vocab*", "merges.txt", "*.model")  # files of one of them
KEYS = ("text", "response", "continuation", "output", "completion")
# Columns that change as planned, or with the machine.
PLANNED = re.compile(r"learning_rate|runtime|per_second|total_flos|grad_norm")
STEPS = ("step", "generation", "epoch", "global_step")
BLOCK, BLOCKS = 128, 64  # of held-out text
PAUSE = 10.0  # seconds between two looks at a folder


def natural(path: Path) -> list[Any]:
    """Sorts generation_2 before generation_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name.lower())]


# ---- texts


def _of_frame(frame: pd.DataFrame, path: Path) -> list[str]:
    found = [key for key in KEYS if key in frame]
    if not found:
        raise ValueError(
            f"{path} has none of the columns {', '.join(KEYS)}; it has {', '.join(map(str, frame.columns))}."
        )
    return frame[found[0]].tolist()


def read_texts(path: Path) -> list[str]:
    """Texts of a file (.txt: separated by blank lines or <|endoftext|>; .jsonl and .parquet: a column `text` or the
    like), or of all such files of a folder. ValueError where there is none, or a file is cut off."""
    if path.is_dir():
        files = sorted((file for file in path.iterdir() if file.suffix in TEXTS), key=natural)
        if not files:
            raise ValueError(f"{path} holds no file of {', '.join(TEXTS)}.")
        return [text for file in files for text in read_texts(file)]
    try:
        if path.suffix == ".jsonl":
            return _of_frame(pd.DataFrame(list(_lines(path))), path)
        if path.suffix == ".parquet":
            return _of_frame(pd.read_parquet(path), path)
        whole = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): convert it first.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from None
    parts = whole.split("<|endoftext|>") if "<|endoftext|>" in whole else re.split(r"\n\s*\n", whole)
    return [part.strip() for part in parts if part.strip()]


def read_prompts(path: Path) -> list[str] | None:
    """The column `prompt` of the same files; None where one has none."""
    files = sorted((file for file in path.iterdir() if file.suffix in TEXTS), key=natural) if path.is_dir() else [path]
    found: list[str] = []
    for file in files:
        frame = pd.DataFrame()
        if file.suffix == ".jsonl":
            frame = pd.DataFrame(list(_lines(file)))
        elif file.suffix == ".parquet":
            frame = pd.read_parquet(file)
        if "prompt" not in frame:
            return None
        found += frame["prompt"].astype(str).tolist()
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                raise ValueError(f"{path}, line {number} is cut off or no JSON: write the file again.") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} is no JSON object.")
            yield row


# ---- what a folder holds


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() and (path / "config.json").is_file() and any(path.glob("*.safetensors"))


def checkpoints_or_texts(folder: Path) -> tuple[str, list[Path]]:
    """("checkpoints" or "texts", one path a generation in natural order). ValueError where there is neither."""
    found = sorted((path for path in folder.iterdir() if _is_checkpoint(path)), key=natural)
    if found:
        return "checkpoints", found
    if _is_checkpoint(folder):
        raise ValueError(f"{folder} is one checkpoint: give the folder that holds one a generation.")
    if any((path / "adapter_config.json").is_file() for path in folder.iterdir()):
        raise ValueError(f"{folder} holds PEFT's adapters: merge each into its model (merge_and_unload) and save that.")
    generations = [
        path
        for path in folder.iterdir()
        if path.suffix in TEXTS or (path.is_dir() and any(file.suffix in TEXTS for file in path.iterdir()))
    ]
    if not generations:
        raise ValueError(f"{folder} holds neither checkpoints (folders with config.json and safetensors) nor texts.")
    return "texts", sorted(generations, key=natural)


def _number(cell: Any) -> float | None:
    """A cell as a number, "nan" among them; None for anything else."""
    if isinstance(cell, bool):
        return None
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def table_of(path: Path) -> list[tuple[Any, dict[str, float]]] | None:
    """(step, metrics) of a table, rows of one step together, in order; None where the file holds texts.

    A cell that is empty is a metric that was not logged then, and "nan" one that diverged. Columns of words, and
    those of `PLANNED`, are left out. ValueError for a table without rows or numbers, and for a word in a column of
    numbers.
    """
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [{key: cell for key, cell in row.items() if cell} for row in csv.DictReader(file)]
    elif path.suffix == ".jsonl":
        rows = [{key: cell for key, cell in row.items() if cell is not None} for row in _lines(path)]
        if any(key in row for row in rows for key in KEYS):
            return None
    else:
        return None
    if not rows:
        raise ValueError(f"{path} holds no rows.")
    columns = dict.fromkeys(key for row in rows for key in row)
    named = next((name for name in STEPS if name in columns), None)
    words = {key for row in rows for key, cell in row.items() if _number(cell) is None}
    for key in words - set(STEPS):
        cells = [(number, row[key]) for number, row in enumerate(rows, start=1) if key in row]
        wrong = [(number, cell) for number, cell in cells if _number(cell) is None]
        if 2 * len(wrong) < len(cells):
            raise ValueError(f"{path}, row {wrong[0][0]}, column {key}: {wrong[0][1]!r} is no number.")
    if not (kept := [key for key in columns if not (key in words or key in STEPS or PLANNED.search(key))]):
        raise ValueError(f"{path} has no column of numbers.")
    found: dict[Any, dict[str, float]] = {}
    for place, row in enumerate(rows):
        step = _number(row.get(named)) if named else place
        found.setdefault(place if step is None else step, {}).update(
            {key: _number(row[key]) for key in kept if key in row}
        )
    return [(int(step) if step == int(step) else step, row) for step, row in found.items() if row]


# ---- the command


def _blocks(tokenizer: Any, path: Path) -> np.ndarray:
    ids = tokenizer("\n\n".join(read_texts(path)), add_special_tokens=False, verbose=False).input_ids
    count = min(BLOCKS, len(ids) // BLOCK)
    if count < 3:
        raise ValueError(f"{path} gives {len(ids)} tokens; three blocks of {BLOCK} are needed at least.")
    return np.array(ids[: count * BLOCK]).reshape(count, BLOCK)


def _load(folder: Path | str) -> tuple[Any, Any]:
    """Model and tokenizer of a folder of safetensors."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer  # slow to import

    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder with a model.")
    if not any(file for names in TOKENIZERS for file in Path(folder).glob(names)):
        raise ValueError(f"{folder} holds no tokenizer: save it beside the model.")
    try:
        options = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options), tokenizer
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be loaded as a causal language model: {error}") from None


def _encoder(wanted: bool) -> Callable[[list[str]], Any] | None:
    if not wanted:
        return None
    from ..text.encoder import Encoder  # needs torch, for which other signals need not wait

    return Encoder()


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of change of a file or of a folder's files: equal at two looks where nobody writes."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stats = [(file.name, file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _steps(found: Sequence[Path]) -> list[int]:
    """The last numbers in the names, where all have one and they rise; otherwise places."""
    numbers = [re.findall(r"\d+", path.stem) for path in found]
    steps = [int(each[-1]) for each in numbers if each]
    rising = len(steps) == len(found) and all(one < other for one, other in itertools.pairwise(steps))
    return steps if rising else list(range(len(found)))


def _items(chosen: argparse.Namespace) -> Iterator[tuple[Any, Any]]:
    """(step, what is checked) of everything that is there, in order."""
    path = Path(chosen.folder)
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    if path.is_file():
        if (rows := table_of(path)) is None:
            raise ValueError(f"{path} is one file of texts: give a folder with one file or folder a generation.")
        yield from rows
        return
    kind, found = checkpoints_or_texts(path)
    if kind == "checkpoints" and chosen.text is None:
        raise ValueError(f"{path} holds checkpoints, which are judged on held-out text: name one with --text FILE.")
    yield from zip(_steps(found), found, strict=True)


def _monitor(chosen: argparse.Namespace) -> tuple[Monitor, Callable[[Any], dict[str, Any]]]:
    """A monitor for what the folder or file holds, and what turns one of its items into arguments of `check`."""
    path = Path(chosen.folder)
    options = {
        "rule": Rule(chosen.rate, chosen.checks),
        "controls": [pd.read_csv(file) for file in chosen.controls],
        "log_file": chosen.log,
    }
    if path.is_file():
        first = [row for _, row in _items(chosen)][: chosen.reference]
        return Monitor(first, **options), lambda row: {"metrics": row}
    kind, found = checkpoints_or_texts(path) if path.is_dir() else ("texts", [])
    if kind == "checkpoints" and chosen.text is not None:
        blocks = _blocks(_load(found[0])[1], Path(chosen.text))
        return Monitor(blocks=blocks, **options), lambda folder: {"model": _load(folder)[0]}
    read = lambda place: {"texts": read_texts(place), "prompts": read_prompts(place)}  # noqa: E731
    return Monitor(encoder=_encoder(chosen.embed), **options), read


def watch(chosen: argparse.Namespace) -> Report:
    """Checks what is there, and with --follow what arrives, until an alarm or an interruption; the last report, which
    --report keeps after every check."""
    if chosen.report and (
        Path(chosen.report).suffix not in SUFFIXES or not Path(chosen.report).absolute().parent.is_dir()
    ):
        raise ValueError(
            f"--report {chosen.report}: a report is a file of {', '.join(SUFFIXES)} in a folder that exists."
        )
    monitor, read = _monitor(chosen)
    if monitor.referenced and monitor.blocks is None and Path(chosen.folder).is_dir():
        monitor.require_reference(read(next(_items(chosen))[1])["texts"])
    # What the reference took, and what an earlier call with the same log has checked.
    taken = (chosen.reference if Path(chosen.folder).is_file() else 1) if monitor.referenced else 0
    seen, report, states = taken + monitor.checks, monitor.report(), {}
    while True:
        items = list(_items(chosen))
        if chosen.follow:  # of what arrives, all before the first that is still being written
            before, states = states, {item: _state(item) for _, item in items if isinstance(item, Path)}
            resting = [not isinstance(item, Path) or states[item] == before.get(item) for _, item in items]
            items = items[: resting.index(False)] if False in resting else items
        if len(items) <= max(taken, 1) and not chosen.follow:
            raise ValueError(
                f"{chosen.folder} holds {len(items)} generation(s): a change needs one more than the reference."
            )
        for step, item in items[seen:]:
            try:
                report = monitor.check(**read(item), step=step)
            except ValueError as error:
                where = f"{item if isinstance(item, Path) else f'{chosen.folder}, step {step}'}"
                raise error if where in str(error) else ValueError(f"{where}: {error}") from None
            if chosen.report:
                report.save(chosen.report)
            if monitor.checks and not chosen.json:
                print(report.line(), flush=True)
        seen = max(seen, len(items))
        if not chosen.follow or report.status == WARNING:
            return report
        try:
            time.sleep(PAUSE)
        except KeyboardInterrupt:  # as one ends it
            return report


def _signature(chosen: argparse.Namespace) -> dict[str, Any]:
    from .. import curvature  # needs torch

    model, tokenizer = _load(chosen.model)
    blocks = _blocks(tokenizer, Path(chosen.text))[: chosen.blocks]
    return curvature.as_result(curvature.spectral_signature(model, blocks, probes=3, later_steps=1))


def _sigma(chosen: argparse.Namespace) -> dict[str, Any]:
    path = Path(chosen.file)
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    if path.suffix in ROWS and not (path.suffix == ".parquet" and _holds_texts(path)):
        rows = np.concatenate(list(sigma.read_embeddings(path)))
    else:
        rows = np.asarray(_encoder(True)(read_texts(path)))
    n, m = rows.shape
    gram = rows.T @ rows
    found = {"embeddings": n, "dimension": m, "track_two": sigma.track_two(gram, n, DELTA)}
    if n >= sigma.least_rows(m):
        estimate = sigma.logdet_estimate(gram, n, n * 10**6, leverages=sigma.leverages(rows, gram))
        found |= dict(
            zip(("logdet", "low", "high"), (float(part) - m * np.log(n * 10**6) for part in estimate[:3]), strict=True)
        )
    return found


def _holds_texts(path: Path) -> bool:
    import pyarrow.parquet  # slow to import

    return any(key in pyarrow.parquet.read_schema(path).names for key in KEYS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="spectral-collapse", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    shown = argparse.ArgumentDefaultsHelpFormatter
    watching = commands.add_parser(
        "watch", help="judge the generations of a folder, or the rows of a table", formatter_class=shown
    )
    watching.add_argument("folder", help="one file or folder of texts, or one checkpoint, a generation; or a table")
    watching.add_argument("--text", help="held-out text, on which checkpoints are judged")
    watching.add_argument("--embed", action="store_true", help="also the log-determinant of the texts' embeddings")
    watching.add_argument("--reference", type=int, default=3, help="first rows of a table, the reference")
    watching.add_argument("--rate", type=float, default=0.05, help="false alarms of the whole run")
    watching.add_argument("--checks", type=int, help="planned checks; without it the run may go on for ever")
    watching.add_argument("--controls", nargs="*", default=[], help="reports of control runs (.csv), two or more")
    watching.add_argument("--follow", action="store_true", help="wait for new generations until one raises an alarm")
    watching.add_argument("--log", help="JSONL of all checks")
    watching.add_argument("--report", help="page or table to write: .html, .csv, .parquet, .jsonl")
    watching.add_argument("--json", action="store_true", help="print the table as JSON")
    spectrum = commands.add_parser("signature", help="the Hessian spectrum of a model on a text")
    spectrum.add_argument("model", help="folder of a causal language model in safetensors")
    spectrum.add_argument("text", help="held-out text")
    spectrum.add_argument("--blocks", type=int, default=16, help=f"blocks of {BLOCK} tokens")
    tracks = commands.add_parser("sigma", help="log-determinant of embeddings or texts")
    tracks.add_argument("file", help="embeddings (.npy, .parquet, .arrow) or texts")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status: 0 sound, 1 warning, 2 cannot judge or bad input."""
    chosen = _parser().parse_args(arguments)
    try:
        if chosen.command == "watch":
            report = watch(chosen)
            if chosen.json:
                print(report.frame.to_json(orient="records"))
            else:
                print(report)
            return STATUS[report.status]
        found = _signature(chosen) if chosen.command == "signature" else _sigma(chosen)
        print(json.dumps(found, indent=1))
        return 0
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except Exception as error:  # whatever it is: 1 would say that a run is collapsing
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
