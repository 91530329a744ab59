"""Decoding in plain tensor operations for models of Llama's kind, on the model's own weights.

Transformers' forward serves every architecture, and at a million parameters most of a token's time goes into that. Here
projections are fused, rotary tables are made once, and the cache is allocated once.
"""

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedModel, Qwen2ForCausalLM

from ..machine import parallel

KINDS = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM)
STATIC = ("default", "linear", "llama3")  # rotary frequencies that do not depend on the length


def decodes(model: PreTrainedModel) -> bool:
    """Whether `Decoder` computes what the model computes: one of KINDS itself, with plain linear layers, without hooks,
    sliding windows and shards."""
    if type(model) not in KINDS or parallel.sharded(model):
        return False
    config, layers = model.config, model.model.layers
    linear = [part for layer in layers for name, part in layer.named_modules() if name.endswith("_proj")]
    return (
        config.hidden_act == "silu"
        and model.model.rotary_emb.rope_type in STATIC
        and getattr(config, "sliding_window", None) is None
        and all(type(part) is nn.Linear for part in (*linear, model.lm_head))
        and not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    )


def _fused(*parts: nn.Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of linear layers that read the same input, below each other."""
    bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
    return torch.cat([part.weight for part in parts]), bias


def _normalised(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm in float32, as transformers computes it."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * wide.to(x.dtype)


class Decoder:
    """Logits (B, V) of the next token for B sequences that are read in parallel.

    tokens, mask: prompts (B, T), padded on the left, and where they are no padding; `room`: tokens that will follow.
    """

    def __init__(self, model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor, room: int):
        self.model, self.length = model, 0
        config, first = model.config, model.model.layers[0].self_attn
        self.size, self.groups = first.head_dim, config.num_key_value_heads
        self.heads, self.scale = config.num_attention_heads, first.scaling
        count, longest = tokens.shape
        self.layers = [
            (
                layer,
                _fused(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                _fused(layer.mlp.gate_proj, layer.mlp.up_proj),
            )
            for layer in model.model.layers
        ]
        weight = model.get_input_embeddings().weight
        shape = (len(self.layers), 2, count, self.groups, longest + room, self.size)
        self.cache = weight.new_empty(shape)
        places = torch.arange(longest + room, device=weight.device)
        cosine, sine = model.model.rotary_emb(weight[:1, None], places[None])
        self.rotation = cosine[0], sine[0]  # (T + room, size) each
        # The position of place t is t less the padding; what is padded is never attended to.
        self.padding = longest - mask.sum(1)  # (B,)
        self.logits = self._read(tokens)

    def keep(self, rows: torch.Tensor) -> None:
        """Goes on with these of the sequences only."""
        self.cache, self.padding = self.cache[:, :, rows], self.padding[rows]

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits after one more token (B, 1) of each sequence."""
        return self._read(tokens)

    def _attended(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        """Attention of queries (B, new, H, size) to keys and values (B, G, length, size), (B, new, H, size)."""
        count, new = queries.shape[:2]
        if new == 1 and queries.device.type == "cpu":
            # Two batched products take half the time of masked fused attention where a row has one query.
            grouped = queries.view(count, self.groups, -1, self.size)
            scores = (grouped @ keys.transpose(-1, -2)).float() * self.scale
            weights = scores.masked_fill_(~allowed[:, None], -torch.inf).softmax(-1)
            return weights.to(values.dtype) @ values
        mixed = functional.scaled_dot_product_attention(
            queries.transpose(1, 2), keys, values, allowed[:, None], scale=self.scale,
            enable_gqa=self.heads != self.groups,
        )  # fmt: skip
        return mixed.transpose(1, 2)

    def _read(self, tokens: torch.Tensor) -> torch.Tensor:
        count, new = tokens.shape
        start, self.length = self.length, self.length + new
        places = torch.arange(start, self.length, device=tokens.device)
        positions = (places - self.padding[:, None]).clamp(min=0)  # (B, new)
        cosine, sine = (table[positions].unsqueeze(2) for table in self.rotation)  # (B, new, 1, size)
        seen = torch.arange(self.length, device=tokens.device)
        allowed = (seen <= places[:, None]) & (seen >= self.padding[:, None, None])  # (B, new, length)
        allowed |= seen == places[:, None]  # padding sees itself, since a row without any key has no softmax
        x = functional.embedding(tokens, self.model.get_input_embeddings().weight)
        for index, (layer, attention, mlp) in enumerate(self.layers):
            projected = functional.linear(_normalised(layer.input_layernorm, x), *attention)
            projected = projected.view(count, new, self.heads + 2 * self.groups, self.size)
            turned, values = projected.split([self.heads + self.groups, self.groups], dim=2)
            left, right = turned.chunk(2, dim=-1)
            turned = turned * cosine + torch.cat([-right, left], dim=-1) * sine
            queries, keys = turned.split([self.heads, self.groups], dim=2)
            for kept, made in zip(self.cache[index], (keys, values), strict=True):
                kept[:, :, start : self.length] = made.transpose(1, 2)
            keys, values = self.cache[index, :, :, :, : self.length]
            mixed = self._attended(queries, keys, values, allowed)
            x = x + layer.self_attn.o_proj(mixed.reshape(count, new, -1))
            gate, up = functional.linear(_normalised(layer.post_attention_layernorm, x), *mlp).chunk(2, dim=-1)
            x = x + layer.mlp.down_proj(functional.silu(gate) * up)
        return self.model.lm_head(_normalised(self.model.model.norm, x[:, -1]))
