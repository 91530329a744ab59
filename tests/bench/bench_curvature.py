"""What Hessian products, signatures and traces cost, their errors and their memory, beside PyHessian,
hessian-eigenthings and curvlinops.

Times are paired: the calls to be compared take turns in one process. PyHessian 0.1 calls torch.eig, which torch
has removed: it is given `symmetric_eig` instead, and nothing else of it is changed.
"""

import argparse
import copy
import importlib.util
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import hessian_eigenthings
import numpy as np
import psutil
import scipy.sparse.linalg
import torch
from pyhessian import hessian as pyhessian
from spectra import Logits
from spectral_collapse.curvature import (
    GaussNewtonOperator,
    HessianOperator,
    layerwise_signatures,
    mean_loss,
    spectral_signature,
)
from spectral_collapse.curvature.basis import Storage, dot
from spectral_collapse.curvature.krylov import drive, rademacher, recurrence
from spectral_collapse.model import build
from spectral_collapse.text import storyworld, tokenizers
from timing import interleaved, paired, ratio, table
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

STEPS = 13  # of the peers' short densities, and of traces
MOST_STEPS, TOLERANCE = 20, 0.03  # of our first probe: residuals of this size leave errors of its square
OURS = f"ours, to residuals of {TOLERANCE:.0%}"
LATER_STEPS = 1  # of the second probe: it gives its moments
PEER_STEPS = 30  # of the peers' densities
TRACE_PRODUCTS = 30
FIRST_SEED = 100
QUANTITIES = ("first", "second", "third", "sigma")
# Hidden size, layers, blocks of a batch, steps of training, probes of the truth, repetitions.
MODELS = ((128, 4, 8, 300, 32, 4), (320, 6, 4, 60, 8, 4))
VOCABULARY, BLOCK = 3072, 32

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


