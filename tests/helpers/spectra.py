"""What the curvature tests share: operators of known spectrum, tiny language models, signatures of operators."""

import math

import numpy as np
import torch
import transformers
from spectral_collapse import curvature
from spectral_collapse.curvature.krylov import probe_runs
from spectral_collapse.curvature.spectral import influences_of_blocks
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCABULARY = 13
WIDTH = 8
ROTARY = {"hidden_size": WIDTH, "intermediate_size": 12, "initializer_range": 0.5}
# `_pdrop` and `dropout` are there to be switched off.
GPT2 = {"n_embd": WIDTH, "n_inner": 12, "resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}
OPT = {"hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "ffn_dim": 12, "dropout": 0.3, "init_std": 0.5}
ARCHITECTURES = {
    "gpt2": (GPT2LMHeadModel, GPT2Config, GPT2 | {"initializer_range": 0.5}),
    "opt": (OPTForCausalLM, OPTConfig, OPT),
    "llama": (LlamaForCausalLM, LlamaConfig, ROTARY | {"num_key_value_heads": 2}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, ROTARY | {"num_key_value_heads": 1}),
}


def tiny(name: str, dtype: torch.dtype = torch.float64, **changes) -> PreTrainedModel:
    """A model of one layer and 500 to 800 parameters, with large random weights and tied embeddings."""
    model_class, config_class, shape = ARCHITECTURES[name]
    common = {"vocab_size": VOCABULARY, "num_hidden_layers": 1, "num_attention_heads": 2, "bos_token_id": 0}
    common |= {"max_position_embeddings": 8, "eos_token_id": 0, "tie_word_embeddings": True}
    common |= {"attn_implementation": "eager"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        # Drawn in float32, so that every type starts from the same numbers.
        return model_class(config_class(**common | shape | changes)).to(dtype).eval()


_SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
_ROPE = _SHAPE | {"intermediate_size": 12, "max_position_embeddings": 16, "attn_implementation": "eager"}
# Of every kind of layout that there is beside the four above: name of the class without its ending, configuration.
FOREIGN = {
    "bloom": ("Bloom", {"hidden_size": WIDTH, "n_layer": 2, "n_head": 2}),
    "falcon": ("Falcon", _SHAPE),
    "falcon_two_norms": ("Falcon", _SHAPE | {"num_kv_heads": 1, "new_decoder_architecture": True}),
    "mpt": ("Mpt", {"d_model": WIDTH, "n_heads": 2, "n_layers": 2, "max_seq_len": 16, "expansion_ratio": 2}),
    "rwkv": ("Rwkv", {"hidden_size": WIDTH, "attention_hidden_size": WIDTH, "num_hidden_layers": 2}),
    "mamba": ("Mamba", {"hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 3, "conv_kernel": 3}),
    "gpt_neox": ("GPTNeoX", _ROPE),
    "phi": ("Phi", _ROPE),
    "gemma": ("Gemma", _ROPE | {"head_dim": 4, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2", _ROPE | {"head_dim": 4, "num_key_value_heads": 1}),
    "mixtral": ("Mixtral", _ROPE | {"num_local_experts": 2, "num_experts_per_tok": 1, "num_key_value_heads": 1}),
    "llama4": ("Llama4", _ROPE | {"head_dim": 4, "num_key_value_heads": 1, "intermediate_size_mlp": 12}),
    "opt_projected": ("OPT", _SHAPE | {"word_embed_proj_dim": 6, "ffn_dim": 12, "max_position_embeddings": 16}),
    "opt_post_norm": (
        "OPT",
        _SHAPE | {"word_embed_proj_dim": WIDTH, "ffn_dim": 12, "do_layer_norm_before": False},
    ),
}


def foreign(name: str) -> PreTrainedModel:
    """A float32 model of two layers of another architecture."""
    stem, shape = FOREIGN[name]
    config_class = getattr(transformers, f"{stem}TextConfig" if stem == "Llama4" else f"{stem}Config")
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return getattr(transformers, f"{stem}ForCausalLM")(config_class(vocab_size=VOCABULARY, **ends, **shape)).eval()


def frozen_blocks(count: int = 5, length: int = 7) -> torch.Tensor:
    """Token ids (count, length), among them the one that OPT pads with."""
    blocks = torch.from_numpy(np.random.default_rng(5).integers(0, VOCABULARY, size=(count, length)))
    blocks[:, 2] = 1
    return blocks


def vectors(n: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, n)))


class Logits(torch.nn.Module):
    """A model as the peers call it: blocks in, logits of the predictions out, (B(T−1), V)."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, blocks: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=blocks).logits[:, :-1].flatten(0, 1)


class Rotated:
    """Operator H = Q diag(λ) Qᵀ with a random orthogonal Q, in the type of the vectors it is given."""

    device = "cpu"

    def __init__(self, eigenvalues: np.ndarray, seed: int = 0):
        self.n = len(eigenvalues)
        self.shape = (self.n, self.n)
        self.eigenvalues = np.sort(eigenvalues)
        rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=self.shape))[0]
        self.rotation = torch.from_numpy(rotation)
        self.dense = self.rotation * torch.from_numpy(self.eigenvalues) @ self.rotation.T
        self.single = self.dense.float()

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        return (self.dense if vector.dtype == torch.float64 else self.single) @ vector

    matmat = matvec

    def measure(self, start: torch.Tensor) -> np.ndarray:
        """Weights (n,) that `start` gives to the eigenvalues."""
        components = self.rotation.T @ start.double()
        return (components**2 / (components**2).sum()).numpy()


class MeanOfBlocks:
    """Operator H = Σ_b H_b / B of symmetric matrices (B, n, n), with the forms that errors over blocks need."""

    device, torch_dtype = "cpu", torch.float64

    def __init__(self, matrices: torch.Tensor):
        self.matrices, self.mean = matrices, matrices.mean(0)
        self.blocks, self.n = matrices.shape[:2]
        self.shape = (self.n, self.n)

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        return self.mean @ vector

    def block_forms(self, left: list[torch.Tensor], right: list[torch.Tensor], *, squares: bool = False) -> np.ndarray:
        forms = []
        for vectors, r in zip(left, right, strict=True):
            products = self.matrices @ r
            forms += [torch.stack(list(vectors)) @ products.T, *([products.square().sum(1)[None]] if squares else [])]
        return torch.cat(forms).T.numpy()


def signature_of(operator, steps: int, probes: int, seed: int, storage="full") -> curvature.Signature:
    """Signature of an operator, as `spectral_signature` makes it of a model's."""
    runs, influences = [], []
    for run, basis in probe_runs(operator, steps, probes, seed, storage):
        runs.append(run)
        if hasattr(operator, "block_forms"):
            influences += influences_of_blocks(operator, run, basis)
    return curvature.signature_of_runs(runs, operator.shape[0], influences, basis="float32" if storage else "none")


def without_largest(eigenvalues: np.ndarray, count: int) -> np.ndarray:
    return eigenvalues[np.argsort(-np.abs(eigenvalues))[count:]]


def truths(eigenvalues: np.ndarray, outliers: int) -> dict[str, float]:
    """What a signature estimates, with as many outliers left out of the bulk."""
    bulk = without_largest(eigenvalues, outliers)
    share = np.abs(eigenvalues) / np.abs(eigenvalues).sum()
    return {
        "mean_eigenvalue": eigenvalues.mean(),
        "spectral_variance": eigenvalues.var(),
        "bulk_center": bulk.mean(),
        "bulk_sigma": bulk.std(),
        "log_spectral_ratio": math.log(eigenvalues.max() / bulk.std()),
        "effective_rank": eigenvalues.sum() ** 2 / (eigenvalues**2).sum(),
        "spectral_entropy": -(share * np.log(share + 1e-300)).sum(),
    }
