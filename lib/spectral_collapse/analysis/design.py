"""What a profile's design can show, known before anything is trained.

python -m spectral_collapse.analysis.design PROFILE    prints it
"""

import sys

import pandas as pd

from ..record import cli, params
from ..record.schema import Params, split_condition
from . import early_warning, metrics, power, primary
from .statistics import ALPHA, CONTROL, TREATMENT, matched_controls


def limits(settings: Params) -> list[str]:
    """What the statistics of a profile's runs will not judge, a sentence each; known before anything is trained.

    ValueError where there is nothing to judge at all: fewer than two seeds, no treatment, or no control; and where the
    clearest outcome of a primary hypothesis could not be significant (`primary.require_answerable`).
    """
    seeds, conditions = len(settings.seeds), settings.conditions
    if seeds < 2:
        raise ValueError(f"seeds: statistics over runs need at least two, and there is {seeds}: add one.")
    for name in (TREATMENT, CONTROL):
        if name not in conditions:
            raise ValueError(f"conditions: statistics need {name!r}, and there is {', '.join(conditions)}: add it.")
    primary.require_answerable(settings)
    weights = {"condition": conditions, "weights": [split_condition(name, settings.weights)[1] for name in conditions]}
    found = [
        f"{name}: a lead has room only in runs where {' and '.join(map(metrics.label, each.outcomes))} first alarm at "
        f"generation {each.lead + 1} or later; an earlier alarm counts against it, whatever the metric does."
        for name, each in primary.named(settings).items()
        if isinstance(each, primary.Warns)
    ]
    unmatched = [name for name, control in matched_controls(pd.DataFrame(weights)).items() if control is None]
    if unmatched:
        found.append(
            f"{', '.join(unmatched)}: no control has the same weights ({CONTROL}_carry or {CONTROL}_restart), so that "
            "nothing is compared."
        )
    if seeds < 3:
        found.append("Two seeds: a band of one control run has no width, so that no alarm, lead or rescue is judged.")
    if settings.generations < 2:
        found.append("One generation: there is no analysis of variance and no correlation over generations.")
    least = power.least_p("sign", seeds)
    if seeds > 2:
        several = "" if least >= ALPHA else f" after Holm's correction over more than {int(ALPHA / least)} metrics"
        found.append(f"{seeds} seeds: the sign test gives p ≥ {least:.2g}: no lead can be called earlier{several}.")
    if not settings.primary:
        found.append("No primary hypothesis: the runs are a demonstration, and every p-value is exploratory.")
    return found


def describe(settings: Params) -> str:
    """The design in lines for a terminal: its size, its primary hypotheses with the least p and the effect that each
    can find, what an alarm takes, and `limits`. ValueError as these."""
    problems = limits(settings)
    seeds, generations = len(settings.seeds), settings.generations
    models = seeds * (1 + len(settings.conditions) * generations)
    excursion = early_warning.excursion(seeds - 1, generations)
    lines = [
        f"{settings.profile}: {seeds} seeds × {len(settings.conditions)} conditions × {generations} generations, "
        f"{models} models.",
    ]
    if seeds > 2:
        lines.append(
            f"An alarm takes {excursion:.2f} standard deviations between control runs, for false alarms in "
            f"{100 * early_warning.RATE:.0f} % of runs."
        )
    for row in primary.capabilities(settings).itertuples():
        lines.append(
            f"{row.statement[0].upper()}{row.statement[1:]}: p ≥ {row.least_p:.2g}, after Holm {row.least_p_holm:.2g}; "
            f"finds {row.detectable} with a power of 80 %."
        )
    return "\n".join([*lines, *problems])


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    return cli.of_profile("analysis.design", __doc__, lambda profile: describe(params.load(profile)), arguments)


if __name__ == "__main__":
    sys.exit(main())
