"""The command: watches a folder of texts or checkpoints, or a table of metrics; and both instruments from the shell.

spectral-collapse watch FOLDER [--text FILE] [--reference 3] [--rate 0.05] [--follow] [--report out.html] [--json]
spectral-collapse signature MODEL TEXT      the Hessian spectrum of a model on a text
spectral-collapse sigma FILE                log-determinant tracks of embeddings (.npy, .parquet, .arrow) or texts
"""

import argparse
import csv
import importlib.util
import itertools
import json
import math
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
CONFIGS = ("config.json", "adapter_config.json")
TOKENIZERS = ("tokenizer*", "vocab*", "merges.txt", "*.model")  # files of one of them
KEYS = ("text", "response", "continuation", "output", "completion")
# Columns that change as planned, or with the machine.
PLANNED = re.compile(r"learning_rate|runtime|per_second|total_flos|grad_norm")
STEPS = ("step", "generation", "epoch", "global_step")
REFERENCE = 3  # rows of a table
MANY = 10**6  # times the observed number: a population
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
    """A model of Transformers, or an adapter of PEFT beside a base that it names."""
    return path.is_dir() and any((path / name).is_file() for name in CONFIGS) and any(path.glob("*.safetensors"))


def checkpoints_or_texts(folder: Path) -> tuple[str, list[Path]]:
    """("checkpoints" or "texts", one path a generation in natural order). ValueError where there is neither."""
    found = sorted((path for path in folder.iterdir() if _is_checkpoint(path)), key=natural)
    if found:
        return "checkpoints", found
    if _is_checkpoint(folder):
        raise ValueError(f"{folder} is one checkpoint: give the folder that holds one a generation.")
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
        rows = [{key: cell for key, cell in row.items() if cell} for row in _cells(path)]
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


