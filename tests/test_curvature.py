"""Products, Lanczos, widths and the published estimator against dense Hessians, known spectra, PyHessian."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev
from pyhessian import hessian
from scipy.integrate import trapezoid
from spectra import Rotated, signature_of, truths, vectors
from spectral_collapse import curvature
from spectral_collapse.curvature import HessianOperator, Quadrature, lanczos
from spectral_collapse.seeding import stable_seed
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCABULARY = 24
ROTARY = dict(
    hidden_size=12,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=16,
    initializer_range=0.3,
)
OPT = dict(
    hidden_size=12,
    word_embed_proj_dim=12,
    ffn_dim=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=16,
    dropout=0.3,
    init_std=0.3,
)
GPT2 = dict(
    n_embd=12,
    n_inner=16,
    n_layer=1,
    n_head=2,
    n_positions=16,
    resid_pdrop=0.3,
    embd_pdrop=0.3,
    attn_pdrop=0.3,
    initializer_range=0.3,
)
ARCHITECTURES = {
    "llama": (LlamaForCausalLM, LlamaConfig, ROTARY),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, ROTARY),
    "opt": (OPTForCausalLM, OPTConfig, OPT),
    "gpt2": (GPT2LMHeadModel, GPT2Config, GPT2),
}


def tiny(name: str, **changes):
    """A model of 1,000 to 2,000 parameters with large random weights, and frozen blocks (5, 9)."""
    model_class, config_class, shape = ARCHITECTURES[name]
    settings = {"vocab_size": VOCABULARY, "tie_word_embeddings": True, "attn_implementation": "eager"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = model_class(config_class(**settings | shape | changes, bos_token_id=0, eos_token_id=0))
        tokens = torch.randint(2, VOCABULARY, (5, 9))
    return model, tokens


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module")
def llama():
    """Tiny Llama, its blocks, and its dense Hessian (n, n) from a loss written out anew."""
    model, tokens = tiny("llama")
    model.eval()
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = flat.split([shape.numel() for shape in shapes])
        state = {name: piece.view(shape) for name, shape, piece in zip(names, shapes, pieces, strict=True)}
        logits = torch.func.functional_call(model, state, kwargs={"input_ids": tokens}).logits
        return -logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).mean()

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    dense = torch.autograd.functional.hessian(loss, flat, vectorize=True)
    return model, tokens, dense.double()


# Hessian products


def test_products_are_those_of_the_dense_hessian(llama):
    model, tokens, dense = llama
    operator = HessianOperator(model, tokens)
    assert operator.shape == tuple(dense.shape)
    probes = vectors(operator.n, 30)
    products = torch.stack([operator.matvec(probe) for probe in probes])
    assert relative_error(products.double(), probes.double() @ dense) < 1e-5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_products_are_symmetric(name):
    model, tokens = tiny(name)
    tokens[:, 4] = 1  # the token that OPT pads with
    operator = HessianOperator(model, tokens)
    for u, v in vectors(operator.n, 10).unflatten(0, (5, 2)):
        left, right = curvature.dot(u, operator.matvec(v)), curvature.dot(v, operator.matvec(u))
        assert left == pytest.approx(right, abs=1e-5 * (u.norm() * operator.matvec(v).norm()).item())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_products_are_differences_of_gradients(name):
    model, tokens = tiny(name)
    v = vectors(HessianOperator(model, tokens).n, 1)[0]
    product = HessianOperator(model, tokens).matvec(v)
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    def gradient(point: torch.Tensor) -> torch.Tensor:
        torch.nn.utils.vector_to_parameters(point, model.parameters())
        gradients = torch.autograd.grad(curvature.mean_loss(model, tokens), list(model.parameters()))
        return torch.cat([g.flatten() for g in gradients]).double()

    step = 2e-3 / v.abs().max()
    difference = (gradient(weights + step * v) - gradient(weights - step * v)) / (2 * step)
    assert relative_error(difference, product.double()) < 5e-3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_micro_batches_of_any_size_give_the_same_product(name):
    model, tokens = tiny(name)
    v = vectors(HessianOperator(model, tokens).n, 1)[0]
    expected = HessianOperator(model, tokens).matvec(v)
    for size in (1, 2, 4):  # 5 blocks: 2 and 4 leave a shorter last one
        assert relative_error(HessianOperator(model, tokens, micro_batch=size).matvec(v), expected) < 1e-5


def test_tied_weights_count_once_and_collect_the_products_of_both_uses():
    model, tokens = tiny("llama")
    untied, _ = tiny("llama", tie_word_embeddings=False)
    untied.load_state_dict(model.state_dict())
    tied_operator, untied_operator = HessianOperator(model, tokens), HessianOperator(untied, tokens)
    shared = model.get_input_embeddings().weight.numel()
    assert untied_operator.n - tied_operator.n == shared
    first, *_, last = [name for name, _ in untied.named_parameters()]
    assert (first, last) == ("model.embed_tokens.weight", "lm_head.weight")
    v = vectors(tied_operator.n, 1)[0]
    product = untied_operator.matvec(torch.cat([v, v[:shared]]))
    folded = product[: tied_operator.n].clone()
    folded[:shared] += product[tied_operator.n :]
    assert relative_error(tied_operator.matvec(v), folded) < 1e-5


@pytest.mark.parametrize(
    ("name", "rates"), [("opt", ["dropout"]), ("gpt2", ["resid_pdrop", "embd_pdrop", "attn_pdrop"])]
)
def test_dropout_is_off_even_in_a_model_that_was_training(name, rates):
    model, tokens = tiny(name)
    without, _ = tiny(name, **dict.fromkeys(rates, 0.0))
    v = vectors(HessianOperator(model, tokens).n, 1)[0]
    model.train()
    with_dropout = curvature.mean_loss(model, tokens).item()
    expected = HessianOperator(without, tokens).matvec(v)
    assert relative_error(HessianOperator(model, tokens).matvec(v), expected) < 1e-5
    assert with_dropout != curvature.mean_loss(without, tokens).item()


def test_dot_is_exact_where_no_float32_is():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 100, size=(2, 11_000_000))
    exact = int(x @ y)
    assert float(np.float32(exact)) != exact
    assert curvature.dot(torch.from_numpy(x).float(), torch.from_numpy(y).float()) == exact


# Lanczos


def spectrum(seed: int, n: int) -> np.ndarray:
    """A bulk near zero with tails, and a few outliers: a different shape for every seed."""
    rng = np.random.default_rng(seed)
    bulk = rng.standard_t(3, size=n) * rng.uniform(0.01, 1) + rng.normal()
    bulk[: rng.integers(0, 6)] += rng.normal(scale=30)
    return bulk


def test_full_order_gives_the_spectrum_and_the_weights_of_the_start():
    operator = Rotated(np.linspace(-2, 5, 25) + 0.1 * np.random.default_rng(1).normal(size=25))
    start = vectors(25, 1)[0].double()
    run = lanczos(operator.matvec, start, steps=60)
    np.testing.assert_allclose(run.nodes, operator.eigenvalues, atol=1e-12)
    np.testing.assert_allclose(run.weights, operator.measure(start), atol=1e-12)
    assert run.residuals.max() < 1e-10


def test_moments_are_exact_to_degree_2k_minus_1_and_no_further():
    operator = Rotated(np.random.default_rng(2).uniform(-1, 1, size=60))
    start = vectors(60, 1)[0].double()
    weights = operator.measure(start)
    for steps in (1, 2, 5, 8):
        run = lanczos(operator.matvec, start, steps)
        assert run.weights.sum() == pytest.approx(1, abs=1e-13)
        errors = [
            abs(
                run.weights @ chebyshev.Chebyshev.basis(degree)(run.nodes)
                - weights @ chebyshev.Chebyshev.basis(degree)(operator.eigenvalues)
            )
            for degree in range(2 * steps + 1)
        ]
        assert max(errors[:-1]) < 1e-12
        assert errors[-1] > 1e-4


def test_an_eigenvalue_lies_within_every_residual_bound():
    tight = []
    for seed in range(30):
        operator = Rotated(spectrum(seed, 80), seed)
        run = lanczos(operator.matvec, vectors(80, 1, seed)[0].double(), steps=12)
        distances = np.abs(run.nodes[:, None] - operator.eigenvalues).min(1)
        assert (distances <= run.residuals + 1e-12 * np.abs(run.nodes).max()).all()
        tight.append((run.residuals < 0.01 * np.abs(run.nodes).max()).any())
    assert np.mean(tight) > 0.9


def test_the_iteration_stops_when_the_krylov_space_is_exhausted():
    operator = Rotated(np.repeat([-1.0, 0.5, 4.0], [5, 30, 15]))
    start = vectors(50, 1)[0]
    for vector, tolerance in ((start, 1e-5), (start.double(), 1e-12)):
        run = lanczos(operator.matvec, vector, steps=20)
        np.testing.assert_allclose(run.nodes, [-1, 0.5, 4], atol=tolerance)
        expected = np.add.reduceat(operator.measure(start), [0, 5, 35])
        np.testing.assert_allclose(run.weights, expected, atol=tolerance)
    eigenvector = lanczos(operator.matvec, operator.rotation[:, 0] * 7, steps=20)
    np.testing.assert_allclose(eigenvector.nodes, [-1], atol=1e-12)
    assert lanczos(torch.zeros_like, start, steps=20).nodes.tolist() == [0.0]


def test_many_float32_steps_leave_no_copy_of_an_outlier():
    eigenvalues = np.append(np.random.default_rng(5).normal(size=395), [1000, 900, 800, 700, 600])
    operator = Rotated(eigenvalues)
    run = lanczos(operator.matvec, vectors(400, 1)[0], steps=60)
    np.testing.assert_allclose(run.nodes[run.nodes > 100], [600, 700, 800, 900, 1000], rtol=1e-5)


def test_a_product_that_is_not_finite_is_one_sentence():
    calls = []

    def diverging(vector: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return torch.arange(9.0) * (math.nan if len(calls) == 3 else 1) * vector

    with pytest.raises(ValueError, match=r"^the Hessian product is not finite at Lanczos step 2: .*\.$"):
        lanczos(diverging, torch.ones(9), steps=5)


def test_probes_are_signs_that_depend_on_all_parts_of_their_seed():
    probe = curvature.rademacher(10_000, 1, "probe", 0)
    assert probe.dtype == torch.float32
    assert set(probe.tolist()) == {-1.0, 1.0}
    assert abs(probe.mean().item()) < 0.05
    assert torch.equal(probe, curvature.rademacher(10_000, 1, "probe", 0))
    for other in ((2, "probe", 0), (1, "probe", 1)):
        assert abs((probe * curvature.rademacher(10_000, *other)).mean().item()) < 0.05


# Widths


def quantile(values: np.ndarray, weights: np.ndarray, level: float) -> float:
    order = np.argsort(values)
    return values[order][np.searchsorted(np.cumsum(weights[order]), level)]


def test_brackets_contain_the_quantiles_of_the_measure_that_the_probes_see():
    finite = []
    for seed in range(60):
        operator = Rotated(spectrum(seed, 70), seed)
        starts = vectors(70, 1 + seed % 3, seed).double()
        starts[:, 0] *= 1 + 10 * (seed % 2)
        measure = np.mean([operator.measure(start) for start in starts], axis=0)
        for steps in (2, 5, 15):
            runs = [lanczos(operator.matvec, start, steps) for start in starts]
            for level in (0.05, 0.25, 0.5, 0.75, 0.95):
                low, high = curvature.quantile_bracket(runs, level)
                truth = quantile(operator.eigenvalues, measure, level)
                slack = 1e-10 * np.abs(operator.eigenvalues).max()
                assert low - slack <= truth <= high + slack
                finite.append(math.isfinite(low) and math.isfinite(high))
    assert np.mean(finite) > 0.5


def test_brackets_reach_to_the_neighbouring_nodes_at_full_order():
    operator = Rotated(np.linspace(-3, 4, 40))
    start = vectors(40, 1)[0].double()
    run = lanczos(operator.matvec, start, steps=40)
    measure = operator.measure(start)
    for level in (0.25, 0.5, 0.75):
        index = np.searchsorted(np.cumsum(measure), level)
        expected = operator.eigenvalues[[index - 1, index + 1]]
        np.testing.assert_allclose(curvature.quantile_bracket([run], level), expected, atol=1e-10)


def test_a_quantile_that_no_node_bounds_is_unbounded():
    run = Quadrature(np.array([-1.0, 2.0]), np.array([0.4, 0.6]), np.zeros(2))
    assert curvature.quantile_bracket([run], 0.25) == (-math.inf, 2.0)
    assert curvature.quantile_bracket([run], 0.75) == (-1.0, math.inf)


def test_published_width_of_a_spike_is_half_the_gap_below_it():
    # Two nodes reported for SmolLM2-135M (design, section 4) interpolate to a width of 0.00888.
    nodes, weights = [-0.0157323, 0.00097995], [0.0587, 0.9413]
    extra_nodes, extra_weights = [-12.0, -0.4, 3.0, 80.0], [3e-6, 8e-6, 9e-6, 2e-6]
    for n, w in ((nodes, weights), (extra_nodes + nodes, extra_weights + weights)):
        assert round(curvature.interpolated_iqr(np.array(n), np.array(w)), 5) == 0.00888
    spike = curvature.interpolated_iqr(np.array([5.0, 0.0, -0.3, -7.0]), np.array([1e-9, 1.0, 1e-9, 1e-9]))
    assert spike == pytest.approx(0.15, rel=1e-6)


def test_published_ratio_is_zero_where_the_width_is_at_most_a_millionth():
    assert curvature.published_ratio(3.0, 1e-6) == 0.0
    assert curvature.published_ratio(3.0, 0.0) == 0.0
    assert curvature.published_ratio(3.0, 1.5e-6) == pytest.approx(2e6)
    assert curvature.published_ratio(-3.0, 1.5) == -2.0


def test_smoothed_density_integrates_to_one():
    operator = Rotated(np.random.default_rng(0).normal(size=100))
    runs = curvature.spectral_density(operator, steps=8, probes=3, seed=0)
    grid = np.linspace(-8, 8, 2001)
    nodes, weights = [run.nodes.tolist() for run in runs], [run.weights.tolist() for run in runs]
    density = curvature.smoothed_density(nodes, weights, grid, width=0.3)
    assert trapezoid(density, grid) == pytest.approx(1, abs=1e-6)
    mean = np.mean([run.weights @ run.nodes for run in runs])
    assert trapezoid(density * grid, grid) == pytest.approx(mean, abs=1e-6)


# The published estimator


def test_published_lambda_max_is_pyhessians_and_the_largest_in_absolute_value(llama):
    model, tokens, dense = llama
    eigenvalues = torch.linalg.eigvalsh(dense).numpy()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # what a training loop may have left
    state = torch.get_rng_state()
    run = lanczos(HessianOperator(model, tokens).matvec, curvature.rademacher(len(dense), 4), steps=20)
    found = curvature.published_signature(model, tokens, run, power_iterations=200, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())

    largest = eigenvalues[np.abs(eigenvalues).argmax()]
    assert found.published_lambda_max == pytest.approx(largest, rel=5e-3)

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, blocks):
            return self.model(input_ids=blocks).logits[:, :-1].reshape(-1, VOCABULARY)

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(stable_seed(4, "power iteration"))
        data = (tokens, tokens[:, 1:].reshape(-1))
        peer = hessian(Logits(), torch.nn.CrossEntropyLoss(), data=data, cuda=False)
        three, _ = peer.eigenvalues(maxIter=200, tol=1e-3, top_n=3)
        model.zero_grad()
    assert found.published_lambda_max == pytest.approx(max(three, key=abs), rel=1e-6)

    start = curvature.rademacher(len(dense), 4).double()
    exact = lanczos(lambda vector: dense @ vector, start, steps=20)
    width = curvature.interpolated_iqr(exact.nodes, exact.weights)
    assert found.published_iqr == pytest.approx(width, rel=1e-3)
    assert found.published_ratio == pytest.approx(found.published_lambda_max / width, rel=1e-3)


# Signatures


def test_signature_of_a_model_agrees_with_its_dense_spectrum(llama):
    model, tokens, dense = llama
    eigenvalues = torch.linalg.eigvalsh(dense).numpy()
    signature = signature_of(HessianOperator(model, tokens), steps=25, probes=40, seed=1)
    assert signature.parameters == len(eigenvalues)
    assert signature.lambda_max == pytest.approx(eigenvalues[-1], abs=signature.lambda_max_residual + 1e-4)
    assert signature.lambda_min == pytest.approx(eigenvalues[0], abs=signature.lambda_min_residual + 1e-4)
    count = len(signature.outliers)
    assert count >= 2
    outliers = eigenvalues[np.argsort(-np.abs(eigenvalues))[:count]]
    np.testing.assert_allclose(signature.outliers, np.sort(outliers)[::-1], rtol=0.01)
    for name, truth in truths(eigenvalues, count).items():
        error = getattr(signature, f"{name}_standard_error")
        assert abs(getattr(signature, name) - truth) < 4 * error, name
    assert signature.bulk_sigma_standard_error < 0.1 * signature.bulk_sigma
    assert signature.spectral_ratio == pytest.approx(math.exp(signature.log_spectral_ratio))
    low, high = np.quantile(eigenvalues, [0.25, 0.75])
    assert signature.iqr_bracket[0] < high - low < signature.iqr_bracket[1]


def test_both_signatures_fit_into_one_record_of_plain_numbers(llama):
    model, tokens, _ = llama
    operator = HessianOperator(model, tokens)
    runs = curvature.spectral_density(operator, steps=8, probes=2, seed=0)
    ours = curvature.spectral_signature(runs, operator.n)
    theirs = curvature.published_signature(model, tokens, runs[0], power_iterations=3, seed=0)
    first, second = curvature.as_result(ours), curvature.as_result(theirs)
    assert not first.keys() & second.keys()
    assert json.loads(json.dumps(first | second)) == first | second
