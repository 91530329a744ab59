"""The plain decoder against the model's own forward."""

import pytest
import torch
from spectral_collapse.model.decoder import Decoder, decodes
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 61}
MODELS = {
    "llama": (LlamaConfig, {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "grouped": (LlamaConfig, {"num_key_value_heads": 2, "head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "llama 3": (
        LlamaConfig,
        {
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            },
        },
    ),
    "qwen2": (Qwen2Config, {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "mistral": (MistralConfig, {"num_key_value_heads": 2, "sliding_window": None}),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def model(request):
    config, changes = MODELS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = config(**SIZES, **changes, initializer_range=0.3)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model


def logits(model, tokens, mask):
    """Row by row, without padding."""
    with torch.no_grad():
        rows = [model(row[kept.bool()][None]).logits[0, -1] for row, kept in zip(tokens, mask, strict=True)]
    return torch.stack(rows)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 2e-5), (torch.bfloat16, 0.2)])
def test_logits_are_those_of_the_model_at_every_step(model, dtype, tolerance):
    """Float64 too: transformers computes RMSNorm and rotary tables in float32."""
    model, generator = model.to(dtype), torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 61, (5, 7), generator=generator)
    mask = (torch.arange(7) >= torch.tensor([[0], [3], [6], [0], [1]])).long()
    assert decodes(model)
    with torch.no_grad():
        decoder = Decoder(model, tokens, mask, 6)
        torch.testing.assert_close(decoder.logits, logits(model, tokens, mask), rtol=tolerance, atol=tolerance)
        for step in range(6):
            if step == 3:  # the third sequence is finished
                rows = torch.tensor([0, 1, 3, 4])
                decoder.keep(rows)
                tokens, mask = tokens[rows], mask[rows]
            new = torch.randint(0, 61, (len(tokens), 1), generator=generator)
            tokens, mask = torch.cat([tokens, new], dim=1), torch.cat([mask, torch.ones_like(new)], dim=1)
            torch.testing.assert_close(decoder(new), logits(model, tokens, mask), rtol=tolerance, atol=tolerance)


def test_what_the_decoder_would_not_compute_is_left_to_the_model(model):
    assert decodes(model)
    hook = model.model.layers[0].register_forward_hook(lambda *_: None)
    assert not decodes(model)
    hook.remove()
    linear = model.model.layers[1].mlp.down_proj
    model.model.layers[1].mlp.down_proj = torch.nn.Sequential(linear)  # as wrapped by an adapter
    assert not decodes(model)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (LlamaConfig, {"hidden_act": "gelu"}),
        (LlamaConfig, {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}),
        (MistralConfig, {"sliding_window": 8}),
    ],
)
def test_other_configurations_are_left_to_the_model(config, changes):
    assert not decodes(AutoModelForCausalLM.from_config(config(**SIZES, num_key_value_heads=2, **changes)))
