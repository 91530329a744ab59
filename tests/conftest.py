"""No hub, records in a temporary folder, and language models small enough to build in milliseconds."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig, Qwen2Config

ARCHITECTURES = {
    "llama": (LlamaConfig, {"intermediate_size": 32, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, {"intermediate_size": 32, "num_key_value_heads": 1}),
    "opt": (OPTConfig, {"ffn_dim": 32, "word_embed_proj_dim": 16}),
    "gpt2": (GPT2Config, {}),
}


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory):
    """Records, figures and tables of all tests go to a temporary folder; make in a test is no child of make test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
            patch.delenv(name, raising=False)
        for name in ("RESULTS", "GENERATED"):
            patch.setenv(f"SPECTRAL_COLLAPSE_{name}", str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture(scope="session", params=ARCHITECTURES)
def architecture(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def tiny_model():
    """Builds an untrained two-layer model: tiny_model(architecture, vocabulary, seed), with changes to its config."""

    def build(architecture: str = "llama", vocabulary: int = 61, seed: int = 0, **changes):
        config, options = ARCHITECTURES[architecture]
        usual = {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64,
            "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
            "initializer_range": 0.3,  # far from uniform predictions
        }  # fmt: skip
        config = config(vocab_size=vocabulary, **{**usual, **options, **changes})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()

    return build
