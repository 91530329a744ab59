"""The monitor: compares every check with a reference, and reports."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..estimate import Estimate
from . import page
from .decision import Rule, against_controls, boundary, p_value
from .readings import SIGNALS, TIERS, direction_of, label_of, of_embeddings, of_row, of_texts

log = logging.getLogger(__name__)

SOUND, WARNING, UNJUDGED = "sound", "warning", "cannot judge"
COLUMNS = ["step", "check", "signal", "reference", "value", "change", "low", "high", "p", "level", "boundary", "alarm"]
SAMPLES = 3  # texts of a check that a report shows
LIMIT = (
    "Each change is held against the signal's own sampling error. That tells it from chance, not from training: a "
    "model that learns from real text moves too. Control runs would tell the two apart."
)


@dataclass(frozen=True, repr=False)
class Report:
    """What a monitor has seen so far.

    status: `sound`, `warning` (an alarm at this check or an earlier one) or `cannot judge`; compared: what the changes
    were held against; left_out: tiers that did not fit into the budget; samples: texts of the reference and of the last
    check.
    """

    frame: pd.DataFrame
    status: str
    compared: str
    left_out: tuple[str, ...] = ()
    samples: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def to_frame(self) -> pd.DataFrame:
        """All checks after the reference, a row a signal: step, check, signal, reference, value, change with its 95 %
        interval low, high, p, level (below which p alarms), boundary (the change that would alarm), alarm."""
        return self.frame.copy()

    @property
    def alarms(self) -> pd.DataFrame:
        """The rows that raised an alarm, the first of each signal."""
        return self.frame[self.frame["alarm"]].drop_duplicates("signal")

    def line(self) -> str:
        """The status in one line."""
        if self.frame.empty:
            return f"{self.status}: nothing to compare yet."
        step, raised = self.frame["step"].iloc[-1], self.alarms
        if raised.empty:
            signals = self.frame["signal"].nunique()
            return f"step {step}: {self.status}, {signals} signals over {self.frame['check'].max()} checks."
        told = ", ".join(f"{label_of(row.signal)} at step {row.step}" for row in raised.itertuples())
        return f"step {step}: {self.status} ({told})."

    def __repr__(self) -> str:
        return f"Report({self.line()})"

    def __str__(self) -> str:
        last = self.frame[self.frame["step"] == self.frame["step"].iloc[-1]] if len(self.frame) else self.frame
        table = last[["signal", "reference", "value", "change", "low", "high", "p", "level", "alarm"]]
        return f"{self.line()}\n{table.to_string(index=False, float_format='{:.4g}'.format)}\n{self.compared}"

    def plot(self) -> Figure:
        """Changes with their intervals and boundaries, a panel a signal."""
        return page.panels(self.frame)

    def to_html(self) -> str:
        """One HTML page without network: plots, table, what it means, texts then and now."""
        return page.html(self)

    def save(self, path: Path | str) -> Path:
        """Writes the page (.html), the table (.csv, .parquet) or the table as lines of JSON (.jsonl)."""
        path = Path(path)
        match path.suffix:
            case ".html":
                path.write_text(self.to_html(), encoding="utf-8")
            case ".csv":
                self.frame.to_csv(path, index=False)
            case ".parquet":
                self.frame.to_parquet(path, index=False)
            case ".jsonl":
                self.frame.to_json(path, orient="records", lines=True)
            case other:
                raise ValueError(
                    f"{path}: a report is .html, .csv, .parquet or .jsonl, not {other or 'without a suffix'}."
                )
        return path


class Monitor:
    """Watches a run. The first thing it is given is the reference; every later check is compared with it.

    reference: what the run starts from: texts, a model, or rows of metrics (three or more, whose spread is then the
    noise); None: the first check. blocks: held-out token ids (N, T), for models. encoder: texts → embeddings (n, m),
    for Track II. spectrum: blocks of the Hessian spectrum of a model; 0: none. rule: rate of false alarms of the whole
    run. controls: `to_frame()` of monitors of runs on real text, two or more, checked at the same times; without them
    a change is held against its own sampling error. budget: share of the run's time that checks may take; what does
    not fit is left out by name. log_file: JSONL of all checks; a monitor with the same file goes on where it ended.

    >>> monitor = Monitor(reference=["the cat sat on the mat"] * 20)
    >>> monitor.check(["the cat sat on the mat"] * 20, step=1).status
    'sound'
    """

    def __init__(
        self,
        reference: Any = None,
        *,
        blocks: Any = None,
        encoder: Callable[[list[str]], Any] | None = None,
        spectrum: int = 0,
        rule: Rule | None = None,
        controls: Sequence[pd.DataFrame] = (),
        budget: float | None = None,
        log_file: Path | str | None = None,
    ):
        if budget is not None and not 0 < budget <= 1:
            raise ValueError(f"budget: a share of the run's time lies between 0 and 1, and {budget} does not.")
        if len(controls) == 1:
            raise ValueError("controls: one control run says nothing of how runs differ: give two or more, or none.")
        self.blocks, self.encoder, self.spectrum = blocks, encoder, spectrum
        self.rule, self.budget = rule or Rule(), budget
        self.controls = [_control(frame, place) for place, frame in enumerate(controls)]
        self.log_file = None if log_file is None else Path(log_file)
        self._started, self._spent = time.monotonic(), 0.0
        self._costs: dict[str, float] = {}
        self._reference: dict[str, Estimate] = {}
        self._rows: list[tuple] = []
        self._check, self._left_out, self._samples = 0, (), ((), ())
        if self.log_file is not None and self.log_file.exists():
            self._resume()
        elif reference is not None:
            self._set_reference(reference, 0)

    @property
    def referenced(self) -> bool:
        """Whether there is a reference to compare with."""
        return bool(self._reference)

    @property
    def checks(self) -> int:
        """Checks so far, without the reference."""
        return self._check

    # ---- reading

    def _tiers(self, given: Any) -> dict[str, Callable[[], dict[str, Estimate]]]:
        """The tiers that can be read of what is given, cheapest first."""
        if isinstance(given, Mapping):
            return {"model": lambda: of_row(given)}
        if isinstance(given, (list, tuple)):
            texts = list(given)
            found: dict[str, Callable] = {"text": lambda: of_texts(texts)}
            if self.encoder is not None:
                found["embedding"] = lambda: of_embeddings(np.asarray(self.encoder(texts), dtype=float))
            return found
        if self.blocks is None:
            raise ValueError("blocks: a model is judged on held-out blocks of token ids: give them to the monitor.")
        from . import models  # needs torch, for which texts and tables need not wait

        found = {"model": lambda: models.of_model(given, self.blocks)}
        if self.spectrum:
            found["curvature"] = lambda: models.of_spectrum(given, self.blocks[: self.spectrum])
        return found

    def _read(self, given: Sequence[Any], limited: bool) -> dict[str, Estimate]:
        readings, left_out = {}, []
        tiers = {name: read for each in given for name, read in self._tiers(each).items()}
        for name in sorted(tiers, key=TIERS.index):
            allowed = math.inf if self.budget is None else self.budget * (time.monotonic() - self._started)
            if limited and self._spent + self._costs.get(name, 0.0) > allowed:
                left_out.append(name)
                continue
            start = time.monotonic()
            readings |= tiers[name]()
            self._costs[name] = time.monotonic() - start
            self._spent += self._costs[name]
        self._left_out = tuple(left_out)
        return readings

    def _set_reference(self, reference: Any, step: int | float) -> None:
        rows = list(reference) if isinstance(reference, (list, tuple)) else []
        if rows and all(isinstance(row, Mapping) for row in rows):
            if len(rows) < 3:
                raise ValueError(
                    f"reference: {len(rows)} rows of metrics have no spread to judge by: give three or more."
                )
            names = set.intersection(*(set(row) for row in rows))
            values = {name: [of_row({name: row[name]})[name].value for row in rows] for name in sorted(names)}
            self._reference = {name: _of_rows(numbers) for name, numbers in values.items()}
        else:
            self._reference = self._read([reference], limited=False)
            self._note_samples([reference], 0)
        self._write({"step": step, "reference": {name: _packed(found) for name, found in self._reference.items()},
                     "samples": self._samples[0]})  # fmt: skip

    def _note_samples(self, given: Sequence[Any], place: int) -> None:
        for each in given:
            if isinstance(each, (list, tuple)):
                shown = list(self._samples)
                shown[place] = tuple(map(str, each[:SAMPLES]))
                self._samples = tuple(shown)

    # ---- judging

    def check(self, *given: Any, step: int | float | None = None) -> Report:
        """Compares texts, a model, a row of metrics, or several of these, with the reference.

        ValueError for what cannot be read: too few texts, other numbers of them than the reference has, NaN, a model
        without blocks.
        """
        if not given:
            raise ValueError("nothing to check: give texts, a model, or a row of metrics.")
        step = self._check + 1 if step is None else step
        if not self._reference:
            if len(given) > 1:
                self._reference = self._read(given, limited=False)
                self._note_samples(given, 0)
                packed = {name: _packed(found) for name, found in self._reference.items()}
                self._write({"step": step, "reference": packed, "samples": self._samples[0]})
            else:
                self._set_reference(given[0], step)
            return self.report()
        readings = self._read(given, limited=True)
        self._note_samples(given, 1)
        self._check += 1
        rows = []
        for name, now in readings.items():
            if name not in self._reference:
                continue
            rows.append(self._judged(step, name, now, len(self._reference)))
        self._rows += rows
        self._write({"step": step, "check": self._check, "rows": [list(map(_plain, row)) for row in rows],
                     "samples": self._samples[1]})  # fmt: skip
        return self.report()

    def _judged(self, step: int | float, name: str, now: Estimate, signals: int) -> tuple:
        before, direction = self._reference[name], direction_of(name)
        sizes = [len(each.left_out) for each in (now, before) if each.left_out is not None]
        if len(set(sizes)) > 1 and name in SIGNALS and SIGNALS[name].tier != "model":
            raise ValueError(
                f"{label_of(name)}: the reference has {sizes[1]} texts and this check {sizes[0]}; diversity depends on "
                "their number: give as many."
            )
        change = now.change_from(before, paired=True)
        if math.isnan(now.standard_error):  # of a table, whose reference rows hold the noise
            change = Estimate.of_error(change.value, before.standard_error, before.df)
        if self.controls:
            others = [run.get((self._check, name)) for run in self.controls]
            change = against_controls(change.value, [each for each in others if each is not None])
        level, p = self.rule.level(self._check, signals), p_value(change, direction)
        edge = boundary(change, direction, level)
        return (
            step, self._check, name, before.value, now.value, change.value, change.low, change.high, p, level, edge,
            bool(p <= level),
        )  # fmt: skip

    def report(self) -> Report:
        """What was seen so far."""
        frame = pd.DataFrame(self._rows, columns=COLUMNS)
        judged = frame["p"].notna().any()
        status = WARNING if frame["alarm"].any() else SOUND if judged else UNJUDGED
        compared = LIMIT
        if self.controls:
            compared = f"Each change is held against those of {len(self.controls)} control runs at the same check."
        elif len(frame) and not judged:
            compared = "The values have no errors: give three or more rows as reference, or control runs."
        return Report(frame.astype({"alarm": bool}), status, compared, self._left_out, self._samples)

    # ---- the log

    def _write(self, entry: dict[str, Any]) -> None:
        if self.log_file is not None:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def _resume(self) -> None:
        lines = self.log_file.read_text(encoding="utf-8").splitlines()
        entries = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # the last one, of a process that was killed
                entries.append(json.loads(line))
        if not entries:
            return
        try:
            self._reference = {name: _unpacked(one) for name, one in entries[0]["reference"].items()}
            self._samples = (tuple(entries[0]["samples"]), ())
            for entry in entries[1:]:
                self._rows += [tuple(math.nan if part is None else part for part in row) for row in entry["rows"]]
                self._check, self._samples = entry["check"], (self._samples[0], tuple(entry["samples"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.log_file} is no monitor's log: name another file, or delete it.") from error
        log.info("%s: goes on after check %d.", self.log_file, self._check)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _packed(found: Estimate) -> dict[str, Any]:
    left_out = None if found.left_out is None else found.left_out.tolist()
    return {"value": found.value, "standard_error": _plain(found.standard_error), "df": _plain(found.df),
            "left_out": left_out}  # fmt: skip


def _unpacked(entry: Mapping[str, Any]) -> Estimate:
    if entry["left_out"] is not None:
        return Estimate.jackknife(entry["value"], np.array(entry["left_out"]))
    error, df = (math.nan if entry[name] is None else entry[name] for name in ("standard_error", "df"))
    return Estimate.of_error(entry["value"], error, df)


def _of_rows(values: Sequence[float]) -> Estimate:
    """The mean of reference rows, with the error of one more row."""
    return Estimate.of_error(
        float(np.mean(values)), float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / len(values)), len(values) - 1
    )


def _control(frame: pd.DataFrame, place: int) -> dict[tuple[int, str], float]:
    """(check, signal) to the change of a control run."""
    if missing := {"check", "signal", "change"} - set(frame):
        raise ValueError(f"controls: run {place + 1} has no column {sorted(missing)[0]!r}: give `Report.to_frame()`.")
    return {(int(row.check), row.signal): float(row.change) for row in frame.itertuples()}
