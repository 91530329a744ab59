"""Files of the Hugging Face hub at a pinned revision: local copies first, then one request to the hub."""

import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

PATIENCE = 10.0  # seconds for the hub's answer; its client would try for a minute


class Unreachable(ValueError):
    """The hub did not answer."""


def listing(name: str, revision: str, kind: str = "model") -> list[str]:
    """Names of a repository's files at a revision, by one request.

    Unreachable, or ValueError if the hub has no such repository or revision for this machine.
    """
    try:
        info = huggingface_hub.HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=PATIENCE)
    except HFValidationError:
        raise ValueError(f"{name!r} is no folder of this machine and cannot be a name on the hub") from None
    except RevisionNotFoundError:
        raise ValueError(f"{name!r} has no revision {revision} on the hub") from None
    except RepositoryNotFoundError as error:  # or a gated one
        reason = f"status {error.response.status_code}"
        raise ValueError(f"the hub has no {kind} {name!r} that this machine may read ({reason})") from None
    except HfHubHTTPError as error:
        raise Unreachable(f"the hub answered with status {error.response.status_code}") from None
    except Exception as error:  # the client raises many types
        raise Unreachable(f"the hub cannot be reached ({type(error).__name__})") from None
    return [file.rfilename for file in info.siblings]


def _complete(folder: Path, needed: Sequence[str]) -> bool:
    """Whether a folder has a file for each needed pattern, and every shard named by an index of weights."""
    if not all(any(folder.glob(pattern)) for pattern in needed):
        return False
    indices = (json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.safetensors.index.json"))
    return all((folder / shard).exists() for index in indices for shard in index["weight_map"].values())


def snapshot(
    name: str,
    revision: str,
    needed: Sequence[str],
    kind: Literal["model", "dataset"] = "model",
    also: Sequence[str] = (),
) -> Path:
    """Local folder with the files of a repository at a revision (a full commit hash) that match one of the patterns.

    Every `needed` pattern must match a file. Unreachable or ValueError name the files, as a clause for the caller's
    message.
    """
    options = {"repo_id": name, "repo_type": kind, "revision": revision, "allow_patterns": [*needed, *also]}
    wanted = f"{', '.join(needed)} of {name!r} at revision {revision[:12]}"
    try:
        folder = Path(huggingface_hub.snapshot_download(**options, local_files_only=True))
        if _complete(folder, needed):
            return folder
    except (OSError, ValueError):  # not on this machine, or incomplete
        pass
    try:
        files = listing(name, revision, kind)
    except Unreachable as error:
        raise Unreachable(f"{wanted}: not on this machine, and {error}") from None
    for pattern in needed:
        if not any(fnmatch(file, pattern) for file in files):
            pickled = [file for file in files if file.endswith((".bin", ".pt", ".pth"))]
            instead = f"; {pickled[0]} is a pickle and is not opened" if pickled else ""
            raise ValueError(f"{name!r} has no {pattern} at revision {revision[:12]}{instead}")
    try:
        return Path(huggingface_hub.snapshot_download(**options))
    except Exception as error:  # while downloading
        raise Unreachable(
            f"{wanted}: the download broke off ({type(error).__name__}); it goes on where it was"
        ) from None
