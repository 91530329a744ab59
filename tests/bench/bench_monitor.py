"""The monitor judged on runs that it was not tuned on: false alarms of null runs, detection and delay of real ones.

Writes its tables into docs/monitor.md, between the marks.
"""

import math

import numpy as np
import pandas as pd
from scipy import stats
from spectral_collapse.analysis import public_records, series
from spectral_collapse.estimate import Estimate
from spectral_collapse.monitor import Monitor, Rule, decision
from spectral_collapse.record import evidence, params, paths
from spectral_collapse.text import storyworld

DOCUMENT = paths.ROOT / "docs" / "monitor.md"
RATE = 0.05
SIGNALS = {
    **{"held_out_perplexity": 1, "predictive_entropy": -1, "distinct_2": -1, "distinct_4": -1},
    **{"ngram_entropy_2": -1, "repetition_4": 1, "track_two_drift": -1},
}
STUDIES = {"study": "recursive", "study_carry": "recursive", "tinystories": "recursive", "smollm2_offline": "recursive"}
BLOCKS, SHARE = 64, 0.02  # of a check of a model, and of the training time that it may take


# ---- null runs


def null_means(runs: int = 1000, checks: int = 50, signals: int = 5, units: int = 60) -> float:
    """Share of runs without effect that alarm: signals are means of skewed (exponential) values, paired with one
    reference."""
    rng, rule, alarmed = np.random.default_rng(0), Rule(RATE), 0
    levels = np.array([rule.level(check, signals) for check in range(1, checks + 1)])
    for _ in range(runs):
        reference = rng.exponential(size=(signals, units))
        changes = rng.exponential(size=(checks, signals, units)) - reference
        t = changes.mean(-1) / (changes.std(-1, ddof=1) / math.sqrt(units))
        alarmed += bool((stats.t.sf(t, units - 1) <= levels[:, None]).any())
    return alarmed / runs


def null_texts(runs: int = 50, checks: int = 10, texts: int = 60) -> float:
    """The same of a monitor on fresh stories of one grammar."""
    stories = storyworld.generate_stories(runs * (checks + 1) * texts, 7)
    parts = [stories[start : start + texts] for start in range(0, len(stories), texts)]
    alarmed = 0
    for run in range(runs):
        own = parts[run * (checks + 1) : (run + 1) * (checks + 1)]
        monitor = Monitor(own[0], rule=Rule(RATE))
        alarmed += any(monitor.check(texts=part).status == "warning" for part in own[1:])
    return alarmed / runs


# ---- runs of the packed studies


def runs_of(profile: str) -> dict[tuple[str, int], pd.DataFrame]:
    """(condition, seed) to its rows of signals."""
    frame = pd.read_parquet(paths.EVIDENCE / "trajectories.parquet")
    frame = frame[(frame["profile"] == profile) & frame["metric"].isin(SIGNALS)]
    return {key: run for key, run in frame.groupby(["condition", "seed"])}


def changes(run: pd.DataFrame) -> dict[tuple[int, str], Estimate]:
    """(generation, signal) to the change from generation 0 with its sampling error; drifts are changes already."""
    found = {}
    for name, own in run.groupby("metric"):
        rows = {}
        for row in own.itertuples():
            values = [row.value, row.low, row.high]
            if name == "held_out_perplexity":
                values = list(np.log(values))
            rows[row.generation] = Estimate.of_error(values[0], (values[2] - values[1]) / 2 / stats.norm.ppf(0.975))
        for generation in set(rows) - {0}:
            now = rows[generation]
            found[generation, name] = now if name.endswith("_drift") else now.change_from(rows[0], paired=False)
    return found


def first_alarm(own: dict, controls: list[dict], rule: Rule) -> float:
    """The first generation at which a run alarms, inf without one."""
    signals = len({name for _, name in own})
    for generation in sorted({place for place, _ in own}):
        for name, direction in SIGNALS.items():
            if (change := own.get((generation, name))) is None:
                continue
            if controls:
                change = decision.against_controls(change.value, [run[generation, name].value for run in controls])
            if decision.p_value(change, direction) <= rule.level(generation, signals):
                return generation
    return math.inf


def judged(profile: str, treated: str, with_controls: bool) -> dict[str, float | str]:
    """Detection and delay in treated runs, false alarms in fresh ones; controls are the fresh runs of other seeds."""
    runs = {key: changes(run) for key, run in runs_of(profile).items()}
    last = max(generation for run in runs.values() for generation, _ in run)
    seeds = sorted({seed for condition, seed in runs if condition == treated})
    found = {}
    for condition in (treated, "fresh"):
        alarms = []
        for seed in seeds:
            others = [runs["fresh", other] for other in seeds if other != seed] if with_controls else []
            alarms.append(first_alarm(runs[condition, seed], others, Rule(RATE, checks=last)))
        found[condition] = np.array(alarms)
    raised = found[treated][np.isfinite(found[treated])]
    return {
        "profile": profile,
        "noise from": "control runs" if with_controls else "sampling error",
        "detected": f"{len(raised)} of {len(seeds)}",
        "first alarm, median generation": f"{np.median(raised):g}" if len(raised) else "–",
        "false alarms": f"{int(np.isfinite(found['fresh']).sum())} of {len(seeds)}",
    }


