"""The tidy table of all packed runs, for readers who want the data alone: results/evidence/trajectories.*.

python -m spectral_collapse.analysis.trajectories    makes it again from the packs; `make pack` does
"""

import argparse
import io
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePath

import pandas as pd

from ..record import cli, evidence, packfile, params, provenance
from . import metrics, series

COLUMNS = {
    "study": "Packed study, the file `<study>.jsonl.gz` beside this one.",
    "profile": "Profile of the run (`params/<profile>.yaml`), or a cell of a grid as `<grid>.<factor>.<level>`.",
    "model": "Short name of the model.",
    "condition": "Where a generation's training text comes from: `recursive` (the model before it), `fresh`, `static` "
    "(both real text), `mixed`, `accumulate`; `_carry` and `_restart` say which weights it starts from.",
    "seed": "Seed of the run. Conditions with the same seed are paired.",
    "generation": "0: the base model, which all conditions of a seed share, so that its rows repeat.",
    "stage": "The stage that measured the metric.",
    "metric": "See below.",
    "value": "Its value. Empty where it is not defined.",
    "low": "Lower end of its 95 % interval within the run, over prompts, stories or blocks; empty without one.",
    "high": "Upper end.",
    "seconds": "Wall time of the stage for this generation, shared by all metrics of the stage.",
}
NAMES = ("trajectories.parquet", "trajectories.csv.gz", "README.md")


def rows(study: str) -> Iterator[tuple]:
    """Rows of a study's runs, as `COLUMNS`."""
    found = defaultdict(lambda: (set(), {0}))  # seeds and generations of a profile's condition, stage by stage
    for place in evidence.PACKS.content(study):
        match PurePath(place).parts:
            case profile, _, condition, seed, generation, name if condition != params.BASELINE:
                seeds, generations = found[profile, PurePath(name).stem, condition]
                seeds.add(int(seed.removeprefix("seed_")))
                generations.add(int(generation.removeprefix("generation_")))
    for (profile, stage, condition), cells in sorted(found.items()):
        if stage not in metrics.STAGES:
            continue
        settings, start = params.load(profile), {}
        for _, seed, generation, _, record in series.records(
            settings, stage, [condition], *map(sorted, cells), evidence.PACKS
        ):
            start = record["result"] if generation == 0 else start
            run = study, profile, settings.model, condition, seed, generation
            for metric, interval in series.measured(stage, record["result"], start).items():
                yield *run, stage, metric, *interval, record["timing"]["wall_seconds"]


def table() -> pd.DataFrame:
    """All rows of all packs, with `COLUMNS`."""
    found = [row for study in evidence.PACKS.studies() for row in rows(study)]
    frame = pd.DataFrame(found, columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(("value", "low", "high", "seconds"), float))


def dictionary(frame: pd.DataFrame) -> str:
    """The data dictionary of the table: README.md."""
    found = frame.groupby(["stage", "metric"], sort=False)["value"].agg(["count", "min", "max"])
    known = {name: metrics.METRICS[name] for _, name in found.index}
    lines = [
        "# Evidence",
        "",
        "`<study>.jsonl.gz` are packed records, explained in `docs/records.md`; `make pack` writes all this.",
        "`bench.json` and `faults.json` are what `make bench` and `make faults` measured. `trajectories.parquet` and",
        "`trajectories.csv.gz` (nine digits) are the same table: a row for every metric of every model of every run.",
        "",
        "| column | meaning |",
        "|---|---|",
        *(f"| `{name}` | {meaning} |" for name, meaning in COLUMNS.items()),
        "",
        f"{len(frame):,} rows. The metrics, with the stage that measures each:",
        "",
        "| metric | meaning | unit | stage | values | least | largest |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| `{name}` | {known[name].description} | {known[name].unit} | {stage} | {count:,.0f} | {least:.4g} "
            f"| {most:.4g} |"
            for (stage, name), (count, least, most) in found.iterrows()
        ),
    ]
    return "\n".join(lines) + "\n"


def write(folder: Path) -> int:
    """Writes the table and its dictionary, `NAMES`; the number of its rows."""
    frame = table()
    parquet, text = io.BytesIO(), frame.to_csv(index=False, float_format="%.9g")
    frame.to_parquet(parquet, index=False, compression="zstd")
    compressed = packfile.compressed(text)
    for name, data in zip(NAMES, (parquet.getvalue(), compressed, dictionary(frame).encode()), strict=True):
        provenance.write_atomically(folder / name, lambda temporary, data=data: temporary.write_bytes(data))
    return len(frame)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    root = evidence.PACKS.root
    sys.exit(cli.outcome(lambda: f"{write(root):,} rows in {root / NAMES[0]}; commit it with the packs."))
