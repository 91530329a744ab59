"""Nothing is executed that comes as data: profiles, parameters, text, checkpoints."""

import json
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from spectral_collapse.model import build
from spectral_collapse.paper import pdf, tables
from spectral_collapse.record import params, paths
from spectral_collapse.text import tokenizers
from typesetting import T1, typeset

MARKER = "executed"  # a file that no attack may make


@pytest.fixture
def marker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path / MARKER
    assert not (tmp_path / MARKER).exists()


# ---- profiles and parameters


@pytest.mark.parametrize(
    "text",
    [
        f"!!python/object/apply:os.system ['touch {MARKER}']",
        f"!!python/object/new:subprocess.Popen [[touch, {MARKER}]]",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_yaml_makes_no_objects(marker, tmp_path, text):
    (tmp_path / "own.yaml").write_text(f"profile: {text}\n")
    with pytest.raises(ValueError, match=r"own\.yaml: not readable as YAML \(could not determine a constructor"):
        params.read_yaml(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    "config",
    ["profile=../../etc/x", f"profile=x;touch {MARKER}", f"grid=$(touch {MARKER})", f"data_path='; touch {MARKER} #"],
)
def test_workflow_takes_no_commands_for_names(marker, config):
    workflow = ["-s", paths.ROOT / "Snakefile", "-d", paths.ROOT, "--cores", "1", "--config", config]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", *workflow],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "cannot name a folder" in said or "storyworld is embedded and reads no file" in said
    assert "Traceback" not in said


# ---- checkpoints

EVIL = f"""
import pathlib
pathlib.Path({MARKER!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig): pass
class Model(LlamaForCausalLM): pass
class Tokenizer(PreTrainedTokenizerFast): pass
"""


@pytest.fixture
def checkpoint(tmp_path, tiny_model):
    """A whole local checkpoint, and the profile that names it."""
    folder = tmp_path / "checkpoint"
    tokenizer = tokenizers.train_tokenizer(["Tom ran home. Mia sat down."] * 20, 300)
    tiny_model("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, params.load("smoke", checkpoint=str(folder))


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("model_type", ["llama", "unheard_of"])
def test_code_of_a_checkpoint_is_not_run(marker, checkpoint, model_type):
    folder, settings = checkpoint
    (folder / "evil.py").write_text(EVIL)
    config = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit(folder / "config.json", auto_map=config, model_type=model_type)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]})
    if model_type == "llama":  # known here: its own code is passed over
        model = build.initial_model(settings, tokenizers.load_tokenizer(settings), 1)
        assert type(model).__module__.startswith("transformers.")
    else:
        with pytest.raises(ValueError, match="could not be loaded") as caught:
            build.initial_model(settings, tokenizers.load_tokenizer(settings), 1)
        assert "\n" not in str(caught.value)


class Payload:
    def __reduce__(self):
        return Path.touch, (Path(MARKER),)


def test_pickles_of_a_checkpoint_are_not_opened(marker, checkpoint):
    folder, settings = checkpoint
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Payload()))
    build.initial_model(settings, tokenizers.load_tokenizer(settings), 1)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no file named model\.safetensors"):
        build.initial_model(settings, tokenizers.load_tokenizer(settings), 1)


def test_library_writes_and_reads_no_pickles():
    sources = [file.read_text() for file in (paths.ROOT / "lib").rglob("*.py")]
    words = "import pickle", "torch.load(", "torch.save(", "trust_remote_code=True", "shell=True", "eval(", "exec("
    for word in words:
        assert not [source for source in sources if word in source.replace(".eval(", "")], word


# ---- LaTeX

STORY = {
    r"Tom \input{/etc/passwd} ran": r"Tom \input{/etc/passwd} ran",
    r"\immediate\write18{touch executed}": r"\immediate\write18{touch executed}",
    r"\catcode`\%=12 \def\x{\x}\x": r"\catcode`\%=12 \def\x{\x}\x",
    "100 % of_it & $x$ # ~ ^^M \\": r"100 % of_it & $x$ # ~ ^^M \ ",
    "}}\\end{document}": r"}}\end{document}",
    "naïve \u202e 🦊 \x00\x1b[31m \u2028 \ufeff": "naïve U+202E U+1F98A",
}


def test_a_story_of_commands_is_text_in_tables(marker, tmp_path):
    shutil.copy(pdf.PAPER / "latexmkrc", tmp_path)
    tables.write_table(pd.DataFrame({"story": STORY.keys(), "n": range(len(STORY))}), tmp_path / "story.tex")
    lines = [" ".join(line.split()) for line in typeset(tmp_path, r"\input{story.tex}", T1).splitlines()]
    for number, expected in enumerate(STORY.values()):
        assert any(line.startswith(expected.strip()) and line.endswith(f" {number}") for line in lines), expected


def test_random_text_is_typeset(tmp_path):
    dice = random.Random(1)
    ranges = [(0, 0x80), (0x80, 0x250), (0x2000, 0x2070), (0, 0xD800), (0xE000, 0x110000)]
    texts = ["".join(chr(dice.randrange(*dice.choice(ranges))) for _ in range(6)) for _ in range(120)]
    body = []
    for part in range(0, len(texts), 30):
        tables.write_table(pd.DataFrame({"text": texts[part : part + 30]}), tmp_path / f"{part}.tex")
        body.append(rf"\input{{{part}.tex}}\par")
    assert "text" in typeset(tmp_path, "\n".join(body), T1)


def test_latex_has_no_shell_even_if_asked(marker, tmp_path):
    """The paper's own settings, and a document that no escaping has been through."""
    shutil.copy(pdf.PAPER / "latexmkrc", tmp_path)
    typeset(tmp_path, rf"\immediate\write18{{touch {MARKER}}}text")
    assert "runsystem" in (log := (tmp_path / "main.log").read_text(errors="replace")) and "disabled" in log