def of_public_tables() -> dict[str, float | str]:
    """The Hessian study's own table of text metrics: its one recursive run against its two controls."""
    table = public_records.text_metrics()
    runs = {name: own.drop(columns="condition").to_dict("records") for name, own in table.groupby("condition")}

    def watched(name: str, controls: list[pd.DataFrame]) -> pd.DataFrame:
        rows = [{metric: value for metric, value in row.items() if metric != "generation"} for row in runs[name]]
        monitor = Monitor(rows[0], controls=controls, rule=Rule(RATE, checks=len(rows) - 1))
        for generation, row in enumerate(rows[1:], start=1):
            report = monitor.check(metrics=row, step=generation)
        return report.to_frame()

    frame = watched("recursive", [watched(name, []) for name in ("fresh", "static")])
    alarms = frame.loc[frame["alarm"], "step"]
    return {
        "profile": "the Hessian study's table (SmolLM2)",
        "noise from": "its 2 controls",
        "detected": f"{int(len(alarms) > 0)} of 1",
        "first alarm, median generation": f"{alarms.min():g}" if len(alarms) else "–",
        "false alarms": "–",
    }


def prices() -> list[str]:
    """What a check of a model once a generation costs of the training time, by the times in the records."""
    rows = []
    for profile in STUDIES:
        settings = params.load(profile)
        later = range(1, settings.generations + 1)
        taken = {}
        for stage in ("training", "anchors"):  # the latter is one pass over the held-out blocks
            found = series.records(settings, stage, settings.conditions[:1], generations=later, source=evidence.PACKS)
            taken[stage] = float(np.median([record["timing"]["wall_seconds"] for *_, record in found]))
        check = BLOCKS * taken["anchors"] / settings.held_out_blocks
        share = check / taken["training"]
        cells = (
            profile,
            f"{taken['training']:.0f} s",
            f"{check:.1f} s",
            f"{share:.1%}",
            f"{BLOCKS * SHARE / share:.0f}",
        )
        rows.append("| " + " | ".join(cells) + " |")
    head = f"| profile | training of a generation | a pass over {BLOCKS} blocks | share | blocks for {SHARE:.0%} |"
    said = "**The price of a check** of a model, once a generation, against the training of that generation."
    return ["", said, "", head, "|---" * 5 + "|", *rows]


def mitigations(profile: str = "tinystories") -> list[str]:
    """Share of recursion's rise in log perplexity, over the fresh control's, that a mixture of text avoids."""
    frame = pd.read_parquet(paths.EVIDENCE / "trajectories.parquet")
    frame = frame[(frame["profile"] == profile) & (frame["metric"] == "held_out_perplexity")]
    last = frame[frame["generation"] == frame["generation"].max()]
    logs = np.log(last.pivot(index="seed", columns="condition", values="value"))
    rows = []
    for condition in ("mixed", "accumulate"):
        share = Estimate.mean(1 - (logs[condition] - logs["fresh"]) / (logs["recursive"] - logs["fresh"]))
        rows.append(f"| {condition} | {share.value:.0%} [{share.low:.0%}, {share.high:.0%}] |")
    said = "**What other text avoids**: the last generation of `tinystories`, against the model's own text alone."
    return ["", said, "", "| text of every round | of the rise in log perplexity avoided |", "|---|---|", *rows]


def tables() -> str:
    """The tables as Markdown, each under a line that says what it shows."""
    nulls = {
        "means of 60 skewed values, 5 signals, 50 checks, 1,000 runs": null_means(),
        "60 stories, 4 signals, 10 checks, 50 runs": null_texts(),
    }
    lines = ["**False alarms** of simulated runs in which nothing changes.", ""]
    lines += [f"| runs without effect, at a rate of {RATE:.0%} | with an alarm |", "|---|---|"]
    lines += [f"| {name} | {share:.1%} |" for name, share in nulls.items()]
    rows = [
        judged(profile, treated, with_controls)
        for profile, treated in STUDIES.items()
        for with_controls in (False, True)
        if not with_controls or len({seed for _, seed in runs_of(profile)}) > 2
    ]
    rows.append(of_public_tables())
    lines += ["", "**Detection**: recursive runs with an alarm; false alarms are those of runs on fresh real text.", ""]
    lines += ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    return "\n".join([*lines, *mitigations(), *prices()])


def main() -> None:
    """Prints the tables and puts them into the guide."""
    found = tables()
    print(found)
    text = DOCUMENT.read_text()
    start, end = "<!-- judged -->\n", "<!-- end of judged -->"
    before, after = text.split(start)[0], text.split(end)[1]
    DOCUMENT.write_text(f"{before}{start}{found}\n{end}{after}")


if __name__ == "__main__":
    main()
