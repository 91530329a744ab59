"""The file of a packed study: its lines, and what has to be true of them.

    {"study": name, "format": 1, "shared": number of lines, "files": number of lines}
    {"shared": value}                   parameters, versions, commits: each once, however many records hold it
    {"path": place, "record": record}   whose `_slots` hold the number of a shared line, counted from 0
    {"path": place, "table": text}      a CSV file, whose hash stands in the record study.json beside it

The lines are JSON, gzipped; the same records always give the same bytes.
"""

import functools
import gzip
import io
import itertools
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from . import paths, provenance
from .params import BASELINE, load
from .schema import CONDITIONS

REMEDY = "restore it from the repository, or make the study again and pack it"

FORMAT = 1

SUFFIX = ".jsonl.gz"

Cell = tuple[str, int, int, str]  # condition, seed, generation and stage


def encode(study: str, content: Mapping[str, Any]) -> bytes:
    """The bytes of a pack."""
    shared: dict[str, int] = {}
    lines = []
    for place, part in sorted(content.items()):
        if isinstance(part, str):
            lines.append({"path": place, "table": part})
            continue
        record = {**part, "key": dict(part["key"])}
        for holder, name in _slots(record):
            holder[name] = shared.setdefault(_line(holder[name]), len(shared))
        lines.append({"path": place, "record": record})
    header = {"study": study, "format": FORMAT, "shared": len(shared), "files": len(lines)}
    text = [_line(header), *(f'{{"shared":{value}}}' for value in shared), *map(_line, lines)]
    return compressed("\n".join([*text, ""]))


def compressed(text: str) -> bytes:
    """gzip without a name or a time: the same text gives the same bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        file.write(text.encode())
    return buffer.getvalue()


def _slots(record: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Where a record holds what is shared: (mapping, key)."""
    for holder, names in ((record, ("parameters", "git", "environment")), (record["key"], ("parameters",))):
        yield from ((holder, name) for name in names if name in holder)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@functools.lru_cache(maxsize=16)
def decode(file: Path, _modified: int, _size: int) -> dict[str, Any]:
    """The content of a pack. ValueError where it is damaged; a changed record fails its own hash when it is read."""
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            header, *rest = map(json.loads, lines)
        shared = [line["shared"] for line in rest[: header["shared"]]]
        content = {}
        for line in rest[header["shared"] :]:
            if (record := line.get("record")) is not None:
                for holder, name in _slots(record):
                    holder[name] = shared[holder[name]]
            content[line["path"]] = line["table"] if record is None else record
        if (header["format"], header["files"]) != (FORMAT, len(content)):
            raise ValueError
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise ValueError(
            f"{file} cannot be used (it is truncated, altered, or not of format {FORMAT}): {REMEDY}."
        ) from None
    return content


def verify(content: Mapping[str, Any]) -> dict[str, dict[Cell, dict]]:
    """Checks all that a study says of itself; its runs' records, by folder of a profile and model, then by cell.

    Each record matches its hash, and each table the hash in the study.json beside it. Within a folder of a profile all
    records have the same real text, one value of every parameter that a result depends on, and the very models, texts
    and other results that the records beside them hold. ValueError in one sentence names the first that does not.
    """
    records, folders = {}, defaultdict(dict)
    for place, part in content.items():
        for name in PurePath(place).parts:  # nobody's pack is unpacked outside its folder
            paths.path_name(name)
        if isinstance(part, str):
            continue
        try:
            records[place] = provenance.verified(part)
        except provenance.StaleRecord as reason:
            raise ValueError(f"{place} cannot be used: {reason}.") from None
        if "generation" in part:
            cell = tuple(part[name] for name in ("condition", "seed", "generation", "stage"))
            folder = str(PurePath(place).parents[3])
            if place != place_of(folder, cell):
                raise ValueError(f"{place} is not where its record belongs, {place_of(folder, cell)}.")
            folders[folder][cell] = records[place]
    _verify_tables(content, records)
    for folder, found in folders.items():
        _verify_runs(folder, found)
    return folders


def place_of(folder: str, cell: Cell) -> str:
    """Where the record of a cell belongs, below the folder of a profile and model."""
    condition, seed, generation, stage = cell
    return f"{folder}/{condition}/seed_{seed}/generation_{generation}/{stage}.json"


