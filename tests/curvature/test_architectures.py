"""Products on tiny random models of many architectures, by the fused head and without it, against their own loss."""

import peft
import pytest
import torch
import transformers
from spectral_collapse import curvature
from spectral_collapse.curvature import hessian_operator
from torch.nn.attention import SDPBackend, sdpa_kernel

VOCABULARY = 23
# One shape for all, in every name that configurations have for it.
SHAPE = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd"), 8),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "decoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "d_ff"), 12),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 32),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    **{"vocab_size": VOCABULARY, "rotary_dim": 2, "num_local_experts": 2, "num_experts_per_tok": 1},
    "attn_implementation": "eager",
}
PLAIN = [
    "GPT2",
    "GPTNeoX",
    "OPT",
    "Llama",
    "Mistral",
    "Qwen2",
    "Phi3",
    "StableLm",
    "Bloom",
    "Mpt",
    "BioGpt",
    "Olmo",
    "Olmo2",
    "Granite",
    "Starcoder2",
    "SmolLM3",
    "Nemotron",
    "Ernie4_5",
    "Arcee",
    "Persimmon",
    "GPTBigCode",
]
GENERAL = ["GPTJ", "Phi", "Cohere", "Cohere2", "Gemma2", "VaultGemma", "Bert"]  # biased, scaled and capped heads


def small(name: str) -> transformers.PreTrainedModel:
    """A float64 model of one layer and about a thousand parameters."""
    config = getattr(transformers, f"{name}Config")(**SHAPE)
    kind = "LMHeadModel" if name in ("GPT2", "Bert") else "ForCausalLM"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = getattr(transformers, name + kind)(config).double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # reverse mode would drop that row
    return model


def blocks() -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (4, 7), generator=torch.Generator().manual_seed(0))


def loss_of(model, tokens):
    with sdpa_kernel(SDPBackend.MATH):
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits.double(), tokens[:, 1:].flatten()), logits


def hessian_product(model, tokens, vector):
    """H v by double backward of the model's own loss."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    pieces = vector.split([p.numel() for p in parameters])
    gradient = torch.autograd.grad(loss_of(model, tokens)[0], parameters, create_graph=True, materialize_grads=True)
    along = sum((g.flatten() * piece).sum() for g, piece in zip(gradient, pieces, strict=True))
    found = torch.autograd.grad(along, parameters, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def gauss_newton_product(model, tokens, vector, step=2e-3):
    """JᵀSJ v, J v by a central difference of the logits along v."""
    parameters = list(model.parameters())
    pieces = vector.split([p.numel() for p in parameters])

    def moved(by):
        with torch.no_grad():
            for p, piece in zip(parameters, pieces, strict=True):
                p.add_(piece.view_as(p), alpha=by)
            return loss_of(model, tokens)[1]

    above, below = moved(step), moved(-2 * step)
    moved(step)
    change, logits = (above - below) / (2 * step), loss_of(model, tokens)[1]
    p = logits.detach().softmax(-1)
    u = p * (change - (p * change).sum(-1, keepdim=True)) / len(logits)
    return torch.cat([g.flatten() for g in torch.autograd.grad(logits, parameters, u, materialize_grads=True)])


def direction(n: int) -> torch.Tensor:
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.numerics
@pytest.mark.parametrize("name", [*PLAIN, *GENERAL])
def test_products_are_those_of_the_models_own_loss(name):
    model, tokens = small(name), blocks()
    operator = hessian_operator(model, tokens)
    assert operator.fused == (name in PLAIN)
    v = direction(operator.n)
    expected = hessian_product(model, tokens, v)
    # Rotary tables and norms of many classes are float32 whatever the model's type.
    assert float((operator @ v - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("name", ["Phi", "Gemma2", "Cohere"])
def test_gauss_newton_and_block_forms_without_the_fused_head(name):
    model, tokens = small(name), blocks()
    operator = hessian_operator(model, tokens, kind="gauss_newton")
    v = direction(operator.n)
    found, expected = operator @ v, gauss_newton_product(model, tokens, v / v.norm()) * v.norm()
    assert float((found - expected).norm() / expected.norm()) < 5e-3
    assert float(v @ found) > 0
    hessian = hessian_operator(model, tokens)
    forms = hessian.block_forms([v[None]], [v])
    assert forms.mean() == pytest.approx(float(v @ (hessian @ v)), rel=1e-6)
    signature = curvature.spectral_signature(model, tokens, steps=8, probes=2, seed=0)
    assert signature.lambda_max > signature.lambda_min and signature.blocks == 4


def test_compiled_models_and_adapters_around_a_model_are_taken_off():
    model, tokens = small("Llama"), blocks()

    class Adapters(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def get_base_model(self):
            return self.base

    v = direction(hessian_operator(model, tokens).n)
    plain = hessian_operator(model, tokens) @ v
    for wrapped in (torch.compile(model), Adapters(model)):
        assert torch.equal(hessian_operator(wrapped, tokens) @ v, plain)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_a_model_of_peft_is_measured_in_its_adapters_parameters(targets):
    """LoRA of the library itself, after a step, since its second matrix starts at 0; against double backward."""
    model, tokens = small("Llama"), blocks()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, lora_dropout=0.1)).eval()
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    adapted(input_ids=tokens, labels=tokens).loss.backward()
    with torch.no_grad():
        for weight in trained:
            weight += 0.1 * torch.sign(weight.grad)
    operator = hessian_operator(adapted, tokens)
    assert operator.n == sum(weight.numel() for weight in trained) < 5_000
    v = direction(operator.n)
    loss = adapted(input_ids=tokens, labels=tokens).loss
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, trained, create_graph=True)])
    expected = torch.cat([part.flatten() for part in torch.autograd.grad(gradient @ v, trained)])
    assert float((operator @ v - expected).norm() / expected.norm()) < 1e-4
