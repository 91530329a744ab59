"""The monitor: compares every check with a reference, and says what it sees."""

import functools
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..estimate import Estimate
from ..text.metrics import mean_over_texts
from .decision import Rule, against_controls, boundary, p_value
from .readings import SIGNALS, TIERS, direction_of, label_of, of_embeddings, of_row, of_texts, require_blocks
from .report import COLUMNS, SOUND, UNJUDGED, WARNING, Report

log = logging.getLogger(__name__)

LEAST_BLOCKS = 8  # of a check of a model whose budget does not reach for all
SAMPLES = 3  # texts of a check that a report shows
PROBE = "The embedding of this sentence tells one encoder from another."
SAME_VECTOR = 0.99  # cosine of the embeddings of one encoder on two machines, and more
LIMIT = (
    "Each change is held against the signal's own sampling error. That tells it from chance, not from training: a "
    "model that learns from real text moves too. Control runs would tell the two apart."
)


class Monitor:
    """Watches a run. The first thing it is given is the reference; every later check is compared with it.

    reference: what the run starts from: texts, a model, or rows of metrics (three or more, whose spread is then the
    noise); None: the first check. blocks: held-out token ids (N, T), for models. encoder: texts → embeddings (n, m),
    for Track II. spectrum: blocks of the Hessian spectrum of a model; 0: none. rule: rate of false alarms of the whole
    run. controls: `to_frame()` of monitors of runs on real text, two or more, checked at the same times; without them
    a change is held against its own sampling error. budget: share of the run's time that checks may take; what does
    not fit is left out by name. log_file: JSONL of all checks; a monitor with the same file goes on where it ended.

    >>> monitor = Monitor(reference=["the cat sat on the mat"] * 20)
    >>> monitor.check(texts=["the cat sat on the mat"] * 20, step=1).status
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
        if budget is not None and not (isinstance(budget, int | float) and 0 < budget <= 1):
            raise ValueError(f"budget: a share of the run's time lies between 0 and 1, and {budget!r} does not.")
        if blocks is not None:
            require_blocks(blocks)
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
        self._check, self._samples = 0, ((), ())
        self._step: int | float | None = None
        self._left_out: tuple[str, ...] = ()
        self._skipped: set[str] = set()  # tiers that did not fit into the budget
        self._kept: dict[str, Any] = {}
        if self.log_file is not None and self.log_file.exists():
            self._resume()
        if reference is not None and self.referenced:
            self.require_reference(reference)
        elif reference is not None:
            self._set_reference(reference)

    @property
    def referenced(self) -> bool:
        """Whether there is a reference to compare with."""
        return bool(self._reference)

    @property
    def checks(self) -> int:
        """Checks so far, without the reference."""
        return self._check

    @property
    def last_step(self) -> int | float | None:
        """The step of the last check, before it that of the reference if a check was it; None before either."""
        return self._step

    @property
    def reference_step(self) -> int | float | None:
        """The step of the check that was the reference; None where it was given."""
        return self._kept.get("step")

    def require_reference(self, reference: Any) -> None:
        """ValueError where the log that the monitor goes on with began with other texts or rows than these."""
        known = self._kept.get("reference")
        if known is not None and isinstance(reference, list | tuple) and known != _digest(list(reference)):
            raise ValueError(
                f"{self.log_file} belongs to another run, whose reference was not this one: name another log, or "
                "delete it."
            )

    # ---- reading

    def _tiers(self, given: Mapping[str, Any]) -> dict[str, Callable[..., dict[str, Estimate]]]:
        """What can be read of texts, a model and metrics, by tier; of a model also on its first blocks alone."""
        found: dict[str, Callable[..., dict[str, Estimate]]] = {}
        if (metrics := given.get("metrics")) is not None:
            found["metrics"] = lambda: of_row(metrics)
        if (texts := given.get("texts")) is not None:
            found["text"] = lambda: of_texts(list(texts))
            if self.encoder is not None:
                found["embedding"] = lambda: of_embeddings(np.asarray(self.encoder(list(texts)), dtype=float))
        if (model := given.get("model")) is not None:
            if self.blocks is None:
                raise ValueError("blocks: a model is judged on held-out blocks of token ids: give them to the monitor.")
            from . import models  # needs torch, for which texts and tables need not wait

            found["model"] = lambda count=None: models.of_model(model, self.blocks[:count])
            if self.spectrum:
                found["curvature"] = lambda: models.of_spectrum(model, self.blocks[: self.spectrum])
        return found

    def _read(self, given: Mapping[str, Any], limited: bool) -> dict[str, Estimate]:
        """Readings of all tiers, cheapest first, or of those that fit into the budget."""
        readings, left_out, skipped, tiers = {}, [], set(), self._tiers(given)
        for name in sorted(tiers, key=TIERS.index):
            if name == "curvature" and not all(math.isfinite(each.value) for each in readings.values()):
                continue  # of a model that has diverged there is none
            allowed = math.inf if self.budget is None else self.budget * (time.monotonic() - self._started)
            room, cost, share = allowed - self._spent, self._costs.get(name, 0.0), 1.0
            if limited and cost > room:
                count = int(len(self.blocks) * room / cost) if name == "model" else 0
                if count < LEAST_BLOCKS:
                    left_out.append(f"{name} (budget)")
                    skipped.add(name)
                    continue
                left_out.append(f"{len(self.blocks) - count} of {len(self.blocks)} held-out blocks (budget)")
                share, tiers[name] = count / len(self.blocks), functools.partial(tiers[name], count)
            start = time.monotonic()
            found = tiers[name]()
            if twice := sorted(readings.keys() & found.keys()):
                raise ValueError(f"{twice[0]} is given twice: as a metric, and by what is read of texts or model.")
            readings |= found
            took = time.monotonic() - start
            self._costs[name] = took / share
            self._spent += took
        self._left_out, self._skipped = tuple(left_out), skipped
        return readings

    def _inputs(self, prompts: Sequence[str] | None) -> dict[str, Any]:
        """What must be the same at every check: digests of prompts and held-out blocks, the embedding of `PROBE`."""
        found = {} if prompts is None else {"prompts": _digest(list(prompts))}
        if self.blocks is not None:
            found["held-out blocks"] = _digest(self.blocks)
        if self.encoder is not None:
            found["encoder"] = np.asarray(self.encoder([PROBE]), dtype=float)[0].round(5).tolist()
        return found

    def _require_same(self, inputs: Mapping[str, Any]) -> None:
        """ValueError where prompts, held-out blocks or encoder are not those of the reference, or of the first check
        that had them."""
        for name, now in inputs.items():
            before = self._kept.get(name, now)
            if before == now or (name == "encoder" and _alike(before, now)):
                continue
            raise ValueError(
                f"{name}: not the same as for the reference, and what changes with them is no sign of the model. Keep "
                "them, or start a new reference."
            )

    def _refer(
        self,
        readings: dict[str, Estimate],
        texts: Sequence[str] | None,
        prompts: Sequence[str] | None,
        step: int | float | None,
        given: Sequence[Any] | None = None,
    ) -> None:
        """Takes readings as the reference; `given`: the texts or rows that they are of."""
        _require_finite({name: found.value for name, found in readings.items()})
        self._reference, self._samples, self._kept = readings, (_shown(texts), ()), self._inputs(prompts)
        if given is not None:
            self._kept["reference"] = _digest(list(given))
        if step is not None:
            self._kept["step"] = self._step = step
        packed = {name: _packed(found) for name, found in readings.items()}
        self._write({"step": step, "reference": packed, "samples": self._samples[0], "inputs": self._kept})

    def _set_reference(self, reference: Any) -> None:
        """Of texts, rows of metrics, one row, or a model."""
        items = list(reference) if isinstance(reference, list | tuple) else []
        if items and all(isinstance(row, Mapping) for row in items):
            self._refer(_of_rows(items), None, None, None, items)
        elif isinstance(reference, list | tuple):
            self._refer(self._read({"texts": items}, limited=False), items, None, None, items)
        else:
            kind = "metrics" if isinstance(reference, Mapping) else "model"
            self._refer(self._read({kind: reference}, limited=False), None, None, None)

    # ---- judging

    def check(
        self,
        *,
        texts: Sequence[str] | None = None,
        model: Any = None,
        metrics: Mapping[str, float] | None = None,
        prompts: Sequence[str] | None = None,
        step: int | float | None = None,
    ) -> Report:
        """Compares texts, a model, a row of metrics, or several of these, with the reference.

        prompts: those that the texts answer, so that others are noticed. A loss that is no longer finite is an alarm.
        ValueError, and nothing is noted, for what cannot be read or compared: too few texts, other numbers of them than
        the reference has, other prompts, blocks or another encoder, a model without blocks, nothing at all.
        """
        given = {"texts": texts, "model": model, "metrics": metrics}
        if all(each is None for each in given.values()):
            raise ValueError("nothing to check: give texts, a model, or a row of metrics.")
        step = self._check + 1 if step is None else step
        inputs = self._inputs(prompts)
        if self.referenced:
            self._require_same(inputs)
        readings = self._read(given, limited=self.referenced)
        if not self.referenced:
            self._refer(readings, texts, prompts, step, texts)
            return self.report()
        number, signals = self._check + 1, len(self._reference)
        known = {name: found for name, found in readings.items() if name in self._reference and _judgeable(name, found)}
        rows = [self._judged(step, number, name, found, signals) for name, found in known.items()]
        self._left_out += self._not_judged(readings)
        self._check, self._step, self._samples = number, step, (self._samples[0], _shown(texts) or self._samples[1])
        self._rows += rows
        new = {name: given for name, given in inputs.items() if name not in self._kept}
        self._kept |= new
        self._write({"step": step, "check": number, "rows": [list(map(_plain, row)) for row in rows],
                     "samples": self._samples[1], "inputs": new})  # fmt: skip
        return self.report()

    def _not_judged(self, readings: Mapping[str, Estimate]) -> tuple[str, ...]:
        """Names of signals that this check, the reference or all controls but one lack, or whose reference rows are all
        equal, with the reason."""
        missing = [name for name in self._reference if name not in readings]
        missing = [name for name in missing if name not in SIGNALS or SIGNALS[name].tier not in self._skipped]
        new = [name for name in readings if name not in self._reference]
        lost = [name for name in self._reference if name in readings and not _judgeable(name, readings[name])]
        still = [name for name, each in self._reference.items() if name in readings and each.standard_error == 0]
        still = [] if self.controls else [name for name in still if math.isnan(readings[name].standard_error)]
        common = [name for name in readings if name in self._reference]
        lone = [name for name in common if sum((self._check + 1, name) in run for run in self.controls) < 2]
        lone = lone if self.controls and len(lone) < len(common) else []  # of all of them the report itself says so
        return (
            *(f"{label_of(name)} (not in this check)" for name in missing),
            *(f"{label_of(name)} (not in the reference)" for name in new),
            *(f"{label_of(name)} (not finite)" for name in lost),
            *(f"{label_of(name)} (does not vary in the reference)" for name in still),
            *(f"{label_of(name)} (in fewer than two control runs)" for name in lone),
        )

    def _judged(self, step: int | float, check: int, name: str, now: Estimate, signals: int) -> tuple:
        """A row of `COLUMNS`."""
        before, direction = self._reference[name], direction_of(name)
        level = self.rule.level(check, signals)
        if not math.isfinite(now.value):  # diverged, which no chance does
            return (step, check, name, before.value, math.nan, 0.0, *[math.nan] * 3, 0.0, level, math.nan, level > 0)
        sizes = [len(each.left_out) for each in (now, before) if each.left_out is not None]
        if len(set(sizes)) > 1 and name in SIGNALS and SIGNALS[name].tier == "model":
            before = _of_first(before, sizes[0])
        elif len(set(sizes)) > 1 and name in SIGNALS:
            raise ValueError(
                f"{label_of(name)}: the reference has {sizes[1]} texts and this check {sizes[0]}; diversity depends on "
                "their number: give as many."
            )
        change = now.change_from(before, paired=True)
        if math.isnan(now.standard_error):  # of a table, whose reference rows hold the noise
            error = before.standard_error if before.standard_error > 0 else math.nan
            change = Estimate.of_error(change.value, error, before.df)
        moved = change.value
        if self.controls:
            others = [run.get((check, name)) for run in self.controls]
            change = against_controls(change.value, [each for each in others if each is not None])
        p, edge = p_value(change, direction), boundary(change, direction, level)
        return (
            step, check, name, before.value, now.value, moved - change.value, change.value, change.low, change.high,
            p, level, edge, bool(level > 0 and p <= level),
        )  # fmt: skip

    def report(self) -> Report:
        """What was seen so far. Sound means that the last check could have raised an alarm and did not."""
        frame = pd.DataFrame(self._rows, columns=COLUMNS).astype({"alarm": bool})
        last = frame[frame["check"] == self._check]
        judged = bool((last["p"].notna() & (last["level"] > 0)).any())
        status = WARNING if frame["alarm"].any() else SOUND if judged else UNJUDGED
        compared = LIMIT
        if self.controls:
            compared = f"Each change is held against those of {len(self.controls)} control runs at the same check."
        if len(last) and not judged:
            compared = self._why_not(last)
        return Report(frame, status, compared, self._left_out, self._samples, self._step, self._check)

    def _why_not(self, last: pd.DataFrame) -> str:
        """Why a check decides nothing."""
        if not (last["level"] > 0).any():
            return f"All {self.rule.checks} planned checks are used up: plan more, or none (`Rule(checks=None)`)."
        if self.controls:
            return f"Fewer than two control runs have a check {self._check}: give controls that were checked as often."
        return "The values have no errors: give three or more rows as reference, or control runs."

    # ---- the log

    def _write(self, entry: dict[str, Any]) -> None:
        if self.log_file is not None:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def _resume(self) -> None:
        """Takes up the log, without a last line that a kill cut off."""
        text = self.log_file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.log_file.write_text(whole, encoding="utf-8")
        try:
            entries = [json.loads(line) for line in whole.splitlines()]
            for first in entries[:1]:
                self._reference = {name: _unpacked(one) for name, one in first["reference"].items()}
                self._samples, self._kept = (tuple(first["samples"]), ()), dict(first["inputs"])
                self._step = first["step"]
            for entry in entries[1:]:
                self._rows += [tuple(math.nan if part is None else part for part in row) for row in entry["rows"]]
                self._check, self._step = entry["check"], entry["step"]
                self._samples = (self._samples[0], tuple(entry["samples"]))
                self._kept |= entry["inputs"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.log_file} is no monitor's log: name another file, or delete it.") from error
        log.info("%s: goes on after check %d.", self.log_file, self._check)


def _judgeable(name: str, found: Estimate) -> bool:
    """Whether a value is finite, or tells by not being so: a loss has diverged, an entropy can lack its texts."""
    return math.isfinite(found.value) or direction_of(name) > 0


def _require_finite(values: Mapping[str, float]) -> None:
    """ValueError for a reference that is not finite."""
    if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
        raise ValueError(f"reference: {label_of(wrong[0])} is {values[wrong[0]]}, with which nothing can be compared.")


def _digest(value: Any) -> str:
    plain = value.tolist() if hasattr(value, "tolist") else value
    return hashlib.sha256(json.dumps(plain, default=float).encode()).hexdigest()


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two embeddings of one sentence are of one encoder."""
    if len(one) != len(other):
        return False
    return float(np.dot(one, other)) >= SAME_VECTOR * float(np.linalg.norm(one) * np.linalg.norm(other))


