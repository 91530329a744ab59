"""What the paper cites is written, and nothing else."""

import re

from spectral_collapse.paper import output
from spectral_collapse.record import params, paths

PAPER = paths.ROOT / "paper"
# Of the sections that only a profile with storyworld, or with spectra by layer, typesets.
SWITCH = re.compile(
    r"\\if(storyworld|layerwise)\b((?:(?!\\if(?:storyworld|layerwise)\b).)*?)(?:\\else(.*?))?\\fi\b", re.S
)


def _group(text: str, start: int) -> int:
    """Place after the braced group that starts at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError("a group without an end")


def typeset_keys(text: str, known: set[str], switches: set[str]) -> set[str]:
    r"""Keys that \val prints where `known` are defined: \ifval{key}{yes}{no} chooses, as do the switches."""
    text = SWITCH.sub(lambda found: (found[2] if found[1] in switches else found[3]) or "", text)
    while found := re.search(r"\\ifval\{([^{}#]+)\}%?\s*", text):
        yes = _group(text, found.end())
        no_start = yes + re.match(r"%?\s*", text[yes:]).end()
        no = _group(text, no_start)
        chosen = text[found.end() + 1 : yes - 1] if found[1] in known else text[no_start + 1 : no - 1]
        text = text[: found.start()] + chosen + text[no:]
    return set(re.findall(r"\\val\{([^{}#]+)\}", text))


def sections() -> str:
    texts = [file.read_text(encoding="utf-8") for file in (PAPER / "sections").glob("*.tex")]
    return re.sub(r"(?<!\\)%.*", "", "\n".join(texts))


def test_every_key_that_the_text_prints_is_written():
    """In the committed files, of the study on TinyStories: an unknown key would stop the paper."""
    folder = PAPER / "generated" / "tinystories"
    written = "".join((folder / name).read_text(encoding="utf-8") for name in ("numbers.tex", "studies.tex"))
    known = set(re.findall(r"\\setval\{([^{}]+)\}", written))
    needed = typeset_keys(sections(), known, {"layerwise"})
    assert len(needed) > 300 and needed <= output.cited()
    assert not needed - known
    assert typeset_keys(r"\val{no_such_key} \ifval{a}{\val{a}}{\val{b}}", {"a"}, set()) == {"no_such_key", "a"}


def test_values_that_no_section_cites_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRAL_COLLAPSE_GENERATED", str(tmp_path))
    out = output.Output(params.load("smoke"))
    out.values({"seeds": "2", "no_such_key": "1", "param.corpus": "storyworld"})
    assert (
        tmp_path / "smoke" / "numbers.tex"
    ).read_text() == "\\setval{seeds}{2}\n\\setval{param.corpus}{storyworld}\n"
    assert out.written == ["numbers.tex"]


def test_keys_are_found_in_every_form_but_not_in_comments():
    keys = output.cited()
    assert {"seeds", "param.corpus", "lead.impossible", "alarm.rate"} <= keys
    assert "key" not in keys  # named in a comment of main.tex
