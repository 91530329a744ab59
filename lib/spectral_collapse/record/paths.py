"""Where things are, independent of the folder a command or notebook is started from."""

import os
import re
import reprlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PARAMS = ROOT / "params"
PROMPTS = PARAMS / "prompts"
# Records that come with the project: the seeds' own figures, and studies too long for every reader to repeat. They are
# read, and never written by a run.
COMMITTED = ROOT / "results"
PUBLISHED = COMMITTED / "published"


def results_root() -> Path:
    """Folder that runs write to: `results/work/`, or `$SPECTRAL_COLLAPSE_RESULTS` when that is set."""
    return Path(os.environ.get("SPECTRAL_COLLAPSE_RESULTS") or COMMITTED / "work").resolve()


def record_roots() -> list[Path]:
    """Folders that records are looked for in: `results_root()`, then, unless a folder is set, those committed."""
    return [results_root()] if os.environ.get("SPECTRAL_COLLAPSE_RESULTS") else [results_root(), COMMITTED]


def study_folder(*names: str) -> Path:
    """Folder of a study: what was made here, else what comes with the project."""
    own = results_root().joinpath(*names)
    return own if (own / "study.json").exists() else COMMITTED.joinpath(*names)


def generated_folder(profile: str) -> Path:
    """Folder of a profile's figures, tables and numbers: `paper/generated/<profile>`, or
    `$SPECTRAL_COLLAPSE_GENERATED/<profile>` when that is set."""
    root = os.environ.get("SPECTRAL_COLLAPSE_GENERATED", ROOT / "paper" / "generated")
    return Path(root).resolve() / path_name(profile)


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


def shown(value: Any) -> str:
    """`repr` of what a user gave, cut to what fits into a sentence."""
    return _SHORT.repr(value)


LONGEST = 100
VARIANT = "+"  # between the name of a profile and that of a variant of it


def path_name(text: str) -> str:
    """`text` unchanged if it is safe as the name of one folder, otherwise a ValueError.

    Profile, model and condition names become folders, so they may not climb out of `results/`.
    """
    if not (isinstance(text, str) and re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9_.{VARIANT}=-]{{0,{LONGEST - 1}}}", text)):
        raise ValueError(f"{shown(text)} cannot name a folder: use up to {LONGEST} letters, digits, '_', '-' and '.'.")
    return text


def model_folder(profile: str, model: str, root: Path | None = None) -> Path:
    """`<root>/<profile>/<model>`, under `results_root()` unless another root is given."""
    return (root or results_root()) / path_name(profile) / path_name(model)


def run_folder(profile: str, model: str, condition: str, seed: int, root: Path | None = None) -> Path:
    """`<root>/<profile>/<model>/<condition>/seed_<seed>`; the base model's condition is `baseline`."""
    return model_folder(profile, model, root) / path_name(condition) / f"seed_{seed}"


def generation_folder(run: Path, generation: int) -> Path:
    """`<run>/generation_<generation>`."""
    return run / f"generation_{generation}"
