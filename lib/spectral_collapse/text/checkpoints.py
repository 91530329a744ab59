"""Checkpoints from a folder, a file of a package or the hub, at a pinned revision, loaded without pickles."""

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import logging

from ..record import provenance
from ..record.schema import Params
from . import hub

PACKAGED, GGUF = "package:", ".gguf"

FILES = ("config.json", "*.safetensors")  # required; the names of a tokenizer's files vary


def _require_pinned(checkpoint: str, revision: str | None) -> None:
    if checkpoint.startswith(PACKAGED):
        form = r"[0-9a-f]{64}"
        what = "is a file of a Python package, where revision must be its SHA-256"
    elif not Path(checkpoint).expanduser().exists():
        form = r"[0-9a-f]{40}"
        what = "is not a local folder, so it comes from the hub, where revision must be a full commit hash"
    else:
        return
    if not re.fullmatch(form, revision or ""):
        raise ValueError(f"checkpoint {checkpoint!r} {what}, not {revision!r}.")


def _packaged(checkpoint: str, sha256: str) -> Path:
    """The installed file that `package:<module>/<file>` names. ValueError unless it has this hash."""
    module, _, name = checkpoint.removeprefix(PACKAGED).partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"checkpoint {checkpoint!r}: the package is not installed; `make models` installs it.")
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file():
        raise ValueError(f"checkpoint {checkpoint!r}: no such file in its package; `make models` installs it.")
    if (found := provenance.file_hash(path)) != sha256:
        raise ValueError(f"{path} has SHA-256 {found[:12]}…, not {sha256[:12]}…: reinstall it with `make models`.")
    return path


def unusable(params: Params, reason: str) -> ValueError:
    return ValueError(
        f"checkpoint {params.checkpoint!r} could not be loaded ({reason}): give a folder with config.json, "
        "tokenizer files and model.safetensors, a .gguf file, or a hub name that this machine can reach."
    )


def _from_hub(params: Params) -> Path:
    """Local folder of the checkpoint's files, so that loading them needs no hub."""
    try:
        return hub.snapshot(params.checkpoint, params.revision, FILES, also=("*.json", "*.txt", "*.model"))
    except hub.Unreachable as error:
        raise ValueError(
            f"checkpoint {params.checkpoint!r} could not be loaded ({error}): connect this machine; or set "
            "checkpoint to a folder with these files and the tokenizer's; or take a profile whose "
            f"checkpoint begins with {PACKAGED!r}: `make models` installs its weights."
        ) from None
    except ValueError as error:
        raise unusable(params, str(error)) from None


def from_checkpoint(loader: type, params: Params, **options: Any) -> Any:
    """`loader.from_pretrained` of the profile's checkpoint; any failure is a ValueError.

    The checkpoint is a hub name, a local folder, or a .gguf file, local or of a package
    (`package:<module>/<file>.gguf`), whose quantised weights are read into floats.
    """
    local = Path(params.checkpoint).expanduser()
    packaged = params.checkpoint.startswith(PACKAGED)
    named_as_path = local.suffix == GGUF or params.checkpoint.startswith(("/", ".", "~"))
    if named_as_path and not packaged and not local.exists():
        raise unusable(params, f"there is no {local.absolute()}")
    _require_pinned(params.checkpoint, params.revision)
    if packaged:
        local = _packaged(params.checkpoint, params.revision)
    if local.suffix == GGUF:
        source, options = local.parent, {**options, "gguf_file": local.name}
    elif local.is_file():
        raise unusable(params, f"{local.name} is no folder")
    elif local.is_dir():
        source = local
    else:
        source = _from_hub(params)
    logging.disable_progress_bar()  # it would stay in the outputs of a notebook
    try:
        return loader.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unusable(params, str(error).strip().splitlines()[0].rstrip(".: ")) from None


def checkpoint_hash(params: Params) -> str | None:
    """Identity of the profile's checkpoint, if it has one: its revision, or the hash of weights and configuration in a
    local folder."""
    if params.checkpoint is None:
        return None
    folder = Path(params.checkpoint).expanduser()
    if params.checkpoint.startswith(PACKAGED) or not folder.is_dir():
        return params.revision
    files = sorted(file for pattern in FILES for file in folder.glob(pattern))
    return _files_hash(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@functools.cache
def _files_hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    return provenance.text_hash(provenance.canonical([[file.name, provenance.file_hash(file)] for file, *_ in files]))
