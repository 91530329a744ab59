"""The command: watches a folder of texts or checkpoints, or a table of metrics; and both instruments from the shell.

`--help` of each lists its options.

    spectral-collapse watch FOLDER [--text FILE] [--reference 3] [--rate 0.05] [--follow] [--report out.html] [--json]
    spectral-collapse signature MODEL TEXT      the Hessian spectrum of a model on a text
    spectral-collapse sigma FILE                log-determinant tracks of embeddings (.npy, .parquet, .arrow) or texts
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from .. import sigma
from ..sigma.scale import SUFFIXES as SUFFIXES_OF_ROWS
from .core import Monitor
from .decision import Rule
from .inputs import (
    BLOCK,
    checkpoints_or_texts,
    held_out_blocks,
    holds_texts,
    model_of,
    read_prompts,
    read_texts,
    state_of,
    steps_of,
    table_of,
    tokenizer_of,
)
from .readings import DELTA
from .report import SOUND, SUFFIXES, UNJUDGED, WARNING, Report

STATUS = {SOUND: 0, WARNING: 1, UNJUDGED: 2}
BAD_INPUT = 2
REFERENCE = 3  # rows of a table
MANY = 10**6  # times the observed number: a population
PAUSE = 10.0  # seconds between two looks at a folder
DELAY = 2.0  # seconds before a bar appears


def _encoder(wanted: bool) -> Callable[[list[str]], Any] | None:
    if not wanted:
        return None
    from ..text.encoder import Encoder  # needs torch, for which other signals need not wait

    return Encoder()


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
    yield from found if kind == "a table" else zip(steps_of(found), found, strict=True)


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
        blocks = held_out_blocks(tokenizer_of(found[0]), Path(chosen.text))
        return Monitor(blocks=blocks, **options), lambda folder: {"model": model_of(folder)}
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
    table, report, states = Path(chosen.folder).is_file(), monitor.report(), {}
    for step, item in [] if table or monitor.blocks is not None else _items(chosen):
        if step == monitor.reference_step:
            monitor.require_reference(read(item)["texts"])
    while True:
        items = list(_items(chosen))
        if chosen.follow:  # of what arrives, all before the first that is still being written
            before, states = states, {item: state_of(item) for _, item in items if isinstance(item, Path)}
            resting = [not isinstance(item, Path) or states[item] == before.get(item) for _, item in items]
            items = items[: resting.index(False)] if False in resting else items
        taken = _first_rows(chosen) if table else 1
        if len(items) <= taken and not (chosen.follow or monitor.checks):
            raise ValueError(
                f"{chosen.folder} holds {len(items)} generation(s): a change needs one more than the reference."
            )
        # Not what an earlier call with the same log has seen; by steps, since earlier checkpoints may be gone.
        last = -math.inf if monitor.last_step is None else monitor.last_step
        new = [(step, item) for step, item in (items[taken:] if table else items) if step > last]
        for step, item in tqdm(new, desc="checks", delay=DELAY, leave=False, disable=None):
            try:
                report = monitor.check(**read(item), step=step)
            except ValueError as error:
                where = f"{item if isinstance(item, Path) else f'{chosen.folder}, step {step}'}"
                raise error if where in str(error) else ValueError(f"{where}: {error}") from None
            if chosen.report:
                report.save(chosen.report)
            if monitor.checks and not chosen.json:
                tqdm.write(report.line())
                sys.stdout.flush()
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
    blocks = held_out_blocks(tokenizer_of(chosen.model), Path(chosen.text))[: chosen.blocks]
    found = curvature.spectral_signature(model_of(chosen.model), blocks, probes=3, later_steps=1)
    table = found.to_frame().to_string(float_format="{:.4g}".format, na_rep="–")
    of = f"Hessian of the mean loss on {len(blocks)} blocks of {BLOCK} tokens."
    return "\n".join([repr(found), of, table, *found.notes]), curvature.as_result(found)


def _sigma(chosen: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Track II, and the log-determinant of the population where the rows determine it."""
    path = Path(chosen.file)
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    kind = path.suffix.lower()
    if kind in SUFFIXES_OF_ROWS and not (kind == ".parquet" and holds_texts(path)):
        chunks = list(sigma.read_embeddings(path))
    else:
        texts = read_texts(path)
        chunks = [np.asarray(_encoder(True)(texts))]
    if not sum(map(len, chunks)):
        raise ValueError(f"{path} holds no embeddings.")
    rows = np.concatenate(chunks)
    n, m = rows.shape
    gram = sigma.stream(chunks, m).gram
    found = {"embeddings": n, "dimension": m, "track_two": sigma.track_two(gram, n, DELTA)}
    told = [f"{n:,} embeddings in {m:,} dimensions.",
            f"Track II, log det(A + {DELTA:g} I) − m log n: {found['track_two']:.6g}"]  # fmt: skip
    try:
        estimate = sigma.logdet_estimate(gram, n, n * MANY, "leverage", leverages=sigma.leverages(rows, gram))
        ends = [float(part) - m * math.log(n * MANY) for part in estimate[:3]]
        found |= dict(zip(("logdet", "low", "high"), ends, strict=True))
        told.append("log det of the expected vvᵀ: {:.6g}, 95 % interval [{:.6g}, {:.6g}]".format(*ends))
    except ValueError as reason:
        told.append(f"log det of the expected vvᵀ: not identified, {reason}")
    return "\n".join(told), found


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
