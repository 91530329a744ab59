"""SIGMA's experiment as its paper reports it: S1 beside S2 under the names of its artefacts, and two checks.

python -m spectral_collapse.paper.sigma_experiment PROFILE    # after the profile's runs: make sigma PROFILE=...
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd
import yaml

from ..analysis import series, sigma_settings
from ..experiment import sigma_checks
from ..machine import devices
from ..record import cli, paths, provenance
from ..record import params as params_module
from ..record.schema import Params
from ..text import encoder
from ..text.prompts import prompt_bank
from . import figures
from . import output as paper
from .tables import Number, Raw, frame_of

CARD = paths.ROOT / "paper" / "sigma_card.yaml"
PREFIXES = {"finance": "fin", "technology": "tech"}  # of the published artefacts, by prompt bank
HOMES = {"S1": ("final", ""), "S2": ("true_recursion", "_recursion")}  # folder and suffix of the metrics
TRACK_NAMES = {
    "track_two": "Track II",
    "track_one": "Track I",
    "track_one_sharp": "Track I, sharp",
    "logdet": "log det, corrected",
}
HEADINGS = {
    **{"condition": "Condition", "setting": "Setting", "seed": "Seed", "track": "Track", "n_observed": "$n_A$"},
    **{"drift": "Drift", "low": "Low", "high": "High", "standard_error": "s.e."},
    **{"mean": "Mean drift", "sd": "s.d.", "q95": r"95\,\% of sizes below"},
    **{"generation": "Generation", "track2_drift": "Track II drift", "track1_drift": "Track I drift"},
    **{"track1_sharp_drift": "Track I drift, sharp", "logdet_drift": r"$\log\det\Sigma$ drift"},
    **{"final_generation": "$G$", "track2_final_drift": "Track II, final", "track2_slope": "Track II, slope"},
    **{"track1_final_drift": "Track I, final", "track1_slope": "Track I, slope", "agree": "Agreement"},
    **{"distinct2_first": "distinct-2 ($t=0$)", "distinct2_last": "distinct-2 ($t=G$)"},
    **{"hhi_first": "HHI ($t=0$)", "hhi_last": "HHI ($t=G$)"},
    **{"rho_distinct2": r"$\rho$(II, distinct-2)", "r_hhi": "$r$(II, HHI)", "rho_hhi": r"$\rho$(II, HHI)"},
}


def _shown(frame: pd.DataFrame, decimals: int = 3) -> pd.DataFrame:
    """The columns that have HEADINGS, under these; numbers with fixed decimals."""

    def cell(value: object) -> object:
        if isinstance(value, (bool, np.bool_)):
            return "yes" if value else "no"
        if isinstance(value, float):
            return Number(f"${value:.{decimals}f}$" if math.isfinite(value) else "--")
        return TRACK_NAMES.get(value, value)

    names = [name for name in HEADINGS if name in frame]
    rows = [[cell(value) for value in row] for row in frame[names].itertuples(index=False)]
    return frame_of(rows, [Raw(HEADINGS[name]) for name in names])


def card(params: Params, names: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """The ten tables that specify S1 and S2, from the profile; `names`: the conditions by setting."""
    bank = prompt_bank(params.prompt_bank)
    versions = provenance.environment(str(devices.pick_device(params.device)))
    prefix = PREFIXES.get(params.prompt_bank, params.prompt_bank)
    filled = {
        "p": params,
        "base": params.checkpoint or f"{params.model}, trained on {params.baseline_blocks} blocks",
        "share": params.real_fraction if names["S1"].startswith("mixed") else 0.0,
        "prompts": len(bank),
        "checkpoints": params.generations + 1,
        "top_k": params.top_k or "no limit",
        "seeds": ", ".join(map(str, params.seeds)),
        "encoder": encoder.Encoder.sha256[:12],
        "prefix": prefix,
        "domain": prefix.upper(),
        **names,
    }
    tables = yaml.safe_load(CARD.read_text(encoding="utf-8"))
    tables = {name: {item: text.format(**filled) for item, text in rows.items()} for name, rows in tables.items()}
    tables["software"] = {name: versions[name] for name in ("python", *provenance.PACKAGES, "machine", "device")}
    buckets = Counter(prompt["bucket"] for prompt in bank)
    tables["buckets"] = {name.replace("_", "-"): f"{count} prompts" for name, count in buckets.items()}
    return {name: pd.DataFrame(list(rows.items()), columns=["Item", "Value"]) for name, rows in tables.items()}


def write(params: Params) -> list[str]:
    """Writes every artefact into the profile's generated folder, and returns their names.

    The two-track reports need a profile with S1 and S2, the checks only the runs. ValueError naming a missing record.
    """
    output, prefix = paper.Output(params), PREFIXES.get(params.prompt_bank, params.prompt_bank)
    domain = prefix.upper()
    table, drifts = series.table(params, stages=("sigma",)), series.drifts(params)
    noise, sizes = sigma_checks.checks(params)
    output.table(f"tab_{prefix}_noise_floor", _shown(noise))
    output.csv(f"final/{domain}/noise_floor.csv", noise)
    if len(sizes):
        output.table(f"tab_{prefix}_sizes", _shown(sizes))
        output.csv(f"final/{domain}/sizes.csv", sizes)
    names = sigma_settings.settings(params)
    if not names:
        return output.written

    buckets = series.bucket_drifts(params)
    points = {setting: sigma_settings.points(table, condition) for setting, condition in names.items()}
    by_setting = {setting: drifts[drifts["condition"] == condition] for setting, condition in names.items()}
    for setting, condition in names.items():
        name, (folder, suffix) = f"{prefix}_{setting.lower()}_two_tracks", HOMES[setting]
        output.figure(name, figures.sigma_tracks(by_setting[setting]))
        output.table(f"{name}_points", _shown(points[setting], 6))
        output.csv(f"{folder}/{domain}/metrics_paper{suffix}.csv", points[setting])
        own = buckets[buckets["condition"] == condition]
        output.csv(f"{folder}/{domain}/metrics_buckets_paper{suffix}.csv", own)
    output.table(f"tab_{prefix}_s1s2_summary", _shown(sigma_settings.summary(points)))
    output.table(f"tab_{prefix}_proxies", _shown(sigma_settings.proxies(points), 6))
    output.figure(f"{prefix}_surface_proxies", figures.sigma_overlay(points, by_setting))
    for number, (name, frame) in enumerate(card(params, names).items(), start=1):
        output.table(f"{prefix}_card_{number:02}_{name}", frame)
    return output.written


def main(arguments: list[str]) -> int:
    """Writes the artefacts of a profile; 1 with one sentence where that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m spectral_collapse.paper.sigma_experiment")
    parser.add_argument("profile")
    parser.add_argument("-y", action="append", default=[], metavar="'KEY: VALUE'", dest="changes")
    given = parser.parse_args(arguments)
    changes = {key: value for change in given.changes for key, value in yaml.safe_load(change).items()}
    return cli.outcome(lambda: "\n".join(write(params_module.load(given.profile, **changes))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