def _shown(texts: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(map(str, (texts or ())[:SAMPLES]))


def _of_first(mean: Estimate, count: int) -> Estimate:
    """The mean of the first parts alone, of a mean of at least as many: a part is N θ − (N − 1) θ_(i)."""
    n = len(mean.left_out)
    return mean_over_texts((n * mean.value - (n - 1) * mean.left_out)[:count])


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


def _of_rows(rows: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """Of every metric that all rows have its mean, with the error of one more row. ValueError for fewer than three."""
    if len(rows) < 3:
        raise ValueError(f"reference: {len(rows)} rows of metrics have no spread: give three or more.")
    names = set.intersection(*(set(row) for row in rows))
    if not names:
        raise ValueError("reference: no metric is in all of its rows.")
    values = {name: [of_row({name: row[name]})[name].value for row in rows] for name in sorted(names)}
    for name, each in values.items():
        _require_finite({name: sum(each)})
    factor = math.sqrt(1 + 1 / len(rows))
    found = {}
    for name, each in values.items():
        spread = float(np.std(each, ddof=1)) if np.ptp(each) > 0 else 0.0  # which rounding would make more
        found[name] = Estimate.of_error(float(np.mean(each)), spread * factor, len(rows) - 1)
    return found


def _control(frame: pd.DataFrame, place: int) -> dict[tuple[int, str], float]:
    """(check, signal) to the change of a control run, where it is finite."""
    if missing := {"check", "signal", "change"} - set(frame):
        raise ValueError(f"controls: run {place + 1} has no column {sorted(missing)[0]!r}: give `Report.to_frame()`.")
    if "expected" in frame and frame["expected"].any():
        raise ValueError(f"controls: run {place + 1} was held against controls itself: give reports without.")
    found = {(int(row.check), row.signal): float(row.change) for row in frame.itertuples()}
    return {place: change for place, change in found.items() if math.isfinite(change)}