def text_blocks(tokens: int, vocabulary: int) -> tuple[torch.Tensor, int]:
    """Storyworld in blocks (N, tokens) and the number of its tokens."""
    stories = storyworld.generate_stories(3000, 0)
    tokenizer = tokenizers.train_tokenizer(stories, vocabulary)
    ids = [token for text in tokenizer(stories[:1500]).input_ids for token in (0, *text)]
    return torch.tensor(ids[: len(ids) // tokens * tokens]).view(-1, tokens), len(tokenizer)


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
    (nodes,), (weights,) = estimator.density(iter=PEER_STEPS)
    model.zero_grad(set_to_none=True)  # parts the cycle
    return named(eigenvalues, np.array(nodes, float), np.array(weights, float))


def named(eigenvalues: list[float], nodes: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """QUANTITIES from eigenvalues and the nodes and weights of densities."""
    mean = weights @ nodes / weights.sum()
    sigma = math.sqrt(weights @ (nodes - mean) ** 2 / weights.sum())
    return dict(zip(QUANTITIES, [*sorted(map(float, eigenvalues), key=abs, reverse=True), sigma], strict=True))


def batch_of(tokens: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """hessian-eigenthings' loader of one batch."""
    return [{"input_ids": tokens, "labels": tokens}]


def eigenthings(model: PreTrainedModel, tokens: torch.Tensor) -> Any:
    """hessian-eigenthings' Hessian of the mean loss."""
    return hessian_eigenthings.HessianOperator(model, batch_of(tokens), hessian_eigenthings.hf_lm_loss())


def eigenthings_signature(model: PreTrainedModel, tokens: torch.Tensor, seed: int) -> dict[str, float]:
    """By a Lanczos run of 20 steps, and a density of one run."""
    operator = eigenthings(model, tokens)
    found = hessian_eigenthings.lanczos(operator, k=3, max_iter=20, seed=seed)
    density = hessian_eigenthings.spectral_density(operator, num_runs=1, lanczos_steps=PEER_STEPS, seed=seed)
    nodes, weights = density.raw_eigenvalues.double().numpy(), density.raw_weights.double().numpy()
    return named(found.eigenvalues.tolist(), nodes.ravel(), weights.ravel())


def eigenthings_density(model: PreTrainedModel, tokens: torch.Tensor, seed: int) -> dict[str, float]:
    """All from one density of two runs of STEPS steps, the eigenvalues from the nodes of its first run."""
    density = hessian_eigenthings.spectral_density(
        eigenthings(model, tokens), num_runs=2, lanczos_steps=STEPS, num_grid_points=2, seed=2 * seed
    )
    nodes, weights = density.raw_eigenvalues.double().numpy(), density.raw_weights.double().numpy()
    return named(sorted(nodes[0], key=abs)[-3:], nodes.ravel(), weights.ravel())


def our_signature(
    model: PreTrainedModel, tokens: torch.Tensor, seed: int, tolerance: float = TOLERANCE, batch_errors: bool = False
) -> dict[str, float]:
    """The same four by one signature of two probes, the second of a few steps for its moments alone; σ from the
    outliers' own moments and the bulk's."""
    found = spectral_signature(
        model, tokens, steps=MOST_STEPS, probes=2, later_steps=LATER_STEPS, tolerance=tolerance, seed=seed,
        batch_errors=batch_errors,
    )  # fmt: skip
    n, outliers = found.parameters, np.array(found.outliers)
    rest, center, width = n - len(outliers), found.bulk_center.value, found.bulk_sigma.value
    mean = (outliers.sum() + rest * center) / n
    variance = (np.square(outliers).sum() + rest * (width**2 + center**2)) / n - mean**2
    return dict(zip(QUANTITIES, [*found.leading_eigenvalues[:3], math.sqrt(variance)], strict=True))


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


def relative_errors(results: list[dict[str, float]], truth: dict[str, float]) -> dict[str, float]:
    """Root mean square over seeds of each quantity's relative error."""
    return {
        name: math.sqrt(np.mean([(result[name] / truth[name] - 1) ** 2 for result in results]))
        for name in truth
        if name in results[0]
    }


# ---- truths


def lanczos_truth(model: PreTrainedModel, tokens: torch.Tensor, probes: int) -> dict[str, float]:
    """From one reorthogonalised run of 40 steps in float64, and moments of probes without its leading Ritz vectors.

    tr H = Σ λ + E vᵀHv and tr H² = Σ λ² + E ‖Hv‖², v the probe without the vectors of the converged λ's.
    """
    operator = HessianOperator(copy.deepcopy(model).double(), tokens)
    n = operator.n
    start = rademacher(n, "truth").double()
    storage = Storage("cpu", torch.float64)
    run, basis = drive(operator.matvec, recurrence(start, 40, storage))
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
    return dict(zip((*QUANTITIES, "trace"), [*map(float, run.nodes[order[:3]]), sigma, n * mean], strict=True))


# ---- the parts


def products(model: PreTrainedModel, tokens: torch.Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Cost of one product in each way, in gradients; and how far peers' products are from ours, relative."""
    kept, gauss_newton = HessianOperator(model, tokens), GaussNewtonOperator(model, tokens)
    fresh = HessianOperator(model, tokens, micro_batch=len(tokens))
    vector = rademacher(kept.n, 0)
    pieces = kept._pieces(vector)
    parameters = list(model.parameters())
    theirs, loader, other = peer(model, tokens), peer(model, tokens, loader=True), eigenthings(model, tokens)
    their_product = sys.modules["pyhessian.hessian"].hessian_vector_product  # what it calls for every product
    other_gauss_newton = hessian_eigenthings.GGNOperator(
        model, batch_of(tokens), hessian_eigenthings.hf_lm_forward(), hessian_eigenthings.hf_lm_loss_of_output()
    )
    calls = {
        "gradient": lambda _: torch.autograd.grad(mean_loss(model, tokens), parameters),
        "ours": lambda _: kept.matvec(vector),
        "PyHessian": lambda _: their_product(theirs.gradsH, theirs.params, pieces),
        "ours, fresh graph": lambda _: fresh.matvec(vector),
        "PyHessian, loader": lambda _: loader.dataloader_hv_product(pieces)[1],
        "hessian-eigenthings": lambda _: other.matvec(vector),
        "ours, Gauss–Newton": lambda _: gauss_newton.matvec(vector),
        "hessian-eigenthings, Gauss–Newton": lambda _: other_gauss_newton.matvec(vector),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds, results = interleaved(calls, 5)
    model.zero_grad(set_to_none=True)
    apart = {}
    for name, own in (
        ("PyHessian", "ours"),
        ("hessian-eigenthings", "ours"),
        ("hessian-eigenthings, Gauss–Newton", "ours, Gauss–Newton"),
    ):
        found, mine = results[name][0], results[own][0].detach()
        found = torch.cat([part.flatten() for part in found]) if isinstance(found, (list, tuple)) else found
        apart[name] = float((found.detach() - mine).double().norm() / mine.double().norm())
    return {name: ratio(times, seconds["gradient"]) for name, times in seconds.items()}, apart


def signatures(
    model: PreTrainedModel, tokens: torch.Tensor, truth: dict[str, float], repetitions: int
) -> dict[str, dict[str, float]]:
    """Seconds of each signature, times PyHessian's speed, and relative errors over seeds."""
    two = f"hessian-eigenthings, a density of two runs of {STEPS} steps"
    calls = {
        "PyHessian": lambda r: peer_signature(model, tokens, FIRST_SEED + r),
        "hessian-eigenthings": lambda r: eigenthings_signature(model, tokens, FIRST_SEED + r),
        two: lambda r: eigenthings_density(model, tokens, FIRST_SEED + r),
        OURS: lambda r: our_signature(model, tokens, FIRST_SEED + r),
        f"{OURS}, with errors over blocks": lambda r: our_signature(model, tokens, FIRST_SEED + r, batch_errors=True),
    }
    seconds, results = interleaved(calls, repetitions, warm=False)
    return {
        name: {
            "seconds": float(np.median(times)),
            "speed": ratio(seconds["PyHessian"], times),
            "speed over hessian-eigenthings": ratio(seconds["hessian-eigenthings"], times),
            **relative_errors(results[name], truth),
        }
        for name, times in seconds.items()
    }


def of_parts(model: PreTrainedModel, tokens: torch.Tensor) -> tuple[int, float]:
    """Parts of the network, and the time of all their signatures over that of the whole network's."""
    options = {"steps": STEPS, "later_steps": LATER_STEPS, "batch_errors": False}
    found: list[Any] = []

    def parts() -> None:
        found[:] = layerwise_signatures(model, tokens, **options)

    whole, every = paired(lambda: spectral_signature(model, tokens, **options), parts, repetitions=1)
    return len(found), every / whole


def our_trace(model: PreTrainedModel, tokens: torch.Tensor, seed: int) -> tuple[float, float]:
    """tr H and its standard error over probes: outliers, and n − n_out times the bulk's centre."""
    found = spectral_signature(
        model, tokens, steps=STEPS, probes=TRACE_PRODUCTS - STEPS + 1, later_steps=1, seed=seed, batch_errors=False
    )
    rest = found.parameters - len(found.outliers)
    return sum(found.outliers) + rest * found.bulk_center.value, rest * found.bulk_center.probe_error


def their_trace(model: PreTrainedModel, tokens: torch.Tensor, seed: int) -> tuple[float, float]:
    """The same by Hutch++."""
    found = hessian_eigenthings.trace(eigenthings(model, tokens), num_matvecs=TRACE_PRODUCTS, seed=seed)
    return found.estimate, found.stderr


def pyhessian_trace(model: PreTrainedModel, tokens: torch.Tensor, seed: int) -> tuple[float, float]:
    """The same by Hutchinson's estimator."""
    torch.manual_seed(seed)
    samples = peer(model, tokens).trace(maxIter=TRACE_PRODUCTS, tol=0)
    model.zero_grad(set_to_none=True)
    return float(np.mean(samples)), float(np.std(samples, ddof=1) / math.sqrt(len(samples)))


def traces(model: PreTrainedModel, tokens: torch.Tensor, truth: float, repetitions: int) -> dict[str, list[float]]:
    """Seconds, error over seeds and stated standard error of tr H, both relative, by the same number of products."""
    calls = {"ours, deflated": our_trace, "hessian-eigenthings, Hutch++": their_trace, "PyHessian": pyhessian_trace}
    calls = {name: lambda r, call=call: call(model, tokens, FIRST_SEED + r) for name, call in calls.items()}
    seconds, results = interleaved(calls, repetitions, warm=False)
    table = {}
    for name, found in results.items():
        values, errors = np.array(found).T
        wrong = math.sqrt(np.mean((values / truth - 1) ** 2))
        table[name] = [float(np.median(seconds[name])), wrong, float(np.median(errors) / abs(truth))]
    return table


def peak(side: str) -> float:
    """Most bytes that a signature takes beyond the loaded model, in this process."""
    model = llama(32000, 320, 4)
    tokens = torch.randint(32000, (4, 64))
    with torch.no_grad():
        model(input_ids=tokens[:1, :8])  # what the first call loads is no part of it
    before = psutil.Process().memory_info().rss
    if side == "ours":
        our_signature(model, tokens, 0)
    else:
        # Of power iterations the first takes as much memory as all.
        peer_signature(model, tokens, 0, iterations=1)
    status = Path("/proc/self/status").read_text()
    (highest,) = (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return highest - before


def memory() -> dict[str, float]:
    """Peak memory of either signature in GiB over the loaded model, each in a process of its own; {} without /proc."""
    if not Path("/proc/self/status").exists():
        return {}
    peaks = {}
    for side in ("ours", "PyHessian"):
        command = [sys.executable, __file__, "--peak", side]
        peaks[side] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    return {side: size / 2**30 for side, size in peaks.items()}


def against_curvlinops() -> list[str]:
    """The same against curvlinops on GPT-2, where it is installed: its products fail on Llama."""
    if importlib.util.find_spec("curvlinops") is None:
        print("\ncurvlinops is not installed and is left out; it asks for torchvision: use a folder of its own.")
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import curvlinops

        blocks, vocabulary = text_blocks(64, 512)
        model = trained(gpt2(vocabulary, 64, 2), blocks[:-8], 300, 3e-3)
        tokens = blocks[-8:]
        truth = lanczos_truth(model, tokens, 16)
        operator, theirs = HessianOperator(model, tokens), peer_operator(curvlinops, model, tokens)
        vector = rademacher(operator.n, 0)
        products, _ = interleaved({"ours": lambda _: operator.matvec(vector), "theirs": lambda _: theirs @ vector})
        calls = {"curvlinops": lambda seed: curvlinops_signature(curvlinops, model, tokens, seed)}
        # ARPACK iterates beyond its tolerance: more steps are needed for errors like its own.
        calls |= {
            f"a residual of {k:.1%}": lambda seed, k=k: our_signature(model, tokens, seed, k) for k in (0.03, 0.003)
        }
        seconds, results = interleaved(calls, 3)
    errors = {name: relative_errors(found, truth) for name, found in results.items()}
    speed = {name: ratio(seconds["curvlinops"], times) for name, times in seconds.items()}
    cost = ratio(products["theirs"], products["ours"])
    rows = [[name, float(np.median(seconds[name])), speed[name], *errors[name].values()] for name in seconds]
    title = f"GPT-2 of {size_of(model)}, 8 × 64 tokens: a product by curvlinops takes {cost:.2f} times ours."
    head = "| signature | seconds | times curvlinops' speed | λ₁ | λ₂ | λ₃ |"
    return ["", title, "", *table(head, *(row[:6] for row in rows))]


def main() -> dict[str, Any]:
    """Every part; ratios of products, signatures and memory."""
    blocks, _ = text_blocks(BLOCK, VOCABULARY)
    lines, ratios, kept = [], {}, {}
    for hidden, layers, size, steps, probes, repetitions in MODELS:
        model = trained(llama(VOCABULARY, hidden, layers), blocks[:-size], steps, 3e-3)
        tokens, name = blocks[-size:], size_of(model)
        loss = mean_loss(model, tokens).item()
        truth = lanczos_truth(model, tokens, probes)
        costs, apart = products(model, tokens)
        found = signatures(model, tokens, truth, repetitions)
        lines += [f"{name}, {size} × {BLOCK} tokens, loss {loss:.2f}.", ""]
        rows = ([way, cost, apart.get(way, "")] for way, cost in costs.items() if way != "gradient")
        lines += table("| product | gradients | distance to ours, relative |", *rows)
        head = "| signature | seconds | times PyHessian's speed | times hessian-eigenthings' | λ₁ | λ₂ | λ₃ | σ |"
        lines += ["", *table(head, *([way, *row.values()] for way, row in found.items())), ""]
        count, times = of_parts(model, tokens)
        lines += [f"The signatures of its {count} parts take {times:.1f} times as long as that of the whole.", ""]
        ratios[f"signatures of {count} parts, {name}: time over the whole's"] = times
        kept[name] = {"products": costs, "apart": apart, "truth": truth, "signatures": found}
        own = found[OURS]
        ratios |= {
            f"product, {name}: time over PyHessian's": costs["ours"] / costs["PyHessian"],
            f"product, {name}: time over hessian-eigenthings'": costs["ours"] / costs["hessian-eigenthings"],
            f"signature, {name}: time over PyHessian's": 1 / own["speed"],
            f"signature, {name}: time over hessian-eigenthings'": 1 / own["speed over hessian-eigenthings"],
        }
        if hidden == MODELS[0][0]:
            by = traces(model, tokens, truth["trace"], repetitions)
            kept[name]["traces"] = by
            head = f"| tr H by {TRACE_PRODUCTS} products | seconds | error over seeds | stated standard error |"
            lines += [*table(head, *([way, *row] for way, row in by.items())), ""]
    if peaks := memory():
        title = f"{size_of(llama(32000, 320, 4))}, vocabulary 32000, 4 × 64 tokens"
        sizes = ", ".join(f"{side} {size:.2f} GiB" for side, size in peaks.items())
        lines += [f"Peak memory of a signature over the loaded model, {title}: {sizes}."]
        ratios["signature: peak memory over PyHessian's"] = peaks["ours"] / peaks["PyHessian"]
    return {"table": lines + against_curvlinops(), "models": kept, "ratios": ratios}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--peak", required=True)
    print(peak(parser.parse_args().peak))
