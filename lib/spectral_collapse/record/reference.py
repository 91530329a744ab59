"""The page of all parameters: `python -m spectral_collapse.record.reference > docs/parameters.md`."""

import json
from typing import Annotated, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from .schema import GROUPS


def _values(field: FieldInfo) -> str:
    """What a parameter may be, in words."""
    kind, text = field.annotation, ""
    if get_origin(kind) is list:
        (kind,), text = get_args(kind), "list of "
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return text + ", ".join(f"`{choice}`" for choice in get_args(kind))
    kind = next((each for each in get_args(kind) if each is not type(None)), kind)
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f" {sign} {getattr(each, name):g}"
        for each in field.metadata
        for name, sign in signs.items()
        if hasattr(each, name)
    ]
    return text + {str: "text", int: "integer", float: "number", bool: "true, false"}[kind] + ",".join(limits)


def reference() -> str:
    """All parameters by group, as Markdown: docs/parameters.md."""
    lines = ["# Parameters", "", "What a profile states, by group. A key without a default must be in the profile."]
    for group in GROUPS:
        lines += ["", f"## {group.__name__}", "", f"{group.__doc__}", ""]
        lines += ["| key | values | default | meaning |", "|---|---|---|---|"]
        for name, field in group.model_fields.items():
            default = "" if field.is_required() else f"`{json.dumps(field.default)}`"
            lines.append(f"| `{name}` | {_values(field)} | {default} | {field.description} |")
    command = "python -m spectral_collapse.record.reference > docs/parameters.md"
    return "\n".join([*lines, "", f"`{command}` writes this page."])


if __name__ == "__main__":
    print(reference())