def _verify_tables(content: Mapping[str, Any], records: Mapping[str, dict]) -> None:
    hashes = {
        f"{PurePath(place).parent}/{name.removesuffix(provenance.TABLE_HASH)}.csv": digest
        for place, record in records.items()
        for name, digest in record["result"].items()
        if name.endswith(provenance.TABLE_HASH)
    }
    tables = {place: provenance.text_hash(text) for place, text in content.items() if isinstance(text, str)}
    for place in sorted(hashes.keys() | tables.keys()):
        if hashes.get(place) != tables.get(place):
            raise ValueError(f"{place} is not the table that the study.json beside it describes: make the study again.")


def behind(record: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a record's result depends on."""
    # Before keys were noted, `parameters` were those of the whole profile, and those in the key of the stage alone.
    return record["key"]["parameters"] if record["schema_version"] == provenance.LISTED else record["parameters"]


def _verify_runs(folder: str, found: Mapping[Cell, dict]) -> None:
    once: dict[str, Any] = {}

    def same(what: str, value: Any, place: str) -> None:
        if once.setdefault(what, value) != value:
            raise ValueError(f"{place} has another {what} than the records beside it: pack the runs of one design.")

    def result(condition: str, seed: int, generation: int, stage: str) -> dict | None:
        return found.get((condition if generation else BASELINE, seed, generation, stage), {}).get("result")

    for (condition, seed, generation, stage), record in sorted(found.items()):
        place = place_of(folder, (condition, seed, generation, stage))
        for name, value in behind(record).items():
            same(f"parameter {name}", value, place)
        for name, digest in record["key"].get("inputs", {}).items():
            expected: list[dict | None] = []
            match name.split(" "):
                case ["real_text" | "checkpoint"] | ["file", *_]:
                    same(name.replace("_", " "), digest, place)
                case ["real", *part]:
                    which = ["held_out"] if part == ["held_out"] else [*part, f"of seed {seed}"]
                    same(f"real text ({' '.join(which)})", digest, place)
                case ["model" | "writer" | "start" | "text" as kind]:  # inputs of records with schema 2
                    numbers = {"model": [generation], "text": [generation], "writer": [generation - 1]}
                    maker, key = ("text", "text_sha256") if kind == "text" else ("training", "model_sha256")
                    makers = [result(condition, seed, g, maker) for g in numbers.get(kind, [0, generation - 1])]
                    expected = [made and made[key] for made in makers]
                case [identity, number, key]:
                    if (made := result(condition, seed, int(number), identity.rpartition(".")[2])) is not None:
                        expected = [provenance.digest(made.get(key))]
            if expected and None not in expected and digest not in expected:
                raise ValueError(f"{place} was made from another {name} than the one beside it: pack one set of runs.")


def verify_design(folder: str, held: Mapping[Cell, dict]) -> None:
    """ValueError where a run of the profile's design lacks a generation, or one of them a stage that is measured in
    runs of its condition generation by generation."""
    params = load(PurePath(folder).parts[0].partition(paths.VARIANT)[0])
    design = {BASELINE: [0]} if params.base is None else {}
    if any(condition in CONDITIONS for condition, *_ in held):  # else a study of base models alone
        design |= dict.fromkeys(params.conditions, range(1, params.generations + 1))
    seen: dict[tuple[str, str], tuple[set[int], set[int]]] = defaultdict(lambda: (set(), set()))
    for condition, seed, generation, stage in held:
        seen[condition, stage][0].add(seed)
        seen[condition, stage][1].add(generation)
    # A stage at one seed alone belongs to the first, at one generation alone to the last.
    several_seeds, several_generations = min(2, len(params.seeds)), min(2, params.generations)
    regular = {
        stage
        for (_, stage), (seeds, generations) in seen.items()
        if len(seeds) >= several_seeds and len(generations) >= several_generations
    }
    wanted = sorted(regular or {stage for _, stage in seen})
    for condition, generations in design.items():
        stages = [stage for stage in wanted if (condition, stage) in seen] or wanted[:1]
        for seed, generation, stage in itertools.product(params.seeds, generations, stages):
            if (cell := (condition, seed, generation, stage)) not in held:
                place = place_of(folder, cell)
                raise ValueError(f"{place} is missing: finish the runs of {params.profile} before you pack them.")
