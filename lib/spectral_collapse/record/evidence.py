"""Evidence: finished studies, each packed into one verified file, and the one reader of records wherever they are.

A study is `results/evidence/<study>.jsonl.gz`, gzipped JSON lines:

    {"study": name, "format": 1, "shared": number of lines, "files": number of lines}
    {"shared": value}                   parameters, versions, commits: each once, however many records hold it
    {"path": place, "record": record}   whose `_slots` hold the number of a shared line, counted from 0
    {"path": place, "table": text}      a CSV file, whose hash stands in the record study.json beside it

A place is a path below `results/work` or any other root of results, as `smoke/llama-tiny/fresh/seed_1/generation_1/
training.json`. Packs are deterministic: the same records give the same bytes.

    python -m spectral_collapse.record.evidence pack NAME            results/work -> results/evidence, verified
    python -m spectral_collapse.record.evidence unpack NAME FOLDER   the records as files again
    python -m spectral_collapse.record.evidence list
    python -m spectral_collapse.record.evidence affected PARAMETER PROFILE   what a change of it makes again
"""

import argparse
import contextlib
import functools
import gzip
import io
import itertools
import json
import os
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from . import cli, paths, provenance
from .params import BASELINE, load
from .schema import CONDITIONS, Params, unknown_name

FORMAT = 1
SUFFIX = ".jsonl.gz"
Place = str | PurePath
Cell = tuple[str, int, int, str]  # condition, seed, generation and stage


def study_of(folder: str) -> str:
    """The study that a first folder of results belongs to: the grid of a cell, otherwise the folder's own name."""
    profile, plus, variant = folder.partition(paths.VARIANT)
    return profile.partition(".")[0] + plus + variant


# ---- where records are: both classes have the same methods


class Folder:
    """Records and tables as files below a root, as runs write them."""

    remedy = "run its notebook again, or make the study again"

    def __init__(self, root: Path):
        self.root = root

    def shown(self, place: Place) -> str:
        """Where a place is, for a message."""
        return str(self.root / place)

    def has(self, place: Place) -> bool:
        """Whether there is a file or folder at this place."""
        return (self.root / place).exists()

    def record(self, place: Place) -> dict[str, Any]:
        """A verified record. FileNotFoundError where there is none, StaleRecord where it cannot be used."""
        return provenance.read_record(self.root / place)

    def table(self, place: Place) -> str:
        """The text of a CSV file. FileNotFoundError where there is none."""
        return (self.root / place).read_bytes().decode(errors="replace")


class Packs:
    """Records and tables in the packed studies of a folder; callers do not change what they are given."""

    remedy = "restore it from the repository, or make the study again and pack it"

    def __init__(self, root: Path):
        self.root = root

    def studies(self) -> list[str]:
        """Names of the studies."""
        return sorted(file.name.removesuffix(SUFFIX) for file in self.root.glob(f"*{SUFFIX}"))

    def file(self, study: str) -> Path:
        """The file of a study."""
        return self.root / f"{study}{SUFFIX}"

    def content(self, study: str) -> Mapping[str, Any]:
        """Every place of a study: a record that is not verified yet (dict), or a table (str). Empty where there is no
        such study; ValueError where its file is damaged."""
        file = self.file(study)
        try:
            state = file.stat()
        except FileNotFoundError:
            return {}
        return _unpacked(file, state.st_mtime_ns, state.st_size)

    def shown(self, place: Place) -> str:
        return f"{place} of {self.file(study_of(PurePath(place).parts[0]))}"

    def has(self, place: Place) -> bool:
        places = self.content(study_of(PurePath(place).parts[0]))
        return str(place) in places or any(known.startswith(f"{place}/") for known in places)

    def record(self, place: Place) -> dict[str, Any]:
        return provenance.verified(self._at(place, dict))

    def table(self, place: Place) -> str:
        return self._at(place, str)

    def _at(self, place: Place, kind: type) -> Any:
        part = self.content(study_of(PurePath(place).parts[0])).get(str(place))
        if not isinstance(part, kind):
            raise FileNotFoundError(self.shown(place))
        return part


PACKS = Packs(paths.EVIDENCE)
Source = Folder | Packs


def sources() -> list[Source]:
    """Where records are looked for: where runs write, then the packs, unless $SPECTRAL_COLLAPSE_RESULTS names the only
    folder."""
    own = Folder(paths.results_root())
    return [own] if os.environ.get("SPECTRAL_COLLAPSE_RESULTS") else [own, PACKS]


