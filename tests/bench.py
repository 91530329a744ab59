"""`make bench`: what a Hessian product and a signature cost, ours and PyHessian's, paired in one process."""

import statistics
import time
import warnings
from collections.abc import Callable

import torch
from pyhessian import hessian
from spectral_collapse import curvature
from transformers import LlamaConfig, LlamaForCausalLM

REPETITIONS = 7


def paired(*calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call over interleaved repetitions, after one unmeasured round."""
    seconds: list[list[float]] = [[] for _ in calls]
    for repetition in range(REPETITIONS + 1):
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if repetition:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def main() -> None:
    """Prints medians and ratios on a Llama of 0.94 million parameters, 8 blocks of 64 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
        tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    tokens = torch.randint(0, 1024, (8, 64))
    parameters = list(model.parameters())
    operator = curvature.HessianOperator(model, tokens)
    vector = curvature.rademacher(operator.n, 0)

    def gradient():
        torch.autograd.grad(curvature.mean_loss(model, tokens), parameters)

    def peer_eigenvalues():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.zero_grad(set_to_none=True)
            data = (tokens, tokens[:, 1:].flatten())
            peer = hessian(curvature._Logits(model), torch.nn.functional.cross_entropy, data=data, cuda=False)
            peer.eigenvalues(top_n=3)
            model.zero_grad(set_to_none=True)

    def signature():
        curvature.spectral_signature(curvature.spectral_density(operator, 20, 2, 0), operator.n)

    cost_gradient, cost_product = paired(gradient, lambda: operator.matvec(vector))
    cost_ours, cost_peer = paired(signature, peer_eigenvalues)
    print(f"gradient {1e3 * cost_gradient:8.1f} ms")
    print(f"product  {1e3 * cost_product:8.1f} ms, {cost_product / cost_gradient:.2f} gradients (floor: 2)")
    print(f"signature, 2 probes of 20 steps    {cost_ours:6.2f} s")
    print(f"PyHessian, three eigenvalues only  {cost_peer:6.2f} s, {cost_peer / cost_ours:.2f} times ours")


if __name__ == "__main__":
    main()
