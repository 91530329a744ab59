"""What the command reads: texts, tables of metrics, and checkpoints, each in one sentence where it cannot be."""

import csv
import importlib.util
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TEXTS = (".txt", ".jsonl", ".parquet")
CONFIGS = ("config.json", "adapter_config.json")
TOKENIZERS = ("tokenizer*", "vocab*", "merges.txt", "*.model")  # files of one of them
KEYS = ("text", "response", "continuation", "output", "completion")
# Columns that change as planned, or with the machine.
PLANNED = re.compile(r"learning_rate|runtime|per_second|total_flos|grad_norm|wall.?time|timestamp", re.IGNORECASE)
STEPS = ("step", "generation", "epoch", "global_step", "_step", "iteration")
LOCAL = {"local_files_only": True, "trust_remote_code": False}
BLOCK, BLOCKS = 128, 64  # of held-out text


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


def holds_texts(path: Path) -> bool:
    """Whether a parquet file has a column of texts."""
    import pyarrow.parquet  # slow to import

    return any(key in pyarrow.parquet.read_schema(path).names for key in KEYS)


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
    steps = sorted((key for key in columns if key.lower() in STEPS), key=lambda key: STEPS.index(key.lower()))
    words = {key for row in rows for key, cell in row.items() if _number(cell) is None}
    for key in words.difference(steps):
        cells = [(number, row[key]) for number, row in enumerate(rows, start=1) if key in row]
        wrong = [(number, cell) for number, cell in cells if _number(cell) is None]
        if 2 * len(wrong) < len(cells):
            raise ValueError(f"{path}, row {wrong[0][0]}, column {key}: {wrong[0][1]!r} is no number.")
    if not (kept := [key for key in columns if not (key in words or key in steps or PLANNED.search(key))]):
        raise ValueError(f"{path} has no column of numbers.")
    found: dict[Any, dict[str, float]] = {}
    for place, row in enumerate(rows):
        step = _number(row.get(steps[0])) if steps else place
        if step is not None and not math.isfinite(step):
            raise ValueError(f"{path}, row {place + 1}, column {steps[0]}: {row[steps[0]]!r} is no step.")
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
        reader.fieldnames = names
        if "" in names or len(set(names)) < len(names):
            raise ValueError(f"{path}: a name of its header is missing or there twice: {', '.join(names)}.")
        rows = list(reader)
    if longer := [number for number, row in enumerate(rows, start=1) if None in row]:
        raise ValueError(f"{path}, row {longer[0]} has more cells than the header.")
    return rows


def state_of(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of change of a file or of a folder's files: equal at two looks where nobody writes."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stats = [(file.name, file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def steps_of(found: Sequence[Path]) -> list[int]:
    """The last numbers in the names, where all have one and they rise; otherwise places."""
    numbers = [re.findall(r"\d+", path.stem) for path in found]
    steps = [int(each[-1]) for each in numbers if each]
    rising = len(steps) == len(found) and all(one < other for one, other in itertools.pairwise(steps))
    return steps if rising else list(range(len(found)))


# ---- checkpoints


def held_out_blocks(tokenizer: Any, path: Path) -> np.ndarray:
    """Token ids (N, `BLOCK`) of a held-out text, at most `BLOCKS` blocks. ValueError below three."""
    ids = tokenizer("\n\n".join(read_texts(path)), add_special_tokens=False, verbose=False).input_ids
    count = min(BLOCKS, len(ids) // BLOCK)
    if count < 3:
        raise ValueError(f"{path} gives {len(ids)} tokens; three blocks of {BLOCK} are needed at least.")
    return np.array(ids[: count * BLOCK]).reshape(count, BLOCK)


def tokenizer_of(folder: Path | str) -> Any:
    """The tokenizer of a checkpoint; of an adapter that of its base, where its own folder has none."""
    from transformers import AutoTokenizer  # slow to import

    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder with a model.")
    places = [Path(folder), *_base(Path(folder))]
    spoken = [place for place in places if any(file for names in TOKENIZERS for file in place.glob(names))]
    if not spoken:
        raise ValueError(f"{' or '.join(map(str, places))}: there is no tokenizer; save it beside the model.")
    try:
        return AutoTokenizer.from_pretrained(spoken[0], **LOCAL)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{spoken[0]} holds no tokenizer that can be loaded: {error}") from None


def model_of(folder: Path | str) -> Any:
    """The model of a checkpoint in safetensors; of an adapter on its base."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM  # slow to import

    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder with a model.")
    _base(Path(folder))
    try:
        return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **LOCAL)
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
