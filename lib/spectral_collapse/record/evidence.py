"""Evidence: finished studies, each packed into one verified file, and the one reader of records wherever they are.

A study is `results/evidence/<study>.jsonl.gz` (`packfile`). A place is a path below `results/work` or any other root of
results, as `smoke/llama-tiny/fresh/seed_1/generation_1/training.json`.

    python -m spectral_collapse.record.evidence pack NAME            results/work -> results/evidence, verified
    python -m spectral_collapse.record.evidence unpack NAME FOLDER   the records as files again
    python -m spectral_collapse.record.evidence list
    python -m spectral_collapse.record.evidence affected PARAMETER PROFILE   what a change of it makes again
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from . import cli, packfile, paths, provenance
from .schema import Params, unknown_name

Place = str | PurePath


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

    remedy = packfile.REMEDY

    def __init__(self, root: Path):
        self.root = root

    def studies(self) -> list[str]:
        """Names of the studies."""
        return sorted(file.name.removesuffix(packfile.SUFFIX) for file in self.root.glob(f"*{packfile.SUFFIX}"))

    def file(self, study: str) -> Path:
        """The file of a study."""
        return self.root / f"{study}{packfile.SUFFIX}"

    def content(self, study: str) -> Mapping[str, Any]:
        """Every place of a study: a record that is not verified yet (dict), or a table (str). Empty where there is no
        such study; ValueError where its file is damaged."""
        file = self.file(study)
        try:
            state = file.stat()
        except FileNotFoundError:
            return {}
        return packfile.decode(file, state.st_mtime_ns, state.st_size)

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
    for folder, held in packfile.verify(content).items():
        packfile.verify_design(folder, held)
    if lost := sorted(
        {place.split("/")[0] for place in PACKS.content(study)} - {place.split("/")[0] for place in content}
    ):
        raise ValueError(
            f"{PACKS.file(study)} holds {lost[0]}, which is not there to be packed: run it, or delete the pack."
        )
    data = packfile.encode(study, content)
    provenance.write_atomically(PACKS.file(study), lambda temporary: temporary.write_bytes(data))
    return PACKS.file(study)


def unpack(study: str, folder: Path) -> int:
    """Writes the records and tables of a study as files below a folder; how many."""
    if not (content := PACKS.content(study)):
        raise unknown_name("study", study, PACKS.studies() or [study])
    packfile.verify(content)
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