def holding(places: Sequence[Place], source: Source | None = None) -> tuple[Source, Place]:
    """The first source that has one of the places, the earlier places first, and that place; where none has, the first
    of both. `source`: the only one to look in."""
    known = list(itertools.product(places, [source] if source else sources()))
    place, found = next(((place, one) for place, one in known if one.has(place)), known[0])
    return found, place


def of_study(folder: Place) -> Source:
    """Where a study is read: where runs write if it was made there, otherwise the packs, whatever folder is set, since
    every paper shows these studies."""
    own = Folder(paths.results_root())
    return own if own.has(PurePath(folder) / "study.json") else PACKS


def read_study(
    folder: Place, names: Sequence[str], dtype: Mapping[str, type] | None = None, source: Source | None = None
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """What `provenance.write_study` wrote: the record's result, and the named tables, with `dtype` of columns as pandas
    takes it. `source`: None for `of_study`.

    ValueError where the record is missing or damaged, or a table is not the one that it names.
    """
    place, source = PurePath(folder) / "study.json", source or of_study(folder)
    try:
        result = source.record(place)["result"]
        texts = {name: source.table(PurePath(folder) / f"{name}.csv") for name in names}
        wrong = [name for name in names if provenance.text_hash(texts[name]) != result[name + provenance.TABLE_HASH]]
    except FileNotFoundError:
        raise ValueError(f"{source.shown(place)} or a table beside it is missing: {source.remedy}.") from None
    except (KeyError, provenance.StaleRecord) as reason:
        raise ValueError(f"{source.shown(place)} cannot be used ({reason}): {source.remedy}.") from None
    if wrong:
        table = source.shown(PurePath(folder) / f"{wrong[0]}.csv")
        raise ValueError(f"{table} does not match study.json: {source.remedy}.")
    return result, {name: pd.read_csv(io.StringIO(text), dtype=dtype) for name, text in texts.items()}


# ---- the file of a study


def _packed(study: str, content: Mapping[str, Any]) -> bytes:
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
def _unpacked(file: Path, _modified: int, _size: int) -> dict[str, Any]:
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
            f"{file} cannot be used (it is truncated, altered, or not of format {FORMAT}): {Packs.remedy}."
        ) from None
    return content


# ---- verification


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
            if place != _place(folder, cell):
                raise ValueError(f"{place} is not where its record belongs, {_place(folder, cell)}.")
            folders[folder][cell] = records[place]
    _verify_tables(content, records)
    for folder, found in folders.items():
        _verify_runs(folder, found)
    return folders


def _place(folder: str, cell: Cell) -> str:
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
        place = _place(folder, (condition, seed, generation, stage))
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


def _verify_design(folder: str, held: Mapping[Cell, dict]) -> None:
    """ValueError where a run of the profile's design lacks a generation, or one of them a stage that is measured in
    runs of its condition generation by generation."""
    params = load(PurePath(folder).parts[0].partition(paths.VARIANT)[0])
    design = {BASELINE: [0]} if params.base is None else {}
    if any(condition in CONDITIONS for condition, *_ in held):  # else a study of base models alone
        design |= dict.fromkeys(params.conditions, range(1, params.generations + 1))
    counts = Counter((condition, stage) for condition, *_, stage in held)
    # A stage with fewer records belongs to the first seed or to the last generation alone.
    regular = {stage for (_, stage), count in counts.items() if count >= max(2, params.generations)}
    wanted = sorted(regular or {stage for _, stage in counts})
    for condition, generations in design.items():
        stages = [stage for stage in wanted if (condition, stage) in counts] or wanted[:1]
        for seed, generation, stage in itertools.product(params.seeds, generations, stages):
            if (cell := (condition, seed, generation, stage)) not in held:
                place = _place(folder, cell)
                raise ValueError(f"{place} is missing: finish the runs of {params.profile} before you pack them.")


# ---- the command


