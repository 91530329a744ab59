"""What Hessian products and signatures cost, their errors and their memory, beside PyHessian and curvlinops.

Times are paired: the calls to be compared take turns in one process. PyHessian 0.1 calls torch.eig, which torch
has removed: it is given `symmetric_eig` instead, and nothing else of it is changed.
"""

import argparse
import copy
import importlib.util
import math
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import scipy.sparse.linalg
import torch
from pyhessian import hessian as pyhessian
from spectra import Logits
from spectral_collapse import curvature
from spectral_collapse.curvature import GaussNewtonOperator, HessianOperator, mean_loss, spectral_signature
from spectral_collapse.curvature.basis import Storage, dot
from spectral_collapse.curvature.krylov import drive, rademacher, recurrence
from spectral_collapse.model import build
from spectral_collapse.text import storyworld, tokenizers
from timing import REPETITIONS, interleaved, ratio
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

STEPS = 13  # of the first probe: the setting whose figures count, chosen on other seeds than FIRST_SEED and later
OTHER_STEPS = (10, 12, 16)  # for comparison
LATER_STEPS = 1  # of the second probe: it gives its moments
FIRST_SEED = 100
QUANTITIES = ("first", "second", "third", "sigma")

# ---- models


def llama(vocabulary: int, hidden: int, layers: int) -> PreTrainedModel:
    """An untrained Llama with tied embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=32 * -(-8 * hidden // 96),
        num_hidden_layers=layers, num_attention_heads=4, max_position_embeddings=512,
        tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2(vocabulary: int, hidden: int, layers: int) -> PreTrainedModel:
    """An untrained GPT-2."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=hidden, n_layer=layers, n_head=4, n_positions=128,
        bos_token_id=0, eos_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def text_blocks(tokens: int, vocabulary: int | None = None) -> tuple[torch.Tensor, int]:
    """Storyworld in blocks (N, tokens) and the number of its tokens; None: its characters."""
    stories = storyworld.generate_stories(3000, 0)
    if vocabulary is None:
        characters = sorted(set("".join(stories)))
        ids = [characters.index(c) for c in "".join(stories[:300])]
        size = len(characters)
    else:
        tokenizer = tokenizers.train_tokenizer(stories, vocabulary)
        ids = [token for text in tokenizer(stories).input_ids for token in (0, *text)]
        size = len(tokenizer)
    return torch.tensor(ids[: len(ids) // tokens * tokens]).view(-1, tokens), size


def trained(model: PreTrainedModel, blocks: torch.Tensor, steps: int, rate: float) -> PreTrainedModel:
    """The model after some steps of Adam, its rate falling to zero as a cosine."""
    chosen = torch.randint(len(blocks), (steps, 8), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters())
    for step, batch in enumerate(tqdm(chosen, desc="training", leave=False, delay=2, disable=None)):
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        mean_loss(model, blocks[batch]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model.eval()


def size_of(model: PreTrainedModel) -> str:
    return f"{build.parameter_count(model) / 1e6:.3g} million parameters"


# ---- peers


def symmetric_eig(matrix: torch.Tensor, eigenvectors: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What PyHessian reads from torch.eig of its symmetric matrix: eigenvalues in a column, eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return values[:, None], vectors


def peer(model: PreTrainedModel, tokens: torch.Tensor, loader: bool = False) -> Any:
    """PyHessian on the whole batch, its graph kept; or on a loader of the one batch, its graph made anew."""
    torch.eig = symmetric_eig
    model.zero_grad(set_to_none=True)  # it adds to gradients that are there
    data = (tokens, tokens[:, 1:].flatten())
    batch = {"dataloader": [data]} if loader else {"data": data}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the cycle that backward(create_graph=True) leaves
        return pyhessian(Logits(model), torch.nn.functional.cross_entropy, cuda=False, **batch)


def peer_signature(model: PreTrainedModel, tokens: torch.Tensor, seed: int, iterations: int = 100) -> dict[str, float]:
    """Three eigenvalues, largest |λ| first, and the standard deviation of the density, by PyHessian."""
    torch.manual_seed(seed)
    estimator = peer(model, tokens)
    eigenvalues = estimator.eigenvalues(top_n=3, maxIter=iterations)[0]
    (nodes,), (weights,) = estimator.density(iter=30)
    model.zero_grad(set_to_none=True)  # parts the cycle
    nodes, weights = np.array(nodes, float), np.array(weights, float)
    mean = weights @ nodes / weights.sum()
    sigma = math.sqrt(weights @ (nodes - mean) ** 2 / weights.sum())
    return dict(zip(QUANTITIES, [*sorted(eigenvalues, key=abs, reverse=True), sigma], strict=True))


def our_signature(
    model: PreTrainedModel, tokens: torch.Tensor, seed: int, steps: int, batch_errors: bool = False
) -> dict[str, float]:
    """The same four by one signature of two probes, the second of a few steps for its moments alone."""
    found = spectral_signature(
        model, tokens, steps=steps, probes=2, later_steps=LATER_STEPS, seed=seed, batch_errors=batch_errors
    )
    return dict(
        zip(QUANTITIES, [*found.leading_eigenvalues[:3], math.sqrt(found.spectral_variance.value)], strict=True)
    )


def curvlinops_signature(curvlinops: Any, model: PreTrainedModel, tokens: torch.Tensor, seed: int) -> dict[str, float]:
    """Three eigenvalues by ARPACK to PyHessian's tolerance, and its density of one probe of 30 steps."""
    operator = peer_operator(curvlinops, model, tokens)
    start = np.random.default_rng(seed).normal(size=operator.shape[0]).astype(np.float32)
    eigenvalues = scipy.sparse.linalg.eigsh(operator.to_scipy(), k=3, tol=1e-3, v0=start, return_eigenvectors=False)
    largest = np.abs(eigenvalues).max()
    torch.manual_seed(seed)
    curvlinops.lanczos_approximate_spectrum(operator, ncv=30, boundaries=(-largest, largest))
    return dict(zip(QUANTITIES, sorted(eigenvalues, key=abs, reverse=True), strict=False))


def peer_operator(curvlinops: Any, model: PreTrainedModel, tokens: torch.Tensor) -> Any:
    """curvlinops' Hessian of the mean loss."""
    data = [(tokens, tokens[:, 1:].flatten())]
    parameters = list(model.parameters())
    return curvlinops.HessianLinearOperator(
        Logits(model), torch.nn.CrossEntropyLoss(), parameters, data, check_deterministic=False
    )


# ---- measuring


def median_errors(results: list[dict[str, float]], truth: dict[str, float]) -> dict[str, float]:
    """Median over seeds of each quantity's relative error."""
    return {
        name: statistics.median(abs(result[name] / truth[name] - 1) for result in results)
        for name in truth
        if name in results[0]
    }


def as_text(errors: dict[str, float]) -> str:
    return "  ".join(f"{errors[name]:8.1e}" if name in errors else 8 * " " for name in QUANTITIES)


# ---- truths


def dense_truth(model: PreTrainedModel, tokens: torch.Tensor) -> dict[str, float]:
    """From all eigenvalues of the dense Hessian, in float64, of a loss written out anew."""
    model = copy.deepcopy(model).double()
    names, parameters = zip(*model.named_parameters(), strict=True)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = flat.split([p.numel() for p in parameters])
        state = {name: piece.view_as(p) for name, p, piece in zip(names, parameters, pieces, strict=True)}
        logits = torch.func.functional_call(model, state, kwargs={"input_ids": tokens}).logits
        return -logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).mean()

    flat = torch.cat([p.detach().flatten() for p in parameters])
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat, vectorize=True)).numpy()
    largest = eigenvalues[np.argsort(-np.abs(eigenvalues))[:3]]
    return dict(zip(QUANTITIES, [*largest, eigenvalues.std()], strict=True))


def lanczos_truth(model: PreTrainedModel, tokens: torch.Tensor, probes: int = 64) -> dict[str, float]:
    """From one reorthogonalised run of 60 steps in float64, and moments of probes without its leading Ritz vectors.

    tr H = Σ λ + E vᵀHv and tr H² = Σ λ² + E ‖Hv‖², v the probe without the vectors of the converged λ's.
    """
    operator = HessianOperator(copy.deepcopy(model).double(), tokens)
    n = operator.n
    start = rademacher(n, "truth").double()
    storage = Storage("cpu", torch.float64)
    run, basis = drive(operator.matvec, recurrence(start, 60, storage))
    order = np.argsort(-np.abs(run.nodes))
    converged = [i for i in order if run.residuals[i] < 1e-6 * abs(run.nodes[i])]
    known = run.nodes[converged]
    U = torch.stack([basis.combine(run.vectors[:, i]) for i in converged])
    first, second = [], []
    for probe in tqdm(range(probes), desc="truth", leave=False, delay=2, disable=None):
        v = rademacher(n, "truth", probe).double()
        v -= (U @ v) @ U
        product = operator.matvec(v)
        first.append(dot(v, product))
        second.append(dot(product, product))
    mean = (known.sum() + np.mean(first)) / n
    sigma = math.sqrt((np.square(known).sum() + np.mean(second)) / n - mean**2)
    return dict(zip(QUANTITIES, [*run.nodes[order[:3]], sigma], strict=True))


# ---- the parts


def product_seconds(model: PreTrainedModel, tokens: torch.Tensor, together: bool) -> dict[str, np.ndarray]:
    """Seconds of a gradient and of one product in each way; `together`: also with four vectors in one pass."""
    kept, gauss_newton = HessianOperator(model, tokens), GaussNewtonOperator(model, tokens)
    fresh = HessianOperator(model, tokens, micro_batch=len(tokens))
    four = torch.stack([rademacher(kept.n, i) for i in range(4)])
    pieces = kept._pieces(four[0])
    parameters = list(model.parameters())
    theirs, loader = peer(model, tokens), peer(model, tokens, loader=True)
    their_product = sys.modules["pyhessian.hessian"].hessian_vector_product  # what it calls for every product
    calls = {
        "gradient": lambda _: torch.autograd.grad(mean_loss(model, tokens), parameters),
        "product": lambda _: kept.matvec(four[0]),
        "fresh graph": lambda _: fresh.matvec(four[0]),
        "Gauss-Newton": lambda _: gauss_newton.matvec(four[0]),
        "PyHessian": lambda _: their_product(theirs.gradsH, theirs.params, pieces),
        "PyHessian, loader": lambda _: loader.dataloader_hv_product(pieces),
    }
    if together:
        calls["four at once"] = lambda _: kept._batched(four)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds, _ = interleaved(calls)
    model.zero_grad(set_to_none=True)
    return seconds


def products() -> dict[str, Any]:
    """One product in units of one gradient."""
    table = {}
    for vocabulary, hidden, layers, shape in (
        (1024, 128, 4, (8, 64)),
        (4096, 384, 7, (2, 128)),
        (32000, 256, 4, (2, 128)),
    ):
        model = llama(vocabulary, hidden, layers)
        seconds = product_seconds(model, torch.randint(vocabulary, shape), together=hidden == 128)
        costs = {name: ratio(times, seconds["gradient"]) for name, times in seconds.items()}
        name = f"{size_of(model)}, vocabulary {vocabulary}, {shape[0]} x {shape[1]} tokens"
        milliseconds = 1e3 * float(np.median(seconds["gradient"]))
        table[name] = {"gradient_ms": milliseconds, "in_gradients": costs}
        print(f"\n{name}: gradient {milliseconds:.0f} ms; in gradients:")
        print("\n".join(f"  {call:22}{cost:6.2f}" for call, cost in costs.items() if call != "gradient"), flush=True)
    worst = max(row["in_gradients"]["product"] for row in table.values())
    return {"hvp_over_gradient": worst, "products": table}


def signatures() -> dict[str, Any]:
    """The whole signature against PyHessian's: the speed of the larger model, the larger error of both."""
    table, counted = {}, []
    characters, alphabet = text_blocks(32)
    words, vocabulary = text_blocks(64, 1024)
    tiny = llama(alphabet, 16, 1)
    small = llama(vocabulary, 128, 4)
    # The spread of a moment over probes is large: where a call costs little, more of them tell the errors better.
    for model, blocks, steps, rate, truth_of, repetitions in (
        (tiny, characters, 300, 1e-2, dense_truth, 10 * REPETITIONS),
        (small, words, 500, 3e-3, lanczos_truth, REPETITIONS),
    ):
        tokens = blocks[-8:]
        trained(model, blocks[:-8], steps, rate)
        truth = truth_of(model, tokens)
        calls = {"PyHessian": lambda r, m=model, t=tokens: peer_signature(m, t, FIRST_SEED + r)}
        calls |= {
            f"{k} steps": lambda r, k=k, m=model, t=tokens: our_signature(m, t, FIRST_SEED + r, k)
            for k in (STEPS, *OTHER_STEPS)
        }
        over_blocks = f"{STEPS} steps, over blocks"
        calls[over_blocks] = lambda r, m=model, t=tokens: our_signature(m, t, FIRST_SEED + r, STEPS, True)
        seconds, results = interleaved(calls, repetitions)
        errors = {name: median_errors(found, truth) for name, found in results.items()}
        rows = {
            name: {
                "seconds": float(np.median(times)),
                "speedup": ratio(seconds["PyHessian"], times),
                "median_errors": errors[name],
                "error_over_pyhessian": max(errors[name][q] / errors["PyHessian"][q] for q in QUANTITIES),
            }
            for name, times in seconds.items()
        }
        title = f"{size_of(model)}, 8 x {tokens.shape[1]} tokens, loss {mean_loss(model, tokens).item():.2f}"
        table[title] = {"truth": truth, "truth_by": truth_of.__name__, "rows": rows}
        counted.append(rows[f"{STEPS} steps"])
        print(f"\n{title}. Truth: {', '.join(f'{name} {value:.4g}' for name, value in truth.items())}")
        print(f"{'median relative errors':38}{'seconds':>8}{'speed':>7}  " + "  ".join(f"{q:>8}" for q in QUANTITIES))
        for name, row in rows.items():
            label = name if name == "PyHessian" else f"ours, 2 probes, {name}"
            print(f"{label:38}{row['seconds']:8.2f}{row['speedup']:7.2f}  {as_text(row['median_errors'])}", flush=True)
    # Five thousand parameters cost their calls, not their arithmetic: that model is there for its dense truth.
    return {
        "signature_speedup_vs_pyhessian": counted[-1]["speedup"],
        "signature_error_over_pyhessian": max(row["error_over_pyhessian"] for row in counted),
        "signature_steps": [STEPS, LATER_STEPS],
        "signatures": table,
    }


def against_curvlinops() -> dict[str, Any]:
    """The same against curvlinops on GPT-2, where it is installed: its products fail on Llama."""
    if importlib.util.find_spec("curvlinops") is None:
        print("\ncurvlinops is not installed and is left out; it asks for torchvision: use a folder of its own.")
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import curvlinops

        blocks, vocabulary = text_blocks(64, 512)
        model = trained(gpt2(vocabulary, 64, 2), blocks[:-8], 300, 3e-3)
        tokens = blocks[-8:]
        truth = lanczos_truth(model, tokens, probes=16)
        operator, theirs = HessianOperator(model, tokens), peer_operator(curvlinops, model, tokens)
        vector = rademacher(operator.n, 0)
        products, _ = interleaved({"ours": lambda _: operator.matvec(vector), "theirs": lambda _: theirs @ vector})
        calls = {"curvlinops": lambda seed: curvlinops_signature(curvlinops, model, tokens, seed)}
        # ARPACK iterates beyond its tolerance: more steps are needed for errors like its own.
        calls |= {f"{k} steps": lambda seed, k=k: our_signature(model, tokens, seed, k) for k in (8, 10, 12, 14)}
        seconds, results = interleaved(calls)
    errors = {name: median_errors(found, truth) for name, found in results.items()}
    speed = {name: ratio(seconds["curvlinops"], times) for name, times in seconds.items()}
    cost = ratio(products["theirs"], products["ours"])
    title = f"GPT-2 of {size_of(model)}, 8 x 64 tokens"
    print(f"\n{title}: a product by curvlinops costs {cost:.2f} of ours")
    for name in seconds:
        print(f"{name:38}{np.median(seconds[name]):8.2f}{speed[name]:7.2f}  {as_text(errors[name])}", flush=True)
    return {
        "curvlinops": {"model": title, "product_over_ours": cost, "speedup": speed, "median_errors": errors},
    }


def peak(side: str) -> float:
    """Most bytes that a signature takes beyond the loaded model, in this process."""
    model = llama(32000, 320, 4)
    tokens = torch.randint(32000, (8, 128))
    with torch.no_grad():
        model(input_ids=tokens[:1, :8])  # what the first call loads is no part of it
    before = psutil.Process().memory_info().rss
    if side == "ours":
        our_signature(model, tokens, 0, STEPS)
    else:
        # Of power iterations the first takes as much memory as all.
        peer_signature(model, tokens, 0, iterations=1)
    status = Path("/proc/self/status").read_text()
    (highest,) = (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return highest - before


def memory() -> dict[str, Any]:
    """Peak memory of either signature, each in a process of its own."""
    if not Path("/proc/self/status").exists():
        print("\npeak memory is read from /proc and is left out here.")
        return {}
    peaks = {}
    for side in ("ours", "PyHessian"):
        command = [sys.executable, __file__, "--peak", side]
        peaks[side] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    title = f"{size_of(llama(32000, 320, 4))}, vocabulary 32000, 8 x 128 tokens"
    print(f"\npeak memory over the loaded model, {title}:")
    print("\n".join(f"  {side:12}{size / 2**30:6.2f} GiB" for side, size in peaks.items()), flush=True)
    return {
        "peak_memory_over_pyhessian": peaks["ours"] / peaks["PyHessian"],
        "peak_memory": {"model": title, "bytes": peaks},
    }


def growth() -> dict[str, Any]:
    """How cost grows: seconds of one product with parameters and with blocks, of a density with its steps."""
    table: dict[str, dict[str, float]] = {"parameters": {}, "blocks of 64 tokens": {}, "steps": {}}

    def product(model: PreTrainedModel, count: int) -> Callable[[int], torch.Tensor]:
        operator = HessianOperator(model, torch.randint(1024, (count, 64)))
        vector = rademacher(operator.n, 0)
        return lambda _: operator.matvec(vector)

    widths = [llama(1024, hidden, 4) for hidden in (64, 128, 256, 512)]
    calls = {f"parameters {build.parameter_count(m):,}": product(m, 4) for m in widths}
    calls |= {f"blocks of 64 tokens {count}": product(widths[0], count) for count in (4, 8, 16, 32)}
    operator = curvature.hessian_operator(widths[0], torch.randint(1024, (4, 64)))
    calls |= {
        f"steps {steps}": lambda seed, k=steps: curvature.spectral_density(operator, k, 1, seed)
        for steps in (10, 20, 40)
    }
    seconds, _ = interleaved(calls)
    print("\nseconds of one product by parameters and blocks, of one probe's density by steps")
    for name, times in seconds.items():
        kind, value = name.rsplit(" ", 1)
        table[kind][value] = float(np.median(times))
        print(f"  {kind:20}{value:>12}{table[kind][value]:9.4f}")
    return {"growth_seconds": table}


def main() -> dict[str, Any]:
    """Every part, printed; the keys of bench.json that belong to curvature."""
    print("PyHessian's density calls torch.eig, which is gone: it is given torch.linalg.eigh in that name.")
    found = products() | signatures()
    return found | memory() | growth() | against_curvlinops()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--peak", required=True)
    print(peak(parser.parse_args().peak))
