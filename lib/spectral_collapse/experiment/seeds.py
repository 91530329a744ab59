"""Whole seeds in one process, within a limit of time: every record that the notebooks of a profile would make.

    python -m spectral_collapse.experiment.seeds PROFILE [--seeds 1,2] [--conditions fresh] [--sigma] [--hours 2.5]
                                                 [key=value ...]

What is recorded is not made again, so that a later call goes on; the notebooks then find all records. A finished study
is packed by `make pack`.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence

from ..record import cli, params
from ..record.schema import Params, check_selectors
from ..text import corpora
from . import encoded, measure, rescue
from .runs import Run


def stages(run: Run, generation: int) -> list[Callable]:
    """The stages that the notebooks ask of a generation, but for generation 0's own."""
    settings, first, last = run.params, run.seed == run.params.seeds[0], generation == run.params.generations
    wanted: list[Callable] = [encoded.sigma, encoded.coherence]
    if run.source == "recursive" and generation:
        wanted.append(rescue.rescue)
    if settings.rescue_doses and last and run.source in ("recursive", "fresh"):
        wanted.append(rescue.doses)
    if settings.layerwise_spectra and first and (last or generation == 0):
        wanted.append(measure.layers)
    return wanted


# What SIGMA's protocol asks of a generation; anchor entropy and held-out perplexity are the cheap rivals of its tracks.
SIGMA = {name: measure.STAGES[name] for name in ("training", "evaluation", "anchors", "responses")} | {
    "sigma": encoded.sigma
}


def make(
    settings: Params,
    seeds: Sequence[int],
    until: float,
    say: Callable[[str], None] = print,
    *,
    conditions: Sequence[str] | None = None,
    sigma: bool = False,
) -> bool:
    """Makes the records of the seeds, one generation after another; False if it stopped, at a generation that would
    probably end after `until` (of `time.monotonic`). `conditions`: the profile's if None. `sigma`: the stages of SIGMA
    alone."""
    real, longest = corpora.RealText(settings), 0.0
    order = [
        (seed, condition, generation)
        for seed in seeds
        for condition in conditions or settings.conditions
        for generation in range(settings.generations + 1)
    ]
    for place, (seed, condition, generation) in enumerate(order):
        start = time.monotonic()
        if start + longest > until:
            say(f"The time is up after {place} of {len(order)} generations; the same command goes on.")
            return False
        run = Run(settings, condition, seed, real=real, say=say)
        measure.generation(run, generation, SIGMA if sigma else measure.STAGES)
        for stage in [] if sigma else stages(run, generation):
            stage(run, generation)
        took = time.monotonic() - start
        longest = max(longest, took)
        say(f"seed {seed}, {condition}, generation {generation}: {took:.0f} s; {place + 1} of {len(order)} done.")
    return True


def numbers(text: str) -> list[int]:
    """The seeds in "1,2"."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds such as 1,2") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status: 0 also where the time was up, since the next call goes on."""
    parser = argparse.ArgumentParser(
        prog="python -m spectral_collapse.experiment.seeds", description=__doc__.split("\n")[0]
    )
    parser.add_argument("profile")
    parser.add_argument("--seeds", type=numbers, metavar="1,2", help="the profile's if left out")
    parser.add_argument("--conditions", type=lambda text: text.split(","), metavar="fresh,mixed", help="likewise")
    parser.add_argument("--sigma", action="store_true", help="SIGMA's stages alone: no curvature, coherence or rescue")
    parser.add_argument("--hours", type=float, default=float("inf"), help="no generation starts that would end later")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="parameters of the profile")
    chosen = parser.parse_intermixed_args(arguments)

    def run() -> str:
        until = time.monotonic() + 3600 * chosen.hours
        settings = params.load(chosen.profile, **cli.assignments(chosen.overrides))
        seeds = settings.seeds if chosen.seeds is None else chosen.seeds
        conditions = chosen.conditions or settings.conditions
        for seed, condition in itertools.product(seeds, conditions):
            check_selectors(seed, condition)
        whole = make(settings, seeds, until, conditions=conditions, sigma=chosen.sigma)
        state = "complete" if whole else "not complete"
        return f"{params.name_of(settings)}, seeds {', '.join(map(str, seeds))}: {state}."

    return cli.outcome(run)


if __name__ == "__main__":
    sys.exit(main())
