"""Language models from scratch or from a checkpoint, and their properties."""

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from ..estimate import stable_seed
from ..record.schema import Params
from ..text.checkpoints import from_checkpoint, unusable


def _config(params: Params, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Configuration of a model trained from scratch.

    All architectures have about 12 d² parameters a layer at hidden size d: 4 d² in the attention, and 8 d² in two
    matrices of width 4 d (GPT-2, OPT) or three of width 8/3 d, rounded up to a multiple of 32 (Llama, Qwen2).
    """
    d, end = params.hidden_size, tokenizer.eos_token_id
    gated = {"intermediate_size": 32 * -(-8 * d // 96), "num_key_value_heads": params.heads}
    # Dropout belongs to the training, alike for all architectures. With a padding token a row of OPT's embedding would
    # get no gradient.
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
    """The model before training: the checkpoint, or the architecture with weights drawn from `seed`.

    With eager attention, since curvature needs a second derivative and the CPU's fused attention has none.
    """
    if params.checkpoint is not None:
        model, report = from_checkpoint(
            AutoModelForCausalLM,
            params,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,
            output_loading_info=True,
        )
        if missing := sorted(report["missing_keys"]):  # transformers would initialise them at random
            raise unusable(params, f"the weights {missing[0]} are missing")
        if names := not_finite_weights(model):
            raise unusable(params, f"the weights {names} are not finite")
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


def tokens_without_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the model's vocabulary that the tokenizer lacks, which usually pad its size."""
    return sorted(set(range(model.config.get_text_config().vocab_size)) - set(tokenizer.get_vocab().values()))


def not_finite_weights(model: torch.nn.Module) -> str:
    """Names of at most three parameters with a NaN or infinity, for a message; empty if there are none."""
    names = [name for name, tensor in model.named_parameters() if not tensor.isfinite().all()]
    more = [f"{len(names) - 3} more"] if len(names) > 3 else []
    return ", ".join(names[:3]) + "".join(f" and {rest}" for rest in more)


def not_finite(model: PreTrainedModel, description: str) -> ValueError:
    """The error of a model whose predictions are not finite; names the weights that are not."""
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
