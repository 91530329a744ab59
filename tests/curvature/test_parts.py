"""Parts of the network by modules, on architectures whose names and layouts differ."""

import itertools
import re

import pytest
import torch
from spectra import ARCHITECTURES, FOREIGN, foreign, tiny
from spectral_collapse.curvature import parameter_blocks

# Of layer 0: part → its modules, direct children of the layer.
LAYERS = {
    "bloom": {"attention": {"input_layernorm", "self_attention"}, "mlp": {"post_attention_layernorm", "mlp"}},
    # One norm that attention and MLP both read is a part of its own.
    "falcon": {"input_layernorm": {"input_layernorm"}, "attention": {"self_attention"}, "mlp": {"mlp"}},
    "falcon_two_norms": {"attention": {"ln_attn", "self_attention"}, "mlp": {"ln_mlp", "mlp"}},
    "mpt": {"attention": {"norm_1", "attn"}, "mlp": {"norm_2", "ffn"}},
    "rwkv": {"pre_ln": {"pre_ln"}, "mixer": {"ln1", "attention"}, "mlp": {"ln2", "feed_forward"}},
    "mamba": {"mixer": {"norm", "mixer"}},
    "gpt_neox": {"attention": {"input_layernorm", "attention"}, "mlp": {"post_attention_layernorm", "mlp"}},
    "phi": {"input_layernorm": {"input_layernorm"}, "attention": {"self_attn"}, "mlp": {"mlp"}},
    "gemma": {"attention": {"input_layernorm", "self_attn"}, "mlp": {"post_attention_layernorm", "mlp"}},
    # The norms of outputs, which nothing reads, belong to what they read.
    "gemma2": {
        "attention": {"input_layernorm", "self_attn", "post_attention_layernorm"},
        "mlp": {"pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"},
    },
    "mixtral": {"attention": {"input_layernorm", "self_attn"}, "mlp": {"post_attention_layernorm", "mlp"}},
    "llama4": {"attention": {"input_layernorm", "self_attn"}, "mlp": {"post_attention_layernorm", "feed_forward"}},
    "opt_projected": {"attention": {"self_attn_layer_norm", "self_attn"}, "mlp": {"final_layer_norm", "fc1", "fc2"}},
    "opt_post_norm": {
        "attention": {"self_attn"},
        "mlp": {"self_attn_layer_norm", "fc1", "fc2"},
        "final_layer_norm": {"final_layer_norm"},
    },
}
OUTSIDE = {
    "embedding": r"embed_tokens|embeddings?|wte|wpe|embed_in|word_embeddings(_layernorm)?|embed_positions",
    "head": r"lm_head|head|ln_f|norm|norm_f|ln_out|final_layer_?norm",
    "model.decoder.project_in": "project_in",
    "model.decoder.project_out": "project_out",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_parts_are_those_of_the_modules(name):
    model = foreign(name)
    blocks = parameter_blocks(model)
    assert sorted(itertools.chain(*blocks.values())) == sorted(key for key, _ in model.named_parameters())
    found: dict[str, set[str]] = {}
    for part, names in blocks.items():
        for key in names:
            inside = re.search(r"\.(?:layers|h|blocks)\.0\.(\w+)", key)
            if part.startswith("layer 0 "):
                found.setdefault(part.removeprefix("layer 0 "), set()).add(inside[1])
            elif not part.startswith("layer "):
                assert not inside and re.fullmatch(OUTSIDE[part], key.split(".")[-2]), (part, key)
    assert found == LAYERS[name]
    # A forward pass's order.
    order = list(blocks)
    assert order[0] == "embedding"
    layers = [int(part.split()[1]) for part in order if part.startswith("layer ")]
    assert layers == sorted(layers) and set(layers) == {0, 1}
    if "head" in blocks:
        assert order[-1] == "head"
    first = [part.removeprefix("layer 0 ") for part in order if part.startswith("layer 0 ")]
    assert first == [part for part in ("input_layernorm", "pre_ln", "mixer", "attention", "mlp") if part in first] + [
        part for part in first if part == "final_layer_norm"
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_of_the_architectures_that_are_trained_here(name):
    blocks = parameter_blocks(tiny(name, num_hidden_layers=2))
    layers = [f"layer {index} {part}" for index in (0, 1) for part in ("attention", "mlp")]
    assert list(blocks) == ["embedding", *layers, "head"]


def test_what_is_not_known_is_a_part_of_its_own_named_as_its_module():
    model = tiny("llama")
    layer = model.model.layers[0]
    layer.gate = torch.nn.Linear(2, 2)
    layer.scale = torch.nn.Parameter(torch.ones(2))
    model.extra = torch.nn.Linear(2, 2)
    blocks = parameter_blocks(model)
    assert blocks["layer 0 gate"] == ["model.layers.0.gate.weight", "model.layers.0.gate.bias"]
    assert blocks["layer 0"] == ["model.layers.0.scale"]
    assert blocks["extra"] == ["extra.weight", "extra.bias"]
    rest = {"embedding", "layer 0 attention", "layer 0 mlp", "head"}
    assert {part: blocks[part] for part in rest} == parameter_blocks(tiny("llama"))


def test_parts_of_a_model_are_read_without_changing_it():
    model = foreign("mpt").train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameter_blocks(model)
    assert model.training and all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
