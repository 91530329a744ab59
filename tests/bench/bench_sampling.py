"""Sampling beside Transformers' `generate` and the path that serves every architecture."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from spectral_collapse.model import generate
from timing import interleaved, ratio, table
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

MODELS = {  # a model from scratch as the profile `default` has it, and the sizes of SmolLM2-135M
    "1M": (dict(vocab_size=1024, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
                intermediate_size=352), 128, 112, 3, 128),
    "135M": (dict(vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
                  num_key_value_heads=3, intermediate_size=1536), 32, 16, 1, 16),
}  # fmt: skip
PROMPT = 16


def built(sizes: dict[str, int]) -> PreTrainedModel:
    """A random model whose predictions are as sharp as a trained one's: some one nat of 1024 tokens, three of 49152."""
    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=512, tie_word_embeddings=False, **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    torch.nn.init.normal_(model.lm_head.weight, std=4 / sizes["hidden_size"] ** 0.5)
    return model


@contextlib.contextmanager
def general() -> Iterator[None]:
    """Sampling by the model's own forward."""
    own, generate.decodes = generate.decodes, lambda _: False
    try:
        yield
    finally:
        generate.decodes = own


def main() -> dict[str, Any]:
    """Tokens per CPU second of each way, and median ratios, by model."""
    rows, ratios = [], {}
    for name, (sizes, count, new, repetitions, batch) in MODELS.items():
        model = built(sizes)
        prompts = torch.randint(0, sizes["vocab_size"], (count, PROMPT))
        seeds = list(range(count))
        decoding = {"temperature": 1.0, "top_k": 0, "top_p": 0.95}

        def ours(_: int, model=model, prompts=prompts, seeds=seeds, new=new, decoding=decoding, batch=batch) -> None:
            generate.sample(model, prompts.tolist(), seeds, new, **decoding, batch_size=batch)

        def plain(_: int, ours=ours) -> None:
            with general():
                ours(0)

        def theirs(_: int, model=model, prompts=prompts, new=new, decoding=decoding, batch=batch) -> None:
            for part in prompts.split(batch):
                mask = torch.ones_like(part)
                model.generate(part, attention_mask=mask, do_sample=True, max_new_tokens=new, min_new_tokens=new,
                               pad_token_id=0, **decoding)  # fmt: skip

        calls = {"ours": ours, "general": plain, "transformers": theirs}
        seconds, _ = interleaved(calls, repetitions, warm=repetitions > 1)
        rates = [count * new / float(np.median(times)) for times in seconds.values()]
        over = {way: ratio(seconds[way], seconds["ours"]) for way in ("general", "transformers")}
        rows.append([f"{name}, {count} texts of {PROMPT} + {new} tokens, {batch} at a time", *rates, *over.values()])
        ratios[f"sampling, {name}: time over Transformers' generate"] = 1 / over["transformers"]
    head = (
        "| model | tokens per s | by the model's forward | Transformers' `generate` | faster than the forward | "
        "than `generate` |"
    )
    return {"table": table(head, *rows), "ratios": ratios}
