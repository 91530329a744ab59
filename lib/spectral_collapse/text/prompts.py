"""Prompt banks: the prompts whose responses are embedded."""

import json
from pathlib import Path

from ..record import paths

PROMPT = ("id", "bucket", "text")


def bank_file(name: str) -> Path:
    """`params/prompts/<name>.jsonl`. ValueError if it does not exist."""
    path = paths.PROMPTS / f"{paths.path_name(name)}.jsonl"
    if not path.exists():
        banks = ", ".join(sorted(file.stem for file in paths.PROMPTS.glob("*.jsonl")))
        raise ValueError(f"prompt_bank {name!r} is not in params/prompts: the banks there are {banks}.")
    return path


def prompt_bank(name: str) -> list[dict[str, str]]:
    """Prompts of `params/prompts/<name>.jsonl`: dictionaries with id, bucket and text, in file order.

    ValueError, with file and line, for anything but a prompt and for an id that stands twice.
    """
    path = bank_file(name)
    prompts: dict[str, dict[str, str]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line.decode("utf-8"))
            good = set(prompt) == set(PROMPT) and all(part.strip() for part in prompt.values())
            "".join(prompt.values()).encode()  # refuses lone surrogates
        except (ValueError, TypeError, AttributeError, RecursionError):
            good = False
        if not good:
            form = ", ".join(f'"{part}": "…"' for part in PROMPT)
            raise ValueError(f"{path}, line {number}: a prompt is a line of JSON in UTF-8, {{{form}}}.")
        if prompt["id"] in prompts:
            raise ValueError(f"{path}, line {number}: the id {prompt['id'][:100]!r} stands twice.")
        prompts[prompt["id"]] = prompt
    if not prompts:
        raise ValueError(f"{path} is empty: give it a prompt a line.")
    return list(prompts.values())