def _cells(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV. ValueError for a header with a name that is missing or there twice, and for a row with more
    cells than the header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        names = [name.strip() for name in reader.fieldnames or ()]
        if "" in names or len(set(names)) < len(names):
            raise ValueError(f"{path}: a name of its header is missing or there twice: {', '.join(names)}.")
        rows = list(reader)
    if longer := [number for number, row in enumerate(rows, start=1) if None in row]:
        raise ValueError(f"{path}, row {longer[0]} has more cells than the header.")
    return rows


# ---- the command


def _blocks(tokenizer: Any, path: Path) -> np.ndarray:
    ids = tokenizer("\n\n".join(read_texts(path)), add_special_tokens=False, verbose=False).input_ids
    count = min(BLOCKS, len(ids) // BLOCK)
    if count < 3:
        raise ValueError(f"{path} gives {len(ids)} tokens; three blocks of {BLOCK} are needed at least.")
    return np.array(ids[: count * BLOCK]).reshape(count, BLOCK)


def _load(folder: Path | str) -> tuple[Any, Any]:
    """Model and tokenizer of a folder of safetensors; of an adapter on its base, whose tokenizer serves where the
    adapter's folder has none."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer  # slow to import

    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder with a model.")
    places = [Path(folder), *_base(Path(folder))]
    spoken = [place for place in places if any(file for names in TOKENIZERS for file in place.glob(names))]
    if not spoken:
        raise ValueError(f"{' or '.join(map(str, places))}: there is no tokenizer; save it beside the model.")
    try:
        options = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(spoken[0], **options)
        return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options), tokenizer
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be loaded as a causal language model: {error}") from None


def _base(folder: Path) -> list[Path]:
    """The folder of an adapter's base; of a whole model none. ValueError where PEFT is not installed, or the base is no
    folder."""
    if not (config := folder / "adapter_config.json").is_file():
        return []
    if importlib.util.find_spec("peft") is None:
        raise ValueError(f"{folder} holds an adapter, which needs PEFT: pip install peft.")
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{config} names no base model: write it again.") from None
    if not base or not Path(base).is_dir():
        raise ValueError(f"{config} names the base {base!r}, which is no folder here: write its folder there.")
    return [Path(base)]


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
    kind, found = ("a table", table_of(path)) if path.is_file() else checkpoints_or_texts(path)
    if found is None:
        raise ValueError(f"{path} is one file of texts: give a folder with one file or folder a generation.")
    if kind == "checkpoints" and chosen.text is None:
        raise ValueError(f"{path} holds checkpoints, which are judged on held-out text: name one with --text FILE.")
    given = {"--text": chosen.text is not None, "--embed": chosen.embed, "--reference": chosen.reference is not None}
    for option, of in (("--text", "checkpoints"), ("--embed", "texts"), ("--reference", "a table")):
        if given[option] and of != kind:
            raise ValueError(f"{option} is for {of}, and {path} holds {kind}: leave it out.")
    yield from found if kind == "a table" else zip(_steps(found), found, strict=True)


def _monitor(chosen: argparse.Namespace) -> tuple[Monitor, Callable[[Any], dict[str, Any]]]:
    """A monitor for what the folder or file holds, and what turns one of its items into arguments of `check`."""
    path = Path(chosen.folder)
    options = {
        "rule": Rule(chosen.rate, chosen.checks),
        "controls": [pd.read_csv(file) for file in chosen.controls],
        "log_file": chosen.log,
    }
    if path.is_file():
        first = [row for _, row in _items(chosen)][: _first_rows(chosen)]
        return Monitor(first, **options), lambda row: {"metrics": row}
    kind, found = checkpoints_or_texts(path) if path.is_dir() else ("texts", [])
    if kind == "checkpoints" and chosen.text is not None:
        blocks = _blocks(_load(found[0])[1], Path(chosen.text))
        return Monitor(blocks=blocks, **options), lambda folder: {"model": _load(folder)[0]}
    read = lambda place: {"texts": read_texts(place), "prompts": read_prompts(place)}  # noqa: E731
    return Monitor(encoder=_encoder(chosen.embed), **options), read


def _first_rows(chosen: argparse.Namespace) -> int:
    return REFERENCE if chosen.reference is None else chosen.reference


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
    taken = (_first_rows(chosen) if Path(chosen.folder).is_file() else 1) if monitor.referenced else 0
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


def _signature(chosen: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The spectrum for a reader, and for --json."""
    from .. import curvature  # needs torch

    if chosen.blocks < 1:
        raise ValueError(f"--blocks: a spectrum is of one block or more, not {chosen.blocks}.")
    model, tokenizer = _load(chosen.model)
    blocks = _blocks(tokenizer, Path(chosen.text))[: chosen.blocks]
    found = curvature.spectral_signature(model, blocks, probes=3, later_steps=1)
    table = found.to_frame().to_string(float_format="{:.4g}".format, na_rep="–")
    of = f"Hessian of the mean loss on {len(blocks)} blocks of {BLOCK} tokens."
    return "\n".join([repr(found), of, table, *found.notes]), curvature.as_result(found)


def _sigma(chosen: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Track II, and the log-determinant of the population where the rows determine it."""
    path = Path(chosen.file)
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    if path.suffix in ROWS and not (path.suffix == ".parquet" and _holds_texts(path)):
        chunks = list(sigma.read_embeddings(path))
    else:
        chunks = [np.asarray(_encoder(True)(read_texts(path)))]
    if not sum(map(len, chunks)):
        raise ValueError(f"{path} holds no embeddings.")
    rows = np.concatenate(chunks)
    n, m = rows.shape
    gram = sigma.stream(chunks, m).gram
    found = {"embeddings": n, "dimension": m, "track_two": sigma.track_two(gram, n, DELTA)}
    told = [f"{n:,} embeddings in {m:,} dimensions.",
            f"Track II, log det(A + {DELTA:g} I) − m log n: {found['track_two']:.6g}"]  # fmt: skip
    try:
        estimate = sigma.logdet_estimate(gram, n, n * MANY, leverages=sigma.leverages(rows, gram))
        ends = [float(part) - m * math.log(n * MANY) for part in estimate[:3]]
        found |= dict(zip(("logdet", "low", "high"), ends, strict=True))
        told.append("log det of the expected vvᵀ: {:.6g}, 95 % interval [{:.6g}, {:.6g}]".format(*ends))
    except ValueError as reason:
        told.append(f"log det of the expected vvᵀ: not identified, {reason}")
    return "\n".join(told), found


def _holds_texts(path: Path) -> bool:
    import pyarrow.parquet  # slow to import

    return any(key in pyarrow.parquet.read_schema(path).names for key in KEYS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="spectral-collapse", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    watching = commands.add_parser("watch", help="judge the generations of a folder, or the rows of a table")
    watching.add_argument("folder", help="one file or folder of texts, or one checkpoint, a generation; or a table")
    watching.add_argument("--text", help="held-out text, on which checkpoints are judged")
    watching.add_argument("--embed", action="store_true", help="also the log-determinant of the texts' embeddings")
    watching.add_argument("--reference", type=int, help=f"first rows of a table, the reference (default {REFERENCE})")
    watching.add_argument(
        "--rate", type=float, default=0.05, help="false alarms of the whole run (default %(default)s)"
    )
    watching.add_argument("--checks", type=int, help="planned checks; without it the run may go on for ever")
    watching.add_argument("--controls", nargs="*", default=[], help="reports of control runs (.csv), two or more")
    watching.add_argument("--follow", action="store_true", help="wait for new generations until one raises an alarm")
    watching.add_argument("--log", help="JSONL of all checks")
    watching.add_argument("--report", help=f"page or table to write: {', '.join(SUFFIXES)}")
    spectrum = commands.add_parser("signature", help="the Hessian spectrum of a model on a text")
    spectrum.add_argument("model", help="folder of a causal language model in safetensors")
    spectrum.add_argument("text", help="held-out text")
    spectrum.add_argument("--blocks", type=int, default=16, help=f"blocks of {BLOCK} tokens (default %(default)s)")
    tracks = commands.add_parser("sigma", help="log-determinant of embeddings or texts")
    tracks.add_argument("file", help="embeddings (.npy, .parquet, .arrow) or texts")
    for command in (watching, spectrum, tracks):
        command.add_argument("--json", action="store_true", help="print the numbers as JSON")
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
        told, found = _signature(chosen) if chosen.command == "signature" else _sigma(chosen)
        print(pd.Series(found, dtype=object).to_json(double_precision=15) if chosen.json else told)
        return 0
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except Exception as error:  # whatever it is: 1 would say that a run is collapsing
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
