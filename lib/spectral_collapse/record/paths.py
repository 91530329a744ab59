"""Where files are, whatever folder a command or notebook is started from."""

import os
import re
import reprlib
from pathlib import Path, PurePath
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PARAMS = ROOT / "params"
PROMPTS = PARAMS / "prompts"
RESULTS = ROOT / "results"
EVIDENCE = RESULTS / "evidence"  # packed studies, which no run reads or writes
PUBLISHED = RESULTS / "published"  # the figures of the papers that this project replicates


def results_root() -> Path:
    """Folder that runs write to: `results/work`, or `$SPECTRAL_COLLAPSE_RESULTS` if that is set."""
    return Path(os.environ.get("SPECTRAL_COLLAPSE_RESULTS") or RESULTS / "work").resolve()


def generated_folder(profile: str) -> Path:
    """Folder of a profile's figures, tables and numbers: `paper/generated/<profile>`, or
    `$SPECTRAL_COLLAPSE_GENERATED/<profile>` when that is set."""
    root = os.environ.get("SPECTRAL_COLLAPSE_GENERATED", ROOT / "paper" / "generated")
    return Path(root).resolve() / path_name(profile)


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


def shown(value: Any) -> str:
    """`repr` of a user's value, shortened to fit into a sentence."""
    return _SHORT.repr(value)


LONGEST = 100
VARIANT = "+"  # separates the names of a profile and of a variant of it


def path_name(text: str) -> str:
    """`text` unchanged if it is safe as the name of one folder; ValueError otherwise.

    Profiles, models and conditions name folders, which must not lie outside `results/`.
    """
    if not (isinstance(text, str) and re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9_.{VARIANT}=-]{{0,{LONGEST - 1}}}", text)):
        raise ValueError(f"{shown(text)} cannot name a folder: use up to {LONGEST} letters, digits, '_', '-' and '.'.")
    return text


def model_folder(profile: str, model: str) -> Path:
    """`<results_root()>/<profile>/<model>`."""
    return results_root() / path_name(profile) / path_name(model)


def run_folder(profile: str, model: str, condition: str, seed: int) -> Path:
    """`<model_folder()>/<condition>/seed_<seed>`; the base model's condition is `baseline`."""
    return model_folder(profile, model) / path_name(condition) / f"seed_{seed}"


def generation_folder(run: PurePath, generation: int) -> PurePath:
    """`<run>/generation_<generation>`."""
    return run / f"generation_{generation}"