def collect(study: str, root: Path) -> dict[str, Any]:
    """Records and tables of a study below a root, by place, not verified. ValueError where there are none, or one is no
    JSON."""
    content: dict[str, Any] = {}
    for folder in sorted(root.glob("*/")):
        if study_of(folder.name) != study:
            continue
        runs = folder.glob("*/*/seed_*/generation_*/*.json")
        for file in itertools.chain(runs, folder.rglob("study.json"), folder.rglob("*.csv")):
            text = file.read_bytes().decode(errors="replace")
            if not file.name.startswith("."):  # what an interrupted write left
                try:
                    content[file.relative_to(root).as_posix()] = text if file.suffix == ".csv" else json.loads(text)
                except ValueError:
                    raise ValueError(f"{file} cannot be packed: it is truncated or not a record.") from None
    if not content:
        names = {study_of(folder.name) for folder in root.glob("*/")}
        raise unknown_name(f"study below {root}", study, sorted(names)) if names else ValueError(f"{root} is empty.")
    return content


def pack(name: str, root: Path | None = None) -> Path:
    """Verifies the records of a study, or of a profile's study, and writes its pack; the file. ValueError, and nothing
    is written, where a record is damaged or missing or does not fit the others, or the pack would lose a profile."""
    study = study_of(paths.path_name(name))
    content = collect(study, root or paths.results_root())
    for folder, held in verify(content).items():
        _verify_design(folder, held)
    if lost := sorted(
        {place.split("/")[0] for place in PACKS.content(study)} - {place.split("/")[0] for place in content}
    ):
        raise ValueError(
            f"{PACKS.file(study)} holds {lost[0]}, which is not there to be packed: run it, or delete the pack."
        )
    data = _packed(study, content)
    provenance.write_atomically(PACKS.file(study), lambda temporary: temporary.write_bytes(data))
    return PACKS.file(study)


def unpack(study: str, folder: Path) -> int:
    """Writes the records and tables of a study as files below a folder; how many."""
    if not (content := PACKS.content(study)):
        raise unknown_name("study", study, PACKS.studies() or [study])
    verify(content)
    for place, part in content.items():
        provenance.write_text(folder / place, part if isinstance(part, str) else provenance.as_text(part))
    return len(content)


def affected(parameter: str, profile: str) -> str:
    """The records that a change of the parameter makes again, by what the profile's finished runs noted: a line for
    each stage, with its conditions and generations. ValueError for an unknown parameter, or before any run."""
    if parameter not in Params.model_fields:
        raise unknown_name("parameter", parameter, Params.model_fields)
    folder = paths.results_root() / paths.path_name(profile)
    found: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    runs = 0
    for file in sorted(folder.glob("*/*/seed_*/generation_*/*.json")):
        with contextlib.suppress(provenance.StaleRecord):
            record = provenance.read_record(file)
            runs += 1
            if parameter in record["parameters"]:
                found[record["stage"]][record["condition"]].add(record["generation"])
    if not runs:
        raise ValueError(f"{folder} holds no records: `make results PROFILE={profile}` makes them.")
    lines = [
        f"{stage:16s}"
        + "; ".join(f"{name} {', '.join(map(str, sorted(at)))}" for name, at in sorted(conditions.items()))
        for stage, conditions in sorted(found.items())
    ]
    return "\n".join(lines) or f"No record of {profile} depends on {parameter}."


def _listed() -> str:
    lines = ["study                    records  tables  kilobytes"]
    for study in PACKS.studies():
        tables = sum(isinstance(part, str) for part in PACKS.content(study).values())
        records = len(PACKS.content(study)) - tables
        lines.append(f"{study:24s} {records:7d} {tables:7d} {PACKS.file(study).stat().st_size / 1000:10.0f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m spectral_collapse.record.evidence", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the packed studies")
    packing = commands.add_parser("pack", help="verify the records of results/work and pack them")
    packing.add_argument("name", help="a study, or a profile of it")
    unpacking = commands.add_parser("unpack", help="write the records of a study as files")
    unpacking.add_argument("study")
    unpacking.add_argument("folder", type=Path)
    asking = commands.add_parser("affected", help="the records that a change of a parameter makes again")
    asking.add_argument("parameter")
    asking.add_argument("profile")
    chosen = parser.parse_args(arguments)

    def run() -> str:
        if chosen.command == "pack":
            return f"{pack(chosen.name)} holds the study; commit it."
        if chosen.command == "unpack":
            return f"{unpack(chosen.study, chosen.folder)} files written below {chosen.folder}."
        if chosen.command == "affected":
            return affected(chosen.parameter, chosen.profile)
        return _listed()

    return cli.outcome(run)


if __name__ == "__main__":
    sys.exit(main())
