"""The monitor inside a `transformers.Trainer`."""

import contextlib
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import distributed
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .core import Monitor
from .report import WARNING, Report

log = logging.getLogger(__name__)
PREFIX = "collapse/"  # of its metrics in the trainer's log


class MonitorCallback(TrainerCallback):
    """Checks the model of a `Trainer` at the start of training, which is the reference, at every evaluation, and at the
    end; with `every`, also after so many steps.

    monitor: with `blocks` of held-out token ids. sample: model → texts, for diversity; None: none. stop: ends training
    at an alarm. strict: lets an error of the monitor end the run; otherwise it is logged and training goes on. `report`
    is the last report. Adapters and wrapped models are judged as they are trained, by what they predict. Of several
    processes the first checks, and all stop together; it cannot run a model of which others hold shards, whose
    checkpoints `spectral-collapse watch` judges.

    Metrics (`collapse/<signal>`, `collapse/alarms`) go through the trainer's own log, hence to every tracker, where the
    callback is attached; a callback that is only listed writes them to `trainer.state.log_history`:

        MonitorCallback(Monitor(blocks=held_out, budget=0.02)).attach(trainer)
        trainer.train()
    """

    def __init__(
        self,
        monitor: Monitor,
        *,
        sample: Callable[[Any], list[str]] | None = None,
        every: int | None = None,
        stop: bool = False,
        strict: bool = False,
    ):
        if every is not None and every < 1:
            raise ValueError(f"every: checks come after one step or more, not {every}.")
        self.monitor, self.sample, self.every = monitor, sample, every
        self.stop, self.strict = stop, strict
        self.report: Report = monitor.report()
        self._trainer: Trainer | None = None
        # A run that resumes repeats steps that were checked before it stopped.
        self._checked = -1 if monitor.last_step is None else monitor.last_step

    def attach(self, trainer: Trainer) -> "MonitorCallback":
        """Adds the callback to a trainer, through whose log its metrics then go."""
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    def _check(self, state: TrainerState, model: Any) -> None:
        if not state.is_world_process_zero or state.global_step <= self._checked:
            return
        self._checked = state.global_step
        known = self.monitor.referenced
        try:
            with _own_randomness():
                texts = self._texts(model, state.global_step)
                self.report = self.monitor.check(model=model, texts=texts, step=state.global_step)
        except Exception:
            if self.strict:
                raise
            log.exception("the monitor failed at step %d; training goes on.", state.global_step)
            return
        if not known and state.global_step:
            log.warning("the monitor: the reference is step %d, not the start of training.", state.global_step)
        if self.report.check and self.report.last.empty:
            log.warning("the monitor, step %d: %s", state.global_step, self.report.line())
        self._tell(state)

    def _texts(self, model: Any, step: int) -> list[str] | None:
        """Texts of the model; None where it writes none, as after it has diverged, which its loss shows."""
        try:
            return None if self.sample is None else self.sample(model)
        except Exception:
            if self.strict or not self.monitor.referenced:
                raise
            log.exception("the model could not be sampled at step %d; it is judged without texts.", step)
            return None

    def _stop(self, args: TrainingArguments, control: TrainerControl) -> None:
        """Ends training at an alarm in the first process, in all of them."""
        alarm = torch.tensor(float(self.report.status == WARNING), device=args.device)
        if distributed.is_available() and distributed.is_initialized():
            distributed.broadcast(alarm, 0)
        if alarm and not control.should_training_stop:
            log.warning("training is stopped: %s", self.report.line())
            control.should_training_stop = True

    def _tell(self, state: TrainerState) -> None:
        last = self.report.last
        if last.empty:
            return
        metrics = {f"{PREFIX}{row.signal}": row.value for row in last.itertuples()}
        metrics[f"{PREFIX}alarms"] = float(self.report.alarms.shape[0])
        if self._trainer is not None:
            # `log` withdraws a log of the trainer's own that is due after this step.
            due = self._trainer.control.should_log
            self._trainer.log(metrics)
            self._trainer.control.should_log = due
        else:
            state.log_history.append(metrics | {"step": state.global_step})
        log.info("%s", self.report.line())

    def _now(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """A check; the first is the reference."""
        self._check(state, model)
        if self.stop:
            self._stop(args, control)

    on_train_begin = on_evaluate = on_train_end = _now

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """A check after every `every` steps."""
        if self.every and state.global_step % self.every == 0:
            self._now(args, state, control, model)


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """Leaves the random states of Python, numpy and torch as they were, so that sampling changes no training."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
